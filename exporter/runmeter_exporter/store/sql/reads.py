"""The half of `SqlRows` that reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, func, or_, select, text, tuple_

from runmeter.usage import Usage
from runmeter_exporter.store import OpenRun, paging
from runmeter_exporter.store.records import (
    open_run,
    put_cells,
    rollup_held,
    stored_run,
)
from runmeter_exporter.store.rows import RunFilter
from runmeter_exporter.store.sql import odd
from runmeter_exporter.store.sql.dialects import Dialect
from runmeter_exporter.store.sql.schema import COUNTERS, rollup, run_usage, runs, sources, usage_daily
from runmeter_exporter.store.sql.statements import Statements, summed
from runmeter_exporter.store.sql.steps import lacking
from runmeter_exporter.store.sql.stripes import SCOPES
from runmeter_exporter.totals.rollup import (
    EVERYTHING,
    DailyKey,
    Grants,
    Held,
    Part,
    Place,
)
from runmeter_exporter.totals.run import StoredRun

GRANTED = "l:"
"""Scope of the rows that say which label values were granted; the dimension is the label, the key the value."""
OPEN = text("is_open = 1")
_CHUNK = 1000


class SqlReads:
    """See Rows. `grants` is the store's own copy: what is granted is granted for good."""

    def __init__(
        self, connection: Connection, dialect: Dialect, statements: Statements, grants: Grants | None, minor: int
    ) -> None:
        self._connection = connection
        self._dialect = dialect
        self._statements = statements
        self._grants = grants
        self.minor = minor
        """Steps that the store has taken (`steps.py`): of later ones nothing may be there."""
        self.granted: Grants | None = None
        """The grants as this transaction leaves them, for the store to keep once it is committed."""
        self.saved: list[StoredRun] = []
        self.gone: list[str] = []
        self.beaten: list[str] = []
        """Runs and heartbeats that it changes; see `confirmed.py`."""

    def _fill(self, found: dict[str, StoredRun]) -> None:
        if found:
            put_cells(found, self._cells(list(found)))

    def _cells(self, ids: Sequence[str]) -> Sequence[Sequence[Any]]:
        return self._statements.cells_of.all(self._connection, self._dialect.list(ids))

    def _execute(self, statement: Any, **lists: Sequence[str]) -> Sequence[Sequence[Any]]:
        parameters = {name: self._dialect.list(values) for name, values in lists.items()}
        return self._connection.execute(statement, parameters).all()

    def run(self, run_id: str) -> StoredRun | None:
        """See Rows."""
        row = self._connection.execute(self._statements.run_of, {"run_id": run_id}).one_or_none()
        if row is None:
            return None
        found = {run_id: stored_run(row)}
        self._fill(found)
        return found[run_id]

    def page_runs(
        self, which: RunFilter, limit: int, after: tuple[int, str] | None, order: str = "newest"
    ) -> list[StoredRun]:
        """See Rows."""
        wanted = paging.page_runs(self._dialect, which, limit, after, order)
        found = {row[0]: stored_run(row) for row in self._connection.execute(wanted)}
        self._fill(found)
        return list(found.values())

    def ids_beginning(self, beginning: str, limit: int) -> list[str]:
        """See Rows."""
        wanted = select(runs.c.run_id).where(self._dialect.begins_with(runs.c.run_id, beginning))
        return [row[0] for row in self._connection.execute(
            wanted.order_by(runs.c.listed_at.desc(), runs.c.run_id.desc()).limit(limit)
        )]  # fmt: skip

    def open_runs(self, thread_ids: Sequence[str] | None = None) -> list[StoredRun]:
        """See Rows."""
        wanted = select(runs).where(OPEN)
        found: dict[str, StoredRun] = {}
        if thread_ids is None:
            rows = self._connection.execute(wanted).all()
            cells: Iterable[Sequence[Any]] = self._connection.execute(
                select(run_usage).where(run_usage.c.run_id.in_(select(runs.c.run_id).where(OPEN)))
            )
        else:
            rows = self._connection.execute(
                wanted.where(self._dialect.among(runs.c.thread_id, "ids")), {"ids": self._dialect.list(thread_ids)}
            ).all()
            if not rows:
                return []
            cells = self._cells([row[0] for row in rows])
        found = {row[0]: stored_run(row) for row in rows}
        put_cells(found, cells)
        return list(found.values())

    def versions(self, run_ids: Sequence[str]) -> dict[str, int]:
        """The versions of those runs that exist."""
        wanted = select(runs.c.run_id, runs.c.version).where(self._dialect.among(runs.c.run_id, "ids"))
        return {row[0]: row[1] for row in self._execute(wanted, ids=run_ids)}

    def open_count(self) -> tuple[int, int | None]:
        """See Rows."""
        number, oldest = self._connection.execute(self._statements.open_count).one()
        return int(number), oldest

    def open_headers(self) -> list[OpenRun]:
        """See Rows."""
        columns = (runs.c.run_id, runs.c.version, runs.c.usage_state, runs.c.owner, runs.c.ended_by, runs.c.sources)
        return [open_run(*row) for row in self._connection.execute(select(*columns).where(OPEN))]

    def owned_by(self, source: str) -> list[str]:
        """See Rows."""
        columns = (runs.c.run_id, runs.c.owner, runs.c.sources)
        wanted = select(*columns).where(OPEN, runs.c.usage_state == "active")
        found = self._connection.execute(wanted.where(or_(runs.c.owner == source, runs.c.owner.is_(None))))
        return [run_id for run_id, owner, states in found if owner == source or source in json.loads(states)]

    def sources(self, wanted: Sequence[str]) -> list[tuple[str, int]]:
        """See Rows."""
        if not wanted:
            return []
        return [(source, beat) for source, beat in self._execute(self._statements.beats_of, ids=wanted)]

    def old_sources(self, older_than: int, keep: Sequence[str], limit: int) -> list[str]:
        """See Rows."""
        others = ~self._dialect.among(sources.c.source, "ids")
        wanted = select(sources.c.source).where(sources.c.updated_at < older_than, others).limit(limit)
        return [row[0] for row in self._execute(wanted, ids=keep)]

    def rollup(self, scope: str) -> dict[Part, Held]:
        """See Rows."""
        if scope == EVERYTHING:
            rows = self._connection.execute(self._statements.everything)
        else:
            rows = self._connection.execute(self._statements.rollup_of, {"scope": scope})
        return {part: held for _, part, held in map(rollup_held, rows)}

    def rollups(self, scopes: Sequence[str]) -> dict[str, dict[Part, Held]]:
        """See Rows."""
        found: dict[str, dict[Part, Held]] = {}
        if len(scopes) == 1:
            rows = self.rollup(scopes[0])
            return {scopes[0]: rows} if rows else {}
        for scope, part, held in map(rollup_held, self._execute(self._statements.rollups_of, scopes=scopes)):
            found.setdefault(scope, {})[part] = held
        return found

    def totals(self, scopes: Sequence[str]) -> dict[str, Usage]:
        """See Rows."""
        return {row[0]: Usage(*row[1:]) for row in self._execute(self._statements.totals_of, scopes=scopes)}

    def page_threads(self, limit: int, after: tuple[int, str] | None) -> list[tuple[str, int]]:
        """See Rows."""
        wanted = select(rollup.c.scope, rollup.c.updated_at).where(
            text("dimension = 'total'"), rollup.c.scope >= "t:", rollup.c.scope < "t;"
        )
        if after is not None:
            wanted = wanted.where(tuple_(rollup.c.updated_at, rollup.c.scope) < tuple_(after[0], "t:" + after[1]))
        wanted = wanted.order_by(rollup.c.updated_at.desc(), rollup.c.scope.desc()).limit(limit)
        return [(scope[2:], at) for scope, at in self._connection.execute(wanted)]

    def daily(self, start: str | None, end: str | None, columns: Sequence[str]) -> list[tuple[tuple[str, ...], Usage]]:
        """See Rows."""
        groups = [usage_daily.c[name] for name in columns]
        sums = [summed(usage_daily.c[name]) for name in COUNTERS]
        wanted = select(*groups, *sums).group_by(*groups)
        if start is not None:
            wanted = wanted.where(usage_daily.c.day >= start)
        if end is not None:
            wanted = wanted.where(usage_daily.c.day <= end)
        rows = self._connection.execute(wanted)
        width = len(groups)
        return [(tuple(row[:width]), Usage(*row[width:])) for row in rows if row[width] is not None]

    def prunable(self, older_than: int, limit: int) -> list[str]:
        """See Rows."""
        wanted = select(runs.c.run_id).where(text("is_open = 0"), runs.c.updated_at < older_than)
        return [row[0] for row in self._connection.execute(wanted.order_by(runs.c.updated_at).limit(limit))]

    def count_prunable(self, older_than: int) -> int:
        """See Rows."""
        return self._count(text("is_open = 0"), runs.c.updated_at < older_than)

    def count_runs(self) -> int:
        """See Rows."""
        return self._count()

    def _count(self, *which: Any) -> int:
        return int(self._connection.execute(select(func.count()).select_from(runs).where(*which)).scalar_one())

    def odd(self) -> tuple[list[str], list[str]]:
        """See Rows."""
        types = [] if self._dialect.keeps_types else list(odd.odd_types(self._connection, lacking(self.minor)))
        return types, [] if types else list(odd.odd_rows(self._connection))

    def unreadable(self) -> list[str]:
        """See Rows."""
        return list(odd.unreadable(self._connection))

    def every_run(self) -> Iterator[StoredRun]:
        """See Rows."""
        last = ""
        while True:
            page = select(runs).where(runs.c.run_id > last).order_by(runs.c.run_id).limit(_CHUNK)
            found = {row[0]: stored_run(row) for row in self._connection.execute(page)}
            if not found:
                return
            self._fill(found)
            last = max(found)
            yield from found.values()

    def every_rollup(self) -> Iterator[tuple[Place, Held]]:
        """See Rows."""
        for part, held in self.rollup(EVERYTHING).items():
            yield (EVERYTHING, *part), held
        apart = (*SCOPES, GRANTED)
        for row in self._connection.execute(select(rollup).where(rollup.c.scope.not_in(apart))):
            scope, (dimension, key), held = rollup_held(row)
            yield (scope, dimension, key), held

    def every_daily(self) -> Iterator[tuple[DailyKey, Usage]]:
        """See Rows."""
        groups = [usage_daily.c[name] for name in DailyKey._fields]
        wanted = select(*groups, *[summed(usage_daily.c[name]) for name in COUNTERS]).group_by(*groups)
        for row in self._connection.execute(wanted):
            yield DailyKey(*row[: len(groups)]), Usage(*row[len(groups) :])
