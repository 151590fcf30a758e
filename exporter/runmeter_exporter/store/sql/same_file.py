"""A SQLite file that somebody deleted or replaced: its old self goes on working for whoever has it open, and what is
written to it is gone with the process."""

from __future__ import annotations

import os
from typing import Final

from runmeter_exporter.store import StoreUnavailable

Identity = tuple[int, int]
"""Device and inode."""
_WHAT_TO_DO: Final = "nothing is read or written there until that file is back, or this process is restarted"


class SameFile:
    """Knows which file was opened first at a path, and refuses any other. Costs a `stat`, about a microsecond."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened: Identity | None = None

    def opened(self) -> None:
        """A connection was opened: from now on the path has to lead to this file."""
        if self._opened is None:
            self._opened = self._now()

    def check(self) -> None:
        """Raises StoreUnavailable where the path leads to another file than was opened, or to none."""
        if self._opened is None:
            return
        now = self._now()
        if now == self._opened:
            return
        before = "device {} inode {}".format(*self._opened)
        if now is None:
            raise StoreUnavailable(f"the store's file {self._path} ({before}) was deleted or moved away: {_WHAT_TO_DO}")
        after = "device {} inode {}".format(*now)
        raise StoreUnavailable(
            f"the store's file {self._path} was replaced: {before} was opened, {after} is there now; {_WHAT_TO_DO}"
        )

    def _now(self) -> Identity | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return (found.st_dev, found.st_ino) if found.st_ino else None
