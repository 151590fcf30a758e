"""Spend: what was spent, on what, by whom."""

from __future__ import annotations

from typing import Any

from panels import MONEY, PER_HOUR, bars, dashboard, gained, gauge, graph, rate, stat


def spend() -> dict[str, Any]:
    """What was spent, on what, by whom."""
    cost, tokens, runs = "runmeter_cost_usd_total", "runmeter_tokens_total", "runmeter_runs_total"
    details, unpriced = "runmeter_token_details_total", "runmeter_unpriced_tokens_total"
    calls, failures = "runmeter_llm_calls_total", "runmeter_llm_call_failures_total"
    cached, sent = ', detail="cache_read"', ', direction="input"'
    by = {"model": "Model", "provider": "Provider", "caller": "Caller", "service": "Service"}
    return dashboard(
        "runmeter-spend",
        "runmeter / Spend",
        "Settled usage: what closed runs used and cost in the time range. Runs still active are on Live runs.",
        "1m",
        "now-24h",
        [
            stat(
                "Spent",
                "Cost of the runs that closed in the time range, as priced when each call settled.",
                MONEY,
                gained(cost),
                decimals=2,
            ),
            stat(
                "Tokens", "Input and output tokens of the runs that closed in the time range.", "short", gained(tokens)
            ),
            stat("Runs", "Runs that closed in the time range.", "short", gained(runs), decimals=0),
            stat("Cost per run", "Spent, divided by runs.", MONEY, f"{gained(cost)} / {gained(runs)}", decimals=4),
            stat(
                "Cached share of input",
                "Input tokens that the providers served from their caches.",
                "percentunit",
                f"{gained(details, matchers=cached)} / {gained(tokens, matchers=sent)}",
                decimals=1,
            ),
            stat(
                "Unpriced share",
                "Tokens that no price was known for: the cost above is too low by theirs.",
                "percentunit",
                f"{gained(unpriced)} / {gained(tokens)}",
                decimals=1,
            ),
            *(
                graph(
                    f"Cost by {label}",
                    f"{heading}s that were paid for, in US dollars an hour.",
                    PER_HOUR,
                    (f"{rate(cost, label)} * 3600", f"{{{{{label}}}}}"),
                )
                for label, heading in by.items()
            ),
            *(
                bars(
                    f"Cost by {label} in the range",
                    f"{heading}s by what they cost in the whole time range.",
                    MONEY,
                    (f"sort_desc({gained(cost, label)})", f"{{{{{label}}}}}"),
                    width=6,
                )
                for label, heading in by.items()
            ),
            graph(
                "Tokens by direction",
                "Input includes cache reads and writes, output includes reasoning.",
                "suffix: tok/s",
                (rate(tokens, "direction"), "{{direction}}"),
            ),
            graph(
                "Token details",
                "Parts of the tokens on the left: never add them to it.",
                "suffix: tok/s",
                (rate(details, "detail"), "{{detail}}"),
                stacked=False,
            ),
            graph(
                "Runs by status",
                "Interrupted and timed out runs count: their money is spent.",
                "suffix: runs/s",
                (rate(runs, "status"), "{{status}}"),
            ),
            graph(
                "Calls and failures",
                "Calls the providers answered, and attempts that failed.",
                "suffix: calls/s",
                (rate(calls), "answered"),
                (rate(failures), "failed"),
                stacked=False,
            ),
            graph(
                "Messages",
                "One per answered call, unless the source states a number.",
                "suffix: msg/s",
                (rate("runmeter_messages_total", "service"), "{{service}}"),
            ),
            graph(
                "Threads",
                "Conversations or sessions ever seen.",
                "short",
                (f"sum by (job) ({gauge('runmeter_threads')})", "{{job}}"),
            ),
        ],
    )
