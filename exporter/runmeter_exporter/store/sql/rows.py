"""`SqlRows`: the tables of `schema.py` as `Rows`, in one transaction of a connection. Here what locks and changes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select, text, update

from runmeter.usage import ZERO, Usage
from runmeter_exporter.store.records import (
    cell_id,
    cell_record,
    daily_record,
    progress_record,
    rollup_record,
    run_record,
    stored_run,
)
from runmeter_exporter.store.rows import SourceRow
from runmeter_exporter.store.sql.ledger import SqlLedger
from runmeter_exporter.store.sql.reads import GRANTED, SqlReads
from runmeter_exporter.store.sql.schema import meta, rollup, runs, sources
from runmeter_exporter.store.sql.steps import ARRIVALS
from runmeter_exporter.store.sql.stripes import SCOPES, any_stripe, is_everything
from runmeter_exporter.totals.rollup import (
    EVERYTHING,
    PRUNED,
    DailyKey,
    Grants,
    Held,
    Place,
    thread_scope,
    unpack,
)
from runmeter_exporter.totals.run import StoredRun

if TYPE_CHECKING:
    from runmeter_exporter.store.ledger_row import Ledger


class SqlRows(SqlReads):
    """See Rows."""

    @property
    def alone(self) -> bool:
        """SQLite has one writer at a time."""
        return not self._dialect.locks_rows

    @property
    def ledger(self) -> Ledger:
        """See Rows."""
        return SqlLedger(self._connection, notes=self.minor >= ARRIVALS.number)

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
        rows = self._statements.runs_locked.all(self._connection, self._dialect.list(ids))
        return {row[0]: stored_run(row) for row in rows}

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
        new: list[tuple[Any, ...]] = []
        known: list[tuple[Any, ...]] = []
        progress, whole, usage, gone = [], [], [], []
        made = self._dialect.locks_rows
        self.saved += [run for _, run in changes]
        for was, run in changes:
            if was is None:
                (known if made else new).append(run_record(run))
            elif little := progress_record(was, run):
                progress.append(little)
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
        statements.run_progress.many(connection, progress)
        statements.cell_upsert.many(connection, whole)
        statements.cell_update.many(connection, usage)
        statements.cell_delete.many(connection, gone)

    def discard(self, run_ids: Sequence[str]) -> None:
        """See Rows."""
        self.gone += run_ids
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
        idle = (text("dimension = 'total'"), rollup.c.updated_at < older_than, ~with_runs)
        old = select(rollup.c.scope).where(rollup.c.scope >= "t:", rollup.c.scope < "t;", *idle)
        found = [row[0] for row in self._connection.execute(old.order_by(rollup.c.scope).limit(limit))]
        if not found:
            return 0
        # Looked at without a lock, and again where the row of the total goes, which is the one that a writer to the
        # thread waits for: FOR UPDATE over a range and a sub-query is what distributed engines do badly or not at all.
        gone = delete(rollup).where(self._dialect.among(rollup.c.scope, "scopes"), *idle).returning(rollup.c.scope)
        scopes = [row[0] for row in self._execute(gone, scopes=found)]
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
        # A process that only reads never learns otherwise what others granted: it looks again, once a transaction.
        if known is not None and (wanted or self.granted is not None) and not known.open(wanted):
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
        # In a stripe, too: DO NOTHING waits where somebody is changing the row that is there.
        self._statements.rollup_touch.many(
            self._connection, [rollup_record(self._striped(place), 0, 0, ZERO) for place in sorted(places)]
        )

    def add(self, rows: Mapping[Place, Held], daily: Mapping[DailyKey, Usage]) -> None:
        """See Rows."""
        records = [rollup_record(self._striped(place), row.number, row.updated_at, row.usage)
                   for place, row in rows.items()]  # fmt: skip
        # The rows that everybody adds to come last, so that they are locked for the shortest time.
        records.sort(key=lambda record: (is_everything(record[0]), *record[:3]))
        self._statements.rollup_add.many(self._connection, records)
        self._statements.daily_add.many(
            self._connection, sorted(daily_record(key, usage, self._stripe) for key, usage in daily.items())
        )

    @cached_property
    def _stripe(self) -> int:
        return any_stripe() if self._dialect.locks_rows else 0

    def _striped(self, place: Place) -> Place:
        return (SCOPES[self._stripe], *place[1:]) if place[0] == EVERYTHING else place

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
        records = sorted((row.source, row.service, row.beat, json.dumps(row.counts), row.updated_at) for row in rows)
        self.beaten += [record[0] for record in records]
        self._statements.source_upsert.many(self._connection, records)

    def forget_sources(self, wanted: Sequence[str], older_than: int) -> int:
        """See Rows."""
        old = delete(sources).where(sources.c.updated_at < older_than, self._dialect.among(sources.c.source, "ids"))
        return int(self._connection.execute(old, {"ids": self._dialect.list(wanted)}).rowcount)
