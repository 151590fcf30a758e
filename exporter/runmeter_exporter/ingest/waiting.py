"""What waits for the writer, and whose turn it is: a portion at a time, so that nobody waits for all of another's."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from runmeter.reading.read import Reading
from runmeter_exporter.ingest.cache import size_of

AT_LENGTH = 0.15
"""Seconds that a portion's transaction should take: agents may be waiting for the file, and senders for their turn."""
FEWEST, FIRST, MOST = 50, 1_000, 20_000
"""Spans of a portion."""


class Request:
    """Readings of one request; `done` when they are durable, or it is known that they are not."""

    __slots__ = ("begun", "done", "error", "readings", "refused", "size")

    def __init__(self, readings: Sequence[Reading]) -> None:
        self.readings = readings
        self.size = sum(map(size_of, readings))
        """Bytes, all in all."""
        self.begun = 0
        """How many are durable, or being made so."""
        self.done = threading.Event()
        self.error: Exception | None = None
        self.refused = 0

    @property
    def left(self) -> int:
        """How many have not begun."""
        return len(self.readings) - self.begun


Portion = tuple[Request, Sequence[Reading]]


class Waiting:
    """Requests in the order in which they came. Not thread-safe."""

    def __init__(self) -> None:
        self._requests: deque[Request] = deque()
        self._at_once = FIRST
        self.size = 0
        """Bytes of all requests that have not begun, or not with all of their spans."""

    def __len__(self) -> int:
        return len(self._requests)

    def append(self, request: Request) -> None:
        """It waits from now on."""
        self._requests.append(request)
        self.size += request.size

    def drop(self, request: Request) -> None:
        """What of it has not begun waits no more: else it would be in line twice when it comes again."""
        if request in self._requests:
            self._requests.remove(request)
            self.size -= request.size

    def next(self) -> list[Portion]:
        """What is made durable next, together: half for who has waited longest, the rest for who has least to wait for.
        A large request is not kept by small ones, nor a small one by large ones."""
        if not self._requests:
            return []
        room = self._at_once
        oldest = self._requests[0]
        shares = {oldest: min(oldest.left, max(1, room // 2))}
        room -= shares[oldest]
        for request in sorted(self._requests, key=lambda request: request.left):
            share = min(request.left - shares.get(request, 0), room)
            if share <= 0:
                continue
            shares[request] = shares.get(request, 0) + share
            room -= share
        portions = []
        for request, share in shares.items():
            portions.append((request, request.readings[request.begun : request.begun + share]))
            request.begun += share
            if not request.left:
                self.drop(request)
        return portions

    def took(self, spans: int, seconds: float) -> None:
        """A transaction with so many held its locks so long: the next ones are cut by it."""
        if seconds > AT_LENGTH:
            self._at_once = max(FEWEST, min(self._at_once, int(spans * AT_LENGTH / seconds)))
        elif spans >= self._at_once and 2 * seconds < AT_LENGTH:
            self._at_once = min(MOST, 2 * self._at_once)

    def failed(self, spans: int) -> None:
        """A transaction with so many was not committed, perhaps as it took too long: fewer from now on."""
        self._at_once = max(FEWEST, min(self._at_once, spans // 2))


class Line:
    """A lock that is had in the order in which it was asked for: who lets go and asks again at once waits for the
    others. `threading.Lock` would be its again, as nobody else has run in between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held = False
        self._behind: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._behind.append(turn)
        turn.acquire()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._behind:
                self._behind.popleft().release()
            else:
                self._held = False
