"""What cannot be what we wrote: found before anything is added up, since text where a number belongs cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Column, Connection, Integer, LargeBinary, case, func, or_, select

from runmeter_exporter.store.records import stored_run
from runmeter_exporter.store.sql.ledger import arrivals, spans
from runmeter_exporter.store.sql.schema import meta, rollup, run_usage, runs, sources, usage_daily
from runmeter_exporter.totals.run import OPEN_STATES, is_otlp

_TABLES: Final = (meta, runs, run_usage, rollup, usage_daily, sources, spans, arrivals)
_JSON: Final = (rollup.c.parts, usage_daily.c.tags, sources.c.counts)
_META: Final = ("schema_version", "label_limit", "horizon")
_SHOWN: Final = 40
"""Characters of a value in a message, and rows named of one table."""


def odd_types(connection: Connection, lacking: frozenset[str]) -> Iterator[str]:
    """Values of another type than their column, where the database does not see to that itself. `lacking`: what a store
    of an older release has not (`steps.py`)."""
    for table in _TABLES:
        if table.name in lacking:
            continue
        columns = [column for column in table.c if f"{table.name}.{column.name}" not in lacking]
        wrong = [func.typeof(column).not_in(_types(column)) for column in columns]
        keys = [func.quote(column) for column in table.primary_key.columns]
        told = [case((test, func.typeof(column))) for test, column in zip(wrong, columns, strict=True)]
        shown = [func.substr(func.quote(column), 1, _SHOWN) for column in columns]
        values = [case((test, value)) for test, value in zip(wrong, shown, strict=True)]
        for row in connection.execute(select(*keys, *told, *values).where(or_(*wrong)).limit(_SHOWN)):
            name = ", ".join(str(key) for key in row[: len(keys)])
            kinds, held = row[len(keys) : len(keys) + len(told)], row[len(keys) + len(told) :]
            for column, kind, value in zip(columns, kinds, held, strict=True):
                if kind is not None:
                    wants = _types(column)[0]
                    yield f"table {table.name}, row {name}: {column.name} holds {value} ({kind}), not {wants}"


def odd_rows(connection: Connection) -> Iterator[str]:
    """Rows that contradict each other, or are not there."""
    there: dict[str, str] = dict(connection.execute(select(meta.c.name, meta.c.value)).tuples().all())
    for name in _META:
        if not there.get(name, "").isdecimal():
            yield f"table meta: {name} is {there.get(name, 'missing')}, not a number"
    is_open = runs.c.usage_state.in_(OPEN_STATES)
    wrong = or_(is_open & (runs.c.is_open != 1), ~is_open & (runs.c.is_open != 0))
    for run_id, state, marked in connection.execute(
        select(runs.c.run_id, runs.c.usage_state, runs.c.is_open).where(wrong).limit(_SHOWN)
    ):
        yield f"run {run_id!r}: its usage state is {state!r}, and is_open is {marked}"
    for run_id, status, counted in connection.execute(
        select(runs.c.run_id, runs.c.status, runs.c.counted_status)
        .where(~is_open, runs.c.counted_status.is_not(None), runs.c.counted_status != runs.c.status)
        .limit(_SHOWN)
    ):
        yield f"run {run_id!r}: its status is {status!r}, the totals count it as {counted!r}"
    yield from _without_spans(connection)


def unreadable(connection: Connection) -> Iterator[str]:
    """Rows whose JSON says nothing that we write."""
    for row in connection.execute(select(runs)):
        try:
            stored_run(row)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            yield f"run {row[0]!r}: tags, sources or set_aside cannot be read ({error})"
    for column in _JSON:
        keys = list(column.table.primary_key.columns)
        for *key, value in connection.execute(select(*keys, column)):
            try:
                json.loads(value or "{}")
            except (TypeError, ValueError) as error:
                name = ", ".join(map(repr, key))
                yield f"table {column.table.name}, row {name}: {column.name} cannot be read ({error})"


def _without_spans(connection: Connection) -> Iterator[str]:
    """Open runs of door 2 of which the ledger has nothing: spans sent again would be counted again."""
    found = connection.execute(select(runs.c.run_id, runs.c.sources).where(runs.c.usage_state.in_(OPEN_STATES)))
    ours = sorted(run_id for run_id, said in found if any(map(is_otlp, _names(said))))
    # Of one run it would be no sign: its calls may all have gone to the run that keeps them, or to its shares.
    if ours and connection.execute(select(spans.c.trace_id).limit(1)).first() is None:
        for run_id in ours[:_SHOWN]:
            yield f"run {run_id!r}: it is open and came as OTLP, and the ledger is empty"


def _names(said: str) -> list[str]:
    try:
        names = json.loads(said or "{}")
    except ValueError:
        return []
    return list(names) if isinstance(names, dict) else []


def _types(column: Column[Any]) -> tuple[str, ...]:
    kind = "integer" if isinstance(column.type, Integer) else "blob" if isinstance(column.type, LargeBinary) else "text"
    return (kind, "null") if column.nullable else (kind,)
