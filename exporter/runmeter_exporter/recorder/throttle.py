"""Rule 5, leading and trailing, as a value: when each run is due to be written. No clock, no thread, no lock.

Times are seconds of a monotonic clock, passed in.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

GRID_PER_INTERVAL = 10


class Throttle(Generic[Key]):
    """When which run is due.

    The first touch of a quiet key is due at once; touches inside the interval after its last write wait for the end of
    it. Due times round up to a grid of a tenth of the interval that all keys share, so that they go out together:
    however many keys and touches there are, a writer that drains all due keys at a time writes at most once per grid
    step. Only a writer that was idle for a whole step writes off the grid, at once.
    """

    def __init__(self, interval: float) -> None:
        """`interval`: seconds between two writes of one key; 0 makes every touch due at once."""
        if not interval >= 0 or math.isinf(interval):
            raise ValueError(f"throttle is {interval!r}, expected seconds, 0 or more")
        self.interval = interval
        self.grid = interval / GRID_PER_INTERVAL
        self._due: dict[Key, float] = {}
        self._steps: dict[float, dict[Key, None]] = {}  # due time → its keys, in the order they were touched
        self._paced: set[Key] = set()  # due keys whose write begins an interval
        self._written: dict[Key, float] = {}
        self._idle_since = -math.inf
        self.held_until = -math.inf
        """Until then a failure holds every write back."""

    def __len__(self) -> int:
        """How many keys wait to be written."""
        return len(self._due)

    def __contains__(self, key: Key) -> bool:
        return key in self._due

    def touch(self, key: Key, now: float, *, urgent: bool = False, paced: bool = True) -> None:
        """There is something new to write for `key`.

        `urgent` does not wait for the end of the interval (a run's final snapshot). A touch that is not `paced` is due
        at once too but begins no interval (the announcement of a run: its first call still is a leading write).
        """
        if paced:
            self._paced.add(key)
        earliest = now
        if not urgent and paced:
            earliest = max(now, self._written.get(key, -math.inf) + self.interval)
        due = self._step(earliest, now)
        known = self._due.get(key)
        if known is None:
            self._put(key, due)
        elif due < known and (urgent or not paced):
            self._drop(key, known)
            self._put(key, due)

    def due(self, now: float, limit: int | None = None) -> list[Key]:
        """All keys due, taken: they are no longer dirty, and what touches them from now on is another write's.

        With a `limit` at most that many, those first that are due longest.
        """
        if now < self.held_until:
            return []
        return self._take([step for step in self._steps if step <= now], now, limit)

    def everything(self, now: float, limit: int | None = None) -> list[Key]:
        """All dirty keys, due or not, taken (for a flush)."""
        return self._take(list(self._steps), now, limit)

    def next_due(self) -> float | None:
        """When the next key is due, or None when nothing is dirty."""
        return max(min(self._steps), self.held_until) if self._steps else None

    def wrote(self, now: float) -> None:
        """A write has succeeded: the writer is idle from now on, and nothing is held back any more."""
        self._idle_since = now
        self.held_until = -math.inf

    def failed(self, keys: Iterable[Key], now: float, until: float) -> None:
        """A write of `keys` has failed: they are due again, and nothing at all is due before `until`."""
        self._idle_since = now
        self.held_until = until
        for key in keys:
            self._paced.add(key)
            if key not in self._due:
                self._put(key, until)

    def retry(self) -> None:
        """Nothing is held back any more, though nothing has succeeded (somebody waits for a write)."""
        self.held_until = -math.inf

    def held(self, now: float) -> bool:
        """Whether a failure still holds every write back."""
        return now < self.held_until

    def forget(self, key: Key) -> None:
        """Nothing more will be written for `key`."""
        self._written.pop(key, None)
        self._paced.discard(key)
        known = self._due.get(key)
        if known is not None:
            self._drop(key, known)

    def _step(self, earliest: float, now: float) -> float:
        if not self.grid or (earliest <= now and now - self._idle_since >= self.grid):
            return earliest
        due = math.ceil(earliest / self.grid) * self.grid
        # A touch on the very step that has just been written waits for the next one.
        return due if due > self._idle_since else due + self.grid

    def _put(self, key: Key, due: float) -> None:
        self._due[key] = due
        self._steps.setdefault(due, {})[key] = None

    def _drop(self, key: Key, due: float) -> None:
        del self._due[key]
        keys = self._steps[due]
        del keys[key]
        if not keys:
            del self._steps[due]

    def _take(self, steps: list[float], now: float, limit: int | None) -> list[Key]:
        taken = [key for step in sorted(steps) for key in self._steps[step]][:limit]
        for key in taken:
            self._drop(key, self._due[key])
            if key in self._paced:
                self._paced.discard(key)
                self._written[key] = now
        return taken
