"""A scrape with a thousand and with a million runs stored, beside its floors: rendering alone, a sum over the cells.

CPU of the whole process, since the store is read in a thread of its own.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from filled import ACTIVE, FEW, many, stores
from harness import Options, Row, cpu, interleaved, main
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from runmeter_exporter.families import families
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store import RunStore, open_store

PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "Accept-Encoding": "gzip"}
RENDERING = "rendering the same page"


class AtHand(Collector):
    """Families of a reading that is there already."""

    def __init__(self, store: RunStore) -> None:
        self.reading = store.scrape()

    def collect(self) -> object:
        return families(self.reading)


def scraping(scraper: Scraper, query: dict[str, str]) -> Callable[[], object]:
    """One scrape as Prometheus asks for it."""
    return lambda: scraper.handle(query, PROMETHEUS)


def summing(path: Path) -> Callable[[], object]:
    """What an exporter without rollups does: group the stored cells."""
    db = sqlite3.connect(path)
    query = (
        "SELECT provider, model, caller, service, sum(input_tokens), sum(output_tokens), sum(cost_nanousd) "
        "FROM run_usage JOIN runs USING (run_id) WHERE is_open = 0 GROUP BY 1, 2, 3, 4"
    )
    return lambda: db.execute(query).fetchall()


def measure(options: Options) -> Iterator[Row]:
    """Three rows, in milliseconds."""
    lots = many(options)
    with stores(options) as paths:
        opened = {runs: open_store(f"sqlite:///{path}", deadline=60) for runs, path in paths.items()}
        scrapers = {runs: Scraper(store) for runs, store in opened.items()}
        registry = CollectorRegistry()
        registry.register(AtHand(opened[FEW]))
        work = {RENDERING: lambda: generate_latest(registry)}
        for runs, scraper in scrapers.items():
            work[f"default {runs}"] = scraping(scraper, {})
            work[f"active {runs}"] = scraping(scraper, {"include_active": "true"})
        took = interleaved(work, options.of(20, 1))
        summed = cpu(summing(paths[lots]))
        for store in opened.values():
            store.dispose()
    milliseconds = {name: seconds * 1000 for name, seconds in took.items()}
    for what, name, bar in (
        (f"a default scrape, {lots:,} runs stored, CPU", "default", 1.5),
        (f"the same with `include_active`, {ACTIVE} runs active", "active", None),
    ):
        yield Row(
            what=what,
            measured=milliseconds[f"{name} {lots}"],
            unit="ms",
            peer=f"{FEW:,} runs stored",
            beside=milliseconds[f"{name} {FEW}"],
            ratio_at_most=bar,
        )
    default = milliseconds[f"default {lots}"]
    for peer, beside in ((RENDERING, milliseconds[RENDERING]), (f"SQL sum over {lots:,} runs", summed * 1000)):
        yield Row(what="the default scrape", measured=default, unit="ms", peer=peer, beside=beside)


if __name__ == "__main__":
    main(measure)
