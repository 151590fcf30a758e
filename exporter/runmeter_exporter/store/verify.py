"""Recomputing the totals from the runs, and naming every difference."""

from __future__ import annotations

from collections.abc import Iterator

from runmeter.sink import TERMINAL
from runmeter.usage import ZERO, Usage
from runmeter_exporter.store.rows import Rows
from runmeter_exporter.totals.rollup import EVERYTHING, PRUNED, DailyKey, Held, Place, Totals, contribution
from runmeter_exporter.totals.run import CLOSED_STATES, OPEN_STATES, StoredRun, is_otlp

APART = frozenset({"observed", "threads", "count"})
"""Dimensions that are not sums over runs."""
UNCOMPARED = "totals and runs were not compared: not all of them can be read"
NAMED = 100
"""Differences named one by one; the rest is counted."""


def verify(rows: Rows) -> list[str]:
    """Every difference between the totals and the runs they are of, each in one sentence; and what in the tables cannot
    be what we wrote, whoever changed it."""
    types, found = rows.odd()
    if types:
        found = [*types, UNCOMPARED]
    else:
        try:
            found += _differences(rows)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            found += [*(rows.unreadable() or [f"what is stored cannot be read ({error!r})"]), UNCOMPARED]
    return found if len(found) <= NAMED else [*found[:NAMED], f"and {len(found) - NAMED} more differences"]


def _differences(rows: Rows) -> Iterator[str]:
    totals = Totals(rows.grants(()))
    daily: dict[DailyKey, Usage] = {}
    for run in rows.every_run():
        yield from _run_differences(run)
        totals.change(None, run)
        for day, usage in contribution(run)[1].items():
            daily[day] = daily.get(day, ZERO) + usage
    expected: dict[Place, Held] = {place: Held(*row) for place, row in totals.rows.items()}  # type: ignore[arg-type]
    stored: dict[Place, Held] = {}
    threads = counted_threads = 0
    for place, held in rows.every_rollup():
        scope, dimension, key = place
        if scope.startswith(PRUNED):
            whole = (scope[len(PRUNED) :], dimension, key)
            before = expected.get(whole, Held())
            expected[whole] = Held(before.number + held.number, before.usage + held.usage)
            continue
        if dimension == "total" and scope != EVERYTHING:
            threads += 1
        if dimension == "threads":
            counted_threads = held.number
        if dimension not in APART:
            stored[place] = held
    for place in sorted(expected.keys() | stored.keys()):
        want, have = expected.get(place, Held()), stored.get(place, Held())
        if want.number != have.number:
            yield f"{_name(place)}: the totals count {have.number}, the runs {want.number}"
        if want.usage != have.usage:
            yield f"{_name(place)}: the totals hold {_terse(have.usage)}, the runs {_terse(want.usage)}"
        if min(have.usage) < 0 or have.number < 0:
            yield f"{_name(place)}: the totals are negative"
    if threads != counted_threads:
        yield f"threads: {threads} have totals, {counted_threads} were counted"
    yield from _daily_differences(rows, daily, stored.get((EVERYTHING, "total", ()), Held()).usage)


def _daily_differences(rows: Rows, daily: dict[DailyKey, Usage], grand: Usage) -> Iterator[str]:
    total = ZERO
    for key, usage in rows.every_daily():
        total += usage
        kept = daily.pop(key, ZERO)
        if any(kept.exceeding(usage)):
            yield f"daily usage of {tuple(key)}: it holds {_terse(usage)}, its runs alone {_terse(kept)}"
    for key, usage in daily.items():
        yield f"daily usage of {tuple(key)}: it is missing, its runs hold {_terse(usage)}"
    if total != grand:
        yield f"daily usage: it sums to {_terse(total)}, the totals hold {_terse(grand)}"


def _run_differences(run: StoredRun) -> Iterator[str]:
    name = f"run {run.run_id!r}"
    if run.usage_state not in OPEN_STATES + CLOSED_STATES:
        yield f"{name}: its usage state is {run.usage_state!r}"
    if run.ended != (run.status in TERMINAL):
        yield f"{name}: its status is {run.status!r}, and it was ended by {run.ended_by}"
    if run.ended and run.ended_at is not None and run.ended_at < run.started_at:
        yield f"{name}: it ended before it started"
    if run.closed and run.counted_status is None:
        yield f"{name}: it is closed, but the totals do not hold it"
    for (source, key), cell in run.cells.items():
        if min(cell.usage) < 0 or min(cell.settled) < 0:
            yield f"{name}: its cell {tuple(key)} of {source!r} is negative"
        due = run.closed or (run.ended and not is_otlp(source))
        if due and any(cell.usage.exceeding(cell.settled)):
            yield (
                f"{name}: its cell {tuple(key)} of {source!r} uses {_terse(cell.usage)}, "
                f"of which only {_terse(cell.settled)} is in the totals"
            )
        if source not in run.sources:
            yield f"{name}: its cell {tuple(key)} is of {source!r}, which never wrote"


def _name(place: Place) -> str:
    scope, dimension, key = place
    where = "everything" if scope == EVERYTHING else f"thread {scope[2:]!r}"
    return f"{where}, {dimension}" + (f" {', '.join(key)}" if key else "")


def _terse(usage: Usage) -> str:
    parts = [f"{name}={value}" for name, value in zip(Usage._fields, usage, strict=True) if value]
    return "nothing" if not parts else " ".join(parts)
