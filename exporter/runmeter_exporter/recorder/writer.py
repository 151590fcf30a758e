"""The thread that writes what a process counted: one per process, fed without a lock, patient with its store."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from random import Random
from typing import Any

from opentelemetry import context

from runmeter.sink import RunInfo
from runmeter_exporter.recorder.core import RecorderCore, Unwritten
from runmeter_exporter.recorder.link import IMPORT_WITHIN, Link
from runmeter_exporter.store import RunStore

_log = logging.getLogger("runmeter")

INBOX = 4096
"""Messages waiting for the writer; beyond, the agent's own thread adds them up while the writer waits for the store."""
FIRST_RETRY, LAST_RETRY = 0.1, 3.0
"""Seconds between attempts: doubling, with jitter, so that a fleet does not come back all at once."""
HURRIED_RETRY = 0.1
"""Seconds between attempts while somebody waits."""


class _Ticket:
    """Somebody waits for everything so far to be written."""

    __slots__ = ("done", "ok", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        """Retry until then, by the writer's clock; a failure after it is the answer."""
        self.ok = False
        self.done = threading.Event()


class Writer:
    """Drives a `RecorderCore`: messages in, on any thread and without a lock; snapshots out, on its own thread."""

    def __init__(
        self,
        core: RecorderCore,
        open_store: Callable[[], RunStore],
        *,
        url_for_humans: str,
        clock: Callable[[], float] = time.monotonic,
        random: Random | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`open_store` is called in the writer's thread, before the first write and again until it succeeds.
        `prepare` too, once: what else the first write would wait for."""
        self.core = core
        self.link = Link(open_store, url_for_humans, clock)
        self._clock = clock
        self._random = random or Random()
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._hot: set[RunInfo] = set()  # runs that the writer will look at by itself: more of them needs no waking
        self._folding = threading.Lock()  # guards the core; held for arithmetic only
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._prepare = prepare
        self._prepared = threading.Event()
        self._early = False
        self._said = False
        self._held_still = False
        self._tickets: list[_Ticket] = []
        self._failures = 0
        self._stop = False

    # On the agent's threads

    @property
    def idle(self) -> bool:
        """Nothing has ever been said, so there is nothing to write."""
        return not self._said and not self._inbox

    def start(self) -> None:
        """Open the store in the background, so that the first write is as quick as any other."""
        self._early = True
        self._start()

    def put(self, run: RunInfo, what: Callable[..., None], *args: Any) -> None:
        """Have `what(*args, now)` done to the core, for a run. O(1), without a lock."""
        # Append first, look second: the writer takes a run out of `_hot` and then looks at the inbox once more, so
        # whoever still found it there has been heard.
        self._said = True
        self._inbox.append((what, args))
        if run not in self._hot:
            self._hot.add(run)
            self.wake()
        if len(self._inbox) >= INBOX and self._folding.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._folding.release()

    def put_now(self, what: Callable[..., None], *args: Any) -> None:
        """The same, and have the writer look at once."""
        self._said = True
        self._inbox.append((what, args))
        self.wake()

    def wake(self) -> None:
        """Have the writer look."""
        if self._thread is None:
            self._start()
        self._wakes.put(None)

    def wait(self, timeout: float, *, patient: bool) -> bool:
        """Wait until everything so far is written, `timeout` seconds at most; not `patient`: or until a write fails."""
        if self._thread is threading.current_thread():
            return False
        if self.idle:
            return True
        ticket = _Ticket(self._clock() + timeout if patient else float("-inf"))
        self.put_now(self._accept, ticket)
        if self._thread is None:
            self._step()
        ticket.done.wait(timeout)
        return ticket.ok

    def stop(self, timeout: float) -> None:
        """Have the thread let go of the store and end; wait at most so long for it."""
        self._stop = True
        self._wakes.put(None)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, timeout))

    def unwritten(self) -> Unwritten:
        """What the store has not got yet."""
        with self._folding:
            self._drain()
            return self.core.unwritten()

    def ready(self, timeout: float) -> bool:
        """Wait until what comes before the first call to the store is done; True at once where nothing needs it."""
        return self._thread is None or (self._prepared.wait(timeout) and self.link.opened(timeout))

    def hold_still(self, timeout: float) -> None:
        """Before a fork: nothing in the middle of a sum, an import or a transaction (see `Link.hold_still`)."""
        self.link.hold_still(timeout)
        self._held_still = self._folding.acquire(timeout=IMPORT_WITHIN)

    def go_on(self) -> None:
        """After a fork, in the parent."""
        if self._held_still:
            self._held_still = False
            self._folding.release()
        self.link.go_on()

    def _start(self) -> None:
        # Not blocking: who loses the race, or comes from a finaliser in the middle of it, is served by the winner.
        if not self._starting.acquire(blocking=False):
            return
        try:
            if self._thread is None:
                thread = threading.Thread(target=self._work, name="runmeter-recorder", daemon=True)
                thread.start()
                self._thread = thread
        except RuntimeError:  # the interpreter is leaving, or no thread is to be had: `wait` writes in its own
            pass
        finally:
            self._starting.release()

    # On the writer's

    def _work(self) -> None:
        _suppress_instrumentation()
        self._get_ready()
        while not self._stop:
            try:
                self._wakes.get(timeout=self._sleep())
                while not self._wakes.empty():
                    self._wakes.get_nowait()
            except Empty:
                pass
            try:
                self._step()
            except Exception:  # never the end of the writer: what it holds is all there is
                _log.exception("runmeter: the recorder met an error of its own and goes on")
                with self._folding:
                    self._back_off()
        self.link.dispose()

    def _get_ready(self) -> None:
        try:
            if self._prepare is not None:
                self._prepare()
        except Exception:  # whatever it is, the first call meets it again
            _log.debug("runmeter: the recorder could not get ready", exc_info=True)
        finally:
            self._prepared.set()
        if self._early:
            self.link.open()

    def _sleep(self) -> float | None:
        """Seconds until there is something to do by itself; None for never."""
        with self._folding:
            due = self.core.next_due()
        known = [moment for moment in (due, self.link.release_due()) if moment is not None]
        return max(0.0, min(known) - self._clock()) if known else None

    def _step(self) -> None:
        """Write what is due, or all there is when somebody waits for it."""
        core = self.core
        while True:
            with self._folding:
                self._drain()
                now = self._clock()
                held = core.throttle.held(now)
                hurry = bool(self._tickets) and not held
                beats, snapshots = core.work(now, everything=hurry)
                self._cool()
                more = bool(self._tickets) and not held and len(core.throttle) > 0
            if snapshots:
                written = self.link.call(lambda store: store.write(snapshots))  # noqa: B023 - called at once
            elif beats:
                written = self.link.call(lambda store: store.heartbeat(beats))  # noqa: B023 - called at once
            elif more:
                continue
            else:
                break
            with self._folding:
                if not written:
                    self._back_off()
                    return
                self._failures = 0
                if snapshots:
                    core.wrote(self._clock())
                else:
                    core.told(self._clock(), beats)
        with self._folding:
            self._answer(*((now, False) if held else (float("inf"), True)))
        self.link.release_if_idle()

    def _drain(self) -> None:
        inbox = self._inbox
        now = self._clock()
        for _ in range(len(inbox)):  # not until it is empty: agents that are quicker than we would keep us here
            what, args = inbox.popleft()
            try:
                what(*args, now)
            except Exception:
                self.core.lost("error", 1, now)
                _log.exception("runmeter: a change could not be counted")

    def _cool(self) -> None:
        """Runs taken, or gone, need waking again; whoever still found them hot is heard by the second drain."""
        hot, throttle = self._hot, self.core.throttle
        hot.difference_update(self.core.taken)
        if len(hot) > len(throttle):
            hot.difference_update([run for run in hot.copy() if run not in throttle])
        self._drain()

    def _accept(self, ticket: _Ticket, now: float) -> None:
        self._tickets.append(ticket)
        if ticket.until > now:
            self.core.throttle.retry()

    def _answer(self, until: float, ok: bool) -> None:
        for ticket in [ticket for ticket in self._tickets if ticket.until <= until]:
            self._tickets.remove(ticket)
            ticket.ok = ok
            ticket.done.set()

    def _back_off(self) -> None:
        now = self._clock()
        self._answer(now, False)
        delay = min(LAST_RETRY, FIRST_RETRY * 2 ** min(self._failures, 10)) * (0.5 + self._random.random() / 2)
        self._failures += 1
        self.core.failed(now, now + (min(delay, HURRIED_RETRY) if self._tickets else delay))


def _suppress_instrumentation() -> None:
    """Our own SQL is nobody's span."""
    key = getattr(context, "_SUPPRESS_INSTRUMENTATION_KEY", "suppress_instrumentation")
    context.attach(context.set_value(key, True))
