"""`MemoryRunStore`: the same algorithm over dicts, for tests, trials and whoever needs no durability."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from runmeter.usage import ZERO, Usage
from runmeter_exporter.store import OpenRun
from runmeter_exporter.store.base import BaseRunStore
from runmeter_exporter.store.memory.ledger import MemoryLedger
from runmeter_exporter.store.rows import Rows, RunFilter, SourceRow, position
from runmeter_exporter.totals.rollup import PRUNED, DailyKey, Grants, Held, Part, Place, thread_scope
from runmeter_exporter.totals.run import StoredRun

T = TypeVar("T")


class MemoryRows:
    """The tables as dicts. One transaction at a time; `undo` takes back what the last one did."""

    def __init__(self, label_limit: int) -> None:
        self._runs: dict[str, StoredRun] = {}
        self.ledger = MemoryLedger(self._runs)
        self.alone = True
        self._open: dict[str, StoredRun] = {}
        self._rollup: dict[str, dict[Part, Held]] = {}
        self._daily: dict[DailyKey, Usage] = {}
        self._sources: dict[str, SourceRow] = {}
        self._granted: dict[tuple[str, str], None] = {}
        self._label_limit = label_limit
        self._grants = Grants(limit=label_limit)
        self._meta = {"horizon": 0}
        self._log: list[tuple[dict[Any, Any], Any, Any]] = []

    def begin(self) -> None:
        """From here on `undo` takes back."""
        self._log.clear()
        self.ledger.begin()

    def undo(self) -> None:
        """Everything as it was at `begin`."""
        for table, key, old in reversed(self._log):
            if old is None:
                table.pop(key, None)
            else:
                table[key] = old
        self._log.clear()
        self._grants = Grants(self._granted, self._label_limit)
        self.ledger.undo()

    def _set(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        self._log.append((table, key, table.get(key)))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    def lock(self, run_ids: Iterable[str]) -> dict[str, StoredRun]:
        """See Rows."""
        return {run_id: self._runs[run_id] for run_id in run_ids if run_id in self._runs}

    def horizon(self) -> int:
        """See Rows."""
        return self._meta["horizon"]

    def set_horizon(self, horizon: int) -> None:
        """See Rows."""
        self._set(self._meta, "horizon", max(horizon, self._meta["horizon"]))

    def save(self, changes: Sequence[tuple[StoredRun | None, StoredRun]]) -> None:
        """See Rows."""
        for _, run in changes:
            self._set(self._runs, run.run_id, run)
            self._set(self._open, run.run_id, None if run.closed else run)

    def discard(self, run_ids: Sequence[str]) -> None:
        """See Rows."""
        for run_id in run_ids:
            self._set(self._runs, run_id, None)
            self._set(self._open, run_id, None)

    def touch_threads(self, threads: Mapping[str, int]) -> int:
        """See Rows."""
        new = 0
        for thread_id, at in threads.items():
            scope = self._scope(thread_scope(thread_id))
            held = scope.get(("total", ()))
            new += held is None
            held = held or Held()
            self._set(scope, ("total", ()), held._replace(updated_at=max(held.updated_at, at)))
        return new

    def forget_threads(self, older_than: int, limit: int) -> int:
        """See Rows."""
        with_runs = {run.thread_id for run in self._runs.values()}
        forgotten = [
            scope
            for scope, rows in self._rollup.items()
            if scope.startswith("t:")
            and scope[2:] not in with_runs
            and ("total", ()) in rows
            and rows["total", ()].updated_at < older_than
        ][:limit]
        for scope in forgotten:
            self._set(self._rollup, scope, None)
            self._set(self._rollup, PRUNED + scope, None)
        return len(forgotten)

    def grants(self, wanted: Sequence[tuple[str, str]]) -> Grants:
        """See Rows."""
        for grant in self._grants.choose(wanted):
            self._log.append((self._granted, grant, None))
            self._granted[grant] = None
        return self._grants

    def touch(self, places: Iterable[Place]) -> None:
        """See Rows."""
        for scope, dimension, key in places:
            rows = self._scope(scope)
            if (dimension, key) not in rows:
                self._set(rows, (dimension, key), Held())

    def add(self, rows: Mapping[Place, Held], daily: Mapping[DailyKey, Usage]) -> None:
        """See Rows."""
        for (scope, dimension, key), more in rows.items():
            table = self._scope(scope)
            held = table.get((dimension, key), Held())
            now = Held(held.number + more.number, held.usage + more.usage, max(held.updated_at, more.updated_at))
            self._set(table, (dimension, key), now)
        for day, usage in daily.items():
            self._set(self._daily, day, self._daily.get(day, ZERO) + usage)

    def raise_to(self, rows: Mapping[Place, Usage]) -> None:
        """See Rows."""
        for (scope, dimension, key), usage in rows.items():
            table = self._scope(scope)
            held = table.get((dimension, key), Held())
            self._set(table, (dimension, key), held._replace(usage=held.usage.at_least(usage)))

    def lock_sources(self, sources: Iterable[str]) -> dict[str, SourceRow]:
        """See Rows."""
        return {source: self._sources[source] for source in sources if source in self._sources}

    def save_sources(self, rows: Iterable[SourceRow]) -> None:
        """See Rows."""
        for row in rows:
            self._set(self._sources, row.source, row)

    def forget_sources(self, wanted: Sequence[str], older_than: int) -> int:
        """See Rows."""
        old = [row for row in self.lock_sources(wanted).values() if row.updated_at < older_than]
        for row in old:
            self._set(self._sources, row.source, None)
        return len(old)

    def run(self, run_id: str) -> StoredRun | None:
        """See Rows."""
        return self._runs.get(run_id)

    def page_runs(
        self, which: RunFilter, limit: int, after: tuple[int, str] | None, order: str = "newest"
    ) -> list[StoredRun]:
        """See Rows."""
        wanted = which.columns.items()
        found = [
            ((position(run, order), run.run_id), run)
            for run in self._runs.values()
            if (which.statuses is None or run.status in which.statuses)
            and all(getattr(run, name) == value for name, value in wanted)
            and (which.model is None or any(key.model == which.model for _, key in run.cells))
            and all(run.tags.get(key) == value for key, value in which.tags)
            and (which.start is None or run.listed_at >= which.start)
            and (which.end is None or run.listed_at < which.end)
        ]
        upward = order == "oldest"
        found.sort(key=lambda pair: pair[0], reverse=not upward)
        if after is not None:
            found = [pair for pair in found if (pair[0] > after if upward else pair[0] < after)]
        return [run for _, run in found[:limit]]

    def ids_beginning(self, beginning: str, limit: int) -> list[str]:
        """See Rows."""
        found = [(run.listed_at, run.run_id) for run in self._runs.values() if run.run_id.startswith(beginning)]
        return [run_id for _, run_id in sorted(found, reverse=True)[:limit]]

    def open_runs(self, thread_ids: Sequence[str] | None = None) -> list[StoredRun]:
        """See Rows."""
        return [run for run in self._open.values() if thread_ids is None or run.thread_id in thread_ids]

    def open_count(self) -> tuple[int, int | None]:
        """See Rows."""
        return len(self._open), min((run.started_at for run in self._open.values()), default=None)

    def open_headers(self) -> list[OpenRun]:
        """See Rows."""
        return [OpenRun(*run.watched()) for run in self._open.values()]

    def owned_by(self, source: str) -> list[str]:
        """See Rows."""
        return [
            run.run_id
            for run in self._open.values()
            if run.usage_state == "active" and (run.owner == source or (run.owner is None and source in run.sources))
        ]

    def sources(self, wanted: Sequence[str]) -> list[tuple[str, int]]:
        """See Rows."""
        return [(source, self._sources[source].beat) for source in wanted if source in self._sources]

    def old_sources(self, older_than: int, keep: Sequence[str], limit: int) -> list[str]:
        """See Rows."""
        kept = set(keep)
        old = (row.source for row in self._sources.values() if row.updated_at < older_than and row.source not in kept)
        return list(islice(old, limit))

    def rollup(self, scope: str) -> dict[Part, Held]:
        """See Rows."""
        return dict(self._rollup.get(scope, {}))

    def rollups(self, scopes: Sequence[str]) -> dict[str, dict[Part, Held]]:
        """See Rows."""
        return {scope: dict(self._rollup[scope]) for scope in scopes if scope in self._rollup}

    def totals(self, scopes: Sequence[str]) -> dict[str, Usage]:
        """See Rows."""
        return {
            scope: self._rollup[scope]["total", ()].usage
            for scope in scopes
            if ("total", ()) in self._rollup.get(scope, {})
        }

    def page_threads(self, limit: int, after: tuple[int, str] | None) -> list[tuple[str, int]]:
        """See Rows."""
        found = [
            (rows["total", ()].updated_at, scope[2:])
            for scope, rows in self._rollup.items()
            if scope.startswith("t:") and ("total", ()) in rows
        ]
        page = sorted((row for row in found if after is None or row < after), reverse=True)[:limit]
        return [(thread_id, at) for at, thread_id in page]

    def daily(self, start: str | None, end: str | None, columns: Sequence[str]) -> list[tuple[tuple[str, ...], Usage]]:
        """See Rows."""
        groups: dict[tuple[str, ...], Usage] = defaultdict(Usage)
        for key, usage in self._daily.items():
            if (start is None or key.day >= start) and (end is None or key.day <= end):
                groups[tuple(getattr(key, column) for column in columns)] += usage
        return list(groups.items())

    def prunable(self, older_than: int, limit: int) -> list[str]:
        """See Rows."""
        found = [run.run_id for run in self._runs.values() if run.closed and run.updated_at < older_than]
        return found[:limit]

    def count_prunable(self, older_than: int) -> int:
        """See Rows."""
        return len(self.prunable(older_than, len(self._runs)))

    def count_runs(self) -> int:
        """See Rows."""
        return len(self._runs)

    def odd(self) -> tuple[list[str], list[str]]:
        """See Rows."""
        return [], []

    def unreadable(self) -> list[str]:
        """See Rows."""
        return []

    def every_run(self) -> Iterator[StoredRun]:
        """See Rows."""
        return iter(self._runs.values())

    def every_rollup(self) -> Iterator[tuple[Place, Held]]:
        """See Rows."""
        for scope, rows in self._rollup.items():
            for (dimension, key), held in rows.items():
                yield (scope, dimension, key), held

    def every_daily(self) -> Iterator[tuple[DailyKey, Usage]]:
        """See Rows."""
        return iter(self._daily.items())

    def _scope(self, scope: str) -> dict[Part, Held]:
        if scope not in self._rollup:
            # An empty scope is not an answer, so making one needs no undoing.
            self._rollup[scope] = {}
        return self._rollup[scope]


class MemoryRunStore(BaseRunStore):
    """A store that lives and ends with its process. Safe for threads; one transaction at a time."""

    def __init__(self, *, label_limit: int = 100, **options: Any) -> None:
        super().__init__(**options)
        self._rows = MemoryRows(label_limit)
        self._lock = threading.RLock()

    @property
    def url_for_humans(self) -> str:
        """See RunStore."""
        return "memory://"

    @contextmanager
    def _reading(self) -> Iterator[MemoryRows]:
        with self._lock:
            yield self._rows

    @contextmanager
    def _writing(self) -> Iterator[MemoryRows]:
        with self._lock:
            self._rows.begin()
            try:
                yield self._rows
            except BaseException:
                self._rows.undo()
                raise

    def release(self) -> None:
        """See RunStore."""

    def dispose(self) -> None:
        """See RunStore."""

    def _write(self, work: Callable[[Rows], T]) -> T:
        with self._writing() as rows:
            return work(rows)
