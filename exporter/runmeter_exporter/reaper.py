"""Closes what is due: runs whose writer vanished become lower bounds, door 2's runs settle after their grace.

Judged by the reaper's own monotonic clock over the time in which the store answered it: nobody's wall clock matters,
and nothing is held against a writer that could not reach the database either. Several reapers on one store do no harm:
every step is idempotent, and a writer that returns continues its run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from runmeter_exporter.store import OpenRun, StoreUnavailable, Watch
from runmeter_exporter.totals.run import is_otlp

LEASE = 30.0
"""Seconds of silence after which a door 1 source has vanished."""
GRACE = 15.0
"""Seconds after the last span of an ended run until door 2's part of it settles."""
OTLP_IDLE = 1800.0
"""Seconds without a span after which a door 2 run that never ended is over."""
INTERVAL = 1.0
"""Seconds between two looks."""
HOUSEKEEPING = 60.0
"""Seconds between two rounds of pruning and expiry."""

_log = logging.getLogger("runmeter")


class Reapable(Protocol):
    """What a reaper needs of a store."""

    def watch(self) -> Watch: ...
    def orphan(self, source: str) -> int: ...
    def close(self, run_ids: Sequence[str]) -> None: ...
    def prune(self, older_than_ns: int) -> int: ...


class _Quiet:
    """For how long something has not changed, as far as we could see it."""

    __slots__ = ("seconds", "state")

    def __init__(self, state: object) -> None:
        self.state = state
        self.seconds = 0.0

    def look(self, state: object, passed: float) -> float:
        if state == self.state:
            self.seconds += passed
        else:
            self.state, self.seconds = state, 0.0
        return self.seconds


class Reaper:
    """Looks at the store now and then and closes what is due. `tick` looks once; `start` gives it a thread."""

    def __init__(
        self,
        store: Reapable,
        *,
        lease: float = LEASE,
        grace: float = GRACE,
        otlp_idle: float = OTLP_IDLE,
        clock: Callable[[], float] = time.monotonic,
        close_otlp: Callable[[Sequence[str]], None] | None = None,
        retain: float | None = None,
        expire: Callable[[int], None] | None = None,
        wall: Callable[[], int] = time.time_ns,
        interval: float = INTERVAL,
    ) -> None:
        """All durations in seconds of `clock`; `wall` counts nanoseconds since the epoch.

        `close_otlp` closes runs of door 2 (it may have twins to resolve first; `store.close` otherwise). `retain`:
        prune runs last heard of longer ago. `expire(now)`: forget what door 2 need not remember any more.
        """
        self._store = store
        self._lease, self._grace, self._otlp_idle = lease, grace, otlp_idle
        self._clock, self._wall = clock, wall
        self._close = close_otlp or store.close
        self._retain, self._expire = retain, expire
        self._interval = interval
        self._looked_at: float | None = None
        self._tidied_at: float | None = None
        self._sources: dict[str, _Quiet] = {}
        self._runs: dict[str, _Quiet] = {}
        self._said: dict[str, object] = {}
        self._failing = False
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def tick(self) -> None:
        """Look once. Never raises for what the store does; an outage only makes all silences start anew."""
        try:
            watch = self._store.watch()
            now = self._clock()
            # A gap longer than usual is our own pause: what the others did in it we would have to have seen.
            passed = 0.0 if self._looked_at is None else min(now - self._looked_at, 2 * self._interval)
            self._looked_at = now
            self._reap_sources(watch, passed)
            self._close_runs(watch, passed)
            self._tidy(now)
        except Exception as error:
            self._looked_at = None
            self._sources.clear()
            self._runs.clear()
            if not self._failing:
                _log.warning("runmeter: nothing is closed while the store does not answer: %s", error)
            self._failing = True
            return
        if self._failing:
            _log.warning("runmeter: the store answers again, closing goes on")
        self._failing = False

    def start(self) -> None:
        """Look every `interval` seconds, in a thread of its own."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="runmeter-reaper", daemon=True)
            self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread; wait at most `timeout` seconds for the look under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _work(self) -> None:
        while not self._stop.wait(self._interval):
            self.tick()

    def _reap_sources(self, watch: Watch, passed: float) -> None:
        known, self._sources = self._sources, {}
        said, self._said = self._said, {}
        for source, state in _signs(watch).items():
            quiet = self._sources[source] = known.get(source) or _Quiet(state)
            silent = quiet.look(state, passed if source in known else 0.0)
            if silent <= self._lease:
                continue
            if said.get(source) != state:
                count = self._store.orphan(source)
                if count:
                    _log.warning(
                        "runmeter: source %s was silent for %.0f s, %d of its runs end as lower bounds",
                        source,
                        silent,
                        count,
                    )
            self._said[source] = state

    def _close_runs(self, watch: Watch, passed: float) -> None:
        known, self._runs = self._runs, {}
        due = []
        for run in watch.runs:
            quiet = self._runs[run.run_id] = known.get(run.run_id) or _Quiet(run.version)
            silent = quiet.look(run.version, passed if run.run_id in known else 0.0)
            patience = self._patience(run)
            if patience is not None and silent > patience:
                due.append(run.run_id)
        if due:
            self._close_due(due)

    def _close_due(self, due: Sequence[str]) -> None:
        try:
            self._close(due)
        except StoreUnavailable:
            raise
        except Exception:
            # One run that cannot be closed must not keep the others open. It is tried again after another patience.
            for run_id in due:
                try:
                    self._close([run_id])
                except StoreUnavailable:
                    raise
                except Exception:
                    _log.exception("runmeter: run %s could not be closed; the others were", run_id)
                    self._runs.pop(run_id, None)

    def _patience(self, run: OpenRun) -> float | None:
        """How long a run may be quiet before it is closed; None: its owner at door 1 ends it."""
        if run.ended:
            return self._grace
        if run.owner is None and not run.has_otlp:  # only a child wrote, and its heartbeats may be forgotten by now
            return self._otlp_idle
        if not run.has_otlp or (run.owner is not None and not is_otlp(run.owner)):
            return None
        return self._grace if run.otlp_root_ended else self._otlp_idle

    def _tidy(self, now: float) -> None:
        if self._tidied_at is not None and now - self._tidied_at < HOUSEKEEPING:
            return
        self._tidied_at = now
        if self._retain is not None:
            pruned = self._store.prune(self._wall() - int(self._retain * 1e9))
            if pruned:
                _log.info("runmeter: pruned %d runs; their totals stay", pruned)
        if self._expire is not None:
            self._expire(self._wall())


def _signs(watch: Watch) -> dict[str, object]:
    """What changes while a source lives, for those whose silence matters: its beat, and the runs that it owns."""
    beats = dict(watch.sources)
    owned: dict[str, set[tuple[str, int]]] = {}
    for run in watch.runs:
        if not run.ended and run.owner is None:  # only children wrote so far: any source may be the one to wait for
            owned |= {source: set() for source in beats if source not in owned}
        elif not run.ended and run.owner is not None:
            owned.setdefault(run.owner, set()).add((run.run_id, run.version))
    return {source: (beats.get(source), frozenset(runs)) for source, runs in owned.items() if not is_otlp(source)}
