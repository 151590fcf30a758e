"""The schema on first use: whoever comes first makes it, agent or sidecar, also when several come at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection, inspect, select
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from runmeter_exporter.store import SchemaMismatch
from runmeter_exporter.store.sql import ledger, steps
from runmeter_exporter.store.sql.dialects import Dialect, NoTables
from runmeter_exporter.store.sql.schema import VERSION, meta, metadata, runs

assert ledger.spans.metadata is metadata, "door 2's table belongs to the schema"
_ATTEMPTS = 10
MINOR = "schema_minor"
"""The row of `meta` that says how many of the steps a store has taken."""

Begin = Callable[[bool], AbstractContextManager[Connection]]


def prepare(begin: Begin, dialect: Dialect, label_limit: int | None) -> int:
    """How many steps of the schema the store has taken. The tables are made where there are none; NoTables instead
    where `label_limit` is None. SchemaMismatch where there are others."""
    for attempt in range(_ATTEMPTS):
        with begin(False) as connection:
            if (minor := _found(connection)) is not None:
                return minor
        if label_limit is None:
            raise NoTables
        try:
            # On SQLite this waits for its turn; on PostgreSQL whoever commits second is told that the tables exist.
            with begin(True) as connection:
                minor = _found(connection)
                return _make(connection, dialect, label_limit) if minor is None else minor
        except (IntegrityError, ProgrammingError, OperationalError) as error:
            met = dialect.sqlstate(error) in ("23505", "42P07", "42710", "23000", "40001", "40P01")
            if not met or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _found(connection: Connection) -> int | None:
    inspector = inspect(connection)
    if not inspector.has_table(meta.name):
        if inspector.has_table(runs.name):
            raise SchemaMismatch(
                f"the database has a table {runs.name!r} that is not runmeter's; give runmeter a database of its own"
            )
        return None
    wanted = select(meta.c.name, meta.c.value).where(meta.c.name.in_(("schema_version", MINOR)))
    said: dict[str, str] = dict(connection.execute(wanted).tuples().all())
    version = said.get("schema_version")
    if version != str(VERSION):
        raise SchemaMismatch(
            f"the database has schema version {version}, this runmeter needs {VERSION}; "
            "use the runmeter that made it, or another database"
        )
    return number(said.get(MINOR))


def number(said: str | None) -> int:
    """How many steps a store says that it has taken. 0.1.0 said nothing; and since each looks what is there already,
    taking them again harms less than to refuse a store in which somebody wrote nonsense."""
    return int(said) if said is not None and said.isdecimal() else 0


def note(connection: Connection, dialect: Dialect, minor: int) -> None:
    """Note that so many steps were taken, in a store that says nothing of it."""
    row = {"name": MINOR, "value": str(minor)}
    connection.execute(dialect.insert(meta).on_conflict_do_nothing(), [row])


def _make(connection: Connection, dialect: Dialect, label_limit: int) -> int:
    metadata.create_all(connection)
    values = {"schema_version": VERSION, "label_limit": label_limit, "horizon": 0}
    connection.execute(
        dialect.insert(meta).on_conflict_do_nothing(),
        [{"name": name, "value": str(value)} for name, value in values.items()],
    )
    minor = len(steps.STEPS)
    note(connection, dialect, minor)
    return minor
