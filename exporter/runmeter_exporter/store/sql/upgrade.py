"""A store that an older release made, brought up to this one a step at a time (`steps.py`), while others write to it.

A step and the note that it was taken are one transaction, which locks the row of that note first: so of several that
begin at once one takes the step, and of one that was killed nothing is left, or all. Where a database keeps its tables
out of transactions (CockroachDB; PostgreSQL, where an index is built beside those who write), what is there already is
left as it is. The transaction waits then, and holds nothing but that row.
"""

from __future__ import annotations

import random
import time

from sqlalchemy import Connection, inspect, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateColumn

from runmeter_exporter.store.sql import setup
from runmeter_exporter.store.sql.dialects import Dialect
from runmeter_exporter.store.sql.schema import meta, metadata
from runmeter_exporter.store.sql.steps import Step

BUSY = ("55P03", "40001", "40P01")
"""Somebody works with that table: everything was undone, and another try may be given."""


def take(begin: setup.Begin, dialect: Dialect, step: Step, until: float) -> bool:
    """Take a step in the database; False where it was taken already. Tries until then, on the monotonic clock, where
    tables are in use, and raises the driver's error at last."""
    while True:
        try:
            return _take(begin, dialect, step)
        except DBAPIError as error:
            if dialect.sqlstate(error) not in BUSY or time.monotonic() >= until:
                raise
        _pause()


def _pause() -> None:
    # Whoever comes to a table for which a step waits stands behind it: they get through between two tries.
    time.sleep(random.uniform(0.1, 0.4))


def _take(begin: setup.Begin, dialect: Dialect, step: Step) -> bool:
    with begin(True) as connection:
        dialect.impatient(connection)
        setup.note(connection, dialect, 0)
        row = meta.c.name == setup.MINOR
        locked = select(meta.c.value).where(row)
        locked = locked.with_for_update() if dialect.locks_rows else locked
        if setup.number(connection.execute(locked).scalar()) >= step.number:
            return False
        for name in step.adds:
            _add(connection, dialect, begin, name)
        connection.execute(update(meta).where(row).values(value=str(step.number)))
    return True


def _add(connection: Connection, dialect: Dialect, begin: setup.Begin, name: str) -> None:
    if ":" in name:
        table_name, _, index_name = name.partition(":")
        [index] = [index for index in metadata.tables[table_name].indexes if index.name == index_name]
        dialect.index(connection, index, lambda: begin(True))
        return
    table_name, _, column_name = name.partition(".")
    table, there = metadata.tables[table_name], inspect(connection)
    if not column_name:
        table.create(connection, checkfirst=True)
    elif column_name not in {column["name"] for column in there.get_columns(table_name)}:
        column = CreateColumn(table.c[column_name]).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f"ALTER TABLE {table_name} ADD COLUMN {column}")
