"""The one path that writes, whatever the door and whatever the database: lock, merge, persist, add up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from runmeter_exporter.store import WriteResult
from runmeter_exporter.store.rows import Rows
from runmeter_exporter.totals import merge
from runmeter_exporter.totals.bounds import clean_id
from runmeter_exporter.totals.rollup import EVERYTHING, Held, Place, Totals, series_key, wanted_labels
from runmeter_exporter.totals.run import RunSnapshot, StoredRun

if TYPE_CHECKING:
    from runmeter_exporter.store.ledger_row import Ledger


class Batch:
    """What one transaction does to runs. Nothing is persisted before `finish`."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._before: dict[str, StoredRun] = {}
        self._locked: set[str] = set()
        self._deleted: list[StoredRun] = []
        self._counts: dict[tuple[str, str], int] = {}
        self._horizon: int | None = None
        self.runs: dict[str, StoredRun] = {}

    @property
    def rows(self) -> Rows:
        """The transaction."""
        return self._rows

    def lock(self, run_ids: Iterable[str]) -> None:
        """Lock runs that are not locked yet."""
        more = sorted({clean_id(run_id) for run_id in run_ids} - self._locked)
        if more:
            found = self._rows.lock(more)
            self._locked.update(more)
            self._before.update(found)
            self.runs.update(found)

    def apply(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """Merge snapshots, in their order."""
        applied = stale = 0
        refused: dict[str, int] = {}
        usable: list[tuple[str, RunSnapshot]] = []
        for snapshot in snapshots:
            try:
                usable.append((clean_id(snapshot.run_id), snapshot))
            except (TypeError, ValueError, AttributeError):
                refused["malformed"] = refused.get("malformed", 0) + 1
        self.lock([run_id for run_id, _ in usable])
        for run_id, snapshot in usable:
            stored = self.runs.get(run_id)
            try:
                if self._is_of_a_pruned_run(stored, snapshot):
                    refused["pruned"] = refused.get("pruned", 0) + 1
                    continue
                merged = merge.merge(stored, snapshot)
            except (TypeError, ValueError, AttributeError):
                refused["malformed"] = refused.get("malformed", 0) + 1
                continue
            if merged is stored:
                stale += 1
            else:
                self.runs[run_id] = merged
                applied += 1
        for reason, count in refused.items():
            self.count("snapshots_dropped", reason, count)
        return WriteResult(applied, stale, refused)

    def count(self, family: str, label: str, count: int) -> None:
        """Count something the store itself lost."""
        self._counts[(family, label)] = self._counts.get((family, label), 0) + count

    def change(self, run_id: str, how: Callable[[StoredRun], StoredRun]) -> bool:
        """Change one locked run; whether anything changed."""
        stored = self.runs.get(run_id)
        if stored is None:
            return False
        changed = how(stored)
        self.runs[run_id] = changed
        return changed is not stored

    def delete(self, run_id: str) -> bool:
        """Remove a locked run of which the settled totals hold nothing."""
        self.lock([run_id])
        run_id = clean_id(run_id)
        run = self.runs.get(run_id)
        if run is None or run.counted_status is not None:
            return False
        del self.runs[run_id]
        before = self._before.get(run_id)
        if before is not None:
            self._deleted.append(before)
        return True

    def finish(self) -> None:
        """Persist all of it."""
        before, runs, rows = self._before, self.runs, self._rows
        changes: list[tuple[StoredRun | None, StoredRun]] = []
        threads: dict[str, int] = {}
        wanted: dict[tuple[str, str], None] = {}
        for run_id in sorted(runs):
            run, was = runs[run_id], before.get(run_id)
            if run is was:
                continue
            changes.append((was, run))
            for label in wanted_labels(run, was):
                wanted[label] = None
            if run.thread_id is not None and (
                was is None or was.thread_id is None or run.counted_status != was.counted_status
            ):
                threads[run.thread_id] = max(threads.get(run.thread_id, 0), run.updated_at)
        gone = [run.run_id for run in self._deleted if run.run_id not in runs]
        # Rows made only to be locked are no runs.
        empty = [run_id for run_id in self._locked if run_id not in runs and run_id not in before]
        if changes:
            rows.save(changes)
        if gone or empty:
            rows.discard(sorted(gone + empty))
        self._add_up(changes, threads, list(wanted))

    def _add_up(
        self,
        changes: Sequence[tuple[StoredRun | None, StoredRun]],
        threads: Mapping[str, int],
        wanted: Sequence[tuple[str, str]],
    ) -> None:
        rows = self._rows
        new_threads = rows.touch_threads(threads) if threads else 0
        if not (changes or self._counts or self._deleted):
            return
        # Threads' rows are locked before grants, grants before the rows of everything: nobody waits in a circle.
        totals = Totals(rows.grants(wanted))
        for was, run in changes:
            totals.change(was, run)
        for run in self._deleted:
            totals.prune(run)
        if new_threads:
            totals.add("threads", (), new_threads)
        for (family, label), count in self._counts.items():
            totals.add("count", (family, label), count)
        if wanted:
            rows.touch(_new_series(changes, totals))
        if totals.rows or totals.daily:
            rows.add(held(totals), totals.daily)

    def _is_of_a_pruned_run(self, stored: StoredRun | None, snapshot: RunSnapshot) -> bool:
        """The snapshot is older than what was pruned, and its run is gone, or another one since that has its id."""
        if stored is None:
            return snapshot.started_at < self._pruned_before()
        if snapshot.source in stored.sources:
            return False
        return snapshot.started_at < self._pruned_before() <= stored.started_at

    def _pruned_before(self) -> int:
        # Read after the rows are locked: pruning raises it before it deletes.
        if self._horizon is None:
            self._horizon = self._rows.horizon()
        return self._horizon


def held(totals: Totals) -> dict[Place, Held]:
    """The rows of a batch as `Rows.add` takes them."""
    return {place: Held(*row) for place, row in totals.rows.items()}  # type: ignore[arg-type]


def _new_series(changes: Sequence[tuple[StoredRun | None, StoredRun]], totals: Totals) -> set[Place]:
    """Scrape series of cells that are new: they appear at 0 before their first increment."""
    places: set[Place] = set()
    for was, run in changes:
        known = was.cells if was is not None and was.service == run.service else {}
        for place in run.cells:
            if place not in known:
                _, provider, model, caller = place[1]
                raw = series_key(provider, model, caller, run.service)
                places.add((EVERYTHING, "series", totals.grants.map("series", raw)))
    return places


class BatchTransaction:
    """`Transaction` over a batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    @property
    def runs(self) -> dict[str, StoredRun]:
        """The locked runs that exist, as they are now."""
        return self._batch.runs

    @property
    def ledger(self) -> Ledger:
        """Door 2's spans, in this transaction."""
        return self._batch.rows.ledger

    @property
    def alone(self) -> bool:
        """No other transaction is under way."""
        return self._batch.rows.alone

    def lock(self, run_ids: Sequence[str]) -> None:
        """Lock more runs."""
        self._batch.lock(run_ids)

    def apply(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """Merge the snapshots."""
        return self._batch.apply(snapshots)

    def close(self, run_ids: Sequence[str]) -> None:
        """Settle locked runs."""
        for run_id in run_ids:
            self._batch.change(run_id, merge.close)

    def delete_run(self, run_id: str) -> bool:
        """Remove a run that the settled totals hold nothing of."""
        return self._batch.delete(run_id)
