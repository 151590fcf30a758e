"""What a scrape costs with a thousand and with a million runs stored, against its floors in the same run.

    python tests/benchmarks/bench_scrape.py [RUNS]

CPU milliseconds of the process, medians of interleaved rounds, SQLite. The large store is the small one copied in SQL,
thread rollups included, so that both show the same series; the bar is that the larger costs at most 1.5 times the
smaller. Floors: rendering the same page from families at hand; and the peer shape, a sum over the stored cells.
"""

from __future__ import annotations

import gc
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from runmeter.usage import Usage
from runmeter_exporter.families import families
from runmeter_exporter.run import CellKey, RunSnapshot
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store import RunStore, open_store

SMALL, LARGE = 1_000, 1_000_000
ROUNDS = 15
ACTIVE = 200
MODELS, SERVICES, CALLERS = 10, 5, ("lead_agent", "subagent:researcher")
SECOND = 10**9
START = 1_795_000_000 * SECOND
SCRAPER = {"X-Prometheus-Scrape-Timeout-Seconds": "10", "Accept-Encoding": "gzip"}


def snapshot(number: int, closed: bool) -> RunSnapshot:
    """A run of two cells; models, services and callers go round."""
    model = f"model-{number % MODELS}"
    day = f"2026-11-{1 + number % 20:02}"
    at = START + number * SECOND
    return RunSnapshot(
        run_id=f"run-{number}", source="bench", revision=1, final=closed, status="success" if closed else "running",
        thread_id=f"thread-{number % 300}", service=f"service-{number // MODELS % SERVICES}", started_at=at,
        updated_at=at, ended_at=at if closed else None,
        usage_by={
            CellKey(day, "openai", model, caller): Usage(1000 + number, 100, calls=3, messages=3, cost_nanousd=number)
            for caller in CALLERS
        },
    )  # fmt: skip


def filled(path: Path) -> None:
    """A store of SMALL closed runs and ACTIVE open ones, written as agents write."""
    store = open_store(f"sqlite:///{path}")
    store.write([snapshot(number, closed=True) for number in range(SMALL)])
    store.write([snapshot(SMALL + number, closed=False) for number in range(ACTIVE)])
    store.dispose()


def multiplied(path: Path, times: int) -> None:
    """Each closed run, its cells and each thread's rollup `times` times, under ids of their own."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TEMP TABLE copies AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n "
                   "WHERE i < ?) SELECT i FROM n", (times - 1,))  # fmt: skip
        closed = "run_id IN (SELECT run_id FROM runs WHERE is_open = 0 AND run_id NOT LIKE '%/%')"
        copy(db, "run_usage", closed, run_id="run_id || '/' || copies.i")
        copy(db, "rollup", "scope LIKE 't:%'", scope="scope || '/' || copies.i")
        copy(db, "runs", "is_open = 0", run_id="run_id || '/' || copies.i", thread_id="thread_id || '/' || copies.i")
        db.execute("ANALYZE")


def copy(db: sqlite3.Connection, table: str, which: str, **changed: str) -> None:
    """Insert copies of the rows, one for each row of `copies`, with some columns changed."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changed.get(name, name) for name in columns)
    db.execute(f"INSERT INTO {table} SELECT {values} FROM {table}, copies WHERE {which}")


class AtHand(Collector):
    """Families of a reading that is there already."""

    def __init__(self, store: RunStore) -> None:
        self.reading = store.scrape()

    def collect(self) -> object:
        return families(self.reading)


def cpu(work: Callable[[], object]) -> float:
    """CPU milliseconds of the whole process: the store is read in a thread of its own."""
    gc.collect()
    gc.disable()
    before = time.process_time_ns()
    work()
    taken = time.process_time_ns() - before
    gc.enable()
    return taken / 1e6


def summed(path: Path) -> Callable[[], object]:
    """What an exporter without rollups does: group the stored cells."""
    db = sqlite3.connect(path)
    query = (
        "SELECT provider, model, caller, service, sum(input_tokens), sum(output_tokens), sum(cost_nanousd) "
        "FROM run_usage JOIN runs USING (run_id) WHERE is_open = 0 GROUP BY 1, 2, 3, 4"
    )
    return lambda: db.execute(query).fetchall()


def main(large: int = LARGE) -> int:
    with tempfile.TemporaryDirectory() as folder:
        paths = {SMALL: Path(folder, "small.db"), large: Path(folder, "large.db")}
        for path in paths.values():
            filled(path)
        began = time.perf_counter()
        multiplied(paths[large], large // SMALL)
        print(
            f"{large:,} runs made in {time.perf_counter() - began:.0f} s, {paths[large].stat().st_size / 2**20:.0f} MiB"
        )
        stores = {number: open_store(f"sqlite:///{path}") for number, path in paths.items()}
        scrapers = {number: Scraper(store) for number, store in stores.items()}
        registry = CollectorRegistry()
        registry.register(AtHand(stores[SMALL]))

        rows: dict[str, list[float]] = {}
        for round_ in range(ROUNDS + 1):
            for number in paths:
                for name, query in (("default", {}), ("include_active", {"include_active": "true"})):
                    scraper = scrapers[number]
                    took = cpu(lambda scraper=scraper, query=query: scraper.handle(query, SCRAPER))
                    if round_:  # the first one opens connections
                        rows.setdefault(f"{name}, {number:,} runs", []).append(took)
            rows.setdefault("floor: rendering alone", []).append(cpu(lambda: generate_latest(registry)))
        for number, path in paths.items():
            rows[f"peer: sum over {number:,} runs"] = [
                cpu(summed(path)) for _ in range(3 if number == large else ROUNDS)
            ]

        medians = {name: statistics.median(values) for name, values in rows.items()}
        lines = sum(not line.startswith(b"#") for line in generate_latest(registry).splitlines())
        print(f"{lines} series by default, {ACTIVE} active runs; medians of {ROUNDS} rounds\n{'':36}{'CPU ms':>10}")
        for name, value in medians.items():
            print(f"{name:36}{value:10.2f}")
        for name in ("default", "include_active"):
            ratio = medians[f"{name}, {large:,} runs"] / medians[f"{name}, {SMALL:,} runs"]
            print(f"{name}: {large:,} runs cost {ratio:.2f} times {SMALL:,} runs (bar 1.5)")
        for store in stores.values():
            store.dispose()
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
