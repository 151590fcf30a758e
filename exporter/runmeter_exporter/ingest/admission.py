"""What door 2 takes on: decided when a request arrives, by how long what waits already will take.

A sender that is told at once to come again keeps its spans; one that waits for half a minute gives up, sends again, and
doubles the load that was too much.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 1.0
"""Seconds of work that may wait."""
RATE = 2**20
"""Bytes a second, until it is known how many there are."""
EACH = 16 * 2**10
"""Bytes that any request counts for beside its own: a transaction costs what it costs, and a rate that was learnt from
many small ones would have large ones wait for ever."""
SMALL = 32 * 2**10
"""Bytes of a request that waits for its like only: it is made durable before the rest of larger ones."""
LATEST = 5
"""Seconds after which who was refused comes again, at most: the speed may be another by then."""
_MEMORY = 10.0
"""Seconds of work by which the rate is judged."""


class Busy(Exception):
    """More waits to become durable than may; nothing of this request was taken. Come again after `seconds`."""

    def __init__(self, message: str, seconds: int = 2) -> None:
        super().__init__(message)
        self.seconds = seconds


class Admission:
    """Bytes that were let in and are not done, and how fast they go. Thread-safe.

    `clock`: seconds that never jump.
    """

    def __init__(
        self, clock: Callable[[], float], *, patience: float = PATIENCE, rate: float = RATE, each: int = EACH
    ) -> None:
        self._clock = clock
        self._patience = patience
        self._each = each
        self._lock = threading.Lock()
        self._waiting = self._small = 0
        self._since = clock()
        self._done, self._took = float(rate), 1.0

    @contextmanager
    def enter(self, size: int) -> Iterator[None]:
        """Let a request of so many bytes in, for as long as the block takes; it was done where nothing is raised.
        Busy, where what waits before it takes longer than the patience. With nobody before it, anything is let in."""
        small = size <= SMALL
        size += self._each
        with self._lock:
            self._refuse(small)
            if not self._waiting:
                self._since = self._clock()
            self._waiting += size
            self._small += size if small else 0
        done = False
        try:
            yield
            done = True
        finally:
            with self._lock:
                self._waiting -= size
                self._small -= size if small else 0
                now = self._clock()
                if done:
                    self._learn(size, now - self._since)
                self._since = now

    def look(self, size: int) -> None:
        """Busy, where a request of so many bytes would not be let in now; before any work is done for it."""
        with self._lock:
            self._refuse(size <= SMALL)

    def _refuse(self, small: bool) -> None:
        seconds = (self._small if small else self._waiting) * self._took / self._done
        if self._waiting and seconds > self._patience:
            raise Busy(
                f"what waits to be stored will take {seconds:.1f} s; the limit is {self._patience:g} s. "
                "Send it again later",
                min(LATEST, max(1, math.ceil(seconds - self._patience))),
            )

    def _learn(self, size: int, seconds: float) -> None:
        self._done += size
        self._took += seconds
        if self._took > _MEMORY:
            self._done /= 2
            self._took /= 2
