"""The steps that the schema took since 0.1.0, in their order: this is the whole list, and a new one goes to its end.

A step adds tables, columns or indexes and takes nothing away, so that whoever knows less of them, or more, goes on
with the same store. What stands in the way of that is another `schema.VERSION`, which older and newer releases refuse.

To add one:

1. Put the column or the table into `schema.py` (or `ledger.py`), as if it had always been there: new stores are made
   from that. A column is nullable or has a constant `server_default`: releases before it insert rows without it, and
   nothing is rewritten. Do not add it to a table that is read by `select(table)` or written whole (`statements.py`)
   before those go by `minor`, too.
   An index on a table that was there is a step of its own, after that of its column: it may take long.
2. Append a step with the next number and the names: `SENT = Step(1, "in which order rows came", ("spans.sent",))`, and
   `STEPS = (SENT,)`.
3. Where statements use it, look first: `rows.minor >= SENT.number` (`SqlReads.minor`, fixed for a transaction). A store
   may be behind, since agents never migrate one: then do without. NULL, or the default, is what others wrote.

How many of them a store has is `schema_minor` in its table `meta`; a store without that row has none, and one made by a
newer release more than are listed here. `upgrade.py` takes them, `tests/test_migrate.py` holds them to these rules.
"""

from __future__ import annotations

from typing import NamedTuple


class Step(NamedTuple):
    """What one step adds."""

    number: int
    """Its place in the list, from 1 on."""
    what: str
    """What the store can tell from now on, for people: `runmeter migrate` says it."""
    adds: tuple[str, ...]
    """`table` for a whole table with its indexes, `table.column` for a column, `table:index` for an index."""


ARRIVALS = Step(1, "which spans joined a run lately, so that a second sidecar reads those alone", ("arrivals",))
STEPS: tuple[Step, ...] = (ARRIVALS,)


def lacking(minor: int) -> frozenset[str]:
    """What a store that has so many steps has not, by the names in `Step.adds`."""
    return frozenset(name for step in STEPS[minor:] for name in step.adds)
