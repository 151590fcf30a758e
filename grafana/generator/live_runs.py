"""Live runs: which runs are burning money right now."""

from __future__ import annotations

from typing import Any

from panels import MONEY, PER_HOUR, dashboard, gauge, graph, rate, stat, table


def live_runs() -> dict[str, Any]:
    """Which runs are burning money right now."""
    observed, cost = "runmeter_observed_tokens_total", "runmeter_observed_cost_usd_total"
    set_aside, calls = "runmeter_spans_set_aside_total", "runmeter_llm_calls_total"
    run_tokens = gauge("runmeter_active_run_tokens")
    return dashboard(
        "runmeter-live",
        "runmeter / Live runs",
        'What agents are spending while they work. Needs a scrape job with params include_active: ["true"].',
        "10s",
        "now-1h",
        [
            stat(
                "Active runs",
                "Runs whose usage has not entered the settled totals yet.",
                "short",
                f"sum({gauge('runmeter_active_runs')})",
            ),
            stat(
                "Tokens per second",
                "Settled and active tokens gained, averaged over five minutes.",
                "suffix: tok/s",
                rate(observed, window="5m"),
                decimals=1,
            ),
            stat(
                "Burn rate",
                "What is being spent now, averaged over five minutes. Unpriced calls are not in it.",
                PER_HOUR,
                f"{rate(cost, window='5m')} * 3600",
                decimals=2,
            ),
            stat(
                "Spent by active runs",
                "Cost so far of the runs that are still active.",
                MONEY,
                f"sum({gauge('runmeter_active_cost_usd')})",
                decimals=2,
            ),
            stat(
                "Tokens of active runs",
                "Input and output tokens so far of the runs that are still active.",
                "short",
                f"sum({gauge('runmeter_active_tokens')})",
            ),
            stat(
                "Age of the oldest active run",
                "A run that is much older than your agents usually work may be stuck.",
                "s",
                f"time() - min({gauge('runmeter_oldest_active_run_start_timestamp_seconds')})",
                decimals=0,
            ),
            graph(
                "Tokens per second by model",
                "Rises while runs work, not when they end.",
                "suffix: tok/s",
                (rate(observed, "model"), "{{model}}"),
            ),
            graph(
                "Burn rate by model",
                "US dollars an hour, by model; unpriced models are missing here.",
                PER_HOUR,
                (f"{rate(cost, 'model')} * 3600", "{{model}}"),
            ),
            graph(
                "Burn rate by caller",
                "Who inside the runs spends it: the lead agent, its subagents, or middleware.",
                PER_HOUR,
                (f"{rate(cost, 'caller')} * 3600", "{{caller}}"),
            ),
            graph(
                "Burn rate by service",
                "Which of your services spends it.",
                PER_HOUR,
                (f"{rate(cost, 'service')} * 3600", "{{service}}"),
            ),
            table(
                "Largest running runs",
                "The active runs with most tokens; `other` is the sum of those beyond the largest 100.",
                "run_id",
                ("Time",),
                {
                    "A": (f"topk(25, sum by (run_id, thread_id) ({run_tokens}))", "Tokens", "short"),
                    "B": (f"sum by (run_id) ({gauge('runmeter_active_run_cost_usd')})", "Cost", MONEY),
                    "C": (
                        f"time() - max by (run_id) ({gauge('runmeter_active_run_updated_timestamp_seconds')})",
                        "Silent for",
                        "s",
                    ),
                },
                width=14,
                height=10,
            ),
            table(
                "Threads of the largest running runs",
                "What these conversations have cost so far, their settled runs included.",
                "thread_id",
                ("Time",),
                {
                    "A": (f"topk(25, sum by (thread_id) ({gauge('runmeter_thread_tokens')}))", "Tokens", "short"),
                },
                width=10,
                height=10,
            ),
            graph(
                "Active runs over time",
                "How many runs were under way.",
                "short",
                (f"sum by (job) ({gauge('runmeter_active_runs')})", "{{job}}"),
            ),
            graph(
                "Share of repeats set aside",
                "Spans that speak of a call already counted, of all spans that speak of calls. No error: frameworks "
                "repeat what instrumentations say. A sudden change means that an instrumentation changed.",
                "percentunit",
                (f"{rate(set_aside, 'reason')} / scalar({rate(set_aside)} + {rate(calls)})", "{{reason}}"),
            ),
        ],
    )
