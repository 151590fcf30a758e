"""Closes what is due: runs whose writer vanished become lower bounds, door 2's runs settle after their grace.

Judged by the reaper's own monotonic clock over the time in which the store answered it: nobody's wall clock matters,
and nothing is held against a writer that could not reach the database either. What cannot be closed is set aside for a
while and holds nobody. Several reapers on one store do no harm: every step is idempotent, and a writer that returns
continues its run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from runmeter_exporter.silence import Aside, Quiet, looked
from runmeter_exporter.store import OpenRun, StoreError, Watch
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
SILENT = 30 * 86_400.0
"""Seconds of silence after which a source is forgotten: what it lost would be counted again if it came back."""
RECOVERY = 15.0
"""Seconds after an outage in which every writer that lives has come back: a heartbeat, and a few tries to bring it."""
AT_ONCE = 50
"""Runs closed together, after all that were due could not be."""
IN_A_ROW = 3
"""Runs that cannot be closed, with none that can in between, after which the others wait for the next look."""

_log = logging.getLogger("runmeter")


class Reapable(Protocol):
    """What a reaper needs of a store."""

    def watch(self) -> Watch: ...
    def orphan(self, source: str) -> int: ...
    def close(self, run_ids: Sequence[str]) -> None: ...
    def prune(self, older_than_ns: int) -> int: ...
    def forget_sources(self, older_than_ns: int) -> int: ...


class _Away(Exception):
    """The store does not answer: this look is over."""


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
        self._retain, self._expire = retain, expire or (lambda now: None)
        self._interval = interval
        self._looked_at: float | None = None
        self._tidied_at: float | None = None
        self._sources: dict[str, Quiet] = {}
        self._runs: dict[str, Quiet] = {}
        self._said: dict[str, object] = {}
        self._aside: dict[tuple[str, str], Aside] = {}
        self._done = 0
        """How often something was closed."""
        self._answered = RECOVERY
        """Seconds since the last outage."""
        self._failing = self._stuck = self._untidy = False
        """Said, and not over."""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def tick(self) -> None:
        """Look once. Never raises for what the store does; the time of an outage does not count, and a while after it
        nothing is judged."""
        try:
            watch = self._look()
            now = self._clock()
            # A gap longer than usual is our own pause: what the others did in it we would have to have seen.
            passed = 0.0 if self._looked_at is None else min(now - self._looked_at, 2 * self._interval)
            self._looked_at = now
            self._answered += passed
            if self._failing:
                _log.warning("runmeter: the store answers again, closing goes on")
            self._failing = False
            self._wait(watch, passed)
            self._reap_sources(watch, passed)
            self._close_runs(watch, passed)
            self._tidy(now)
        except _Away as away:
            self._looked_at, self._answered = None, 0.0
            if not self._failing:
                _log.warning("runmeter: nothing is closed while the store does not answer: %s", away)
            self._failing = True

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

    def _look(self) -> Watch:
        try:
            return self._store.watch()
        except Exception as error:
            raise _Away(str(error)) from error

    def _wait(self, watch: Watch, passed: float) -> None:
        """Time passes for what is set aside, and is still there."""
        there = {("run", run.run_id) for run in watch.runs} | {("source", source) for source in _signs(watch)}
        self._aside = {key: aside for key, aside in self._aside.items() if key in there}
        for aside in self._aside.values():
            aside.left -= passed

    def _over(self, quiet: Quiet, patience: float, key: tuple[str, str]) -> bool:
        """It was quiet for long enough, and is not set aside."""
        if quiet.seconds <= patience or self._answered < min(patience, RECOVERY):
            return False
        return key not in self._aside or self._aside[key].left <= 0

    def _set_aside(self, key: tuple[str, str], error: Exception) -> None:
        self._aside.setdefault(key, Aside()).failed(error, self._done)

    def _reap_sources(self, watch: Watch, passed: float) -> None:
        signs = _signs(watch)
        self._sources = looked(self._sources, signs, passed)
        self._said = {source: state for source, state in self._said.items() if signs.get(source) == state}
        for source, quiet in self._sources.items():
            if source in self._said or not self._over(quiet, self._lease, ("source", source)):
                continue
            try:
                count = self._store.orphan(source)
            except Exception as error:
                self._look()
                self._set_aside(("source", source), error)
                self._complain([("source", source)])
                continue
            self._said[source] = quiet.state
            self._done += 1
            if count:
                _log.warning(
                    "runmeter: source %s was silent for %.0f s, %d of its runs end as lower bounds",
                    source,
                    quiet.seconds,
                    count,
                )

    def _close_runs(self, watch: Watch, passed: float) -> None:
        self._runs = looked(self._runs, {run.run_id: run.version for run in watch.runs}, passed)
        due = []
        for run in watch.runs:
            patience = self._patience(run)
            if patience is not None and self._over(self._runs[run.run_id], patience, ("run", run.run_id)):
                due.append(run.run_id)
        if not due:
            return
        failed: list[tuple[str, str]] = []
        before = self._done
        try:
            self._close_due(due, failed)
        finally:
            stuck = self._done == before and len(failed) >= IN_A_ROW
            if stuck and not self._stuck:
                _log.warning("runmeter: no run can be closed: %s", self._aside[failed[0]].error)
            elif not stuck:
                self._complain(failed)
            self._stuck = stuck

    def _close_due(self, due: Sequence[str], failed: list[tuple[str, str]]) -> None:
        """Close these: together, or else a few at a time, or else one by one. What fails alone is set aside."""
        try:
            self._close(due)
            self._done += 1
            return
        except Exception as error:
            there = {run.run_id for run in self._look().runs}
            if len(due) == 1 and due[0] in there:
                key = ("run", due[0])
                self._set_aside(key, error)
                failed.append(key)
        if len(due) == 1:
            return
        left = [run_id for run_id in due if run_id in there]
        size = AT_ONCE if len(left) > AT_ONCE else 1
        for start in range(0, len(left), size):
            if self._in_vain(failed):
                return
            self._close_due(left[start : start + size], failed)

    def _in_vain(self, failed: Collection[tuple[str, str]]) -> bool:
        """The latest could not be closed, one after the other: it may be the store, and each may take its deadline."""
        return sum(self._aside[key].done == self._done for key in failed) >= IN_A_ROW

    def _complain(self, keys: Collection[tuple[str, str]]) -> None:
        """Once of each."""
        for kind, name in keys:
            aside = self._aside[kind, name]
            error = aside.error
            if not aside.said:
                _log.warning(
                    "runmeter: %s %s could not be closed and is set aside, the others are not: %r; it is tried again "
                    "in %.0f s, then less and less often",
                    kind,
                    name,
                    error,
                    aside.wait,
                    exc_info=None if isinstance(error, StoreError) else error,
                )
            aside.said = True

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
        failed: Exception | None = None
        for work in (self._prune, self._forget, self._expire):
            try:
                work(self._wall())
            except Exception as error:
                failed = error
        if failed is not None and not self._untidy:
            _log.warning("runmeter: what is old could not be let go, it is tried again each minute: %r", failed)
        self._untidy = failed is not None

    def _forget(self, now: int) -> None:
        self._store.forget_sources(now - int(SILENT * 1e9))

    def _prune(self, now: int) -> None:
        if self._retain is None:
            return
        pruned = self._store.prune(now - int(self._retain * 1e9))
        if pruned:
            _log.info("runmeter: pruned %d runs; their totals stay", pruned)


def _signs(watch: Watch) -> dict[str, object]:
    """What changes while a source lives, for those whose silence matters: its beat, and the runs that it owns."""
    beats = dict(watch.sources)
    owned: dict[str, set[tuple[str, int]]] = {}
    for run in watch.runs:
        if not run.ended and run.owner is None:  # only children wrote so far
            owned |= {source: set() for source in run.writers if source in beats and source not in owned}
        elif not run.ended and run.owner is not None:
            owned.setdefault(run.owner, set()).add((run.run_id, run.version))
    return {source: (beats.get(source), frozenset(runs)) for source, runs in owned.items() if not is_otlp(source)}
