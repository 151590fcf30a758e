"""One thing at a time, on whatever thread it comes from."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from threading import get_ident
from typing import Any

from runmeter.guard import FAULTS, unless_the_hosts


class Serial:
    """Does work at once, under a lock of its own.

    Not just a lock: a span may end on the very thread that holds it (a generator closed by the garbage collector, a
    signal handler); that work then waits until the work above it is finished. A fault is told to `failed` by the name
    of the work, and raises nothing; what the host raises in here, from a signal handler, is raised.
    """

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._waiting: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: the thread that held the lock is not here, and its work is the parent's."""
        self._lock = threading.RLock()
        self._owner = threading.Condition(self._lock)
        self._working: int | None = None
        self._waiting.clear()

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Have it done: now, or right after what this thread is doing here."""
        me = get_ident()
        if self._working == me and self._holds():
            self._waiting.append((work, arguments))
            return
        with self._lock:
            self._working = me
            try:
                try:
                    work(*arguments)
                except FAULTS as fault:
                    unless_the_hosts(fault)
                    self._failed(work.__name__)
                while self._waiting:
                    self._try(*self._waiting.popleft())
            finally:
                self._working = None  # no call in here: a signal handler of the host's would find the mark still there

    def _holds(self) -> bool:
        """This thread has the lock: where a signal handler's exception came between, the mark alone may be left."""
        try:
            self._owner.notify(0)
        except RuntimeError:
            return False
        return True

    def _try(self, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        try:
            work(*arguments)
        except FAULTS as fault:
            unless_the_hosts(fault)
            self._failed(work.__name__)
