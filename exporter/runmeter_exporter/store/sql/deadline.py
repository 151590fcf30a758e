"""A deadline on every call to a database, kept on our side.

A PostgreSQL that was stopped (SIGSTOP, a cut network) keeps a query waiting for ever, whatever timeouts it was told;
so a thread of ours watches the calls under way, and cuts the connection of one that takes too long. The caller, who
waits in the driver, then gets an error from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class UnderWay:
    """One call under way."""

    __slots__ = ("_cut", "_held", "_lock", "due", "expired")

    def __init__(self, due: float, cut: Callable[[Any], None]) -> None:
        self.due = due
        self.expired = False
        self._cut = cut
        self._lock = threading.Lock()
        self._held: list[Any] = []

    def attach(self, connection: Any) -> None:
        """This call uses that driver's connection."""
        with self._lock:
            self._held.append(connection)
            late = self.expired
        if late:
            self._cut(connection)

    def expire(self) -> None:
        """Cut everything that it uses."""
        with self._lock:
            self.expired = True
            held = tuple(self._held)
        for connection in held:
            self._cut(connection)


class Deadlines:
    """The calls under way and the thread that watches them, started by the first one."""

    def __init__(self, cut: Callable[[Any], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._cut = cut
        self._clock = clock
        self._condition = threading.Condition()
        self._calls: set[UnderWay] = set()
        self._wakes_at: float | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    @contextmanager
    def call(self, seconds: float) -> Iterator[UnderWay]:
        """A call that may take so long."""
        call = UnderWay(self._clock() + seconds, self._cut)
        with self._condition:
            self._calls.add(call)
            if self._thread is None:
                self._stopped = False
                self._thread = threading.Thread(target=self._watch, name="runmeter-deadlines", daemon=True)
                if not _start(self._thread):
                    self._thread = None
            elif self._wakes_at is None or call.due < self._wakes_at:
                self._condition.notify()
        try:
            yield call
        finally:
            with self._condition:
                self._calls.discard(call)

    def stop(self) -> None:
        """End the thread; the next call starts another."""
        with self._condition:
            self._stopped = True
            thread, self._thread = self._thread, None
            self._condition.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1)

    def _watch(self) -> None:
        while True:
            with self._condition:
                if self._stopped or self._thread is not threading.current_thread():
                    return
                now = self._clock()
                late = [call for call in self._calls if call.due <= now and not call.expired]
                if not late:
                    waiting = [call.due for call in self._calls if not call.expired]
                    self._wakes_at = min(waiting, default=None)
                    self._condition.wait(None if self._wakes_at is None else self._wakes_at - now)
                    continue
            for call in late:
                call.expire()


def _start(thread: threading.Thread) -> bool:
    """Start it. False in an interpreter that is leaving: from Python 3.12 on it starts no thread any more. The last
    snapshots are written then, by a thread that began before; who leaves waits for it, and not for ever."""
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def bounded(work: Callable[[], T], seconds: float, discard: Callable[[T], None]) -> T:
    """`work()` in a thread of its own, for what cannot be cut: names looked up, connections being made.

    Raises TimeoutError after `seconds`; what `work` returns too late goes to `discard`.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []
    lock, done = threading.Lock(), threading.Event()
    given_up = False

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except BaseException as error:
            failure = error
        with lock:
            outcome.append((result, failure))
            late = given_up
        done.set()
        if late and result is not None:
            discard(result)

    if not _start(threading.Thread(target=run, name="runmeter-connect", daemon=True)):
        run()
    done.wait(seconds)
    with lock:
        given_up = not outcome
    if given_up:
        raise TimeoutError(f"no connection within {seconds:g} s")
    result, failure = outcome[0]
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]
