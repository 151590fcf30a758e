"""What active runs burn: rates from successive looks. Keeps a few numbers of each run that is active, and no more."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

WINDOW = 15.0
"""Seconds that a burn rate looks back: long enough to smooth single calls, short enough to be now."""
SPACING = WINDOW / 15
"""Seconds between two looks that are remembered, whatever the interval is."""
SHORTEST = 1.0
"""Seconds that a rate is over at least: a run that began just now does not burn a million tokens a second."""


class Burning(NamedTuple):
    """One active run as `top` shows it; also its `--json`."""

    run_id: str
    thread_id: str | None
    agent: str | None
    service: str | None
    model: str | None
    status: str
    age_seconds: float
    llm_call_count: int
    total_tokens: int
    tokens_per_second: float | None
    """None while nothing is known of its growth."""
    cost_usd: float | None
    usd_per_hour: float | None
    lead_agent_tokens: int
    subagent_tokens: int
    middleware_tokens: int


class Spent(NamedTuple):
    """What a run had spent at one moment."""

    at: float
    """Monotonic seconds."""
    tokens: int
    cost: float


class Burn:
    """Takes looks at all active runs, one after the other, and gives lines with rates."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[Spent]] = {}

    def look(self, at: float, now: datetime, runs: Mapping[str, Mapping[str, Any]]) -> list[Burning]:
        """The runs of this look as lines, what burns most first. Runs that are not in it are forgotten."""
        self._seen = {run_id: self._seen.get(run_id) or deque() for run_id in runs}
        made = [self._line(run_id, run, at, now) for run_id, run in runs.items()]
        return sorted(made, key=lambda line: (-(line.tokens_per_second or 0.0), -line.total_tokens, line.run_id))

    def _line(self, run_id: str, run: Mapping[str, Any], at: float, now: datetime) -> Burning:
        age = (now - datetime.fromisoformat(run["created_at"])).total_seconds()
        tokens, cost = run["total_tokens"], run["cost_usd"]
        seen = self._seen[run_id]
        if not seen and -SHORTEST < age < WINDOW:
            # All that it has spent, it spent in the window: the rate is known from its first tokens. Of a run that
            # began in the future, another clock tells the time, and nothing is known.
            seen.append(Spent(at - age, 0, 0.0))
        while len(seen) > 1 and seen[0].at < at - WINDOW:
            seen.popleft()
        first = seen[0] if seen else None
        if len(seen) < 2 or at - seen[-1].at >= SPACING:
            seen.append(Spent(at, tokens, cost or 0.0))
        rate = hourly = None
        if first is not None:
            seconds = max(SHORTEST, at - first.at)
            # A repeat recognised late may take active usage back; a burn rate below nothing would only confuse.
            rate = max(0.0, (tokens - first.tokens) / seconds)
            hourly = None if cost is None else max(0.0, cost - first.cost) / seconds * 3600
        return Burning(
            run_id, run["thread_id"], run["agent"], run["service"], run["model_name"], run["status"], max(0.0, age),
            run["llm_call_count"], tokens, rate, cost, hourly,
            run["lead_agent_tokens"], run["subagent_tokens"], run["middleware_tokens"],
        )  # fmt: skip
