"""Calls that nothing else has to do with, folded: what each says anew in some hundred bytes, and once what all say.

Most calls of a run are like the one before them below the same span, and as spans of the tree they take 1.5 kB each.
Whoever needs to look at them as such has them all unfolded, which is done once something speaks of one of them: its
child, another span with its response id, another instrumentation, something new about what is above it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from struct import Struct
from struct import error as StructError
from typing import Any, Final

from runmeter.counting.tree import Key, Node
from runmeter.reading.reading import Reading
from runmeter.reading.roles import CALL, WHOLE
from runmeter.usage import Usage

_COMMON: Final = slice(Reading._fields.index("provider"), Reading._fields.index("first_chunk"))
"""What calls may say alike, beside scope and resource."""
_KINDS: Final = 64
"""Kinds of calls folded at once."""
_UNKNOWN: Final = -1.0
_WHERE: Final = Struct("<IH")
"""Number of the place, number of the kind."""
_WHAT: Final = Struct("<qq5Id")
"""Begin, end, the five counts, seconds until the first chunk; the response id is behind it."""
_SIZE: Final = _WHERE.size + _WHAT.size
_NOTHING_ELSE: Final = (0, 0, 0, 0, 0, 0)
_new: Final[Any] = tuple.__new__


def folds(reading: Reading) -> bool:
    """Calls that say the same can be folded: who makes them follows from what is above, and they are no more than
    calls."""
    return (
        reading.model is not None
        and reading.caller is None
        and reading.agent is None
        and reading.cost_nanousd is None
        and reading.tells == WHOLE
        and not (reading.stream_log or reading.is_run_root or reading.parent_is_remote or reading.rejected)
    )


class Place:
    """The span that folded calls are below, and what they count as there."""

    __slots__ = ("above", "caller", "held", "key", "number", "thread_id", "version")

    def __init__(self, above: Node, version: int, caller: str, thread_id: str | None) -> None:
        self.above: Node | None = above
        """None where it was forgotten."""
        self.key = above.key
        self.version = version
        """State of the tree in which a call right below it had to do with nothing else: so has the next one."""
        self.caller = caller
        self.thread_id = thread_id
        self.held = 0
        """Calls that are folded here."""
        self.number = 0


class Kind:
    """What some folded calls say alike."""

    __slots__ = ("common", "facts", "held", "number", "resource_key", "scope")

    def __init__(self, number: int, reading: Reading, facts: Sequence[Any]) -> None:
        self.number = number
        self.scope = reading.scope
        self.resource_key = reading.resource_key
        said: tuple[Any, ...] = reading
        self.common = said[_COMMON]
        self.facts = facts
        """What they say of the run, as `Facts` keeps it."""
        self.held = 0


class Folded:
    """The folded calls of a run, the oldest first."""

    __slots__ = ("_ids", "_kinds", "_last", "_made", "_numbered", "_places", "calls")

    def __init__(self) -> None:
        self.calls: dict[int, bytes] = {}
        """By span id, which is drawn at random: one that two traces have is folded once."""
        self._ids: dict[int, None] = {}
        """Hashes of their response ids."""
        self._kinds: dict[tuple[Any, ...], Kind] = {}
        self._numbered: dict[int, Kind] = {}
        self._places: dict[int, Place] = {}
        self._last: Kind | None = None
        self._made = 0

    def __len__(self) -> int:
        return len(self.calls)

    def __contains__(self, key: Key) -> bool:
        record = self.calls.get(key[1])
        return record is not None and self._place(record).key[0] == key[0]

    def knows(self, response_id: str | None) -> bool:
        """One of them may have this response id."""
        return response_id is not None and hash(response_id) in self._ids

    def kind_of(self, reading: Reading) -> Kind | None:
        """The kind of calls that say the same, where there is one."""
        said: tuple[Any, ...] = reading
        common = said[_COMMON]
        kind = self._last
        if kind is None or kind.common != common:
            kind = self._last = self._kinds.get(common)
        if kind is None or kind.scope != reading.scope or kind.resource_key != reading.resource_key:
            return None
        return kind

    def learn(self, reading: Reading, facts: Sequence[Any]) -> Kind | None:
        """Fold calls that say the same as this one, which `folds`, from now on, if there is room for one more kind.
        `facts`: see `Kind`."""
        if len(self._kinds) >= _KINDS:
            for common, kind in list(self._kinds.items()):
                if not kind.held:
                    self._last = None
                    del self._kinds[common], self._numbered[kind.number]
        if len(self._kinds) >= _KINDS:
            return None
        number = next(number for number in range(_KINDS) if number not in self._numbered)
        kind = Kind(number, reading, facts)
        if kind.common in self._kinds:  # of another scope
            return None
        self._kinds[kind.common] = self._numbered[number] = kind
        return kind

    def pack(self, reading: Reading) -> bytes | None:
        """What a call says anew; None where it cannot be folded."""
        usage, response_id, chunk = reading.usage, reading.response_id, reading.first_chunk
        if usage is None or reading.failed or reading.parent_is_remote or reading.span_id in self.calls:
            return None
        try:
            packed = _WHAT.pack(
                reading.started_at, reading.ended_at, *usage[:5], _UNKNOWN if chunk is None else chunk
            )
            return packed if response_id is None else packed + response_id.encode()
        except (StructError, ValueError):  # numbers and text beyond all measure
            return None

    def take(self, reading: Reading, packed: bytes, place: Place, kind: Kind) -> None:
        """Fold a call whose response id no other one here has."""
        if not place.number:
            self._made += 1
            place.number = self._made
            self._places[place.number] = place
        self.calls[reading.span_id] = _WHERE.pack(place.number, kind.number) + packed
        if reading.response_id is not None:
            self._ids[hash(reading.response_id)] = None
        place.held += 1
        kind.held += 1

    def readings(self) -> Iterator[tuple[Place, Reading]]:
        """Where each of them is, and what it says."""
        for span_id, record in self.calls.items():
            place, _, reading = self._read(span_id, record)
            yield place, reading

    def oldest(self, number: int) -> list[tuple[Place, Reading]]:
        """The oldest so many, which are folded no longer."""
        found = []
        for span_id in list(self.calls)[:number]:
            place, kind, reading = self._read(span_id, self.calls.pop(span_id))
            if reading.response_id is not None:
                del self._ids[hash(reading.response_id)]
            kind.held -= 1
            place.held -= 1
            if not place.held:
                del self._places[place.number]
                place.number = 0
            found.append((place, reading))
        return found

    def forget_kinds(self) -> None:
        """What calls say of their run is kept elsewhere now: nothing is folded, and kinds are learned anew."""
        self._last = None
        self._kinds.clear()
        self._numbered.clear()

    def _read(self, span_id: int, record: bytes) -> tuple[Place, Kind, Reading]:
        place_number, kind_number = _WHERE.unpack_from(record)
        place, kind = self._places[place_number], self._numbered[kind_number]
        began, ended, *counts, chunk = _WHAT.unpack_from(record, _WHERE.size)
        reading: Reading = _new(
            Reading,
            (
                place.key[0],
                span_id,
                place.key[1],
                False,
                CALL,
                kind.scope,
                kind.resource_key,
                began,
                ended,
                False,
                _new(Usage, (*counts, *_NOTHING_ELSE)),
                record[_SIZE:].decode() or None,
                *kind.common,
                None if chunk == _UNKNOWN else chunk,
            ),
        )
        return place, kind, reading

    def _place(self, record: bytes) -> Place:
        return self._places[_WHERE.unpack_from(record)[0]]
