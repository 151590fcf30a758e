"""The sink of door 1: totals of this process's runs, written by one thread of its own.

The agent's threads only append to a queue: no lock, no I/O, and so safe in signal handlers and finalisers too. The
writer's thread adds up, prices, throttles and writes. Whatever the store does, the agent does not notice: writes are
retried with backoff, and since snapshots are absolute nothing is lost by waiting.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.prices import PriceBook
from runmeter_exporter.recorder import forking
from runmeter_exporter.recorder.core import HEARTBEAT, MAX_RUNS, RecorderCore
from runmeter_exporter.recorder.link import IMPORT_WITHIN
from runmeter_exporter.recorder.rehearsal import rehearse
from runmeter_exporter.recorder.totals import Ending
from runmeter_exporter.recorder.writer import Writer
from runmeter_exporter.store import DEADLINE, RunStore, default_url, open_store
from runmeter_exporter.store.urls import shown

LEAVE_WITHIN = 2.0
"""Seconds that leaving waits for the store."""


class Recorder:
    """A `runmeter.sink.Sink` that writes to a `RunStore`.

    With `throttle=0` every settled call is written before `settled` returns, unless the store is away. Nothing raises
    into the agent.
    """

    def __init__(
        self,
        open_the_store: Callable[[], RunStore],
        *,
        throttle: float = 1.0,
        service: str | None = None,
        url_for_humans: str = "the store",
        price: Callable[[Call], Usage] | None = None,
        heartbeat: float = HEARTBEAT,
        max_runs: int = MAX_RUNS,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], int] = time.time_ns,
        random: Random | None = None,
    ) -> None:
        """`throttle`, `heartbeat`: seconds, by `clock`. `wall`: nanoseconds since the epoch, for runs that never end.

        `open_the_store` is called in the writer's thread. `price` must be a function of the call alone; without it
        `PriceBook.from_environment` says.
        """
        self.url_for_humans = url_for_humans
        self._wall = wall
        self._interval = throttle
        prepare = None
        if price is None:
            book = PriceBook.from_environment()
            price, prepare = book.price_call, book.prepare

        def writer(source_id: str, forked: bool) -> Writer:
            core = RecorderCore(
                source_id,
                throttle=throttle,
                price=price,
                service=service,
                forked=forked,
                max_runs=max_runs,
                heartbeat=heartbeat,
            )
            return Writer(
                core, open_the_store, url_for_humans=url_for_humans, clock=clock, random=random, prepare=prepare
            )

        self._new_writer = writer
        self._closed = False
        self._left: bool | None = None
        self._renew(forked=False)
        forking.watch(self)

    def _renew(self, *, forked: bool) -> None:
        self._pid = os.getpid()
        self.source_id = secrets.token_hex(8)
        """Names this process and fork generation in the store."""
        self._watched = False
        self._writer = self._new_writer(self.source_id, forked)

    def start(self) -> None:
        """Open the store and read the prices in the background; without it that is done when there is a run."""
        self._writer.start()

    def begin(self, run: RunInfo) -> None:
        """A run began here, or this process joined it; it is announced at once."""
        self._put(run, self._writer.core.begin, run)

    def update(self, run: RunInfo) -> None:
        """A field of the run changed."""
        self._put(run, self._writer.core.update, run)

    def settled(self, run: RunInfo, changes: Sequence[Change]) -> None:
        """The run's totals moved."""
        self._put(run, self._writer.core.settled, run, changes)
        if not self._interval:
            self._write_through()

    def end(self, run: RunInfo, ended_at: int) -> None:
        """The run ended; its final snapshot does not wait for the end of the throttle's interval."""
        if not self._closed:
            self._writer.put_now(self._writer.core.end, run, Ending(ended_at, run.status, run.stop_reason))
            if not self._interval:
                self._write_through()

    def lost(self, reason: str, count: int = 1) -> None:
        """Something could not be counted; told with the next heartbeat."""
        if not self._closed:
            self._writer.put_now(self._writer.core.lost, reason, count)

    def spans(self, fates: Mapping[tuple[str, str], int]) -> None:
        """What became of spans, by scope; told with the next heartbeat."""
        if not self._closed:
            self._writer.put_now(self._writer.core.spans, fates)

    def flush(self, timeout: float = LEAVE_WITHIN) -> bool:
        """Write everything so far; False when it could not be written within `timeout` seconds."""
        return bool(self._left) if self._closed else self._writer.wait(timeout, patient=True)

    def shutdown(self, timeout: float = LEAVE_WITHIN) -> bool:
        """End what still runs as interrupted, write everything, stop. What cannot be written is said on stderr.

        `timeout` is for the store; that a process which has just begun is still opening it is not the store's doing.
        """
        if self._left is None:
            self._left = False
            writer = self._writer
            if not writer.idle:
                writer.ready(IMPORT_WITHIN)
                started = time.monotonic()
                writer.put_now(writer.core.leave, self._wall())
                self._left = writer.wait(timeout, patient=True)
                self._closed = True
                writer.stop(min(0.5, timeout - (time.monotonic() - started)))
                if not self._left:
                    self._say_unwritten(timeout)
            else:
                self._closed = self._left = True
                writer.stop(0.0)
        return self._left

    def after_fork(self) -> None:
        """In a forked child: the parent's runs are the parent's; this is a new source. Idempotent."""
        if self._pid != os.getpid():
            self._writer.link.disown()
            self._renew(forked=True)

    def hold_still(self, timeout: float) -> None:
        """Before a fork; waits at most `timeout` seconds for the store."""
        self._writer.hold_still(timeout)

    def go_on(self) -> None:
        """After a fork, in the parent."""
        self._writer.go_on()

    def _put(self, run: RunInfo, what: Callable[..., None], *args: Any) -> None:
        if not self._closed:
            if not self._watched:
                self._watched = True
                forking.leave_with_multiprocessing(self)
            self._writer.put(run, what, *args)

    def _write_through(self) -> None:
        if not self._writer.link.failing:
            self._writer.ready(IMPORT_WITHIN)
            self._writer.wait(DEADLINE + 1, patient=False)

    def _say_unwritten(self, timeout: float) -> None:
        runs, calls, tokens = self._writer.unwritten()
        if runs and sys.stderr is not None:
            why = f": {self._writer.link.last_error}" if self._writer.link.last_error else ""
            print(
                f"runmeter: could not write the last of {runs} {'run' if runs == 1 else 'runs'} ({calls:,} calls, "
                f"{tokens:,} tokens in all) to {self.url_for_humans} within {timeout:g} s{why}",
                file=sys.stderr,
            )


def open_recorder(database_url: str | None, *, throttle: float, resource: Mapping[str, Any]) -> Recorder:
    """The recorder of this process (entry point group `runmeter_recorder`).

    Everything that the store and the prices need is imported here, on the caller's thread: an import on a thread of
    ours would meet the host's own, which then sees modules that are half there. The writer's thread then opens the
    store, so an absent database is no error and costs no time. Raises ImportError naming the `pip install` line where
    SQLAlchemy, or the driver for PostgreSQL, is missing, and StoreError for a URL that names no store.
    """
    url = database_url or os.environ.get("RUNMETER_DATABASE_URL") or default_url()
    if not url.startswith("memory:"):
        if importlib.util.find_spec("sqlalchemy") is None:
            raise ImportError('a run store needs SQLAlchemy: pip install "runmeter[store]"')
        if url.startswith("postgres") and importlib.util.find_spec("psycopg") is None:
            raise ImportError('a run store in PostgreSQL needs psycopg: pip install "runmeter[postgres]"')
    rehearse(url)
    service = resource.get("service.name")
    recorder = Recorder(
        lambda: open_store(url, pool_size=1),
        throttle=throttle,
        service=str(service) if service else None,
        url_for_humans=shown(url),
    )
    recorder.start()
    atexit.register(forking.leave, recorder)
    return recorder
