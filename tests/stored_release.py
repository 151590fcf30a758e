"""Stores that a release left, and that release at work: what `stored/make.py` wrote down of it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

RETRIED = ("40001", "40P01")
"""The database undid everything and asks for another try, which every release gives it."""


class StoredRelease:
    """A release's store in an empty database. `work` is what its agents, sidecar and readers do from then on."""

    def __init__(self, version: str, url: str) -> None:
        self._url = url
        self._sqlite = url.startswith("sqlite")
        folder, kind = Path(__file__).parent / "stored" / version, "sqlite" if self._sqlite else "postgresql"
        told = json.loads((folder / f"{kind}.json").read_text(), object_hook=_plain)
        self._texts: list[str] = told["texts"]
        self._transactions: list[list[tuple[int, list[Any]]]] = told["transactions"]
        self.totals: dict[str, Any] = told["totals"]
        """What the release itself reads when all of `work` is done."""
        self._load((folder / f"{kind}.sql").read_text())

    def __len__(self) -> int:
        """Transactions of `work`."""
        return len(self._transactions)

    def work(self, began: Callable[[int], object] = lambda number: None) -> None:
        """All of it, on one connection; `began` is told the number of each transaction that is under way."""
        with closing(self._connection()) as connection:
            for number, transaction in enumerate(self._transactions):
                for last in (False, False, False, True):
                    try:
                        for text, parameters in self._statements(transaction):
                            self._say(connection, text, parameters)
                        began(number)
                        connection.commit()
                        break
                    except Exception as error:
                        connection.rollback()
                        if last or getattr(error, "sqlstate", None) not in RETRIED:
                            raise

    def _statements(self, transaction: list[tuple[int, list[Any]]]) -> Iterator[tuple[str, list[Any]]]:
        for number, parameters in transaction:
            yield self._texts[number], parameters

    def _say(self, connection: Any, text: str, parameters: list[Any]) -> None:
        cursor = connection.cursor()
        if len(parameters) > 1:
            cursor.executemany(text, parameters)
        else:
            cursor.execute(text, parameters[0])
        if cursor.description:
            cursor.fetchall()

    def _connection(self) -> Any:
        if self._sqlite:
            return sqlite3.connect(self._path, isolation_level=None, timeout=30, check_same_thread=False)
        import psycopg

        return psycopg.connect(self._url)

    @property
    def _path(self) -> Path:
        return Path(self._url.removeprefix("sqlite:///"))

    def _load(self, dump: str) -> None:
        if self._sqlite:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT, 0o600))
            with closing(self._connection()) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.executescript(dump)
        else:
            with closing(self._connection()) as connection:
                connection.execute(dump)
                connection.commit()


def _plain(said: dict[str, Any]) -> Any:
    return bytes.fromhex(said["bytes"]) if said.keys() == {"bytes"} else said.get("named", said)
