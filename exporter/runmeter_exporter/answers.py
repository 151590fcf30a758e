"""The shapes of the answers: runs, threads and grand totals as the REST routes give them, and what a scrape needs."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from runmeter.sink import STATUSES, TERMINAL
from runmeter.usage import ZERO, Usage
from runmeter_exporter.bounds import TIME_LIMIT
from runmeter_exporter.rollup import Held
from runmeter_exporter.run import StoredRun, caller_kind

KINDS = ("lead_agent", "subagent", "middleware")
LIMIT = 500
"""Most rows of one page."""


class Series(NamedTuple):
    """What usage is told apart by in a scrape. Values are granted first come, for good, up to a cap, else `other`."""

    provider: str
    model: str
    caller: str
    """The kind only."""
    service: str
    """`""` where no service is known."""


class ActiveRun(NamedTuple):
    """One of the largest runs that are not closed."""

    run_id: str
    thread_id: str | None
    usage: Usage
    """What the settled totals do not hold yet."""
    started_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Scrape:
    """Everything `/metrics` tells, read in one transaction. Times are nanoseconds since the epoch."""

    settled: Mapping[Series, Usage] = field(default_factory=dict)
    """Also series whose first usage has not settled yet, at zero."""
    runs: Mapping[str, int] = field(default_factory=dict)
    """Runs by their status at first closing; every terminal status is there."""
    revised: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(from, to) → runs that closed under one status and turned out to end under another."""
    orphaned: int = 0
    threads: int = 0
    active_runs: int = 0
    """Runs not closed."""
    oldest_active_started_at: int | None = None
    set_aside: Mapping[str, int] = field(default_factory=dict)
    """Spans not counted, by reason."""
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(family, label) → what sources reported with their heartbeats, and what the store itself dropped or cut
    (families `snapshots_dropped`, by reason, and `overflowed`: runs in which `cells`, `tags` or `text` were cut)."""
    observed: Mapping[Series, Usage] | None = None
    """High-water mark of settled plus active; None without `include_active`, as are the next ones."""
    active: Mapping[Series, Usage] | None = None
    largest: tuple[ActiveRun, ...] = ()
    """Most tokens first, then most cost."""
    rest: Usage = ZERO
    """Active usage of the runs that are not among the largest."""
    rest_updated_at: int | None = None
    """The oldest `updated_at` among those, so that silence shows."""
    threads_largest: Mapping[str, Usage] = field(default_factory=dict)
    """The threads of `largest` → their settled and active usage."""
    threads_rest: Usage = ZERO
    """The same, summed over the other threads that have an active run."""


def moment(nanoseconds: int | None) -> str | None:
    """RFC 3339 in UTC with microseconds, or None."""
    if nanoseconds is None:
        return None
    seconds, rest = divmod(min(max(nanoseconds, 0), TIME_LIMIT), 10**9)
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest // 1000:06d}Z"


def counters(usage: Usage) -> dict[str, Any]:
    """The counters of a line of usage, by their names in REST."""
    return {
        "total_tokens": usage.total_tokens,
        "total_input_tokens": usage.input_tokens,
        "total_output_tokens": usage.output_tokens,
        "llm_call_count": usage.calls,
        "llm_call_failures": usage.failures,
        "calls_without_usage": usage.calls_without_usage,
        "message_count": usage.messages,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": usage.cost_usd,
        "unpriced_tokens": usage.unpriced_tokens,
    }


def run_answer(run: StoredRun) -> dict[str, Any]:
    """A run as lists and detail show it."""
    lines: dict[tuple[str, ...], Usage] = {}
    for (_, key), cell in run.cells.items():
        line: tuple[str, ...] = (key.provider, key.model, key.caller)
        lines[line] = lines.get(line, ZERO) + cell.usage.at_least(cell.settled)
    total = _sum(lines.values())
    kinds = _by_kind((line[2], usage) for line, usage in lines.items())
    models: dict[str, Usage] = {}
    for line, usage in lines.items():
        models[line[1]] = models.get(line[1], ZERO) + usage
    aside: dict[str, int] = {}
    for (_, reason), held in run.set_aside.items():
        aside[reason] = aside.get(reason, 0) + max(held.spans, held.settled)
    return {
        "run_id": run.run_id,
        "thread_id": run.thread_id,
        "service": run.service,
        "agent": run.agent,
        "user_id": run.user_id,
        "tags": dict(run.tags),
        "status": run.status,
        "usage_state": run.usage_state,
        "model_name": max(models, key=lambda model: (models[model].total_tokens, model), default=None),
        **counters(total),
        "lead_agent_tokens": kinds["lead_agent"],
        "subagent_tokens": kinds["subagent"],
        "middleware_tokens": kinds["middleware"],
        "set_aside": aside,
        "stop_reason": run.stop_reason,
        "created_at": moment(run.started_at),
        "updated_at": moment(run.updated_at),
        "ended_at": moment(run.ended_at),
        "usage": _lines(lines),
    }


def totals_answer(
    held: Mapping[tuple[str, tuple[str, ...]], Held], open_runs: Iterable[StoredRun], include_active: bool
) -> dict[str, Any]:
    """The totals of a thread or of everything, from its rollup rows and its runs that are not closed."""
    total, runs, updated_at = ZERO, 0, 0
    models: dict[str, list[int]] = {}
    statuses: dict[str, list[int]] = {}
    lines: dict[tuple[str, ...], Usage] = {}
    lower_bound = unthreaded = 0
    for (dimension, key), row in held.items():
        tokens = row.usage.total_tokens
        if dimension == "total":
            total, runs, updated_at = row.usage, row.number, row.updated_at
        elif dimension == "model":
            models[key[0]] = [tokens, row.number]
        elif dimension == "status":
            if row.number or tokens:
                statuses[key[0]] = [tokens, row.number]
        elif dimension == "line":
            lines[key] = row.usage
        elif dimension == "lower_bound":
            lower_bound = row.number
        elif dimension == "unthreaded":
            unthreaded = row.number
    active, active_runs = ZERO, 0
    for run in open_runs:
        active_runs += 1
        updated_at = max(updated_at, run.updated_at)
        if not include_active:
            continue
        part, tokens = ZERO, 0
        seen = {key.model for (_, key), cell in run.cells.items() if any(cell.settled)}
        for (_, key), cell in run.cells.items():
            more = cell.usage.exceeding(cell.settled)
            if not any(more):
                continue
            part += more
            line = (key.provider, key.model, key.caller)
            lines[line] = lines.get(line, ZERO) + more
            model = models.setdefault(key.model, [0, 0])
            model[0] += more.total_tokens
            if key.model not in seen:
                seen.add(key.model)
                model[1] += 1
        active += part
        counted = run.counted_status is not None
        status = statuses.setdefault(run.counted_status or run.status, [0, 0])
        status[0] += part.total_tokens
        if not counted:
            status[1] += 1
            runs += 1
            unthreaded += run.thread_id is None
    total += active
    kinds = _by_kind((line[2], usage) for line, usage in lines.items())
    own = counters(total)
    answer: dict[str, Any] = {
        **{name: own[name] for name in ("total_tokens", "total_input_tokens", "total_output_tokens")},
        "total_runs": runs,
        "by_model": {model: {"tokens": tokens, "runs": count} for model, (tokens, count) in sorted(models.items())},
        "by_caller": kinds,
        "include_active": include_active,
        **{name: value for name, value in own.items() if not name.startswith("total_")},
        "by_status": {name: {"tokens": tokens, "runs": count} for name, (tokens, count) in sorted(statuses.items())},
        "active_runs": active_runs,
        "lower_bound_runs": lower_bound,
        "unthreaded_runs": unthreaded,
        "updated_at": moment(updated_at) if updated_at else None,
        "usage": _lines(lines),
    }
    if include_active:
        answer["active"] = counters(active)
    return answer


def thread_answer(
    thread_id: str,
    held: Mapping[tuple[str, tuple[str, ...]], Held],
    open_runs: Iterable[StoredRun],
    include_active: bool,
) -> dict[str, Any]:
    """A thread's totals; the same fields for one never seen."""
    answer = totals_answer(held, open_runs, include_active)
    del answer["unthreaded_runs"]
    return {"thread_id": thread_id, **answer}


def _lines(lines: Mapping[tuple[str, ...], Usage]) -> list[dict[str, Any]]:
    ordered = sorted(lines.items(), key=lambda item: (-item[1].total_tokens, item[0]))
    return [
        {"provider": line[0], "model": line[1], "caller": line[2], **counters(usage)}
        for line, usage in ordered
        if any(usage)
    ]


def _by_kind(pairs: Iterable[tuple[str, Usage]]) -> dict[str, int]:
    tokens = dict.fromkeys(KINDS, 0)
    for caller, usage in pairs:
        kind = caller_kind(caller)
        tokens[kind] = tokens.get(kind, 0) + usage.total_tokens
    return tokens


def _sum(usages: Iterable[Usage]) -> Usage:
    total = ZERO
    for usage in usages:
        total += usage
    return total


def encode_cursor(position: tuple[int, str]) -> str:
    """An opaque mark of the last row of a page."""
    return urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> tuple[int, str] | None:
    """The position a cursor stands for. ValueError for one that we never gave."""
    if cursor is None:
        return None
    try:
        number, text = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        if type(number) is not int or not isinstance(text, str) or not -1 <= number <= TIME_LIMIT:
            raise ValueError
        text.encode()
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            f"cursor {cursor[:40]!r} is not one that was given out; start again without a cursor"
        ) from None
    return number, text


def check_limit(limit: int) -> int:
    """The page size, or ValueError."""
    if not 1 <= limit <= LIMIT:
        raise ValueError(f"limit {limit} is not between 1 and {LIMIT}")
    return limit


def check_status(status: str | None) -> str | None:
    """A status to filter by, or ValueError."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
    return status


def check_terminal(status: str) -> str:
    """A status a run may end with, or ValueError."""
    if status not in TERMINAL:
        raise ValueError(f"a run cannot end as {status!r}; it ends as one of {', '.join(TERMINAL)}")
    return status
