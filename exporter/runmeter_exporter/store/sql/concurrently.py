"""An index on a PostgreSQL table that is in use: a plain CREATE INDEX would hold up all who write for as long as it
takes, so it is built beside them, outside of a transaction. What was cut short leaves an index that is not valid: it
costs as one, serves nobody, and has its name. It goes first."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from sqlalchemy import Connection, Index, text
from sqlalchemy.schema import CreateIndex, DropIndex

_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def build(
    guard: Connection,
    begin: Callable[[], AbstractContextManager[Connection]],
    index: Index,
    impatient: Callable[[Connection], None],
) -> None:
    """Build it where it is not there. `guard` is in a transaction that keeps others from doing the same, and holds no
    lock on a table. `begin` begins one that will write, on another connection; `impatient` has it wait for nobody."""
    with begin() as connection:
        valid = connection.execute(_VALID, {"name": index.name}).scalar()
        if valid is False:
            impatient(connection)
            connection.execute(DropIndex(index))
    if valid:
        return
    # What was read last keeps its snapshot for as long as it could be read on, and the index waits for all snapshots:
    # a statement without parameters ends that.
    guard.exec_driver_sql("SELECT 1")
    with begin() as connection:
        words = str(CreateIndex(index).compile(dialect=connection.dialect))
        connection.commit()
        connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.exec_driver_sql(words.replace("INDEX", "INDEX CONCURRENTLY", 1))
