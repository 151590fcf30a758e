"""What door 2's ledger keeps of a span, and what a ledger can do: `ledger.py` in SQL, `ledger_memory.py` in memory.

One row per span, keyed by (trace, span): its parent and its run, and, of the few that say something about usage, the
packed reading and what its arrival was priced at. A run's totals can be folded again from its rows, on any sidecar.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from runmeter.counting.same_call import twin_keys
from runmeter.reading.read import Reading, Role

INHERITED, STAMPED, PINNED = 0, 1, 2
"""Why a span is in its run: by its ancestors or trace; by its own `runmeter.run.id`; moved there as another run's twin,
which no ancestor changes any more."""


NO_LIMIT = 2**62
Key = tuple[int, int]
"""(trace, span)."""
_KEY = struct.Struct(">16s8s")
_BEGINNERS = (Role.CALL, Role.WEAK, Role.AGENT)
_ROOT_MARK = b"R"
"""Before what is kept of a local root that says nothing else; a packed reading begins with a bracket."""
_ROOT = struct.Struct(">qq??")


class Row(NamedTuple):
    """One span in the ledger."""

    trace_id: int
    span_id: int
    parent_id: int | None
    run_id: str
    why: int = INHERITED
    order: int = 0
    """0: came before the run closed (a set); else its place among those that came after (a sequence)."""
    seen: int = 0
    """Hours since the epoch when it was taken, by the sidecar's clock: expiry goes by it."""
    reading: bytes | None = None
    """The packed Reading; None for a plain span, of which only the ancestry matters."""
    twin: bytes | None = None
    """Eight bytes of a hash of what twins in other runs are found by (`same_call.twin_keys`) …"""
    twin_too: bytes | None = None
    """… and of the second such key."""
    ended_at: int | None = None
    """Nanoseconds since the epoch, of spans that begin a run (`begins`); twins are near in time."""
    priced: bytes | None = None
    """What the calls that this span's arrival settled were priced at (`fold.Prices`), never priced again."""

    @property
    def key(self) -> tuple[int, int]:
        """(trace, span)."""
        return self[0], self[1]


class Recorded(NamedTuple):
    """A run that a door 1 source recorded: spans of its trace that come without its id are its own."""

    run_id: str
    trace_id: int
    root_span_id: int | None
    started_at: int


class Arrival(NamedTuple):
    """What one transaction did to a run's rows: who folded the run before need read only that."""

    run_id: str
    since: int
    """The run's turn (`fold.turn_of`) until then …"""
    turn: int
    """… and from then on."""
    keys: bytes | None
    """The rows that joined the run, as `pack_keys` writes them; None where rows left it as well: it has to be read
    whole."""


ARRIVALS = 256
"""Turns of a run for which its arrivals are kept, at least; who is further behind reads the run whole."""


class TooMany(Exception):
    """Each of these ids (traces or runs) has more rows than were asked for."""

    def __init__(self, ids: Sequence[Any]) -> None:
        super().__init__(f"too many rows of {list(ids)}")
        self.ids = ids


class Ledger(Protocol):
    """The ledger inside one transaction."""

    def traces(self, trace_ids: Sequence[int], limit: int = NO_LIMIT) -> list[Row]:
        """Every row of these traces, without readings and prices: ancestry. TooMany, where any has more than `limit`
        rows."""

    def runs(self, run_ids: Sequence[str], limit: int = NO_LIMIT) -> list[Row]:
        """Every row of these runs, whole. TooMany, where any has more than `limit` rows."""

    def at(self, keys: Collection[tuple[int, int]]) -> list[Row]:
        """The rows with these keys that are there, whole."""

    def page(self, trace_id: int, run_id: str | None, after: int, limit: int) -> list[Row]:
        """At most `limit` rows of a trace beyond the span `after`, in order: those in the run, whole; without one the
        ancestry of all."""

    def traces_of(self, run_id: str) -> list[int]:
        """The traces that the run has rows in."""

    def arrive(self, arrived: Sequence[Arrival]) -> None:
        """Note what this transaction did; what nobody will ask for any more goes."""

    def arrived(self, run_id: str, turn: int) -> list[Arrival]:
        """What was done to a run after a turn, in order."""

    def over(self, run_ids: Sequence[str]) -> None:
        """Forget the arrivals of these runs."""

    def stored(self, run_ids: Sequence[str]) -> list[str]:
        """Which of these runs the store has."""

    def calls(self, run_id: str, limit: int = NO_LIMIT) -> list[Row]:
        """The run's rows that have twin keys, whole; some of them, where there are more than `limit`."""

    def mixed(self, trace_ids: Sequence[int]) -> list[int]:
        """Which of these traces have spans in other runs than their own implicit one."""

    def insert(self, rows: Sequence[Row]) -> int:
        """Add rows; returns how many were new, fewer than asked where another sidecar was faster."""

    def move(self, keys: Sequence[tuple[int, int]], run_id: str, why: int, order: int) -> None:
        """These spans belong to another run from now on."""

    def price(self, priced: Sequence[tuple[tuple[int, int], bytes]]) -> None:
        """Fix what was priced."""

    def twins(self, keys: Sequence[bytes], since: int, until: int, limit: int) -> list[Row] | None:
        """Rows with any of these twin keys that ended between two times; None where there are more than `limit`."""

    def near(self, key: bytes, moment: int, span: int, limit: int) -> list[Row]:
        """Rows with this twin key that ended at most `span` nanoseconds before or after a moment: at most `limit` on
        either side, the nearest."""

    def recorded(self, trace_ids: Sequence[int]) -> list[Recorded]:
        """The runs that door 1 stored with these traces."""

    def oldest(self) -> int | None:
        """The hour in which the oldest row was taken; None without any."""

    def taken_in(self, hour: int, after: int, limit: int) -> list[int]:
        """At most `limit` traces beyond `after`, in order, that have a row taken in that hour."""

    def runs_in(self, trace_ids: Sequence[int]) -> list[str]:
        """The runs that spans of these traces are in."""

    def last_seen(self, run_id: str) -> int:
        """The hour in which the run's last span was taken; 0 without any."""

    def forget(self, run_ids: Sequence[str]) -> int:
        """Delete the rows of these runs; returns how many."""


def pack_keys(keys: Iterable[tuple[int, int]]) -> bytes:
    """Keys of rows, 24 bytes each."""
    return b"".join(trace_id.to_bytes(16) + span_id.to_bytes(8) for trace_id, span_id in keys)


def unpack_keys(packed: bytes) -> list[tuple[int, int]]:
    """What `pack_keys` packed."""
    return [(int.from_bytes(trace), int.from_bytes(span)) for trace, span in _KEY.iter_unpack(packed)]


def begins(reading: Reading) -> bool:
    """The span begins the run that it is in, if it has not begun: a call, an agent, or a span that names the run."""
    return reading.role in _BEGINNERS or reading.usage is not None or reading.run_id is not None


def ends(reading: Reading) -> bool:
    """The span is a local root: nothing above it is in its process."""
    return reading.parent_id is None or reading.parent_is_remote


def row_of(reading: Reading, run_id: str, order: int, hour: int, priced: bytes | None) -> Row:
    """The row that keeps a reading."""
    trace_id, span_id, parent_id = reading[:3]
    why = INHERITED if reading.run_id is None else STAMPED
    if reading.matters and not _only_names_its_run(reading):
        packed: bytes | None = reading.pack().encode()
    elif ends(reading):
        remote, failed = reading.parent_is_remote, reading.failed
        packed = _ROOT_MARK + _ROOT.pack(reading.started_at, reading.ended_at, remote, failed)
    else:
        packed = None
    keys = twin_names(reading)
    return Row(
        trace_id,
        span_id,
        parent_id,
        run_id,
        why,
        order,
        hour,
        packed,
        keys[0] if keys else None,
        keys[1] if len(keys) > 1 else None,
        reading.ended_at if begins(reading) else None,
        priced,
    )


def twin_names(reading: Reading) -> list[bytes]:
    """What a row keeps of `same_call.twin_keys`: at most two."""
    return [blake2b(key.encode("utf-8", "replace"), digest_size=8).digest() for key in twin_keys(reading)[:2]]


def reading_of(row: Row) -> Reading:
    """The reading that a row keeps; of a plain span its place, what named its run and, of a local root, its end."""
    packed = row.reading
    run_id = row.run_id if row.why == STAMPED else None
    if packed is None:
        return Reading(row.trace_id, row.span_id, row.parent_id, run_id=run_id)
    if packed[:1] == _ROOT_MARK:
        started_at, ended_at, remote, failed = _ROOT.unpack(packed[1:])
        return Reading(
            row.trace_id,
            row.span_id,
            row.parent_id,
            remote,
            started_at=started_at,
            ended_at=ended_at,
            failed=failed,
            run_id=run_id,
        )
    return Reading.unpack(packed)


def _only_names_its_run(reading: Reading) -> bool:
    return (
        reading.role == Role.PLAIN
        and reading.run_id is not None
        and not reading.is_run_root
        and not reading._replace(run_id=None).matters
    )


def default_run(trace_id: int) -> str:
    """The id of the implicit run that a trace is when nobody says otherwise."""
    return format(trace_id, "032x")


def implied_trace(run_id: str) -> int | None:
    """The trace whose implicit run has this id, or None."""
    if len(run_id) != 32:
        return None
    try:
        trace_id = int(run_id, 16)
    except ValueError:
        return None
    return trace_id if default_run(trace_id) == run_id else None
