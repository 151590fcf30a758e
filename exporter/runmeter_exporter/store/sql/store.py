"""`SqlRunStore`: runs in SQLite or PostgreSQL. Connections, transactions, deadlines, retries, errors; no deciding."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from runmeter_exporter.store import DEADLINE, Again, RefusedValue, StoreError, StoreMissing, StoreUnavailable
from runmeter_exporter.store.base import BaseRunStore
from runmeter_exporter.store.rows import Rows
from runmeter_exporter.store.sql import setup, steps, upgrade
from runmeter_exporter.store.sql.confirmed import Confirmed
from runmeter_exporter.store.sql.deadline import Deadlines, UnderWay, bounded
from runmeter_exporter.store.sql.dialects import NoTables, dialect_of
from runmeter_exporter.store.sql.rows import SqlRows
from runmeter_exporter.store.sql.statements import Statements
from runmeter_exporter.store.urls import shown
from runmeter_exporter.store.verify import verify
from runmeter_exporter.totals import merge
from runmeter_exporter.totals.rollup import Grants

_log = logging.getLogger("runmeter")

T = TypeVar("T")

RETRIED = ("40001", "40P01")
"""Serialization failure and deadlock: the database undid everything and asks for another try."""
ATTEMPTS = 20
VERIFY_DEADLINE = 600.0
"""Seconds that reading everything may take."""
MIGRATE_DEADLINE = 60.0
"""Seconds for which a step of the schema tries to get at a table that others use."""
INDEX_DEADLINE = 3600.0
"""Seconds that building an index of a table may take."""


class SqlRunStore(BaseRunStore):
    """See RunStore. Safe for threads and across forks; holds at most `pool_size` connections."""

    def __init__(
        self,
        url: str,
        *,
        deadline: float = DEADLINE,
        pool_size: int = 5,
        label_limit: int = 100,
        durable: bool = False,
        create: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._dialect = dialect_of(url, durable=durable)
        self._shown = shown(url)
        self._deadline = deadline
        self._label_limit = label_limit
        self._create = create
        self._calls = threading.local()
        self._engine = self._dialect.engine(deadline, pool_size, lambda: getattr(self._calls, "creates", False))
        if self._dialect.locks_rows:
            event.listen(self._engine, "do_connect", self._connect)
        event.listen(self._engine, "connect", self._connected, insert=True)
        self._statements = Statements(self._engine, self._dialect)
        self._deadlines = Deadlines(self._dialect.cut)
        self._grants: Grants | None = None
        self._confirmed = Confirmed()
        self._ready = False
        self._minor = 0
        self._pid = os.getpid()

    @property
    def engine(self) -> Engine:
        """SQLAlchemy's engine, for who looks at the tables themselves."""
        return self._engine

    @property
    def url_for_humans(self) -> str:
        """See RunStore."""
        return self._shown

    def forget_grants(self) -> None:
        """Read the granted labels again: somebody emptied the tables under us."""
        self._grants = None

    def release(self) -> None:
        """See RunStore."""
        self._engine.dispose()

    def dispose(self) -> None:
        """See RunStore."""
        self._engine.dispose()
        self._deadlines.stop()

    def verify(self) -> list[str]:
        """See RunStore."""
        with self._transaction(False, time.monotonic() + VERIFY_DEADLINE) as rows:
            return verify(rows)

    def pending(self) -> list[str]:
        """See RunStore."""
        return [step.what for step in self._pending()]

    def migrate(self) -> list[str]:
        """See RunStore."""
        until = time.monotonic() + MIGRATE_DEADLINE
        return [step.what for step in self._pending() if self._take(step, until)]

    def _pending(self) -> tuple[steps.Step, ...]:
        self._ready = False  # another process may have migrated it, or put back an older one
        with self._reading():
            return steps.STEPS[self._minor :]

    def _take(self, step: steps.Step, until: float) -> bool:
        builds = any(":" in name for name in step.adds)
        seconds = INDEX_DEADLINE if builds else max(until - time.monotonic(), 0) + self._deadline
        try:
            with self._deadlines.call(seconds) as call, self._translated(call):
                taken = upgrade.take(lambda writes: self._begun(call, writes), self._dialect, step, until)
        except StoreUnavailable as problem:
            said = f"could not add {step.what!r}, and what was added before stays: {problem}"
            raise StoreUnavailable(said) from problem
        self._minor = max(self._minor, step.number)
        return taken

    def _refused(self, error: Exception) -> bool:
        return isinstance(error, RefusedValue)

    @contextmanager
    def _reading(self) -> Iterator[Rows]:
        with self._transaction(False, time.monotonic() + self._deadline) as rows:
            yield rows

    @contextmanager
    def _writing(self) -> Iterator[Rows]:
        with self._transaction(True, time.monotonic() + self._deadline) as rows:
            yield rows

    def _write(self, work: Callable[[Rows], T]) -> T:
        until = time.monotonic() + self._deadline
        for attempt in range(ATTEMPTS):
            try:
                with self._transaction(True, until) as rows:
                    return work(rows)
            except Again as again:
                if attempt == ATTEMPTS - 1 or time.monotonic() >= until:
                    raise StoreUnavailable(str(again)) from again
                if again.wait:
                    # Those who met here shall not meet again.
                    time.sleep(random.uniform(0, min(0.005 * 2**attempt, 0.2)))
        raise AssertionError("unreachable")

    @contextmanager
    def _transaction(self, write: bool, until: float) -> Iterator[Rows]:
        self._after_fork()
        self._calls.creates = write if self._create is None else self._create
        with self._deadlines.call(max(until - time.monotonic(), 0.001)) as call:
            if not self._ready:
                with self._translated(call):
                    self._minor = setup.prepare(
                        lambda writes: self._begun(call, writes), self._dialect,
                        self._label_limit if self._calls.creates else None,
                    )  # fmt: skip
                self._ready = True
            rows = None
            with self._translated(call), self._begun(call, write) as connection:
                rows = SqlRows(connection, self._dialect, self._statements, self._grants, self._minor)
                if write and self._confirmed.due and self._confirmed.lost(rows):
                    raise Rewound
                yield rows
            if rows.granted is not None:
                self._grants = rows.granted
            self._confirmed.remember(rows)

    @contextmanager
    def _begun(self, call: UnderWay, write: bool) -> Iterator[Connection]:
        """A connection in a transaction: committed when the block ends, undone when it raises."""
        self._calls.current = call
        try:
            connection = self._engine.connect()
        finally:
            self._calls.current = None
        try:
            call.attach(connection.connection.driver_connection)
            self._dialect.begin(connection, write=write)
            yield connection
            connection.commit()
        except BaseException:
            if call.expired:
                connection.invalidate()
            raise
        finally:
            with suppress(SQLAlchemyError):
                connection.close()

    @contextmanager
    def _translated(self, call: UnderWay) -> Iterator[None]:
        try:
            yield
        except Rewound:
            behind = (
                f"{self.url_for_humans} is behind what it had confirmed: a standby took over that had not everything, "
                "or a copy. What is still in memory is written again; runs that may lack something are lower bounds"
            )
            self._rewound()
            _log.warning("runmeter: %s", behind)  # callers speak of outages when they begin, and this is amid one
            raise StoreUnavailable(behind) from None
        except NoTables:
            raise StoreMissing(
                f"there is no store at {self.url_for_humans}: nothing was written there yet, or the place is mistyped. "
                "`runmeter serve`, `runmeter exec` and runmeter.instrument() make one; --database-url or "
                "RUNMETER_DATABASE_URL names another"
            ) from None
        except (SQLAlchemyError, TimeoutError, OverflowError, UnicodeError) as error:
            raise self._meaning(error, call) from error

    def _meaning(self, error: Exception, call: UnderWay) -> StoreError:
        where = self.url_for_humans
        if call.expired:
            return StoreUnavailable(f"{where} did not answer within {self._deadline:g} s")
        if isinstance(error, (PoolTimeoutError, TimeoutError)):
            return StoreUnavailable(f"{where}: no connection within {self._deadline:g} s")
        said = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        if isinstance(error, DBAPIError):
            state = self._dialect.sqlstate(error)
            if state in RETRIED:
                return Again(f"{where}: {said}", wait=True)
            if error.connection_invalidated:
                # A connection from the pool that the server closed long ago says nothing of the server.
                return Again(f"{where}: {said}", wait=False)
            if state[:2] in ("22", "23", "54", "P0"):
                return RefusedValue(f"{where} refused a value: {said}")
            if state in ("42P01", "42703"):
                self._ready = False  # others' tables, or an older store put back: look again
            if state == "42P01" or isinstance(error, (OperationalError, InterfaceError, InternalError)):
                return StoreUnavailable(f"{where}: {said}")
        elif isinstance(error, (StatementError, OverflowError, UnicodeError)):
            return RefusedValue(f"{where} refused a value: {said}")
        return StoreError(f"{where}: {said}")

    def _rewound(self) -> None:
        self._grants = None
        with self._confirmed.known_to_be_lost() as sources:
            with self._reading() as rows:
                open_runs = rows.open_headers()
            self._change(
                [run.run_id for run in open_runs if run.has_otlp or run.owner in sources],
                lambda run: merge.rewound(run, sources),
            )
            self._count("snapshots_dropped", "rewound")

    def _connect(self, dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        call: UnderWay | None = getattr(self._calls, "current", None)
        seconds = self._deadline if call is None else max(call.due - time.monotonic(), 0.001)
        return bounded(
            lambda: dialect.loaded_dbapi.connect(*arguments, **parameters), seconds, lambda late: late.close()
        )

    def _connected(self, connection: Any, _record: Any) -> None:
        self._confirmed.connected()
        call = getattr(self._calls, "current", None)
        if call is not None:
            # What SQLAlchemy asks of a new connection is part of the call too.
            call.attach(connection)

    def _after_fork(self) -> None:
        if self._pid != os.getpid():
            # The connections and the thread are the parent's.
            self._pid = os.getpid()
            self._engine.dispose(close=False)
            self._deadlines = Deadlines(self._dialect.cut)
            self._calls = threading.local()


class Rewound(Exception):
    """The database is behind what it had confirmed."""
