"""Recent calls by what they say and when: finds the one that another instrumentation told of in another run.

Asked whenever a reading arrives, at both doors: door 1 keeps one for its process, door 2 fills one from its ledger with
what is near in time to the spans that it takes. Whatever number of calls look alike, one look costs the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from runmeter.counting.same_call import (
    BY_ID,
    BY_USAGE,
    SLACK,
    STREAM_SLACK,
    Likeness,
    alike_from_afar,
    may_stand_apart,
    twin_keys,
)
from runmeter.reading.read import Reading
from runmeter.reading.roles import REREAD

NEIGHBOURS: Final = 12
"""Entries of one key that are looked at before and after one in the order of time. Twins begin together."""

Order = tuple[int, int]


class Timed(Protocol):
    """What is kept by its time."""

    @property
    def started_at(self) -> int:
        """Nanoseconds since the epoch."""

    @property
    def ended_at(self) -> int:
        """Nanoseconds since the epoch."""


T = TypeVar("T", bound=Timed)


class _Crowd(Generic[T]):
    """The entries of a key that has more than one."""

    __slots__ = ("entries", "longest", "slack")

    def __init__(self, slack: int = STREAM_SLACK) -> None:
        self.entries: list[tuple[int, int, T]] = []
        """(begin, tie, entry), in order."""
        self.longest = 0
        """Nanoseconds of the longest."""
        self.slack = slack
        """Nanoseconds between an entry and what it may have to do with."""

    def put(self, tie: int, entry: T) -> None:
        entries, began = self.entries, entry.started_at
        # They come nearly in the order of time, and a search through thousands reads as much cold memory.
        if not entries or began > entries[-1][0]:
            entries.append((began, tie, entry))
        else:
            insort(entries, (began, tie, entry))
        lasted = entry.ended_at - began
        if lasted > self.longest:
            self.longest = lasted

    def drop(self, tie: int, started_at: int) -> None:
        entries = self.entries
        oldest = entries[0]
        del entries[0 if oldest[0] == started_at and oldest[1] == tie else bisect_left(entries, (started_at, tie))]

    def near(self, started_at: int, ended_at: int, slack: int, *, whenever: bool = False) -> Iterator[T]:
        """Those that may have to do with what was under way then, by their `slack` or its own."""
        entries = self.entries
        slack = max(slack, self.slack)
        reach = started_at - slack - self.longest
        if not whenever and entries[-1][0] < reach:
            return
        latest = ended_at + slack
        if len(entries) > 2 * NEIGHBOURS:
            at = bisect_left(entries, (started_at,))
            entries = entries[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]
        for began, _, entry in entries:
            if whenever or reach <= began <= latest:
                yield entry


class ByTime(Generic[T]):
    """Entries by key, each key's in the order in which they began."""

    def __init__(self) -> None:
        # Most keys are a response id and have one entry, for which a list would be dear.
        self._lines: dict[Hashable, tuple[int, T] | _Crowd[T]] = {}

    def put(self, key: Hashable, tie: int, entry: T) -> None:
        """`tie` tells entries apart that began at the same time."""
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = tie, entry
        elif type(line) is tuple:
            both = self._lines[key] = _Crowd()
            both.put(*line)
            both.put(tie, entry)
        else:
            line.put(tie, entry)  # type: ignore[union-attr]

    def drop(self, key: Hashable, tie: int, started_at: int) -> None:
        """Forget an entry that was put."""
        line = self._lines[key]
        if isinstance(line, _Crowd):
            line.drop(tie, started_at)
            if line.entries:
                return
        del self._lines[key]

    def near(self, key: Hashable, started_at: int, ended_at: int) -> Iterator[T]:
        """Entries that may have been under way at the same time: at most `NEIGHBOURS` that began before and after."""
        line = self._lines.get(key)
        if line is None:
            return
        if isinstance(line, _Crowd):
            yield from line.near(started_at, ended_at, STREAM_SLACK)
        elif _near(line[1], started_at, ended_at, STREAM_SLACK):
            yield line[1]


def _near(entry: Timed, started_at: int, ended_at: int, slack: int) -> bool:
    return started_at - slack <= entry.ended_at and entry.started_at <= ended_at + slack


class Known:
    """A call as it is known: what a span said, and the run that has it."""

    __slots__ = ("ended_at", "names", "reading", "run_id", "slack", "started_at")

    def __init__(self, run_id: str, reading: Reading, names: tuple[str, ...]) -> None:
        self.run_id = run_id
        self.reading = reading
        self.names = names
        """Its twin keys."""
        self.started_at = reading.started_at
        self.ended_at = reading.ended_at
        self.slack = STREAM_SLACK if may_stand_apart(reading) else SLACK
        """Nanoseconds between it and what may be the same call."""


class Lookalikes:
    """Calls of many runs, bounded. Not thread-safe."""

    def __init__(self, *, limit: int = 4096) -> None:
        self._limit = limit
        self._known: dict[tuple[int, int], Known] = {}
        self._lines: dict[str, Known | dict[str, _Crowd[Known]]] = {}
        """Twin key → the one call under it, or all by the instrumentation that told of them. Each has an order of time
        of its own: a crowd of one's own kind does not stand between a call and its twin."""
        self._oldest: deque[tuple[int, int]] = deque()
        self._named: tuple[Reading | None, tuple[str, ...]] = None, ()

    def add(self, run_id: str, reading: Reading) -> None:
        """Remember a call, or that `run_id` has it from now on. The oldest are forgotten beyond the limit."""
        key = reading.key
        known = self._known.get(key)
        if known is not None:
            known.run_id = run_id
            return
        names = self._names(reading)
        if not names:
            return
        known = self._known[key] = Known(run_id, reading, names)
        self._oldest.append(key)
        lines = self._lines
        for name in names:
            line = lines.get(name)
            if line is None:
                lines[name] = known
            elif isinstance(line, Known):
                lines[name] = _stand(known, _stand(line, {}))
            else:
                _stand(known, line)
        if len(self._oldest) > self._limit:
            self._forget(self._oldest.popleft())

    def find(self, run_id: str, reading: Reading) -> tuple[int, list[Known]] | None:
        """(kind of likeness, what another run has of this call, the nearest first): where one of them moves, all must.

        What has its twin of this instrumentation already is nobody else's, and what has a twin at home looks for none
        elsewhere, unless they share a response id.
        """
        home: Likeness | None = None
        best: Likeness | None = None
        twin: Known | None = None
        found: dict[tuple[int, int], tuple[Likeness, Known]] = {}
        for name in self._names(reading):
            for known in self._near(name, reading):
                other = known.reading
                if other.key == reading.key:
                    continue
                likeness = alike_from_afar(reading, other)
                if likeness is None:
                    continue
                if known.run_id == run_id:
                    home = likeness if home is None else min(home, likeness)
                    continue
                found[other.key] = likeness, known
                if best is not None and likeness >= best:
                    continue
                if likeness[0] == BY_ID or not self._taken(name, known, reading, likeness):
                    best, twin = likeness, known
        if best is None or twin is None or (best[0] != BY_ID and home is not None and home[0] <= best[0]):
            return None
        rest = [
            known
            for _, known in found.values()
            if known is not twin and known.run_id == twin.run_id and _belong(twin.reading, known.reading)
        ]
        return best[0], [twin, *rest]

    def runs(self, reading: Reading) -> set[str]:
        """The runs that have, or may have, the same call."""
        found: set[str] = set()
        for name in self._names(reading):
            for known in self._near(name, reading):
                if known.run_id in found or known.reading.key == reading.key:
                    continue
                if alike_from_afar(reading, known.reading) is not None:
                    found.add(known.run_id)
        return found

    def _names(self, reading: Reading) -> tuple[str, ...]:
        """Its twin keys: who looks for a call's twin remembers it next."""
        if self._named[0] is not reading:
            self._named = reading, twin_keys(reading)
        return self._named[1]

    def _near(self, name: str, reading: Reading) -> Iterator[Known]:
        line = self._lines.get(name)
        if line is None:
            return
        whenever = reading.tells == REREAD
        slack = STREAM_SLACK if may_stand_apart(reading) else SLACK
        # One instrumentation tells of a call once, but for a stream's log and for what is known by an id.
        but = None if "=" in name or reading.stream_log or reading.usage is None else reading.scope
        if isinstance(line, Known):
            if line.reading.scope != but and (
                whenever or _near(line, reading.started_at, reading.ended_at, max(slack, line.slack))
            ):
                yield line
            return
        for scope, crowd in line.items():
            if scope != but:
                yield from crowd.near(reading.started_at, reading.ended_at, slack, whenever=whenever)

    def _taken(self, name: str, known: Known, reading: Reading, likeness: Likeness) -> bool:
        """Its run has another span of this instrumentation, which has to do with it as plainly."""
        line = self._lines.get(name)
        crowd = line.get(reading.scope) if isinstance(line, dict) else None
        if crowd is None:
            return False
        for rival in crowd.near(known.started_at, known.ended_at, known.slack):
            if rival is not known and rival.run_id == known.run_id:
                theirs = alike_from_afar(rival.reading, known.reading)
                if theirs is None or theirs[0] > likeness[0]:
                    continue
                # Of calls with equal usage side by side the nearer is the twin; where less is said, times are no word.
                if likeness[0] != BY_USAGE or theirs <= likeness:
                    return True
        return False

    def _forget(self, key: tuple[int, int]) -> None:
        known = self._known.pop(key)
        scope = known.reading.scope
        for name in known.names:
            line = self._lines[name]
            if isinstance(line, dict):
                crowd = line[scope]
                crowd.drop(hash(key), known.started_at)
                if not crowd.entries:
                    del line[scope]
                if line:
                    continue
            del self._lines[name]


def _stand(known: Known, line: dict[str, _Crowd[Known]]) -> dict[str, _Crowd[Known]]:
    """Put it among those of its instrumentation."""
    scope = known.reading.scope
    crowd = line.get(scope)
    if crowd is None:
        crowd = line[scope] = _Crowd(known.slack)
    elif known.slack > crowd.slack:
        crowd.slack = known.slack
    crowd.put(hash(known.reading.key), known)
    return line


def _belong(twin: Reading, other: Reading) -> bool:
    """They move together: other instrumentations' spans of the call, and answers to it that were read again."""
    likeness = alike_from_afar(twin, other)
    return likeness is not None and (likeness[0] == BY_ID or twin.scope != other.scope)
