"""Calls added up by cell: the one accumulator, of an agent's recorder and of what comes through door 2. Pure."""

from __future__ import annotations

from datetime import date
from functools import lru_cache

from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.totals.run import CellKey

CELLS = 64
"""Cells that a run may have; the last three are kept for `other`, one for each kind of caller."""
OTHER = "other"

_DAY_NANOSECONDS = 86_400 * 10**9
_EPOCH = date(1970, 1, 1).toordinal()
_KINDS = 3
_NO_COUNTS = (0,) * len(Usage._fields)


@lru_cache(maxsize=8)
def _day(number: int) -> str:
    try:
        return date.fromordinal(_EPOCH + number).isoformat()
    except (OverflowError, ValueError):
        return date.fromordinal(_EPOCH).isoformat()


def day_of(moment: int) -> str:
    """UTC day of a time in nanoseconds since the epoch; a time that no calendar has falls on its first day."""
    return _day(moment // _DAY_NANOSECONDS)


class Cells:
    """What one source has counted for one run.

    Counts are kept as lists, not Usage: they are added to in place, and may be below zero for a moment when the taking
    back of a repeat overtakes the call itself.
    """

    __slots__ = ("_counts", "_limit", "_overflow")

    def __init__(self, *, limit: int | None = CELLS) -> None:
        """Beyond `limit` cells further ones are added up as `other`; None where whoever keeps them sees to that."""
        self._limit = limit
        self._counts: dict[CellKey, list[int]] = {}
        self._overflow: dict[str, CellKey] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, call: Call, usage: Usage, sign: int) -> int:
        """Add a priced call, or with `sign` -1 take it back; 1 where it fell into `other` for want of room."""
        key = CellKey(day_of(call.ended_at), call.provider, call.model, call.caller)
        counts = self._counts.get(key)
        overflowed = 0
        if counts is None:
            if self._limit is not None and len(self._counts) - len(self._overflow) >= self._limit - _KINDS:
                key, overflowed = self._other(key), 1
            counts = self._counts.setdefault(key, list(_NO_COUNTS))
        for position, count in enumerate(usage):
            if count:
                counts[position] += sign * count
        return overflowed

    def usage(self) -> dict[CellKey, Usage]:
        """Usage by cell."""
        return {key: Usage(*[max(0, count) for count in counts]) for key, counts in self._counts.items()}

    @property
    def used(self) -> bool:
        """Anything is counted."""
        return any(any(counts) for counts in self._counts.values())

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return sum(max(0, counts[0]) + max(0, counts[1]) for counts in self._counts.values())

    @property
    def calls(self) -> int:
        """Answered calls counted."""
        return sum(max(0, counts[5]) for counts in self._counts.values())

    @property
    def failures(self) -> int:
        """Failed attempts counted."""
        return sum(max(0, counts[6]) for counts in self._counts.values())

    def _other(self, key: CellKey) -> CellKey:
        """The cell for what has none of its own; its day stays that of its first call, so that one is enough."""
        kind, colon, _ = key.caller.partition(":")
        if kind not in ("subagent", "middleware"):
            kind, colon = "lead_agent", ""
        return self._overflow.setdefault(kind, CellKey(key.day, OTHER, OTHER, f"{kind}:{OTHER}" if colon else kind))
