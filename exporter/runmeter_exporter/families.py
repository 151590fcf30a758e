"""What a reading of the store says, as metric families: every name, label and help text of `/metrics` is here.

Label values arrive bounded: the store grants them first come and for good, and says `other` for the rest, so that
sums stay exact. What falls on one label set is added up, so that even a run with the id "other" is no second series.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from runmeter.sink import TERMINAL
from runmeter.usage import ZERO, Usage
from runmeter_exporter import scopes
from runmeter_exporter.totals.answers import ActiveRun, Scrape, Series

OTHER = "other"
CELL = Series._fields
EVERY_OTHER = Series(OTHER, OTHER, OTHER, OTHER)
"""There from the first scrape on, at 0, so that a `sum()` over an empty store is 0 and not nothing."""

Labels = tuple[str, ...]
Rows = Iterable[tuple[Labels, float]]

DIRECTIONS: dict[str, Callable[[Usage], int]] = {
    "input": lambda usage: usage.input_tokens,
    "output": lambda usage: usage.output_tokens,
}
DETAILS: dict[str, Callable[[Usage], int]] = {
    "cache_read": lambda usage: usage.cache_read_tokens,
    "cache_write": lambda usage: usage.cache_write_tokens,
    "reasoning": lambda usage: usage.reasoning_tokens,
}

SET_ASIDE = ("aggregate", "late", "no_calls_seen", "no_usage", "recorded", "repeat", "rewound", "uninstrumented_client")
"""Reasons shown from the start; see `counting/verdict.py`, `merge.py` for `recorded`, `no_calls_seen` and `rewound`
(runs of a database that forgot some of what it had confirmed), `sink.py` for `uninstrumented_client`."""

REASONS: dict[str, tuple[str, Labels, str]] = {
    "snapshots_dropped": (
        "reason",
        ("malformed", "memory", "pruned", "rejected", "rewound", "unreadable"),
        "Snapshots of a run's totals that could not be written or stored.",
    ),
    "spans_rejected": (
        "reason",
        ("malformed", "refused", "rejected_value", "runs_over_limit"),
        "Spans, or values in them, that could not be counted.",
    ),
    "ingest_requests": ("code", ("200",), "OTLP requests answered, by HTTP status."),
    "ingest_ignored": ("signal", ("logs", "metrics"), "OTLP requests of signals that hold no model calls for us."),
    "overflowed": (
        "what",
        ("cells", "tags", "text"),
        "Runs with more cells, tags or text than are kept apart; their sums stay right.",
    ),
}
"""Families of `Scrape.counts` → label, values shown from the start, help."""


_NAMES = {"overflowed": "overflowed_runs", "ingest_ignored": "ingest_ignored_requests"}


def families(scrape: Scrape, *, include_active: bool = False) -> list[Metric]:
    """The families of one reading, in the order they are shown."""
    shown = [*_settled(scrape), *_runs(scrape), *_counted(scrape)]
    return [*shown, *_observed(scrape), *_active(scrape)] if include_active else shown


def about_this_answer(*, up: bool, age: float | None, seconds: float) -> list[Metric]:
    """Families about the answer itself. `age` in seconds since the store said what is shown, None when it never did."""
    build = InfoMetricFamily("runmeter_build", "The sidecar's version.", value={"version": _version()})
    shown: list[Metric] = [
        build,
        _gauge("store_up", "1 if the store answered this scrape; 0 if the totals are the last known ones.", up),
        _gauge("scrape_duration_seconds", "Seconds that reading the store for this scrape took.", seconds),
    ]
    if age is not None:
        shown.append(_gauge("store_age_seconds", "Seconds since the store said what is shown here.", age))
    return shown


def _settled(scrape: Scrape) -> Iterable[Metric]:
    rows = {EVERY_OTHER: ZERO, **scrape.settled}
    yield _tokens("runmeter_tokens", "Settled tokens; input includes cache, output includes reasoning.", rows)
    yield _counter(
        "token_details",
        "Parts of the settled tokens, apart from them so that sum() counts nothing twice.",
        (*CELL, "detail"),
        (((*key, detail), part(usage)) for key, usage in rows.items() for detail, part in DETAILS.items()),
    )
    columns: tuple[tuple[str, str, Callable[[Usage], float]], ...] = (
        ("llm_calls", "Settled calls that the provider answered.", lambda usage: usage.calls),
        ("llm_call_failures", "Settled attempts that failed.", lambda usage: usage.failures),
        (
            "llm_calls_without_usage",
            "Settled calls whose usage nobody reported.",
            lambda usage: usage.calls_without_usage,
        ),
        ("messages", "Settled messages.", lambda usage: usage.messages),
        (
            "cost_usd",
            "Settled cost in US dollars, of calls with a known price.",
            lambda usage: usage.cost_nanousd / 1e9,
        ),
        ("unpriced_tokens", "Settled tokens that no price was known for.", lambda usage: usage.unpriced_tokens),
    )
    for name, documentation, column in columns:
        yield _counter(name, documentation, CELL, ((key, column(usage)) for key, usage in rows.items()))


def _runs(scrape: Scrape) -> Iterable[Metric]:
    statuses = {**dict.fromkeys(TERMINAL, 0), **scrape.runs}
    yield _counter("runs", "Runs by their status when they first closed.", ("status",), _keyed(statuses))
    # An orphan that came back is the usual one.
    revised = {**{("interrupted", status): 0 for status in TERMINAL if status != "interrupted"}, **scrape.revised}
    yield _counter("runs_revised", "Closed runs whose status was corrected later.", ("from", "to"), revised.items())
    yield _counter("orphaned_runs", "Runs ended because their writer vanished.", (), [((), scrape.orphaned)])
    yield _gauge("threads", "Threads ever seen.", scrape.threads)
    yield _gauge("active_runs", "Runs that are not closed.", scrape.active_runs)
    oldest = GaugeMetricFamily(
        "runmeter_oldest_active_run_start_timestamp_seconds", "Start of the oldest run that is not closed."
    )
    if scrape.oldest_active_started_at is not None:  # left out, not 0: time() minus it is an age
        oldest.add_metric((), scrape.oldest_active_started_at / 1e9)
    yield oldest


def _counted(scrape: Scrape) -> Iterable[Metric]:
    aside = {**dict.fromkeys(SET_ASIDE, 0), **scrape.set_aside}
    yield _counter("spans_set_aside", "Spans that speak of a call already counted.", ("reason",), _keyed(aside))
    for family, (label, known, documentation) in REASONS.items():
        found = {value: count for (of, value), count in scrape.counts.items() if of == family}
        name = _NAMES.get(family, family)
        yield _counter(name, documentation, (label,), _keyed({**dict.fromkeys(known, 0), **found}))
    spans = sum(count for (family, _), count in scrape.counts.items() if family == "ingest_spans")
    yield _counter("ingest_spans", "Spans taken in by OTLP.", (), [((), spans)])
    shown = {*REASONS, "ingest_spans", scopes.FAMILY}
    rest = {key: count for key, count in scrape.counts.items() if key[0] not in shown}
    if rest:
        yield _counter("losses", "Losses that have no family of their own.", ("family", "reason"), rest.items())


def _observed(scrape: Scrape) -> Iterable[Metric]:
    rows = {EVERY_OTHER: ZERO, **(scrape.observed or {})}
    yield _tokens("runmeter_observed_tokens", "Settled and active tokens as a high-water mark: use it for rates.", rows)
    yield _counter(
        "observed_cost_usd",
        "Settled and active cost in US dollars as a high-water mark: use it for rates.",
        CELL,
        ((key, usage.cost_nanousd / 1e9) for key, usage in rows.items()),
    )


def _active(scrape: Scrape) -> Iterable[Metric]:
    rows = {EVERY_OTHER: ZERO, **(scrape.active or {})}
    yield _tokens("runmeter_active_tokens", "Tokens of runs that are not closed; may fall.", rows, GaugeMetricFamily)
    cost = GaugeMetricFamily(
        "runmeter_active_cost_usd", "Cost in US dollars of runs that are not closed; may fall.", labels=CELL
    )
    _fill(cost, ((key, usage.cost_nanousd / 1e9) for key, usage in rows.items()))
    yield cost

    runs = [((run.run_id, run.thread_id or ""), run) for run in scrape.largest]
    rest = ActiveRun(OTHER, OTHER, scrape.rest, 0, scrape.rest_updated_at or 0)
    everyone = [*runs, ((OTHER, OTHER), rest)]
    which = ("run_id", "thread_id")
    tokens = GaugeMetricFamily(
        "runmeter_active_run_tokens",
        "Tokens of the largest runs that are not closed; `other` sums the rest.",
        labels=(*which, "direction"),
    )
    _fill(tokens, _directed((key, run.usage) for key, run in everyone))
    yield tokens
    run_cost = GaugeMetricFamily(
        "runmeter_active_run_cost_usd",
        "Cost in US dollars of the largest runs that are not closed; `other` sums the rest.",
        labels=which,
    )
    _fill(run_cost, ((key, run.usage.cost_nanousd / 1e9) for key, run in everyone))
    yield run_cost
    updated = GaugeMetricFamily(
        "runmeter_active_run_updated_timestamp_seconds",
        "When these runs were last heard of; `other` has the one that was silent longest.",
        labels=which,
    )
    heard = [(key, run.updated_at / 1e9) for key, run in everyone if run.updated_at]
    _fill(updated, heard, merge=min)
    yield updated
    threads = GaugeMetricFamily(
        "runmeter_thread_tokens",
        "Tokens of the threads of these runs, settled ones included; `other` sums the threads of the rest.",
        labels=("thread_id", "direction"),
    )
    in_threads = [
        *(((thread,), usage) for thread, usage in scrape.threads_largest.items()),
        ((OTHER,), scrape.threads_rest),
    ]
    _fill(threads, _directed(in_threads))
    yield threads


def _tokens(
    name: str,
    documentation: str,
    rows: Mapping[Series, Usage],
    kind: type[CounterMetricFamily | GaugeMetricFamily] = CounterMetricFamily,
) -> Metric:
    family = kind(name, documentation, labels=(*CELL, "direction"))
    return _fill(family, _directed(rows.items()))


def _directed(rows: Iterable[tuple[Labels, Usage]]) -> Rows:
    for key, usage in rows:
        for direction, part in DIRECTIONS.items():
            yield (*key, direction), part(usage)


def _keyed(counts: Mapping[str, int]) -> Rows:
    return (((value,), count) for value, count in counts.items())


def _counter(name: str, documentation: str, labels: Labels, rows: Rows) -> Metric:
    return _fill(CounterMetricFamily(f"runmeter_{name}", documentation, labels=labels), rows)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(f"runmeter_{name}", documentation, value=float(value))


def _fill(
    family: CounterMetricFamily | GaugeMetricFamily, rows: Rows, merge: Callable[[float, float], float] | None = None
) -> Metric:
    merged: dict[Labels, float] = {}
    for key, value in rows:
        if key in merged:
            value = merge(merged[key], value) if merge else merged[key] + value
        merged[key] = value
    for key in sorted(merged):
        family.add_metric(key, merged[key])
    return family


@cache
def _version() -> str:
    try:
        return version("runmeter")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


class Announcer:
    """Rule 10, "counters appear at 0 before their first increment", for series that nobody could know in advance.

    `increase()` takes a series' first sample for its start, so the first call of a new model would be lost. A series
    that was never shown to a scraper is shown at 0 first, and with its number from the next scrape on. What is known
    at this process' first scrape is shown as it is: a sidecar that restarts must not start old series at 0 again.
    Kept per process, as Prometheus keeps series: each sidecar's `instance` has a start of its own. Not thread-safe.
    """

    def __init__(self) -> None:
        self._since: dict[Labels, float] | None = None

    def announce(self, shown: Iterable[Metric], now: float, hold: float) -> None:
        """Set counters to 0 in place where they are new, or were announced less than `hold` seconds ago (so that the
        second of two Prometheus servers sees the 0 too). `now` in seconds of a monotonic clock."""
        first = self._since is None
        if self._since is None:
            self._since = {}
        for metric in shown:
            if metric.type != "counter":
                continue
            for place, sample in enumerate(metric.samples):
                key = (sample.name, *sample.labels.values())
                began = self._since.setdefault(key, -math.inf if first or not sample.value else now)
                if now - began < hold:
                    metric.samples[place] = sample._replace(value=0.0)
