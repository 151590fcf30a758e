"""This release with three steps of the schema more, a column, an index and a table: what the next one is like.

    python next_release.py DATABASE_URL NAME

migrates a store as that release, and is killed (SIGKILL) as soon as NAME was added, before that is committed.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Protocol

from sqlalchemy import Column, Index, MetaData, Table, Text, event, text

from runmeter_exporter import open_store
from runmeter_exporter.store.sql import setup, steps, upgrade
from runmeter_exporter.store.sql.schema import metadata
from runmeter_exporter.store.sql.steps import Step

STEPS = (
    Step(len(steps.STEPS) + 1, "hosts of sources", ("sources.host",)),
    Step(len(steps.STEPS) + 2, "sources by host", ("sources:sources_host",)),
    Step(len(steps.STEPS) + 3, "marks", ("marks",)),
)


class Set(Protocol):
    """`setattr`, or pytest's."""

    def __call__(self, target: Any, name: str, value: Any, /) -> None: ...


def become(put: Set) -> None:
    """Make this process one of that release."""
    more = MetaData()
    for table in metadata.tables.values():
        copy = table.to_metadata(more)
        for index in table.dispatch.after_create:  # those that SQLAlchemy has no words for
            event.listen(copy, "after_create", index)
    more.tables["sources"].append_column(Column("host", Text))
    known = text("host IS NOT NULL")
    Index("sources_host", more.tables["sources"].c.host, sqlite_where=known, postgresql_where=known)
    Table("marks", more, Column("name", Text, primary_key=True), sqlite_with_rowid=False)
    put(steps, "STEPS", (*steps.STEPS, *STEPS))
    for module in (setup, upgrade):
        put(module, "metadata", more)


def main(url: str, last: str) -> None:
    """Migrate as far as that."""
    become(setattr)
    add = upgrade._add

    def dies(*given: Any) -> None:
        add(*given)
        if given[-1] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    upgrade._add = dies
    open_store(url, create=False).migrate()


if __name__ == "__main__":
    main(*sys.argv[1:])
