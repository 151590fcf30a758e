"""Door 2's ledger in SQL: which spans of recent runs were taken, so that taking them again adds nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    DDL,
    BigInteger,
    Column,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TextClause,
    bindparam,
    event,
    text,
)

from runmeter_exporter.store.ledger_row import (
    ARRIVALS,
    NO_LIMIT,
    Arrival,
    Ledger,
    Recorded,
    Row,
    TooMany,
    default_run,
    implied_trace,
)
from runmeter_exporter.store.memory.ledger import MemoryLedger
from runmeter_exporter.store.sql.schema import metadata, runs

__all__ = ["Ledger", "MemoryLedger", "Row", "SqlLedger", "arrivals", "spans"]

_CHUNK = 400
"""Keys in one IN list; SQLite's oldest limit for parameters of a statement is 999."""
_PARTIAL = "CREATE INDEX spans_{0} ON spans ({0}{1}) WHERE {0} IS NOT NULL"


def define(metadata: MetaData) -> Table:
    """The table `spans`. Nearly all rows are plain spans of implicit runs, so that is what NULL means in it."""
    table = Table(
        "spans",
        metadata,
        Column("trace_id", LargeBinary(16), primary_key=True),
        Column("span_id", LargeBinary(8), primary_key=True),
        Column("parent_id", LargeBinary(8)),
        Column("run_id", Text),  # NULL: the implicit run of the trace
        Column("why", Integer, nullable=False),
        Column("late", Integer, nullable=False),  # Row.order, which is a reserved word
        Column("seen", Integer, nullable=False),
        Column("reading", LargeBinary),
        Column("twin", LargeBinary(8)),
        Column("twin_too", LargeBinary(8)),
        Column("ended_at", BigInteger),
        Column("priced", LargeBinary),
        Index("spans_seen", "seen", "trace_id"),
        sqlite_with_rowid=False,  # one tree to write instead of two
    )
    for column, more in (("run_id", ""), ("twin", ", ended_at"), ("twin_too", ", ended_at")):
        # Partial, so that the many plain rows cost no index entry; the same words in every database that we speak.
        event.listen(table, "after_create", DDL(_PARTIAL.format(column, more)))  # type: ignore[no-untyped-call]
    return table


spans = define(metadata)
arrivals = Table(
    "arrivals",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("turn", BigInteger, primary_key=True),
    Column("since", BigInteger, nullable=False),
    Column("keys", LargeBinary),
    sqlite_with_rowid=False,
)
"""What the last transactions did to the rows of runs that are open; see `Arrival`."""
# By it the spans of a trace find the run that door 1 recorded for it; only explicit runs say their trace.
event.listen(runs, "after_create", DDL("CREATE INDEX runs_trace ON runs (trace_id) WHERE trace_id IS NOT NULL"))  # type: ignore[no-untyped-call]

_COLUMNS = "trace_id, span_id, parent_id, run_id, why, late, seen, reading, twin, twin_too, ended_at, priced"
_ANCESTRY = "trace_id, span_id, parent_id, run_id, why, late, seen, NULL, NULL, NULL, ended_at"
# No conflict target: any will do, and none is a partial index, which not every engine infers.
_INSERT = f"INSERT INTO spans ({_COLUMNS}) VALUES ({{}}) ON CONFLICT DO NOTHING"
_OF_TRACES = text(f"SELECT {_ANCESTRY} FROM spans WHERE trace_id IN :ids LIMIT :limit").bindparams(
    bindparam("ids", expanding=True)
)
_OF_RUNS = text(f"SELECT {_COLUMNS} FROM spans WHERE run_id IN :ids LIMIT :limit").bindparams(
    bindparam("ids", expanding=True)
)
_OF_IMPLICIT = text(f"SELECT {_COLUMNS} FROM spans WHERE trace_id IN :ids AND run_id IS NULL LIMIT :limit").bindparams(
    bindparam("ids", expanding=True)
)
_AT = text(f"SELECT {_COLUMNS} FROM spans WHERE trace_id = :trace_id AND span_id IN :ids").bindparams(
    bindparam("ids", expanding=True)
)
_PAGE, _PAGE_OF_RUN, _PAGE_OF_IMPLICIT = (
    text(
        f"SELECT {columns} FROM spans WHERE trace_id = :trace_id AND span_id > :after{more} "
        "ORDER BY span_id LIMIT :limit"
    )
    for columns, more in (
        (_ANCESTRY, ""),
        (_COLUMNS, " AND run_id = :run_id"),
        (_COLUMNS, " AND run_id IS NULL"),
    )
)
_TRACES_OF = text("SELECT DISTINCT trace_id FROM spans WHERE run_id = :run_id")
_ARRIVE = text(
    "INSERT INTO arrivals (run_id, since, turn, keys) VALUES (:run_id, :since, :turn, :keys) ON CONFLICT DO NOTHING"
)
_ARRIVED = text("SELECT run_id, since, turn, keys FROM arrivals WHERE run_id = :run_id AND turn > :turn ORDER BY turn")
_ARRIVED_LONG_AGO = text("DELETE FROM arrivals WHERE run_id = :run_id AND turn <= :turn")
_OVER = text("DELETE FROM arrivals WHERE run_id IN :ids").bindparams(bindparam("ids", expanding=True))
_STORED = text("SELECT run_id FROM runs WHERE run_id IN :ids").bindparams(bindparam("ids", expanding=True))
_CALLS = text(f"SELECT {_COLUMNS} FROM spans WHERE run_id = :run_id AND twin IS NOT NULL LIMIT :limit")
_CALLS_IMPLICIT = text(
    f"SELECT {_COLUMNS} FROM spans WHERE trace_id = :trace_id AND run_id IS NULL AND twin IS NOT NULL LIMIT :limit"
)
_MIXED = text("SELECT DISTINCT trace_id FROM spans WHERE trace_id IN :ids AND run_id IS NOT NULL").bindparams(
    bindparam("ids", expanding=True)
)
_TWINS, _TWINS_TOO = (
    text(
        f"SELECT {_COLUMNS} FROM spans WHERE {column} IN :ids AND ended_at BETWEEN :since AND :until LIMIT :limit"
    ).bindparams(bindparam("ids", expanding=True))
    for column in ("twin", "twin_too")
)
_NEAR = tuple(
    text(f"SELECT {_COLUMNS} FROM spans WHERE {column} = :key AND {times} LIMIT :limit")
    for column in ("twin", "twin_too")
    for times in (
        "ended_at BETWEEN :since AND :moment ORDER BY ended_at DESC",
        "ended_at > :moment AND ended_at <= :until ORDER BY ended_at",
    )
)
_RECORDED = text(
    "SELECT run_id, trace_id, root_span_id, started_at FROM runs "
    "WHERE trace_id IN :ids AND run_id <> trace_id AND owner <> 'otlp' AND owner NOT LIKE 'otlp:%'"
).bindparams(bindparam("ids", expanding=True))
_MOVE = text(
    "UPDATE spans SET run_id = :run_id, why = :why, late = :late WHERE trace_id = :trace_id AND span_id = :span_id"
)
_PRICE = text("UPDATE spans SET priced = :priced WHERE trace_id = :trace_id AND span_id = :span_id")
_OLDEST = text("SELECT min(seen) FROM spans")
_TAKEN_IN = text(
    "SELECT DISTINCT trace_id FROM spans WHERE seen = :hour AND trace_id > :after ORDER BY trace_id LIMIT :limit"
)
_RUNS_IN = text("SELECT DISTINCT trace_id, run_id FROM spans WHERE trace_id IN :ids").bindparams(
    bindparam("ids", expanding=True)
)
_LAST_SEEN = text("SELECT max(seen) FROM spans WHERE run_id = :run_id")
_LAST_SEEN_IMPLICIT = text("SELECT max(seen) FROM spans WHERE trace_id = :trace_id AND run_id IS NULL")
_FORGET = text("DELETE FROM spans WHERE run_id = :run_id")
_FORGET_IMPLICIT = text("DELETE FROM spans WHERE trace_id = :trace_id AND run_id IS NULL")


class SqlLedger:
    """The ledger in a database, inside the transaction that `connection` is in."""

    def __init__(self, connection: Connection, *, notes: bool = True) -> None:
        """`notes`: there is a table for arrivals (`steps.py`). Without one, who is behind reads a run whole."""
        self._connection = connection
        self._notes = notes

    def traces(self, trace_ids: Sequence[int], limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        return self._few(_OF_TRACES, {_trace(trace_id): trace_id for trace_id in trace_ids}, limit)

    def runs(self, run_ids: Sequence[str], limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        implicit = {_trace(trace_id): run_id for run_id in run_ids if (trace_id := implied_trace(run_id)) is not None}
        rows = self._few(_OF_RUNS, {run_id: run_id for run_id in run_ids}, limit)
        return rows + self._few(_OF_IMPLICIT, implicit, limit)

    def at(self, keys: Collection[tuple[int, int]]) -> list[Row]:
        """See Ledger."""
        by_trace: dict[int, list[bytes]] = {}
        for trace_id, span_id in sorted(keys):
            by_trace.setdefault(trace_id, []).append(_span(span_id))
        return [
            row
            for trace_id, span_ids in by_trace.items()
            for row in self._rows(_AT, span_ids, trace_id=_trace(trace_id))
        ]

    def page(self, trace_id: int, run_id: str | None, after: int, limit: int) -> list[Row]:
        """See Ledger."""
        where = {"trace_id": _trace(trace_id), "after": _span(after), "limit": limit}
        if run_id is None:
            found = self._connection.execute(_PAGE, where)
        elif run_id == default_run(trace_id):
            found = self._connection.execute(_PAGE_OF_IMPLICIT, where)
        else:
            found = self._connection.execute(_PAGE_OF_RUN, {**where, "run_id": run_id})
        return [_row(row) for row in found]

    def traces_of(self, run_id: str) -> list[int]:
        """See Ledger."""
        found = {int.from_bytes(trace) for (trace,) in self._connection.execute(_TRACES_OF, {"run_id": run_id})}
        implied = implied_trace(run_id)
        return sorted(found if implied is None else found | {implied})

    def arrive(self, arrived: Sequence[Arrival]) -> None:
        """See Ledger."""
        if not self._notes:
            return
        self._many(_ARRIVE, [arrival._asdict() for arrival in arrived])
        crossed = [one for one in arrived if one.turn // ARRIVALS != one.since // ARRIVALS]
        self._many(_ARRIVED_LONG_AGO, [{"run_id": one.run_id, "turn": one.turn - ARRIVALS} for one in crossed])

    def arrived(self, run_id: str, turn: int) -> list[Arrival]:
        """See Ledger."""
        if not self._notes:
            return []
        return [Arrival(*row) for row in self._connection.execute(_ARRIVED, {"run_id": run_id, "turn": turn})]

    def over(self, run_ids: Sequence[str]) -> None:
        """See Ledger."""
        for chunk in _chunks(run_ids if self._notes else ()):
            self._connection.execute(_OVER, {"ids": chunk})

    def stored(self, run_ids: Sequence[str]) -> list[str]:
        """See Ledger."""
        return [
            run_id for chunk in _chunks(run_ids) for (run_id,) in self._connection.execute(_STORED, {"ids": chunk})
        ]

    def calls(self, run_id: str, limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        found = self._connection.execute(_CALLS, {"run_id": run_id, "limit": limit}).all()
        if (trace_id := implied_trace(run_id)) is not None and len(found) < limit:
            where = {"trace_id": _trace(trace_id), "limit": limit - len(found)}
            found = [*found, *self._connection.execute(_CALLS_IMPLICIT, where)]
        return [_row(row) for row in found]

    def mixed(self, trace_ids: Sequence[int]) -> list[int]:
        """See Ledger."""
        return [
            int.from_bytes(trace_id)
            for chunk in _chunks([_trace(trace_id) for trace_id in trace_ids])
            for (trace_id,) in self._connection.execute(_MIXED, {"ids": chunk})
        ]

    def insert(self, rows: Sequence[Row]) -> int:
        """See Ledger."""
        if not rows:
            return 0
        # Straight to the driver's executemany: this is the one statement that runs for every span.
        mark = "?" if self._connection.dialect.paramstyle == "qmark" else "%s"
        statement = _INSERT.format(", ".join([mark] * len(Row._fields)))
        # In key order: two sidecars that insert the same spans wait for each other instead of deadlocking.
        parameters = [_parameters(row) for row in sorted(rows, key=itemgetter(0, 1))]
        return int(self._connection.exec_driver_sql(statement, parameters).rowcount)

    def move(self, keys: Sequence[tuple[int, int]], run_id: str, why: int, order: int) -> None:
        """See Ledger."""
        self._many(
            _MOVE,
            [
                {
                    "trace_id": _trace(trace_id),
                    "span_id": _span(span_id),
                    "run_id": None if run_id == default_run(trace_id) else run_id,
                    "why": why,
                    "late": order,
                }
                for trace_id, span_id in sorted(keys)
            ],
        )

    def price(self, priced: Sequence[tuple[tuple[int, int], bytes]]) -> None:
        """See Ledger."""
        self._many(
            _PRICE,
            [{"trace_id": _trace(key[0]), "span_id": _span(key[1]), "priced": value} for key, value in sorted(priced)],
        )

    def twins(self, keys: Sequence[bytes], since: int, until: int, limit: int) -> list[Row] | None:
        """See Ledger."""
        found: dict[tuple[int, int], Row] = {}
        for statement in (_TWINS, _TWINS_TOO):
            for chunk in _chunks(keys):
                more = self._rows(statement, chunk, since=since, until=until, limit=limit + 1)
                found.update((row.key, row) for row in more)
                if len(found) > limit:
                    return None
        return list(found.values())

    def near(self, key: bytes, moment: int, span: int, limit: int) -> list[Row]:
        """See Ledger."""
        where = {"key": key, "moment": moment, "since": moment - span, "until": moment + span, "limit": limit}
        found = [_row(row) for statement in _NEAR for row in self._connection.execute(statement, where)]
        found = list({row.key: row for row in found}.values())
        found.sort(key=lambda row: abs((row.ended_at or 0) - moment))
        before = [row for row in found if (row.ended_at or 0) <= moment]
        after = [row for row in found if (row.ended_at or 0) > moment]
        return before[:limit] + after[:limit]

    def recorded(self, trace_ids: Sequence[int]) -> list[Recorded]:
        """See Ledger."""
        return [
            Recorded(run_id, int(trace_id, 16), None if root is None else int(root, 16), started_at)
            for chunk in _chunks([default_run(trace_id) for trace_id in trace_ids])
            for run_id, trace_id, root, started_at in self._connection.execute(_RECORDED, {"ids": chunk})
        ]

    def oldest(self) -> int | None:
        """See Ledger."""
        hour: int | None = self._connection.execute(_OLDEST).scalar()
        return hour

    def taken_in(self, hour: int, after: int, limit: int) -> list[int]:
        """See Ledger."""
        result = self._connection.execute(_TAKEN_IN, {"hour": hour, "after": _trace(after), "limit": limit})
        return [int.from_bytes(trace_id) for (trace_id,) in result]

    def runs_in(self, trace_ids: Sequence[int]) -> list[str]:
        """See Ledger."""
        found: set[str] = set()
        for chunk in _chunks([_trace(trace_id) for trace_id in trace_ids]):
            for trace_id, run_id in self._connection.execute(_RUNS_IN, {"ids": chunk}):
                found.add(default_run(int.from_bytes(trace_id)) if run_id is None else run_id)
        return sorted(found)

    def last_seen(self, run_id: str) -> int:
        """See Ledger."""
        seen = self._connection.execute(_LAST_SEEN, {"run_id": run_id}).scalar() or 0
        if (trace_id := implied_trace(run_id)) is not None:
            seen = max(
                seen, self._connection.execute(_LAST_SEEN_IMPLICIT, {"trace_id": _trace(trace_id)}).scalar() or 0
            )
        return int(seen)

    def forget(self, run_ids: Sequence[str]) -> int:
        """See Ledger."""
        implicit = [_trace(trace_id) for run_id in run_ids if (trace_id := implied_trace(run_id)) is not None]
        self.over(run_ids)
        explicit = self._many(_FORGET, [{"run_id": run_id} for run_id in run_ids])
        return explicit + self._many(_FORGET_IMPLICIT, [{"trace_id": trace_id} for trace_id in implicit])

    def _many(self, statement: TextClause, parameters: list[dict[str, Any]]) -> int:
        if not parameters:
            return 0
        return int(self._connection.execute(statement, parameters).rowcount)

    def _few(self, statement: TextClause, names: Mapping[Any, Any], limit: int) -> list[Row]:
        """The rows of these ids; TooMany says, by their names, which of them have more than `limit`."""
        rows: list[Row] = []
        many = []
        for chunk in _chunks(list(names)):
            found = self._connection.execute(statement, {"ids": chunk, "limit": limit + 1}).all()
            if len(found) <= limit:
                rows += map(_row, found)
            elif len(chunk) == 1:
                many.append(names[chunk[0]])
            else:
                for one in chunk:
                    try:
                        rows += self._few(statement, {one: names[one]}, limit)
                    except TooMany as too_many:
                        many += too_many.ids
        if many:
            raise TooMany(many)
        return rows

    def _rows(self, statement: TextClause, ids: Sequence[object], **more: object) -> list[Row]:
        return [
            _row(row) for chunk in _chunks(ids) for row in self._connection.execute(statement, {"ids": chunk, **more})
        ]


def _trace(trace_id: int) -> bytes:
    return trace_id.to_bytes(16)


def _span(span_id: int) -> bytes:
    return span_id.to_bytes(8)


def _parameters(row: Row) -> tuple[Any, ...]:
    trace_id, span_id, parent_id, run_id, *rest = row
    return (
        _trace(trace_id),
        _span(span_id),
        None if parent_id is None else _span(parent_id),
        None if run_id == default_run(trace_id) else run_id,
        *rest,
    )


def _row(columns: Sequence[Any]) -> Row:
    trace, span, parent, run_id, *rest = columns
    trace_id = int.from_bytes(trace)
    return Row(
        trace_id,
        int.from_bytes(span),
        None if parent is None else int.from_bytes(parent),
        default_run(trace_id) if run_id is None else run_id,
        *rest,
    )


def _chunks(ids: Sequence[object]) -> Iterator[list[object]]:
    remaining = iter(ids)
    while chunk := list(islice(remaining, _CHUNK)):
        yield chunk
