"""Runs, cells and totals as rows of tables, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from runmeter.usage import ZERO, Usage
from runmeter_exporter.store import OpenRun
from runmeter_exporter.totals.rollup import DailyKey, Held, Part, Place, pack, packed_tags, short, unpack
from runmeter_exporter.totals.run import Aside, Cell, CellKey, SourceState, StoredRun

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
_decode = json.JSONDecoder().raw_decode  # without the search for white space around it, which takes as long again
_quote = json.encoder.encode_basestring
_COUNTERS = len(Usage._fields)


def run_record(run: StoredRun) -> tuple[Any, ...]:
    """The row of a run, in the order of the table."""
    return (
        run.run_id, run.thread_id, run.service, run.agent, run.user_id, packed_tags(run.tags), run.status,
        run.usage_state, run.owner, run.ended_by, run.trace_id, run.root_span_id, run.started_at, run.updated_at,
        run.ended_at, run.stop_reason, run.first_status, run.counted_status, run.orphanings, run.overflow, run.version,
        run.listed_at, _states(run.sources), _aside(run), 0 if run.closed else 1,
    )  # fmt: skip


def progress_record(was: StoredRun, run: StoredRun) -> tuple[Any, ...] | None:
    """The few columns that a progress write changes (`statements.PROGRESS_COLUMNS`), or None where more has changed."""
    if (
        was.status != run.status
        or was.usage_state != run.usage_state
        or was.owner != run.owner
        or was.started_at != run.started_at
        or was.ended_at != run.ended_at
        or was.ended_by != run.ended_by
        or was.counted_status != run.counted_status
        or was.orphanings != run.orphanings
        or was.thread_id != run.thread_id
        or was.service != run.service
        or was.agent != run.agent
        or was.user_id != run.user_id
        or was.trace_id != run.trace_id
        or was.root_span_id != run.root_span_id
        or was.stop_reason != run.stop_reason
        or was.first_status != run.first_status
        or was.tags != run.tags
        or run.closed
    ):
        return None
    return (run.run_id, run.overflow, run.updated_at, run.version, _states(run.sources), _aside(run))


def stored_run(row: Sequence[Any]) -> StoredRun:
    """The run of a row, without its cells."""
    (
        run_id, thread_id, service, agent, user_id, tags, status, usage_state, owner, ended_by, trace_id, root_span_id,
        started_at, updated_at, ended_at, stop_reason, first_status, counted_status, orphanings, overflow, version,
        listed_at, states, aside, _,
    ) = row  # fmt: skip
    return StoredRun(
        run_id, thread_id, service, agent, user_id, _decode(tags)[0] if tags else {}, status, usage_state, owner,
        ended_by, trace_id, root_span_id, started_at, updated_at, ended_at, stop_reason, first_status, counted_status,
        orphanings, overflow, version, listed_at, _sources(states),
        {(source, reason): Aside(spans, settled) for source, reason, spans, settled in _decode(aside)[0]}
        if aside
        else {},
    )  # fmt: skip


def open_run(run_id: str, version: int, state: str, owner: str | None, ended_by: str | None, sources: str) -> OpenRun:
    """What the reaper needs, from a few columns."""
    run = StoredRun(run_id, usage_state=state, owner=owner, ended_by=ended_by, version=version)
    try:
        run.sources = _sources(sources)
    except (ValueError, TypeError, LookupError, AttributeError):
        # Somebody broke it by hand. It is due like one that ended: closing it says so, and the others are not held up.
        return OpenRun(run_id, version, state, owner, True, True, True)
    return OpenRun(*run.watched())


def _sources(text: str) -> dict[str, SourceState]:
    return {source: SourceState(state[0], state[1]) for source, state in _decode(text)[0].items()} if text else {}


def _aside(run: StoredRun) -> str:
    return _encode([(*place, *held) for place, held in run.set_aside.items()]) if run.set_aside else ""


def _states(sources: Mapping[str, SourceState]) -> str:
    # Spelt out, since every write of every run passes here.
    return (
        "{"
        + ",".join(
            [
                f"{_quote(source)}:[{revision},{'true' if final else 'false'}]"
                for source, (revision, final) in sources.items()
            ]
        )
        + "}"
    )


@lru_cache(maxsize=16384)
def cell_id(source: str, key: CellKey) -> str:
    """A short name of a cell within its run."""
    return blake2b(_encode((source, *key)).encode(), digest_size=12).hexdigest()


def cell_record(run_id: str, place: tuple[str, CellKey], cell: Cell) -> tuple[Any, ...]:
    """The row of a cell."""
    source, key = place
    return (run_id, cell_id(source, key), source, *key, *cell.usage, *cell.settled)


def put_cells(runs: dict[str, StoredRun], rows: Iterable[Sequence[Any]]) -> None:
    """Give runs their cells."""
    end = 7 + _COUNTERS
    for row in rows:
        run = runs.get(row[0])
        if run is not None:
            settled = row[end:]
            run.cells[row[2], CellKey(*row[3:7])] = Cell(  # type: ignore[index]
                Usage(*row[7:end]), Usage(*settled) if any(settled) else ZERO
            )


def rollup_record(place: Place, number: int, updated_at: int, usage: Usage) -> tuple[Any, ...]:
    """The row of a total."""
    scope, dimension, key = place
    parts = pack(key)
    return (scope, dimension, short(parts), parts, number, updated_at, *usage)


def rollup_held(row: Sequence[Any]) -> tuple[str, Part, Held]:
    """(scope, (dimension, key), what it holds)"""
    return row[0], (row[1], unpack(row[3])), Held(row[4], Usage(*row[6:]), row[5])


@lru_cache(maxsize=4096)
def daily_id(key: DailyKey) -> str:
    """A short name of a row of daily usage."""
    return blake2b(_encode(key).encode(), digest_size=16).hexdigest()


def daily_record(key: DailyKey, usage: Usage, stripe: int = 0) -> tuple[Any, ...]:
    """The row of daily usage, one of several where that is kept in stripes."""
    return (f"{daily_id(key)}.{stripe}" if stripe else daily_id(key), *key, *usage)
