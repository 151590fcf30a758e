"""Recent calls by what they say and when: finds the one that another instrumentation told of in another run.

Asked whenever a reading arrives, at both doors: door 1 keeps one for its process, door 2 fills one from its ledger with
what is near in time to the spans that it takes. Whatever number of calls look alike, one look costs the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Hashable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from runmeter.counting.same_call import BY_ID, STREAM_SLACK, Likeness, alike, twin_keys
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

    __slots__ = ("entries", "longest")

    def __init__(self) -> None:
        self.entries: list[tuple[int, int, T]] = []
        """(begin, tie, entry), in order."""
        self.longest = 0
        """Nanoseconds of the longest."""

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

    def near(self, key: Hashable, started_at: int, ended_at: int, *, whenever: bool = False) -> Iterator[T]:
        """Entries that may have been under way at the same time, or `whenever`: at most `NEIGHBOURS` that began before
        and after."""
        line = self._lines.get(key)
        if line is None:
            return
        latest = ended_at + STREAM_SLACK
        if not isinstance(line, _Crowd):
            entry = line[1]
            if whenever or (started_at - STREAM_SLACK <= entry.ended_at and entry.started_at <= latest):
                yield entry
            return
        entries = line.entries
        reach = started_at - STREAM_SLACK - line.longest
        if not whenever and entries[-1][0] < reach:
            return
        if len(entries) > 2 * NEIGHBOURS:
            at = bisect_left(entries, (started_at,))
            entries = entries[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]
        for began, _, entry in entries:
            if whenever or reach <= began <= latest:
                yield entry


class Known:
    """A call as it is known: what a span said, and the run that has it."""

    __slots__ = ("ended_at", "names", "reading", "run_id", "started_at")

    def __init__(self, run_id: str, reading: Reading, names: tuple[str, ...]) -> None:
        self.run_id = run_id
        self.reading = reading
        self.names = names
        """Its twin keys."""
        self.started_at = reading.started_at
        self.ended_at = reading.ended_at


class Lookalikes:
    """Calls of many runs, bounded. Not thread-safe."""

    def __init__(self, *, limit: int = 4096) -> None:
        self._limit = limit
        self._known: dict[tuple[int, int], Known] = {}
        self._by_time: ByTime[Known] = ByTime()
        self._scopes: dict[str, str | dict[str, int]] = {}
        """Twin key → the instrumentation that told of a call under it, or all that did, and of how many. Each has an
        order of time of its own: a crowd of one's own kind does not stand between a call and its twin."""
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
        scope, tie = reading.scope, hash(key)
        for name in names:
            self._by_time.put((name, scope), tie, known)
            scopes = self._scopes.get(name)
            if scopes is None:
                self._scopes[name] = scope
                continue
            if isinstance(scopes, str):
                scopes = self._scopes[name] = {scopes: 1}
            scopes[scope] = scopes.get(scope, 0) + 1
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
                likeness = alike(reading, other)
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
                other = known.reading
                if known.run_id not in found and other.key != reading.key and alike(reading, other) is not None:
                    found.add(known.run_id)
        return found

    def _names(self, reading: Reading) -> tuple[str, ...]:
        """Its twin keys: who looks for a call's twin remembers it next."""
        if self._named[0] is not reading:
            self._named = reading, twin_keys(reading)
        return self._named[1]

    def _near(self, name: str, reading: Reading) -> Iterator[Known]:
        whenever = reading.tells == REREAD
        scopes = self._scopes.get(name, ())
        for scope in (scopes,) if isinstance(scopes, str) else scopes:
            # One instrumentation tells of a call once, but for a stream's log and for what is known by an id.
            if scope != reading.scope or "=" in name or reading.stream_log or reading.usage is None:
                yield from self._by_time.near((name, scope), reading.started_at, reading.ended_at, whenever=whenever)

    def _taken(self, name: str, known: Known, reading: Reading, likeness: Likeness) -> bool:
        """Its run has another span of this instrumentation, which has to do with it as plainly."""
        for rival in self._by_time.near((name, reading.scope), known.started_at, known.ended_at):
            if rival is not known and rival.run_id == known.run_id:
                theirs = alike(rival.reading, known.reading)
                if theirs is not None and theirs[0] <= likeness[0]:
                    return True
        return False

    def _forget(self, key: tuple[int, int]) -> None:
        known = self._known.pop(key)
        scope = known.reading.scope
        for name in known.names:
            self._by_time.drop((name, scope), hash(key), known.started_at)
            scopes = self._scopes[name]
            if not isinstance(scopes, str):
                scopes[scope] -= 1
                if not scopes[scope]:
                    del scopes[scope]
                if scopes:
                    continue
            del self._scopes[name]


def _belong(twin: Reading, other: Reading) -> bool:
    """They move together: other instrumentations' spans of the call, and answers to it that were read again."""
    likeness = alike(twin, other)
    return likeness is not None and (likeness[0] == BY_ID or twin.scope != other.scope)
