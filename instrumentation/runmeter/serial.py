"""One thing at a time, on whatever thread it comes from."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any


class Serial:
    """Does work at once, under a lock of its own.

    Not just a lock: a span may end on the very thread that holds it (a generator closed by the garbage collector, a
    signal handler); that work then waits until the work above it is finished. A fault is told to `failed` by the name
    of the work, and raises nothing.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the thread that held the lock is not here, and its work is the parent's."""
        self._lock = threading.RLock()
        self._working: int | None = None
        self._waiting.clear()

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have it done: now, or right after what this thread is doing here."""
        me = get_ident()
        if self._working == me:
            self._waiting.append((work, arguments))
            return
        with self._lock:
            self._working = me
            try:
                try:
                    work(*arguments)
                except Exception:
                    self._failed(work.__name__)
                while self._waiting:
                    self._catch_up()
            finally:
                self._working = None

    def _catch_up(self) -> None:
        work, arguments = self._waiting.popleft()
        try:
            work(*arguments)
        except Exception:
            self._failed(work.__name__)
