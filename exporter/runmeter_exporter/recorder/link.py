"""A writer's line to its store: opened early or when first needed, one connection at most, let go while idle."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from runmeter_exporter.recorder import forking
from runmeter_exporter.store import RunStore

_log = logging.getLogger("runmeter")

RELEASE_AFTER = 5.0
"""Seconds without a call after which the connection is let go."""
IMPORT_WITHIN = 10.0
"""Seconds that importing a database library may take on a very busy machine."""


class Link:
    """Calls to a store that may be away: one warning when it goes, one line when it is back."""

    def __init__(self, open_store: Callable[[], RunStore], url_for_humans: str, clock: Callable[[], float]) -> None:
        self.last_error = ""
        """Why the store cannot be written to now; empty when it can."""
        self._open = open_store
        self._url_for_humans = url_for_humans
        self._clock = clock
        self._opening = threading.Lock()  # held while importing what the store needs
        self._calling = threading.Lock()  # held while talking to the store
        self._opened = threading.Event()
        self._store: RunStore | None = None
        self._used_at: float | None = None
        self._failing_since: float | None = None
        self._held: list[threading.Lock] = []

    @property
    def failing(self) -> bool:
        """The last call failed."""
        return self._failing_since is not None

    def call(self, what: Callable[[RunStore], object]) -> bool:
        """Do something with the store, opening it first; False when it failed, whatever the reason."""
        try:
            if self._store is None:
                with self._opening:
                    try:
                        self._store = self._open()
                    finally:
                        self._opened.set()
            with self._calling:
                what(self._store)
        except Exception as error:
            self._failed(error)
            return False
        self._used_at = self._clock()
        if self._failing_since is not None:
            away = self._used_at - self._failing_since
            self._failing_since, self.last_error = None, ""
            _log.warning("runmeter: %s answers again after %.1f s, writing goes on", self._url_for_humans, away)
        return True

    def open(self) -> bool:
        """Connect, and make the schema where there is none, before there is anything to write."""
        return self.call(_touch)

    def opened(self, timeout: float) -> bool:
        """Wait until the store is opened (or could not be); that makes no connection yet."""
        return self._opened.wait(timeout)

    def release_due(self) -> float | None:
        """When the connection should be let go, unless it is used before; None when there is none."""
        return None if self._used_at is None else self._used_at + RELEASE_AFTER

    def release_if_idle(self) -> None:
        """Let go of a connection that was not used for a while."""
        due = self.release_due()
        if due is not None and self._clock() >= due:
            self._used_at = None
            if self._store is not None:
                with self._calling:
                    self._quietly(self._store.release)

    def dispose(self) -> None:
        """Let go of the store for good."""
        store, self._store = self._store, None
        if store is not None:
            with self._calling:
                self._quietly(store.dispose)

    def hold_still(self, timeout: float) -> None:
        """Before a fork: nothing in the middle of an import or a transaction, no connection that two would share.

        A store that does not answer is waited for `timeout` seconds; an import, which a child could never finish and
        would wait for for ever, as long as it takes.
        """
        for lock, patience in ((self._opening, IMPORT_WITHIN), (self._calling, timeout)):
            if lock.acquire(timeout=patience):
                self._held.append(lock)
        if self._calling in self._held and self._store is not None:
            self._quietly(self._store.release)

    def go_on(self) -> None:
        """After a fork, in the parent."""
        while self._held:
            self._held.pop().release()

    def disown(self) -> None:
        """After a fork, in the child: this is the parent's."""
        forking.keep(self._store)

    def _failed(self, error: Exception) -> None:
        self._used_at = self._clock()
        self.last_error = " ".join(str(error).split())[:300] or type(error).__name__
        if self._failing_since is None:
            self._failing_since = self._used_at
            _log.warning(
                "runmeter: cannot write to %s: %s. The agent goes on, totals stay in memory, writing is retried",
                self._url_for_humans,
                self.last_error,
            )

    def _quietly(self, let_go: Callable[[], None]) -> None:
        try:
            let_go()
        except Exception as error:
            _log.debug("runmeter: letting go of %s failed: %s", self._url_for_humans, error)


def _touch(store: RunStore) -> None:
    with store.transaction():
        pass
