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
