"""Answers from one moment of the tables; all rows come through `Rows`, all shapes from `answers`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any, cast

from runmeter.sink import TERMINAL
from runmeter.usage import ZERO, Usage
from runmeter_exporter.store.rows import Rows
from runmeter_exporter.totals.answers import ActiveRun, Scrape, Series, counters, thread_answer, totals_answer
from runmeter_exporter.totals.bounds import clean_id
from runmeter_exporter.totals.questions import BadQuestion, encode_cursor, no_such_group
from runmeter_exporter.totals.rollup import EVERYTHING, Place, series_key, thread_scope
from runmeter_exporter.totals.run import StoredRun
from runmeter_exporter.totals.shapes import DailyUsage, GrandUsage, ThreadPage, ThreadUsage

GROUPS = ("day", "month", "service", "user_id", "agent", "provider", "model", "caller")


def thread_usages(rows: Rows, thread_ids: Sequence[str], include_active: bool) -> list[ThreadUsage]:
    """The totals of threads, in the order asked."""
    ids = [clean_id(thread_id) for thread_id in thread_ids]
    held = rows.rollups([thread_scope(thread_id) for thread_id in dict.fromkeys(ids)])
    open_runs: dict[str | None, list[StoredRun]] = {}
    for run in rows.open_runs(list(dict.fromkeys(ids))):
        open_runs.setdefault(run.thread_id, []).append(run)
    return [
        thread_answer(asked, held.get(thread_scope(thread_id), {}), open_runs.get(thread_id, ()), include_active)
        for asked, thread_id in zip(thread_ids, ids, strict=True)
    ]


def threads(rows: Rows, limit: int, after: tuple[int, str] | None, include_active: bool) -> ThreadPage:
    """One page of threads with their totals."""
    page = rows.page_threads(limit + 1, after)
    more, page = len(page) > limit, page[:limit]
    return {
        "threads": thread_usages(rows, [thread_id for thread_id, _ in page], include_active),
        "next_cursor": encode_cursor((page[-1][1], page[-1][0])) if more else None,
    }


def usage(rows: Rows, include_active: bool) -> GrandUsage:
    """Grand totals."""
    held = rows.rollup(EVERYTHING)
    if include_active:
        return totals_answer(held, rows.open_runs(), True)
    # Thousands of active runs need not be read to be counted.
    answer = totals_answer(held, (), False)
    answer["active_runs"] = rows.open_count()[0]
    return answer


def check_groups(group_by: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns and the tags to group by. ValueError for an unknown group."""
    columns, tags = [], []
    for group in group_by:
        if group in GROUPS:
            columns.append("day" if group == "month" else group)
        elif group.startswith("tag.") and len(group) > 4:
            tags.append(group[4:])
        else:
            raise BadQuestion(no_such_group(group, GROUPS))
    return list(dict.fromkeys(columns)) + (["tags"] if tags else []), tags


def check_days(*days: str | None) -> None:
    """ValueError for a day that is none."""
    for day in days:
        if day is not None:
            try:
                date.fromisoformat(day)
            except ValueError:
                raise BadQuestion(f"{day!r} is not a day written as YYYY-MM-DD") from None


def daily_answer(
    found: Sequence[tuple[tuple[str, ...], Usage]], columns: Sequence[str], tags: Sequence[str], group_by: Sequence[str]
) -> list[DailyUsage]:
    """Rows of daily usage; groups in the order asked, sorted by them; null where nothing is known."""
    groups: dict[tuple[str, ...], Usage] = {}
    for values, usage in found:
        named = dict(zip(columns, values, strict=True))
        if "day" in named:
            named["month"] = named["day"][:7]
        if tags:
            known = json.loads(named["tags"]) if named["tags"] else {}
            named.update({f"tag.{key}": known.get(key, "") for key in tags})
        place = tuple(named[group] for group in group_by)
        groups[place] = groups.get(place, ZERO) + usage
    return [
        cast(DailyUsage, {**{g: value or None for g, value in zip(group_by, place, strict=True)}, **counters(usage)})
        for place, usage in sorted(groups.items())
    ]


def scrape(rows: Rows, include_active: bool, largest: int) -> tuple[Scrape, dict[Place, Usage]]:
    """What `/metrics` tells, and the observed marks that grew."""
    held = rows.rollup(EVERYTHING)
    settled: dict[Series, Usage] = {}
    marks: dict[Series, Usage] = {}
    runs = dict.fromkeys(TERMINAL, 0)
    revised: dict[tuple[str, str], int] = {}
    counts: dict[tuple[str, str], int] = {}
    set_aside: dict[str, int] = {}
    for (dimension, key), row in held.items():
        if dimension == "series":
            settled[Series(*key)] = row.usage
        elif dimension == "observed":
            marks[Series(*key)] = row.usage
        elif dimension == "closed":
            runs[key[0]] = row.number
        elif dimension == "revised":
            revised[key[0], key[1]] = row.number
        elif dimension == "set_aside":
            set_aside[key[0]] = row.number
        elif dimension == "count":
            counts[key[0], key[1]] = row.number
        elif dimension == "overflowed":
            counts["overflowed", key[0]] = row.number
    orphaned = held.get(("orphaned", ()))
    threads = held.get(("threads", ()))
    common: dict[str, Any] = {
        "settled": settled,
        "runs": runs,
        "revised": revised,
        "orphaned": orphaned.number if orphaned else 0,
        "threads": threads.number if threads else 0,
        "set_aside": set_aside,
        "counts": counts,
    }
    if not include_active:
        number, oldest = rows.open_count()
        return Scrape(**common, active_runs=number, oldest_active_started_at=oldest), {}
    open_runs = rows.open_runs()
    active = _active_series(rows, open_runs)
    observed, raised = _observe(settled, marks, active)
    parts = sorted(
        ((run.active(), run) for run in open_runs),
        key=lambda pair: (-pair[0].total_tokens, -pair[0].cost_nanousd, pair[1].run_id),
    )
    rest = ZERO
    for part, _ in parts[largest:]:
        rest += part
    of_thread, thread_rest = _threads(rows, parts, largest)
    return (
        Scrape(
            **common,
            active_runs=len(open_runs),
            oldest_active_started_at=min((run.started_at for run in open_runs), default=None),
            observed=observed,
            active=active,
            largest=tuple(
                ActiveRun(run.run_id, run.thread_id, part, run.started_at, run.updated_at)
                for part, run in parts[:largest]
            ),
            rest=rest,
            rest_updated_at=min((run.updated_at for _, run in parts[largest:]), default=None),
            threads_largest=of_thread,
            threads_rest=thread_rest,
        ),
        raised,
    )


def _active_series(rows: Rows, open_runs: Sequence[StoredRun]) -> dict[Series, Usage]:
    grants = rows.grants(())
    active: dict[Series, Usage] = {}
    for run in open_runs:
        for (_, key), cell in run.cells.items():
            series = Series(*grants.map("series", series_key(key.provider, key.model, key.caller, run.service)))
            active[series] = active.get(series, ZERO) + cell.usage.exceeding(cell.settled)
    return active


def _observe(
    settled: Mapping[Series, Usage], marks: Mapping[Series, Usage], active: Mapping[Series, Usage]
) -> tuple[dict[Series, Usage], dict[Place, Usage]]:
    """Settled plus active as a high-water mark, and the marks that grew."""
    observed: dict[Series, Usage] = {}
    raised: dict[Place, Usage] = {}
    for series in {**settled, **active, **marks}:
        mark = marks.get(series)
        now = (settled.get(series, ZERO) + active.get(series, ZERO)).at_least(mark or ZERO)
        observed[series] = now
        if now != mark:
            raised[(EVERYTHING, "observed", tuple(series))] = now
    return observed, raised


def _threads(rows: Rows, parts: Sequence[tuple[Usage, StoredRun]], largest: int) -> tuple[dict[str, Usage], Usage]:
    named = {run.thread_id: None for _, run in parts[:largest] if run.thread_id is not None}
    active: dict[str, Usage] = {}
    for part, run in parts:
        if run.thread_id is not None:
            active[run.thread_id] = active.get(run.thread_id, ZERO) + part
    totals = rows.totals([thread_scope(thread_id) for thread_id in active])
    rest = ZERO
    shown: dict[str, Usage] = {}
    for thread_id, part in active.items():
        whole = part + totals.get(thread_scope(thread_id), ZERO)
        if thread_id in named:
            shown[thread_id] = whole
        else:
            rest += whole
    return shown, rest
