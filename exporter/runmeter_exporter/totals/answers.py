"""The answers: runs, threads and grand totals as the REST routes give them (`shapes.py`), and what a scrape needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import NamedTuple, cast

from runmeter.usage import ZERO, Usage
from runmeter_exporter.totals.bounds import TIME_LIMIT
from runmeter_exporter.totals.rollup import UNKNOWN, Held
from runmeter_exporter.totals.run import StoredRun, caller_kind
from runmeter_exporter.totals.shapes import (
    CallerTokens,
    Counters,
    GrandUsage,
    Run,
    Status,
    ThreadUsage,
    UsageLine,
    UsageState,
)

KINDS = ("lead_agent", "subagent", "middleware")


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


def dollars(value: float) -> str:
    """US dollars for a table of decimals: exact to the nano-dollar they are kept in, never `1e-07`."""
    whole, _, part = f"{Decimal(value):.9f}".partition(".")
    part = part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def counters(usage: Usage) -> Counters:
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


def run_answer(run: StoredRun) -> Run:
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
        "status": cast(Status, run.status),
        "usage_state": cast(UsageState, run.usage_state),
        "model_name": max(models, key=lambda model: (models[model].total_tokens, model), default=None),
        **counters(total),
        "lead_agent_tokens": kinds["lead_agent"],
        "subagent_tokens": kinds["subagent"],
        "middleware_tokens": kinds["middleware"],
        "set_aside": aside,
        "stop_reason": run.stop_reason,
        "created_at": moment(run.started_at) or "",
        "updated_at": moment(run.updated_at) or "",
        "ended_at": moment(run.ended_at),
        "usage": _lines(lines),
    }


class _Sum:
    """The totals of a thread or of everything, as they are added up."""

    def __init__(self, held: Mapping[tuple[str, tuple[str, ...]], Held]) -> None:
        self.total, self.active = ZERO, ZERO
        self.runs = self.active_runs = self.lower_bound = self.unthreaded = self.updated_at = 0
        self.models: dict[str, list[int]] = {}
        self.statuses: dict[str, list[int]] = {}
        self.lines: dict[tuple[str, ...], Usage] = {}
        for (dimension, key), row in held.items():
            tokens = row.usage.total_tokens
            if dimension == "total":
                self.total, self.runs, self.updated_at = row.usage, row.number, row.updated_at
            elif dimension == "model":
                if row.number or tokens:
                    self.models[key[0]] = [tokens, row.number]
            elif dimension == "status":
                if row.number or tokens:
                    self.statuses[key[0]] = [tokens, row.number]
            elif dimension == "line":
                self.lines[key] = row.usage
            elif dimension == "lower_bound":
                self.lower_bound = row.number
            elif dimension == "unthreaded":
                self.unthreaded = row.number

    def add_open(self, run: StoredRun) -> None:
        """Add what the settled totals do not hold of a run that is not closed."""
        part = ZERO
        counted = run.counted_status is not None
        settled = {key.model for (_, key), cell in run.cells.items() if any(cell.settled)}
        models = set(settled)
        for (_, key), cell in run.cells.items():
            more = cell.usage.exceeding(cell.settled)
            if not any(more):
                continue
            part += more
            line = (key.provider, key.model, key.caller)
            self.lines[line] = self.lines.get(line, ZERO) + more
            self._model(key.model, more.total_tokens, key.model not in models)
            models.add(key.model)
        if not settled and counted == bool(models):
            # The totals hold it among the runs that used no model, and now it did; or it is one of them.
            self._model(UNKNOWN, 0, -1 if counted else 1)
        self.active += part
        self.total += part
        status = self.statuses.setdefault(run.counted_status or run.status, [0, 0])
        status[0] += part.total_tokens
        if not counted:
            status[1] += 1
            self.runs += 1
            self.unthreaded += run.thread_id is None

    def _model(self, model: str, tokens: int, runs: int) -> None:
        share = self.models.setdefault(model, [0, 0])
        share[0] += tokens
        share[1] += runs


def totals_answer(
    held: Mapping[tuple[str, tuple[str, ...]], Held], open_runs: Iterable[StoredRun], include_active: bool
) -> GrandUsage:
    """The totals of a thread or of everything, from its rollup rows and its runs that are not closed.

    A pending run is active and adds nothing: it has not begun to run.
    """
    found = _Sum(held)
    for run in open_runs:
        found.active_runs += 1
        found.updated_at = max(found.updated_at, run.updated_at)
        if include_active and run.status != "pending":
            found.add_open(run)
    own = counters(found.total)
    models = sorted((name, share) for name, share in found.models.items() if any(share))
    answer: GrandUsage = {
        "total_tokens": own["total_tokens"],
        "total_input_tokens": own["total_input_tokens"],
        "total_output_tokens": own["total_output_tokens"],
        "total_runs": found.runs,
        "by_model": {name: {"tokens": tokens, "runs": runs} for name, (tokens, runs) in models},
        "by_caller": _by_kind((line[2], usage) for line, usage in found.lines.items()),
        "include_active": include_active,
        "llm_call_count": own["llm_call_count"],
        "llm_call_failures": own["llm_call_failures"],
        "calls_without_usage": own["calls_without_usage"],
        "message_count": own["message_count"],
        "cache_read_tokens": own["cache_read_tokens"],
        "cache_write_tokens": own["cache_write_tokens"],
        "reasoning_tokens": own["reasoning_tokens"],
        "cost_usd": own["cost_usd"],
        "unpriced_tokens": own["unpriced_tokens"],
        "by_status": {name: {"tokens": tokens, "runs": n} for name, (tokens, n) in sorted(found.statuses.items())},
        "active_runs": found.active_runs,
        "lower_bound_runs": found.lower_bound,
        "unthreaded_runs": found.unthreaded,
        "updated_at": moment(found.updated_at) if found.updated_at else None,
        "usage": _lines(found.lines),
    }
    if include_active:
        answer["active"] = counters(found.active)
    return answer


def thread_answer(
    thread_id: str,
    held: Mapping[tuple[str, tuple[str, ...]], Held],
    open_runs: Iterable[StoredRun],
    include_active: bool,
) -> ThreadUsage:
    """A thread's totals; the same fields for one never seen."""
    totals = dict(totals_answer(held, open_runs, include_active).items())
    del totals["unthreaded_runs"]
    return cast(ThreadUsage, {"thread_id": thread_id, **totals})


def _lines(lines: Mapping[tuple[str, ...], Usage]) -> list[UsageLine]:
    ordered = sorted(lines.items(), key=lambda item: (-item[1].total_tokens, item[0]))
    return [
        {"provider": line[0], "model": line[1], "caller": line[2], **counters(usage)}
        for line, usage in ordered
        if any(usage)
    ]


def _by_kind(pairs: Iterable[tuple[str, Usage]]) -> CallerTokens:
    tokens = dict.fromkeys(KINDS, 0)
    for caller, usage in pairs:
        kind = caller_kind(caller)
        tokens[kind] = tokens.get(kind, 0) + usage.total_tokens
    return cast(CallerTokens, tokens)


def _sum(usages: Iterable[Usage]) -> Usage:
    total = ZERO
    for usage in usages:
        total += usage
    return total
