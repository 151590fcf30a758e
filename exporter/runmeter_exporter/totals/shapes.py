"""The shapes of the answers, as types: what Python gets and what REST writes down as JSON. `/openapi.json` is made from
them, so the three cannot differ."""

from __future__ import annotations

from typing import Annotated, Literal, NotRequired, TypeAlias, TypedDict

Time: TypeAlias = Annotated[str, "date-time"]
"""RFC 3339 in UTC with microseconds."""
Status: TypeAlias = Literal["pending", "running", "success", "error", "timeout", "interrupted"]
Terminal: TypeAlias = Literal["success", "error", "timeout", "interrupted"]
UsageState: TypeAlias = Literal["active", "closing", "settled", "lower_bound"]
Order: TypeAlias = Literal["newest", "oldest", "tokens", "cost"]


class Counters(TypedDict):
    """The counters of a line of usage."""

    total_tokens: int
    total_input_tokens: int
    total_output_tokens: int
    llm_call_count: int
    llm_call_failures: int
    calls_without_usage: int
    message_count: int
    cache_read_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost_usd: float | None
    """Null when nothing in it was priced."""
    unpriced_tokens: int


class UsageLine(Counters):
    """What was used of one model by one caller."""

    provider: str
    model: str
    caller: str


class Share(TypedDict):
    """Tokens, and the runs that they are of."""

    tokens: int
    runs: int


class CallerTokens(TypedDict):
    """Tokens by kind of caller."""

    lead_agent: int
    subagent: int
    middleware: int


class _Totals(Counters):
    total_runs: int
    by_model: dict[str, Share]
    """A run that used several models is in each of them; one that used none is `unknown`."""
    by_caller: CallerTokens
    include_active: bool
    by_status: dict[str, Share]
    active_runs: int
    lower_bound_runs: int
    updated_at: Time | None
    usage: list[UsageLine]
    active: NotRequired[Counters]
    """With include_active: the part of the runs that are not closed."""


class ThreadUsage(_Totals):
    """The totals of a thread."""

    thread_id: str


class GrandUsage(_Totals):
    """The totals of everything ever stored."""

    unthreaded_runs: int


class ThreadPage(TypedDict):
    """A page of threads."""

    threads: list[ThreadUsage]
    next_cursor: str | None


class Run(Counters):
    """A run."""

    run_id: str
    thread_id: str | None
    service: str | None
    agent: str | None
    user_id: str | None
    tags: dict[str, str]
    status: Status
    usage_state: UsageState
    model_name: str | None
    """The model of most tokens."""
    lead_agent_tokens: int
    subagent_tokens: int
    middleware_tokens: int
    set_aside: dict[str, int]
    """Spans not counted, by reason."""
    stop_reason: str | None
    created_at: Time
    updated_at: Time
    ended_at: Time | None
    usage: list[UsageLine]


class RunPage(TypedDict):
    """A page of runs."""

    runs: list[Run]
    next_cursor: str | None


class DailyUsage(Counters):
    """Settled usage of one group: of those below what was grouped by, and a `tag.<key>` for each tag."""

    day: NotRequired[str | None]
    month: NotRequired[str | None]
    service: NotRequired[str | None]
    user_id: NotRequired[str | None]
    agent: NotRequired[str | None]
    provider: NotRequired[str | None]
    model: NotRequired[str | None]
    caller: NotRequired[str | None]
