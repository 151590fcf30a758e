"""What every store does alike: all of `RunStore` over `Rows`. A database says how transactions begin and end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from runmeter.usage import COUNT_LIMIT
from runmeter_exporter.store import Looking, StoreUnavailable, Transaction, Watch, WriteResult, queries, waited_for
from runmeter_exporter.store import prune as pruning
from runmeter_exporter.store import verify as verifying
from runmeter_exporter.store.batch import Batch, BatchTransaction, held
from runmeter_exporter.store.rows import Rows, RunFilter, SourceRow, position
from runmeter_exporter.totals import answers, merge, questions
from runmeter_exporter.totals.answers import Scrape
from runmeter_exporter.totals.bounds import AHEAD, TAG_LIMIT, TIME_LIMIT, bound_tags, clean_id, clean_label
from runmeter_exporter.totals.rollup import Totals, pack
from runmeter_exporter.totals.run import Heartbeat, RunSnapshot, StoredRun
from runmeter_exporter.totals.shapes import DailyUsage, GrandUsage, Run, RunPage, ThreadPage, ThreadUsage

T = TypeVar("T")
STEP = 200
"""Runs changed in one transaction when many are ended or closed at once."""


class BaseRunStore(ABC):
    """`RunStore` over transactions of `Rows`."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock

    @abstractmethod
    def _reading(self) -> AbstractContextManager[Rows]:
        """A transaction that sees one moment and changes nothing."""

    @abstractmethod
    def _write(self, work: Callable[[Rows], T]) -> T:
        """`work` in a transaction, again from its start when the database asks for it."""

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Rows]:
        """A transaction that commits when the block ends, and undoes everything when it raises."""

    def pending(self) -> list[str]:
        """See RunStore."""
        return []

    def migrate(self) -> list[str]:
        """See RunStore."""
        return []

    def _refused(self, error: Exception) -> bool:
        """The database takes offence at a value: one of the rows is to blame, the rest is not."""
        return False

    # Writing.

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """See RunStore."""
        if not snapshots:
            return WriteResult()
        now = self._clock()
        snapshots = [_not_ahead(snapshot, now) for snapshot in snapshots]

        def work(rows: Rows) -> WriteResult:
            batch = Batch(rows)
            result = batch.apply(snapshots)
            batch.finish()
            return result

        try:
            return self._write(work)
        except Exception as error:
            if not self._refused(error):
                raise
        if len(snapshots) == 1:
            self._count("snapshots_dropped", "rejected")
            return WriteResult(refused={"rejected": 1})
        half = len(snapshots) // 2
        first, second = self.write(snapshots[:half]), self.write(snapshots[half:])
        refused = dict(first.refused)
        for reason, count in second.refused.items():
            refused[reason] = refused.get(reason, 0) + count
        return WriteResult(first.applied + second.applied, first.stale + second.stale, refused)

    def _count(self, family: str, label: str) -> None:
        def work(rows: Rows) -> None:
            batch = Batch(rows)
            batch.count(family, label, 1)
            batch.finish()

        self._write(work)

    def heartbeat(self, beats: Sequence[Heartbeat]) -> None:
        """See RunStore."""
        latest: dict[str, Heartbeat] = {}
        for beat in beats:
            source = clean_id(beat.source)
            if source not in latest or latest[source].beat < beat.beat:
                latest[source] = beat
        now = self._clock()

        def work(rows: Rows) -> None:
            known = rows.lock_sources(sorted(latest))
            totals = Totals(rows.grants(()))
            changed = []
            for source, beat in latest.items():
                row = known.get(source) or SourceRow(source, None, -1, {}, 0)
                if beat.beat <= row.beat:
                    continue
                counts = dict(row.counts)
                for (family, label), count in beat.counts.items():
                    key = (clean_label(family), clean_label(label))
                    more = min(int(count), COUNT_LIMIT) - counts.get(pack(key), 0)
                    if more > 0:
                        counts[pack(key)] = counts.get(pack(key), 0) + more
                        totals.add("count", key, more)
                service = clean_label(beat.service) if beat.service else row.service
                changed.append(SourceRow(source, service, beat.beat, counts, now))
            if changed:
                rows.save_sources(changed)
            if totals.rows:
                rows.add(held(totals), {})

        if latest:
            self._write(work)

    def end_run(self, run_id: str, status: str, stop_reason: str | None = None) -> bool:
        """See RunStore."""
        questions.check_terminal(status)
        reason = clean_label(stop_reason) if stop_reason else None
        at = self._clock()
        return bool(self._change([run_id], lambda run: merge.end(run, status, reason, at)))

    def orphan(self, source: str) -> int:
        """See RunStore."""
        source = clean_id(source)
        with self._reading() as rows:
            owned = rows.owned_by(source)
        return self._change(owned, lambda run: merge.orphan(run, source))

    def close(self, run_ids: Sequence[str]) -> None:
        """See RunStore."""
        self._change(run_ids, merge.close)

    def _change(self, run_ids: Sequence[str], how: Callable[[StoredRun], StoredRun]) -> int:
        changed = 0
        ids = sorted({clean_id(run_id) for run_id in run_ids})
        for start in range(0, len(ids), STEP):
            some = ids[start : start + STEP]

            def work(rows: Rows, some: Sequence[str] = some) -> int:
                batch = Batch(rows)
                batch.lock(some)
                count = sum([batch.change(run_id, how) for run_id in some])
                batch.finish()
                return count

            changed += self._write(work)
        return changed

    @contextmanager
    def transaction(self, run_ids: Sequence[str] = ()) -> Iterator[Transaction]:
        """See RunStore."""
        with self._writing() as rows:
            batch = Batch(rows)
            batch.lock(run_ids)
            yield BatchTransaction(batch)
            batch.finish()

    @contextmanager
    def looking(self) -> Iterator[Looking]:
        """See RunStore."""
        with self._reading() as rows:
            yield rows

    # Answers.

    def run(self, run_id: str) -> Run | None:
        """See RunStore."""
        with self._reading() as rows:
            run = rows.run(clean_id(run_id))
        return None if run is None else answers.run_answer(run)

    def runs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        thread_id: str | None = None,
        service: str | None = None,
        user_id: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        tags: Mapping[str, str] | None = None,
        start: str | None = None,
        end: str | None = None,
        order: str = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """See RunStore."""
        which = RunFilter(
            questions.check_statuses(status),
            clean_id(thread_id) if thread_id is not None else None,
            clean_label(service) if service is not None else None,
            clean_id(user_id) if user_id is not None else None,
            clean_label(agent) if agent is not None else None,
            clean_label(model) if model is not None else None,
            tuple(bound_tags(tags).items()) if tags else (),
            *questions.check_span(start, end),
        )
        if tags and len(tags) > TAG_LIMIT:
            raise questions.BadQuestion(f"{len(tags)} tags are asked for; a run has at most {TAG_LIMIT}")
        mark = None if questions.check_order(order) == "newest" else order
        after = questions.decode_cursor(cursor, mark)
        questions.check_limit(limit)
        with self._reading() as rows:
            page = rows.page_runs(which, limit + 1, after, order)
        last = page[limit - 1] if len(page) > limit else None
        place = None if last is None else (position(last, order), last.run_id)
        return {
            "runs": [answers.run_answer(run) for run in page[:limit]],
            "next_cursor": None if place is None else questions.encode_cursor(place, mark),
        }

    def runs_beginning(self, beginning: str, limit: int = 10) -> list[str]:
        """See RunStore."""
        questions.check_limit(limit)
        beginning = clean_id(beginning)
        if not beginning:
            return []
        with self._reading() as rows:
            return rows.ids_beginning(beginning, limit)

    def thread_usage(self, thread_id: str, include_active: bool = False) -> ThreadUsage:
        """See RunStore."""
        return self.thread_usages([thread_id], include_active)[0]

    def thread_usages(self, thread_ids: Sequence[str], include_active: bool = False) -> list[ThreadUsage]:
        """See RunStore."""
        with self._reading() as rows:
            return queries.thread_usages(rows, thread_ids, include_active)

    def threads(self, *, include_active: bool = False, limit: int = 50, cursor: str | None = None) -> ThreadPage:
        """See RunStore."""
        after = questions.decode_cursor(cursor)
        questions.check_limit(limit)
        with self._reading() as rows:
            return queries.threads(rows, limit, after, include_active)

    def usage(self, include_active: bool = False) -> GrandUsage:
        """See RunStore."""
        with self._reading() as rows:
            return queries.usage(rows, include_active)

    def usage_daily(
        self, *, start: str | None = None, end: str | None = None, group_by: Sequence[str] = ("day",)
    ) -> list[DailyUsage]:
        """See RunStore."""
        columns, tags = queries.check_groups(group_by)
        queries.check_days(start, end)
        with self._reading() as rows:
            found = rows.daily(start, end, columns)
        return queries.daily_answer(found, columns, tags, group_by)

    def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        """See RunStore."""
        with self._reading() as rows:
            scrape, raised = queries.scrape(rows, include_active, largest)
        if raised:
            # Where the database can be read but not written, the marks are raised in this answer alone.
            with suppress(StoreUnavailable):
                self._write(lambda rows: rows.raise_to(raised))
        return scrape

    def watch(self) -> Watch:
        """See RunStore."""
        with self._reading() as rows:
            runs = rows.open_headers()
            return Watch(rows.sources(waited_for(runs)), runs)

    # Keeping.

    def forget_sources(self, older_than_ns: int, *, batch: int = 500) -> int:
        """See RunStore."""
        if batch < 1:
            raise ValueError(f"a batch of {batch} sources removes nothing; give 1 or more")
        older_than = max(0, min(older_than_ns, TIME_LIMIT))
        removed, found = 0, [""] * batch
        while len(found) == batch:
            # Looked for where nobody is held up: there may be many more than are old.
            with self._reading() as rows:
                found = rows.old_sources(older_than, waited_for(rows.open_headers()), batch)
            if found:
                removed += self._write(lambda rows, found=found: rows.forget_sources(found, older_than))  # type: ignore[misc]
        return removed

    def prune(self, older_than_ns: int, *, batch: int = 500, forget_threads: bool = False) -> int:
        """See RunStore."""
        removed = pruning.prune(self._write, older_than_ns, batch, forget_threads)
        self.forget_sources(older_than_ns, batch=batch)
        return removed

    def prunable(self, older_than_ns: int) -> tuple[int, int]:
        """See RunStore."""
        with self._reading() as rows:
            return rows.count_prunable(max(0, min(older_than_ns, TIME_LIMIT))), rows.count_runs()

    def verify(self) -> list[str]:
        """See RunStore."""
        with self._reading() as rows:
            return verifying.verify(rows)


def _not_ahead(snapshot: RunSnapshot, now: int) -> RunSnapshot:
    """The snapshot, with no end later than now by more than clocks may differ. Its beginning is told from others' clock
    alone, and what is pruned goes by it: there it stays."""
    latest = now + AHEAD
    try:
        if max(snapshot.updated_at, snapshot.ended_at or 0) <= latest:
            return snapshot
        now = max(now, snapshot.started_at)
        ended_at = snapshot.ended_at if snapshot.ended_at is None else min(snapshot.ended_at, now)
        return replace(snapshot, updated_at=min(snapshot.updated_at, now), ended_at=ended_at)
    except TypeError:  # no snapshot at all; the merge says so
        return snapshot
