"""Brings the sidecar's store up to this release: when it starts, or as soon as the store lets it.

In a thread of its own, since all works without (`store/sql/steps.py`), and nobody is to wait for a table in use.
Several sidecars that begin at once do no harm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from runmeter_exporter.store import StoreError

PAUSE = 30.0
"""Seconds between two tries."""
PATIENCE = 5.0
"""Seconds for which a start waits for the first try, so that an ordinary one begins with everything."""

_log = logging.getLogger("runmeter")


class Migratable(Protocol):
    """What this needs of a store."""

    def pending(self) -> list[str]: ...
    def migrate(self) -> list[str]: ...


class Upgrade:
    """Tries until it is done. `try_once` tries once; `start` gives it a thread. `added` is told what was added."""

    def __init__(
        self, store: Migratable, added: Callable[[Sequence[str]], None], *, pause: float = PAUSE
    ) -> None:
        self._store = store
        self._added = added
        self._pause = pause
        self._said = False
        self._stopping = threading.Event()
        self._tried = threading.Event()
        self._thread = threading.Thread(target=self._work, name="runmeter-upgrade", daemon=True)

    def start(self, patience: float) -> None:
        """Try until it is done or `stop` is called; wait so many seconds for the first try."""
        self._thread.start()
        self._tried.wait(patience)

    def stop(self) -> None:
        """Try no more. What is under way is left to end, or to be undone with the process."""
        self._stopping.set()

    def try_once(self) -> bool:
        """Whether everything is there now; what stands in the way is said once."""
        try:
            self._store.pending()
        except StoreError:
            return False  # a store that is away, or another's, is said by whoever needs it
        try:
            added = self._store.migrate()
        except StoreError as problem:
            if not self._said:
                self._said = True
                _log.warning(
                    "runmeter: the store was made by an older release and stays as it is for now, which harms nothing "
                    "(%s); `runmeter migrate`, as the owner of its tables, adds what this one adds", problem,
                )  # fmt: skip
            return False
        if added:
            self._added(added)
        return True

    def _work(self) -> None:
        while not self._stopping.is_set():
            done = self.try_once()
            self._tried.set()
            if done:
                return
            self._stopping.wait(self._pause)
