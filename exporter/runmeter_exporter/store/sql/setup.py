"""The schema on first use: whoever comes first makes it, agent or sidecar, also when several come at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection, inspect, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from runmeter_exporter.store import SchemaMismatch
from runmeter_exporter.store.sql import ledger
from runmeter_exporter.store.sql.dialects import Dialect, NoTables
from runmeter_exporter.store.sql.schema import VERSION, meta, metadata, runs

assert ledger.spans.metadata is metadata, "door 2's table belongs to the schema"
_ATTEMPTS = 10

Begin = Callable[[bool], AbstractContextManager[Connection]]


def prepare(begin: Begin, dialect: Dialect, label_limit: int | None) -> None:
    """Make the tables where there are none; NoTables instead where `label_limit` is None. SchemaMismatch where there
    are others."""
    for attempt in range(_ATTEMPTS):
        with begin(False) as connection:
            if _found(connection):
                return
        if label_limit is None:
            raise NoTables
        try:
            # On SQLite this waits for its turn; on PostgreSQL whoever commits second is told that the tables exist.
            with begin(True) as connection:
                if not _found(connection):
                    _make(connection, dialect, label_limit)
            return
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            met = dialect.sqlstate(error) in ("23505", "42P07", "42710", "23000", "40001", "40P01")
            if not met or attempt == _ATTEMPTS - 1:
                raise


def _found(connection: Connection) -> bool:
    inspector = inspect(connection)
    if not inspector.has_table(meta.name):
        if inspector.has_table(runs.name):
            raise SchemaMismatch(
                f"the database has a table {runs.name!r} that is not runmeter's; give runmeter a database of its own"
            )
        return False
    version = connection.execute(select(meta.c.value).where(meta.c.name == "schema_version")).scalar()
    if version != str(VERSION):
        raise SchemaMismatch(
            f"the database has schema version {version}, this runmeter needs {VERSION}; "
            "use the runmeter that made it, or another database"
        )
    return True


def _make(connection: Connection, dialect: Dialect, label_limit: int) -> None:
    metadata.create_all(connection)
    values = {"schema_version": VERSION, "label_limit": label_limit, "horizon": 0}
    connection.execute(
        dialect.insert(meta).on_conflict_do_nothing(),
        [{"name": name, "value": str(value)} for name, value in values.items()],
    )
