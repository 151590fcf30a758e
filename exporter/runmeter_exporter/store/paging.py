"""The statement that lists runs: what is asked of them, and the order they come in."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, select, text, tuple_

from runmeter_exporter.store.rows import RunFilter
from runmeter_exporter.store.sql.dialects import Dialect
from runmeter_exporter.store.sql.schema import run_usage, runs
from runmeter_exporter.store.sql.statements import larger


def page_runs(
    dialect: Dialect, which: RunFilter, limit: int, after: tuple[int, str] | None, order: str
) -> Select[Any]:
    """See Rows. Thread, service, user, status and time are found by index. The others are looked at run by run, in
    the order asked; `tokens` and `cost` add up every run that is left."""
    wanted = select(runs)
    if which.statuses is not None:
        wanted = wanted.where(runs.c.status.in_(which.statuses))
        if {"pending", "running"}.issuperset(which.statuses):
            # Runs that work are few among many; their own index finds them whatever else is asked.
            wanted = wanted.where(text("is_open = 1"))
    for name, value in which.columns.items():
        wanted = wanted.where(runs.c[name] == value)
    if which.model is not None:
        cells = select(run_usage.c.run_id).where(run_usage.c.run_id == runs.c.run_id, run_usage.c.model == which.model)
        wanted = wanted.where(cells.exists())
    for key, value in which.tags:
        tags = dialect.tags(runs.c.tags)
        tag = select(tags.c.value).where(and_(tags.c.key == key, tags.c.value == value))
        wanted = wanted.where(tag.correlate(runs).exists())
    if which.start is not None:
        wanted = wanted.where(runs.c.listed_at >= which.start)
    if which.end is not None:
        wanted = wanted.where(runs.c.listed_at < which.end)
    place = _position(order)
    mark = tuple_(place, runs.c.run_id)
    if order == "oldest":
        if after is not None:
            wanted = wanted.where(mark > tuple_(*after))
        return wanted.order_by(place, runs.c.run_id).limit(limit)
    if after is not None:
        wanted = wanted.where(mark < tuple_(*after))
    return wanted.order_by(place.desc(), runs.c.run_id.desc()).limit(limit)


def _position(order: str) -> ColumnElement[int]:
    """See `rows.position`."""
    if order in ("newest", "oldest"):
        return runs.c.listed_at
    names = ("input_tokens", "output_tokens") if order == "tokens" else ("cost_nanousd",)
    counts = [larger(run_usage.c[name], run_usage.c[f"settled_{name}"]) for name in names]
    amount = counts[0] if len(counts) == 1 else counts[0] + counts[1]
    summed = select(func.coalesce(func.sum(amount), 0)).where(run_usage.c.run_id == runs.c.run_id)
    return summed.correlate(runs).scalar_subquery()
