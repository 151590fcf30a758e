"""`SqlRows`: the tables of `schema.py` as `Rows`, in one transaction of a connection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, Connection, cast, delete, func, or_, select, text, tuple_, update

from runmeter.usage import ZERO, Usage
from runmeter_exporter.dialects import Dialect
from runmeter_exporter.ledger import SqlLedger
from runmeter_exporter.records import (
    cell_id,
    cell_record,
    daily_record,
    open_run,
    put_cells,
    rollup_held,
    rollup_record,
    run_record,
    stored_run,
)
from runmeter_exporter.rollup import (
    EVERYTHING,
    PRUNED,
    DailyKey,
    Grants,
    Held,
    Part,
    Place,
    thread_scope,
    unpack,
)
from runmeter_exporter.rows import RunFilter, SourceRow
from runmeter_exporter.run import StoredRun
from runmeter_exporter.schema import COUNTERS, meta, rollup, run_usage, runs, sources, usage_daily
from runmeter_exporter.statements import Statements
from runmeter_exporter.store import OpenRun

if TYPE_CHECKING:
    from runmeter_exporter.ledger_row import Ledger

GRANTED = "l:"
"""Scope of the rows that say which label values were granted; the dimension is the label, the key the value."""
_OPEN = text("is_open = 1")
_CHUNK = 1000


class SqlRows:
    """See Rows. `grants` is the store's own copy: what is granted is granted for good."""

    def __init__(self, connection: Connection, dialect: Dialect, statements: Statements, grants: Grants | None) -> None:
        self._connection = connection
        self._dialect = dialect
        self._statements = statements
        self._grants = grants
        self.granted: Grants | None = None
        """The grants as this transaction leaves them, for the store to keep once it is committed."""

    @property
    def ledger(self) -> Ledger:
        """See Rows."""
        return SqlLedger(self._connection)

    def lock(self, run_ids: Iterable[str]) -> dict[str, StoredRun]:
        """See Rows."""
        ids = sorted(run_ids)
        found = self._locked(ids)
        if self._dialect.locks_rows and len(found) < len(ids):
            missing = [run_id for run_id in ids if run_id not in found]
            # Twice at most in practice: a run made by somebody else meanwhile is locked, one removed is made again.
            while missing:
                made = {row[0] for row in self._execute(self._statements.runs_made, ids=missing)}
                others = [run_id for run_id in missing if run_id not in made]
                more = self._locked(others) if others else {}
                found.update(more)
                missing = [run_id for run_id in others if run_id not in more]
        self._fill(found)
        return found

    def _locked(self, ids: Sequence[str]) -> dict[str, StoredRun]:
        return {row[0]: stored_run(row) for row in self._execute(self._statements.runs_locked, ids=ids)}

    def _fill(self, found: dict[str, StoredRun]) -> None:
        if found:
            put_cells(found, self._execute(self._statements.cells_of, ids=list(found)))

    def _execute(self, statement: Any, **lists: Sequence[str]) -> Sequence[Sequence[Any]]:
        parameters = {name: self._dialect.list(values) for name, values in lists.items()}
        return self._connection.execute(statement, parameters).all()

    def horizon(self) -> int:
        """See Rows."""
        return int(self._connection.execute(self._statements.meta_value, {"name_": "horizon"}).scalar() or 0)

    def set_horizon(self, horizon: int) -> None:
        """See Rows."""
        before = self._connection.execute(self._statements.meta_locked, {"name_": "horizon"}).scalar() or 0
        if horizon > int(before):
            self._connection.execute(update(meta).where(meta.c.name == "horizon").values(value=str(horizon)))

    def save(self, changes: Sequence[tuple[StoredRun | None, StoredRun]]) -> None:
        """See Rows."""
        new, known, whole, usage, gone = [], [], [], [], []
        made = self._dialect.locks_rows
        for was, run in changes:
            if was is None and not made:
                new.append(run_record(run))
            else:
                known.append(run_record(run))
            before: Mapping[Any, Any] = was.cells if was is not None else {}
            run_id = run.run_id
            if run.cells is before:
                continue
            for place, cell in run.cells.items():
                old = before.get(place)
                if old is cell:
                    continue
                if old is None or old.settled != cell.settled:
                    whole.append(cell_record(run_id, place, cell))
                else:
                    usage.append((run_id, cell_id(*place), *cell.usage))
            gone += [(run_id, cell_id(*place)) for place in before if place not in run.cells]
        statements, connection = self._statements, self._connection
        statements.run_insert.many(connection, new)
        statements.run_update.many(connection, known)
        statements.cell_upsert.many(connection, whole)
        statements.cell_update.many(connection, usage)
        statements.cell_delete.many(connection, gone)

    def discard(self, run_ids: Sequence[str]) -> None:
        """See Rows."""
        ids = {"ids": self._dialect.list(run_ids)}
        self._connection.execute(self._statements.runs_deleted, ids)
        self._connection.execute(self._statements.cells_deleted, ids)

    def touch_threads(self, threads: Mapping[str, int]) -> int:
        """See Rows."""
        scopes = sorted(thread_scope(thread_id) for thread_id in threads)
        new = self._execute(self._statements.threads_made, scopes=scopes)
        self._statements.rollup_add.many(
            self._connection,
            [
                rollup_record((thread_scope(thread_id), "total", ()), 0, at, ZERO)
                for thread_id, at in sorted(threads.items())
            ],
        )
        return len(new)

    def forget_threads(self, older_than: int, limit: int) -> int:
        """See Rows."""
        with_runs = select(text("1")).select_from(runs).where("t:" + runs.c.thread_id == rollup.c.scope).exists()
        old = (
            select(rollup.c.scope)
            .where(text("dimension = 'total'"), rollup.c.scope >= "t:", rollup.c.scope < "t;")
            .where(rollup.c.updated_at < older_than, ~with_runs)
            .order_by(rollup.c.scope)
            .limit(limit)
        )
        if self._dialect.locks_rows:
            old = old.with_for_update()
        scopes = [row[0] for row in self._connection.execute(old)]
        both = scopes + [PRUNED + scope for scope in scopes]
        if both:
            self._connection.execute(
                delete(rollup).where(self._dialect.among(rollup.c.scope, "scopes")),
                {"scopes": self._dialect.list(both)},
            )
        return len(scopes)

    def grants(self, wanted: Sequence[tuple[str, str]]) -> Grants:
        """See Rows."""
        known = self.granted or self._grants
        if known is not None and not known.open(wanted):
            return known
        # Somebody may have granted values since: look again, and where there is something to grant, let nobody in.
        statement = self._statements.meta_locked if wanted else self._statements.meta_value
        limit = int(self._connection.execute(statement, {"name_": "label_limit"}).scalar_one())
        rows = self._connection.execute(self._statements.rollup_of, {"scope": GRANTED})
        grants = Grants(((row[1], unpack(row[3])[0]) for row in rows), limit)
        chosen = grants.choose(wanted)
        self._statements.rollup_touch.many(
            self._connection, [rollup_record((GRANTED, label, (value,)), 0, 0, ZERO) for label, value in sorted(chosen)]
        )
        self.granted = grants
        return grants

    def touch(self, places: Iterable[Place]) -> None:
        """See Rows."""
        self._statements.rollup_touch.many(
            self._connection, [rollup_record(place, 0, 0, ZERO) for place in sorted(places)]
        )

    def add(self, rows: Mapping[Place, Held], daily: Mapping[DailyKey, Usage]) -> None:
        """See Rows."""
        records = [rollup_record(place, held.number, held.updated_at, held.usage) for place, held in rows.items()]
        # The rows that everybody adds to come last, so that they are locked for the shortest time.
        records.sort(key=lambda record: (record[0] == EVERYTHING, *record[:3]))
        self._statements.rollup_add.many(self._connection, records)
        self._statements.daily_add.many(
            self._connection, sorted(daily_record(key, usage) for key, usage in daily.items())
        )

    def raise_to(self, rows: Mapping[Place, Usage]) -> None:
        """See Rows."""
        self._statements.rollup_raise.many(
            self._connection, sorted(rollup_record(place, 0, 0, usage) for place, usage in rows.items())
        )

    def lock_sources(self, wanted: Iterable[str]) -> dict[str, SourceRow]:
        """See Rows."""
        found = self._execute(self._statements.sources_locked, ids=sorted(wanted))
        return {row[0]: SourceRow(row[0], row[1], row[2], json.loads(row[3]), row[4]) for row in found}

    def save_sources(self, rows: Iterable[SourceRow]) -> None:
        """See Rows."""
        self._statements.source_upsert.many(
            self._connection,
            sorted((row.source, row.service, row.beat, json.dumps(row.counts), row.updated_at) for row in rows),
        )

    def forget_sources(self, older_than: int) -> None:
        """See Rows."""
        owners = select(runs.c.owner).where(_OPEN, runs.c.owner.is_not(None))
        self._connection.execute(
            delete(sources).where(sources.c.updated_at < older_than, sources.c.source.not_in(owners))
        )

    def run(self, run_id: str) -> StoredRun | None:
        """See Rows."""
        row = self._connection.execute(self._statements.run_of, {"run_id": run_id}).one_or_none()
        if row is None:
            return None
        found = {run_id: stored_run(row)}
        self._fill(found)
        return found[run_id]

    def page_runs(self, which: RunFilter, limit: int, after: tuple[int, str] | None) -> list[StoredRun]:
        """See Rows."""
        wanted = select(runs)
        for name, value in zip(RunFilter._fields, which, strict=True):
            if value is not None:
                wanted = wanted.where(runs.c[name] == value)
        if which.status in ("pending", "running"):
            # Runs that work are few among many; their own index finds them whatever else is asked.
            wanted = wanted.where(_OPEN)
        if after is not None:
            wanted = wanted.where(tuple_(runs.c.listed_at, runs.c.run_id) < tuple_(*after))
        wanted = wanted.order_by(runs.c.listed_at.desc(), runs.c.run_id.desc()).limit(limit)
        found = {row[0]: stored_run(row) for row in self._connection.execute(wanted)}
        self._fill(found)
        return list(found.values())

    def open_runs(self, thread_ids: Sequence[str] | None = None) -> list[StoredRun]:
        """See Rows."""
        wanted = select(runs).where(_OPEN)
        found: dict[str, StoredRun] = {}
        if thread_ids is None:
            rows = self._connection.execute(wanted).all()
            cells = self._connection.execute(
                select(run_usage).where(run_usage.c.run_id.in_(select(runs.c.run_id).where(_OPEN)))
            )
        else:
            rows = self._connection.execute(
                wanted.where(self._dialect.among(runs.c.thread_id, "ids")), {"ids": self._dialect.list(thread_ids)}
            ).all()
            if not rows:
                return []
            cells = self._connection.execute(
                self._statements.cells_of, {"ids": self._dialect.list([row[0] for row in rows])}
            )
        found = {row[0]: stored_run(row) for row in rows}
        put_cells(found, cells)
        return list(found.values())

    def open_count(self) -> tuple[int, int | None]:
        """See Rows."""
        number, oldest = self._connection.execute(self._statements.open_count).one()
        return int(number), oldest

    def open_headers(self) -> list[OpenRun]:
        """See Rows."""
        columns = (runs.c.run_id, runs.c.version, runs.c.usage_state, runs.c.owner, runs.c.ended_by, runs.c.sources)
        return [open_run(*row) for row in self._connection.execute(select(*columns).where(_OPEN))]

    def owned_by(self, source: str) -> list[str]:
        """See Rows."""
        columns = (runs.c.run_id, runs.c.owner, runs.c.sources)
        wanted = select(*columns).where(_OPEN, runs.c.usage_state == "active")
        found = self._connection.execute(wanted.where(or_(runs.c.owner == source, runs.c.owner.is_(None))))
        return [run_id for run_id, owner, states in found if owner == source or source in json.loads(states)]

    def sources(self) -> list[tuple[str, int]]:
        """See Rows."""
        return [(source, beat) for source, beat in self._connection.execute(select(sources.c.source, sources.c.beat))]

    def rollup(self, scope: str) -> dict[Part, Held]:
        """See Rows."""
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
        sums = [cast(func.sum(usage_daily.c[name]), BigInteger) for name in COUNTERS]
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
        for row in self._connection.execute(select(rollup).where(rollup.c.scope != GRANTED)):
            scope, (dimension, key), held = rollup_held(row)
            yield (scope, dimension, key), held

    def every_daily(self) -> Iterator[tuple[DailyKey, Usage]]:
        """See Rows."""
        for row in self._connection.execute(select(usage_daily)):
            yield DailyKey(*row[1:9]), Usage(*row[9:])
