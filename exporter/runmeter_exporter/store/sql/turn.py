"""Waiting for the turn to write into a SQLite file, outside of SQLite.

Whoever waits inside SQLite holds up all of a gevent or eventlet host, where one thread is everybody; `time.sleep` is
what such hosts make theirs.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.025
"""Seconds between two looks whether the one writer is done; the steps that SQLite itself takes."""


class Turns:
    """Whose turn it is among all who write into one file, as far as this process decides it."""

    def __init__(self) -> None:
        self._begun = self._ended = self._lasted = 0.0

    def begin(self, connection: Connection, patience: float) -> None:
        """As `begin_to_write`, after others had their turn."""
        # They look for their turn now and then only: who had a long one and asks again at once would leave them none.
        if self._lasted > _LONGEST_PAUSE:
            left = self._ended + 2 * _LONGEST_PAUSE - time.monotonic()
            if left > 0:
                time.sleep(left)
        begin_to_write(connection, patience)
        self._begun = time.monotonic()

    def end(self) -> None:
        """A transaction that wrote is over."""
        self._ended = time.monotonic()
        self._lasted = self._ended - self._begun


def begin_to_write(connection: Connection, patience: float) -> None:
    """BEGIN IMMEDIATE, for which others are waited for so many seconds. Raises the driver's "database is locked"."""
    until = time.monotonic() + patience
    pause = _FIRST_PAUSE
    driver: Any = connection.connection.driver_connection  # without SQLAlchemy's own pace: this is every write
    driver.execute("PRAGMA busy_timeout=0")
    try:
        while True:
            try:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                return
            except DBAPIError as error:
                if "locked" not in str(error.orig) or time.monotonic() >= until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(patience * 1000)}")
