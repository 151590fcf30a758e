"""The statements of the write path, compiled once for a dialect: hot ones go to the driver as text and plain tuples.

SQLAlchemy builds them, so that both databases get their own words; executing them through it would cost as much again
for each row as the database does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Engine,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)

from runmeter_exporter.store.sql.dialects import Dialect
from runmeter_exporter.store.sql.schema import COUNTERS, SETTLED, meta, rollup, run_usage, runs, sources, usage_daily
from runmeter_exporter.store.sql.stripes import SCOPES
from runmeter_exporter.totals.rollup import EVERYTHING

RUN_COLUMNS = tuple(column.name for column in runs.c)
PROGRESS_COLUMNS = ("overflow", "updated_at", "version", "sources", "set_aside")
CELL_COLUMNS = tuple(column.name for column in run_usage.c)
ROLLUP_COLUMNS = tuple(column.name for column in rollup.c)
DAILY_COLUMNS = tuple(column.name for column in usage_daily.c)
SOURCE_COLUMNS = tuple(column.name for column in sources.c)


class Statement:
    """One statement as the driver takes it; parameters come as tuples in the order of `names`."""

    def __init__(self, engine: Engine, statement: Any, names: Sequence[str]) -> None:
        compiled = statement.compile(dialect=engine.dialect, column_keys=list(names) if statement.is_dml else None)
        self.text = str(compiled)
        order = [names.index(name) for name in compiled.positiontup]
        self._ordered = None if order == list(range(len(names))) else itemgetter(*order)

    def all(self, connection: Connection, *values: Any) -> list[tuple[Any, ...]]:
        """Its rows, as the driver gives them."""
        parameters = values if self._ordered is None else self._ordered(values)
        return connection.exec_driver_sql(self.text, parameters).cursor.fetchall()  # type: ignore[return-value]

    def many(self, connection: Connection, rows: Iterable[Sequence[Any]]) -> None:
        """Execute it for every row, by the driver's executemany."""
        parameters = list(rows) if self._ordered is None else list(map(self._ordered, rows))
        if parameters:
            connection.exec_driver_sql(self.text, parameters)


class Statements:
    """All of them, for one engine."""

    def __init__(self, engine: Engine, dialect: Dialect) -> None:
        self._engine = engine
        make = self._make
        self.run_insert = make(insert(runs), RUN_COLUMNS)
        self.run_update = make(
            update(runs)
            .where(runs.c.run_id == bindparam("run_id_"))
            .values({name: bindparam(name) for name in RUN_COLUMNS[1:]}),
            ("run_id_", *RUN_COLUMNS[1:]),
        )
        # What progress changes stands in no index that an open run is in: an UPDATE that names an indexed column writes
        # the index, changed or not.
        self.run_progress = make(
            update(runs)
            .where(runs.c.run_id == bindparam("run_id_"))
            .values({name: bindparam(name) for name in PROGRESS_COLUMNS}),
            ("run_id_", *PROGRESS_COLUMNS),
        )
        upsert = dialect.insert(run_usage)
        self.cell_upsert = make(
            upsert.on_conflict_do_update(
                index_elements=["run_id", "cell"],
                set_={name: upsert.excluded[name] for name in (*COUNTERS, *SETTLED)},
            ),
            CELL_COLUMNS,
        )
        self.cell_update = make(
            update(run_usage)
            .where(run_usage.c.run_id == bindparam("run_id_"), run_usage.c.cell == bindparam("cell_"))
            .values({name: bindparam(name) for name in COUNTERS}),
            ("run_id_", "cell_", *COUNTERS),
        )
        self.cell_delete = make(
            delete(run_usage).where(run_usage.c.run_id == bindparam("run_id_"), run_usage.c.cell == bindparam("cell_")),
            ("run_id_", "cell_"),
        )
        # Conflicts are those of primary keys, and the one partial index here goes by a column of the key, so no upsert
        # takes a row into it or out of it: there YugabyteDB had indexes go wrong.
        upsert = dialect.insert(rollup)
        excluded = upsert.excluded
        self.rollup_add = make(
            upsert.on_conflict_do_update(
                index_elements=["scope", "dimension", "key"],
                set_={
                    **{name: rollup.c[name] + excluded[name] for name in ("number", *COUNTERS)},
                    "updated_at": larger(rollup.c.updated_at, excluded.updated_at),
                },
            ),
            ROLLUP_COLUMNS,
        )
        self.rollup_raise = make(
            upsert.on_conflict_do_update(
                index_elements=["scope", "dimension", "key"],
                set_={name: larger(rollup.c[name], excluded[name]) for name in COUNTERS},
            ),
            ROLLUP_COLUMNS,
        )
        self.rollup_touch = make(dialect.insert(rollup).on_conflict_do_nothing(), ROLLUP_COLUMNS)
        upsert = dialect.insert(usage_daily)
        self.daily_add = make(
            upsert.on_conflict_do_update(
                index_elements=["id"], set_={name: usage_daily.c[name] + upsert.excluded[name] for name in COUNTERS}
            ),
            DAILY_COLUMNS,
        )
        upsert = dialect.insert(sources)
        self.source_upsert = make(
            upsert.on_conflict_do_update(
                index_elements=["source"], set_={name: upsert.excluded[name] for name in SOURCE_COLUMNS[1:]}
            ),
            SOURCE_COLUMNS,
        )
        self._reading(dialect)

    def _make(self, statement: Any, names: Sequence[str]) -> Statement:
        return Statement(self._engine, statement, names)

    def _reading(self, dialect: Dialect) -> None:
        # A list under FOR UPDATE, in the order of the key. CockroachDB and YugabyteDB take it, each key where it lives,
        # and who meets in a circle is told so and tries again; to lock one by one costs five times the CPU.
        lock: Any = select(runs).where(dialect.among(runs.c.run_id, "ids"))
        lock = lock.order_by(runs.c.run_id).with_for_update() if dialect.locks_rows else lock
        self.runs_locked = self._make(lock, ("ids",))
        # A run must exist to be locked: this is what it is before the first snapshot is merged, never committed so.
        blank = {
            "tags": "''", "status": "''", "usage_state": "''", "started_at": "0", "updated_at": "0", "orphanings": "0",
            "overflow": "0", "version": "0", "listed_at": "0", "sources": "''", "set_aside": "''", "is_open": "1",
        }  # fmt: skip
        self.runs_made = (
            dialect.insert(runs)
            .from_select(
                ["run_id", *blank],
                select(
                    literal_column("value").label("run_id"),
                    *[literal_column(value).label(name) for name, value in blank.items()],
                )
                .select_from(dialect.series("ids"))
                .where(text("true"))
                .order_by(literal_column("value")),
            )
            .on_conflict_do_nothing()
            .returning(runs.c.run_id)
        )
        self.cells_of = self._make(select(run_usage).where(dialect.among(run_usage.c.run_id, "ids")), ("ids",))
        zero = dict.fromkeys(("number", *COUNTERS), "0")
        self.threads_made = (
            dialect.insert(rollup)
            .from_select(
                ["scope", "dimension", "key", "parts", "updated_at", *zero],
                select(
                    literal_column("value").label("scope"),
                    literal_column("'total'").label("dimension"),
                    literal_column("'[]'").label("key"),
                    literal_column("'[]'").label("parts"),
                    literal_column("0").label("updated_at"),
                    *[literal_column(value).label(name) for name, value in zero.items()],
                )
                .select_from(dialect.series("scopes"))
                .where(text("true"))
                .order_by(literal_column("value")),
            )
            .on_conflict_do_nothing()
            .returning(rollup.c.scope)
        )
        self.runs_deleted = delete(runs).where(dialect.among(runs.c.run_id, "ids"))
        self.cells_deleted = delete(run_usage).where(dialect.among(run_usage.c.run_id, "ids"))
        self.rollups_of = select(rollup).where(dialect.among(rollup.c.scope, "scopes"))
        self.totals_of = select(rollup.c.scope, *[rollup.c[name] for name in COUNTERS]).where(
            dialect.among(rollup.c.scope, "scopes"), rollup.c.dimension == "total"
        )
        self.rollup_of = select(rollup).where(rollup.c.scope == bindparam("scope"))
        self.everything: Any = select(rollup).where(rollup.c.scope == EVERYTHING)
        if dialect.locks_rows:
            self.everything = (
                select(
                    literal_column("''").label("scope"), rollup.c.dimension, rollup.c.key, func.min(rollup.c.parts),
                    summed(rollup.c.number), func.max(rollup.c.updated_at),
                    *[summed(rollup.c[name]) for name in COUNTERS],
                )
                .where(rollup.c.scope.in_(SCOPES))
                .group_by(rollup.c.dimension, rollup.c.key)
            )  # fmt: skip
        self.meta_value = select(meta.c.value).where(meta.c.name == bindparam("name_"))
        self.meta_locked = self.meta_value.with_for_update() if dialect.locks_rows else self.meta_value
        self.run_of = select(runs).where(runs.c.run_id == bindparam("run_id"))
        self.open_count = select(func.count(), func.min(runs.c.started_at)).where(text("is_open = 1"))
        self.beats_of = select(sources.c.source, sources.c.beat).where(dialect.among(sources.c.source, "ids"))
        locked_sources: Any = select(sources).where(dialect.among(sources.c.source, "ids")).order_by(sources.c.source)
        self.sources_locked = locked_sources.with_for_update() if dialect.locks_rows else locked_sources


def summed(column: Any) -> Any:
    """A sum of counts as a count: PostgreSQL makes `numeric` of it, the driver a Decimal."""
    return cast(func.sum(column), BigInteger)


def larger(left: Any, right: Any) -> Any:
    """The larger of two, in any database."""
    return case((right > left, right), else_=left)
