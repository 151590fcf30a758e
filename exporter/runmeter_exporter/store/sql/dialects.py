"""The only file that says sqlite or postgresql: how to connect, begin, lock, cut, and whom an error blames."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    Engine,
    Index,
    Text,
    and_,
    any_,
    bindparam,
    case,
    cast,
    create_engine,
    event,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from runmeter_exporter.store import StoreError, StoreUnavailable
from runmeter_exporter.store.sql.concurrently import build as build_index
from runmeter_exporter.store.sql.same_file import SameFile
from runmeter_exporter.store.sql.turn import Turns
from runmeter_exporter.store.urls import FORMS, PREPARE_UNSAID, PostgresPlace, postgres_place, scheme_of, sqlite_path

_SQLSTATES = {
    "no such table": "42P01",
    "no such column": "42703",
    "has no column named": "42703",
    "is locked": "55P03",
}
"""What SQLite says in words, and PostgreSQL by these."""


BeginWrite = Callable[[], AbstractContextManager[Connection]]


class NoTables(Exception):
    """There is no file, or no table of ours in the database, and whoever asks is not to make any."""


class Dialect(Protocol):
    """What differs between databases."""

    keeps_types: bool
    """A column holds nothing but values of its type."""
    locks_rows: bool
    """Rows are locked one by one, so that a row must exist to be locked; else the whole database is, by beginning."""

    def engine(self, deadline: float, pool_size: int, creates: Callable[[], bool]) -> Engine:
        """An engine with its events; nothing is opened. `creates`: whether who connects now may make the database."""

    def insert(self, table: Any) -> Any:
        """An INSERT that has `on_conflict_do_…`."""

    def begins_with(self, column: ColumnElement[str], beginning: str) -> ColumnElement[bool]:
        """The column's value begins so, to the letter."""

    def among(self, column: ColumnElement[str], name: str) -> ColumnElement[bool]:
        """The column's value is one of the list given for `name`."""

    def list(self, values: Sequence[str]) -> Any:
        """That list."""

    def series(self, name: str) -> Any:
        """That list as a table with one column `value`."""

    def tags(self, column: ColumnElement[str]) -> Any:
        """The tags of a column as a table with the columns `key` and `value`."""

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Begin a transaction: one that will write, or one that sees one moment."""

    def impatient(self, connection: Connection) -> None:
        """Wait only briefly for tables, for the rest of the transaction: who waits for a whole one holds up all."""

    def index(self, connection: Connection, index: Index, begin: BeginWrite) -> None:
        """Make an index on a table in use, where it is not there. `begin`: a transaction of another connection."""

    def cut(self, connection: Any) -> None:
        """Make a call under way on this connection of the driver fail, now."""

    def sqlstate(self, error: DBAPIError) -> str:
        """The SQLSTATE of an error, or the nearest to it."""


class SqliteDialect:
    """One file shared by agents and sidecar on a host."""

    keeps_types = locks_rows = False

    def __init__(self, path: str, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._file = SameFile(path)
        self._turns = Turns()

    def engine(self, deadline: float, pool_size: int, creates: Callable[[], bool]) -> Engine:
        """See Dialect."""
        self._creates = creates
        # A little less than the deadline: "locked" says more than "interrupted".
        self._patience = deadline * 0.9
        arguments = {"timeout": self._patience, "isolation_level": None, "check_same_thread": False}
        engine = create_engine(
            URL.create("sqlite+pysqlite", database=self._path),
            poolclass=QueuePool,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=deadline,
            connect_args=arguments,
        )
        event.listen(engine, "connect", self._on_connect)
        event.listen(engine, "do_connect", self._make_file)
        event.listen(engine, "begin", self._on_begin)
        event.listen(engine, "commit", self._on_end)
        event.listen(engine, "rollback", self._on_end)
        return engine

    def _make_file(self, *_: Any) -> None:
        path = Path(self._path)
        self._file.check()
        try:
            if not path.exists():
                if not self._creates():
                    raise NoTables
                # Numbers about people's work: for their eyes only. Existing files and directories are left as they are.
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            culprit = "" if error.filename in (None, str(path)) else f" ({error.filename})"
            raise StoreUnavailable(
                f"cannot create the store's file {path}: {error.strerror}{culprit}; let this user write to its folder, "
                "or name another file with --database-url or RUNMETER_DATABASE_URL"
            ) from error

    def _on_connect(self, connection: Any, _: Any) -> None:
        self._file.opened()
        cursor = connection.cursor()
        for _attempt in range(100):
            # Changing the mode does not wait for a lock as other statements do.
            try:
                cursor.execute("PRAGMA journal_mode")
                # A reader changes nothing, not even the mode of what may be somebody else's file.
                if cursor.fetchone()[0] != "wal" and self._creates():
                    cursor.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    break  # read-only: the first write says so
                time.sleep(0.01)
        cursor.execute(f"PRAGMA synchronous={'FULL' if self._durable else 'NORMAL'}")
        cursor.execute("PRAGMA cache_size=-16000")
        cursor.execute("PRAGMA wal_autocheckpoint=4000")  # a checkpoint copies a page once, however often it changed
        cursor.close()

    def insert(self, table: Any) -> Any:
        """See Dialect."""
        return sqlite.insert(table)

    def begins_with(self, column: ColumnElement[str], beginning: str) -> ColumnElement[bool]:
        """See Dialect."""
        # Not LIKE, which takes upper for lower case here; a range is what the index finds.
        return and_(column >= beginning, column < beginning + "\U0010ffff")

    def among(self, column: ColumnElement[str], name: str) -> ColumnElement[bool]:
        """See Dialect."""
        return column.in_(select(literal_column("value")).select_from(self.series(name)))

    def list(self, values: Sequence[str]) -> Any:
        """See Dialect."""
        return json.dumps(list(values))

    def series(self, name: str) -> Any:
        """See Dialect."""
        return func.json_each(bindparam(name, type_=Text)).table_valued("value")

    def tags(self, column: ColumnElement[str]) -> Any:
        """See Dialect."""
        return func.json_each(_object(column)).table_valued("key", "value")

    def begin(self, connection: Connection, *, write: bool) -> None:
        """See Dialect."""
        # A transaction that reads first and writes later fails with "database is locked" when another one wrote in
        # between; one that says at once that it will write waits for its turn.
        connection.execution_options(runmeter_writes=write).begin()

    def _on_begin(self, connection: Connection) -> None:
        self._file.check()
        if connection.get_execution_options().get("runmeter_writes", False):
            self._turns.begin(connection, self._patience)
        else:
            connection.exec_driver_sql("BEGIN")

    def impatient(self, connection: Connection) -> None:
        """See Dialect."""
        # Who writes has the whole file from its beginning on.

    def index(self, connection: Connection, index: Index, begin: BeginWrite) -> None:
        """See Dialect."""
        index.create(connection, checkfirst=True)

    def _on_end(self, connection: Connection) -> None:
        if connection.get_execution_options().get("runmeter_writes", False):
            self._turns.end()

    def cut(self, connection: Any) -> None:
        """See Dialect."""
        with suppress(Exception):
            connection.interrupt()

    def sqlstate(self, error: DBAPIError) -> str:
        """See Dialect."""
        if isinstance(error.orig, (sqlite3.IntegrityError, sqlite3.DataError)):
            return "23000"
        said = str(error.orig)
        return next((state for words, state in _SQLSTATES.items() if words in said), "")


class PostgresDialect:
    """One service's database, shared by sidecars and agents."""

    keeps_types = locks_rows = True

    def __init__(self, place: PostgresPlace) -> None:
        self._place = place

    def engine(self, deadline: float, pool_size: int, creates: Callable[[], bool]) -> Engine:
        """See Dialect."""
        keywords = self._place.keywords
        hosts = str(keywords.get("host", "")).count(",") + 1
        arguments: dict[str, Any] = {
            # For each host: one that is away shall leave time for the next. libpq knows nothing below 2 s.
            "connect_timeout": max(2, round(deadline / hosts)),
            "application_name": "runmeter",
            **keywords,
        }
        unsaid = self._place.prepare_threshold == PREPARE_UNSAID
        if not unsaid:
            arguments["prepare_threshold"] = self._place.prepare_threshold
        # Positional parameters, so that hot statements go to the driver as plain tuples.
        engine = create_engine(
            URL.create("postgresql+psycopg"), pool_size=pool_size, max_overflow=0, pool_timeout=deadline,
            paramstyle="format", connect_args=arguments,
        )  # fmt: skip
        if unsaid:
            event.listen(engine, "connect", self._on_connect)
        return engine

    def _on_connect(self, connection: Any, _: Any) -> None:
        # A pooler gives each transaction any of its servers: what was prepared on one is not there on the next. It is
        # seen by the process that answers, which is not the one that the connection began with.
        connection.autocommit = True  # one round trip instead of three
        try:
            behind = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()[0]
        finally:
            connection.autocommit = False
        if behind != connection.info.backend_pid:
            connection.prepare_threshold = None

    def insert(self, table: Any) -> Any:
        """See Dialect."""
        return postgresql.insert(table)

    def begins_with(self, column: ColumnElement[str], beginning: str) -> ColumnElement[bool]:
        """See Dialect."""
        return column.startswith(beginning, autoescape=True)

    def among(self, column: ColumnElement[str], name: str) -> ColumnElement[bool]:
        """See Dialect."""
        return column == any_(bindparam(name, type_=ARRAY(Text)))

    def list(self, values: Sequence[str]) -> Any:
        """See Dialect."""
        return list(values)

    def series(self, name: str) -> Any:
        """See Dialect."""
        return func.unnest(bindparam(name, type_=ARRAY(Text))).table_valued("value").render_derived()

    def tags(self, column: ColumnElement[str]) -> Any:
        """See Dialect."""
        pairs = func.json_each_text(cast(_object(column), JSON))
        return pairs.table_valued("key", "value").render_derived()

    def begin(self, connection: Connection, *, write: bool) -> None:
        """See Dialect."""
        # Who writes locks its rows and needs no more; where another level is the default (CockroachDB), it would fail
        # writers that only met. Who reads sees one moment.
        connection.execution_options(isolation_level="READ COMMITTED" if write else "REPEATABLE READ").begin()

    def impatient(self, connection: Connection) -> None:
        """See Dialect."""
        connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")

    def index(self, connection: Connection, index: Index, begin: BeginWrite) -> None:
        """See Dialect."""
        build_index(connection, begin, index, self.impatient)

    def cut(self, connection: Any) -> None:
        """See Dialect."""
        # Not `close`: the other thread is inside of libpq, and must wake up there.
        with suppress(Exception), socket.socket(fileno=os.dup(connection.pgconn.socket)) as shared:
            shared.shutdown(socket.SHUT_RDWR)

    def sqlstate(self, error: DBAPIError) -> str:
        """See Dialect."""
        return getattr(error.orig, "sqlstate", None) or ""


def _object(column: ColumnElement[str]) -> ColumnElement[str]:
    """The column's JSON; the empty text that stands for no tags is none."""
    return case((column == "", "{}"), else_=column)


def dialect_of(url: str, *, durable: bool = False) -> Dialect:
    """The dialect for a database URL; StoreError for one that we do not speak, ImportError for a missing driver."""
    kind, driver = scheme_of(url)
    if kind == "sqlite" and driver in ("", "pysqlite"):
        return SqliteDialect(sqlite_path(url), durable)
    if kind in ("postgresql", "postgres") and driver in ("", "psycopg"):
        try:
            import psycopg
        except ImportError as missing:
            raise ImportError('PostgreSQL needs psycopg: pip install "runmeter[postgres]"') from missing
        # What libpq itself knows, but for what would make of a connection another thing.
        known = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} - {"replication"}
        return PostgresDialect(postgres_place(url, known))
    raise StoreError(f"{kind}{'+' if driver else ''}{driver} is not supported; use {FORMS}")
