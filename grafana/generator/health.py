"""Meter health: whether the numbers of the other dashboards can be believed."""

from __future__ import annotations

from typing import Any

from panels import JOB, dashboard, gained, graph, rate, stat


def health() -> dict[str, Any]:
    """Whether the numbers on the other two can be believed."""
    tokens, unpriced = "runmeter_tokens_total", "runmeter_unpriced_tokens_total"
    calls, unknown = "runmeter_llm_calls_total", "runmeter_llm_calls_without_usage_total"
    up_down = [
        {
            "type": "value",
            "options": {
                "0": {"text": "down", "color": "red", "index": 0},
                "1": {"text": "up", "color": "green", "index": 1},
            },
        }
    ]
    return dashboard(
        "runmeter-health",
        "runmeter / Meter health",
        "What is lost, unknown or late: whether the other dashboards can be believed.",
        "30s",
        "now-6h",
        [
            stat(
                "Store",
                "Whether the sidecars' database answers. While it does not, the last known totals are served.",
                "short",
                f"min by (job) (runmeter_store_up{{{JOB}}})",
                legend="{{job}}",
                mappings=up_down,
            ),
            stat("Sidecars", "Sidecars that Prometheus reaches.", "short", f"count(runmeter_store_up{{{JOB}}})"),
            stat(
                "Age of the totals",
                "Seconds since the store answered the sidecar that waits longest; 0 is normal.",
                "s",
                f"max(runmeter_store_age_seconds{{{JOB}}})",
                decimals=0,
            ),
            stat(
                "Lost in the range",
                "Spans and snapshots that could not be counted; the totals are too low by theirs.",
                "short",
                " + ".join(gained(f"runmeter_{what}_total") for what in ("spans_rejected", "snapshots_dropped")),
                decimals=0,
            ),
            stat(
                "Orphaned runs in the range",
                "Runs whose writer vanished; their usage is a lower bound.",
                "short",
                gained("runmeter_orphaned_runs_total"),
                decimals=0,
            ),
            stat(
                "Calls without usage",
                "Answered calls whose usage nobody reported, of all calls in the range.",
                "percentunit",
                f"{gained(unknown)} / {gained(calls)}",
                decimals=1,
            ),
            graph(
                "Spans rejected by reason",
                "Spans, or values in them, that could not be counted. The reason says what to look for.",
                "suffix: spans/s",
                (rate("runmeter_spans_rejected_total", "reason"), "{{reason}}"),
            ),
            graph(
                "Snapshots dropped by reason",
                "Totals that agents could not write or the store refused.",
                "suffix: snapshots/s",
                (rate("runmeter_snapshots_dropped_total", "reason"), "{{reason}}"),
            ),
            graph(
                "Runs cut short",
                "Runs with more models, callers or tags than are kept apart; the rest is `other`, sums stay right.",
                "suffix: runs/s",
                (rate("runmeter_overflowed_runs_total", "what"), "{{what}}"),
            ),
            graph(
                "Spans set aside by reason",
                "Repeats of calls already counted; not a loss.",
                "suffix: spans/s",
                (rate("runmeter_spans_set_aside_total", "reason"), "{{reason}}"),
            ),
            graph(
                "Unpriced share of tokens",
                "Tokens without a price, by model: give them one in RUNMETER_PRICES.",
                "percentunit",
                (f"{rate(unpriced, 'model')} / {rate(tokens, 'model')}", "{{model}}"),
                stacked=False,
            ),
            graph(
                "Ingest requests by code",
                "OTLP requests answered; 503 is a full queue or no store: senders retry. Ignored: logs, metrics.",
                "reqps",
                (rate("runmeter_ingest_requests_total", "code"), "{{code}}"),
                (rate("runmeter_ingest_ignored_requests_total", "signal"), "ignored {{signal}}"),
            ),
            graph(
                "Ingested spans",
                "Spans stored through OTLP.",
                "suffix: spans/s",
                (rate("runmeter_ingest_spans_total"), "spans"),
            ),
            graph(
                "Scrape duration",
                "How long each sidecar needed to read the store for a scrape.",
                "s",
                (f"runmeter_scrape_duration_seconds{{{JOB}}}", "{{instance}}"),
                stacked=False,
            ),
            graph(
                "Series per scrape",
                "Bounded: label values beyond the cap are `other`.",
                "short",
                (f"scrape_samples_scraped{{{JOB}}} and on (job, instance) runmeter_store_up", "{{instance}}"),
                stacked=False,
            ),
            graph(
                "Runs revised",
                "Closed runs whose status was corrected later, such as an orphan that came back.",
                "suffix: runs/s",
                (rate("runmeter_runs_revised_total", "from, to"), "{{from}} → {{to}}"),
            ),
            graph(
                "Versions",
                "Sidecars by version; two at once for longer than a rollout is a mistake.",
                "short",
                (f"count by (version) (runmeter_build_info{{{JOB}}})", "{{version}}"),
            ),
        ],
    )
