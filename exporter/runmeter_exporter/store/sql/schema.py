"""The tables. Counts are 64 bits; times are nanoseconds since the epoch; lists and maps are JSON as text."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, Table, Text, text

from runmeter.usage import Usage

VERSION = 1
"""Of the schema; a database of another version is refused."""

metadata = MetaData()

COUNTERS = Usage._fields
SETTLED = tuple(f"settled_{name}" for name in COUNTERS)


def _table(name: str, *parts: Any, fillfactor: int = 80) -> Table:
    # Without a rowid, SQLite keeps a row in the tree of its key: one tree to write instead of two. Room in PostgreSQL's
    # pages keeps the many updates of the same row off the indexes (HOT).
    return Table(name, metadata, *parts, sqlite_with_rowid=False, postgresql_with={"fillfactor": fillfactor})


def _counters(names: tuple[str, ...] = COUNTERS) -> list[Column[int]]:
    return [Column(name, BigInteger, nullable=False) for name in names]


meta = _table("meta", Column("name", Text, primary_key=True), Column("value", Text, nullable=False))

# The columns of `StoredRun`, in its order, then what SQL needs to find rows.
runs = _table(
    "runs",
    Column("run_id", Text, primary_key=True),
    Column("thread_id", Text),
    Column("service", Text),
    Column("agent", Text),
    Column("user_id", Text),
    Column("tags", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("usage_state", Text, nullable=False),
    Column("owner", Text),
    Column("ended_by", Text),
    Column("trace_id", Text),
    Column("root_span_id", Text),
    Column("started_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("stop_reason", Text),
    Column("first_status", Text),
    Column("counted_status", Text),
    Column("orphanings", Integer, nullable=False),
    Column("overflow", Integer, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("listed_at", BigInteger, nullable=False),
    Column("sources", Text, nullable=False),
    Column("set_aside", Text, nullable=False),
    Column("is_open", Integer, nullable=False),
    fillfactor=70,
)
_OPEN, _CLOSED = text("is_open = 1"), text("is_open = 0")
# Nothing that every progress write changes stands in an index.
Index("runs_listed", runs.c.listed_at, runs.c.run_id)
Index("runs_status", runs.c.status, runs.c.listed_at, runs.c.run_id)
for _name in ("thread_id", "service", "user_id"):
    _some = text(f"{_name} IS NOT NULL")
    Index(
        f"runs_{_name}",
        runs.c[_name],
        runs.c.listed_at,
        runs.c.run_id,
        sqlite_where=_some,
        postgresql_where=_some,
    )
# `is_open` in front, though it is the same in all: SQLite takes the index of which more columns are given, and would
# else look through all runs of a thread for the open ones.
Index("runs_open", runs.c.is_open, runs.c.thread_id, runs.c.started_at, sqlite_where=_OPEN, postgresql_where=_OPEN)
Index("runs_closed", runs.c.updated_at, runs.c.run_id, sqlite_where=_CLOSED, postgresql_where=_CLOSED)

run_usage = _table(
    "run_usage",
    Column("run_id", Text, primary_key=True),
    Column("cell", Text, primary_key=True),  # a hash of the next five: together they are too long for an index
    Column("source", Text, nullable=False),
    Column("day", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("caller", Text, nullable=False),
    *_counters(),
    *_counters(SETTLED),
    fillfactor=70,
)

rollup = _table(
    "rollup",
    Column("scope", Text, primary_key=True),
    Column("dimension", Text, primary_key=True),
    Column("key", Text, primary_key=True),  # `parts`, or its hash where that is too long for an index
    Column("parts", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    *_counters(),
    fillfactor=70,
)
_TOTAL = text("dimension = 'total'")
Index("rollup_threads", rollup.c.updated_at, rollup.c.scope, sqlite_where=_TOTAL, postgresql_where=_TOTAL)

usage_daily = _table(
    "usage_daily",
    Column("id", Text, primary_key=True),  # a hash of the next eight
    Column("day", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("user_id", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("tags", Text, nullable=False),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("caller", Text, nullable=False),
    *_counters(),
)
Index("usage_daily_day", usage_daily.c.day)

sources = _table(
    "sources",
    Column("source", Text, primary_key=True),
    Column("service", Text),
    Column("beat", BigInteger, nullable=False),
    Column("counts", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)
