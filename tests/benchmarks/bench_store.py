"""The store: 1,000 runs due in one write, beside a raw executemany of the same rows; answers of small and large stores.

`python tests/benchmarks/bench_store.py [runs stored]` (100,000 unless told; the bars speak of a million, some minutes).
Bars: at most 60 µs of CPU a run in one transaction, at most 3 × the raw executemany; a thread's totals within 1.5 × for
threads of 10 and 10,000 runs; a default scrape within 1.5 × for a thousand and a million runs.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from runmeter.usage import Usage
from runmeter_exporter import open_store
from runmeter_exporter.records import cell_id
from runmeter_exporter.run import CellKey, RunSnapshot
from runmeter_exporter.store import RunStore

RUNS = 1000
NOON = 1_780_000_000 * 10**9
KEY = CellKey("2026-05-28", "openai", "gpt-5-mini", "lead_agent")
SOURCE = "host:4711:0af7651916cd43dd8448eb211c80319c"


def run_id(number: int) -> str:
    """As long as ids are."""
    return f"0af76519-16cd-43dd-8448-{number:012d}"


def due(revision: int, final: bool = False) -> list[RunSnapshot]:
    """One snapshot of each of 1,000 runs, in 200 threads."""
    return [
        RunSnapshot(
            run_id=run_id(number),
            source=SOURCE,
            revision=revision,
            final=final,
            status="success" if final else "running",
            thread_id=f"thread-{number % 200}",
            service="bench",
            agent="helper",
            started_at=NOON + number,
            updated_at=NOON + number + revision,
            usage_by={KEY: Usage(10 * revision, revision, calls=revision, messages=revision, cost_nanousd=revision)},
        )
        for number in range(RUNS)
    ]


def raw(path: Path) -> Callable[[int], None]:
    """The floor: the same rows, whole and prebuilt, written by sqlite3's executemany in one transaction.

    It reads nothing. The store first reads what it merges into, and then writes only the columns that changed.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint=4000")
    names = [row[1] for row in connection.execute("PRAGMA table_info(runs)")]
    counters = ", ".join(f"{name} = ?" for name in Usage._fields)
    before = {row[0]: row for row in connection.execute(f"SELECT {', '.join(names)} FROM runs")}
    update = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in names[1:])} WHERE run_id = ?"
    cell = cell_id(SOURCE, KEY)
    version = names.index("version")

    def write(revision: int) -> None:
        runs = [(*row[1:version], revision, *row[version + 1 :], row[0]) for row in before.values()]
        cells = [(10 * revision, revision, 0, 0, 0, revision, 0, 0, revision, 0, 0, key, cell) for key in before]
        write.began = time.process_time()  # type: ignore[attr-defined]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(update, runs)
        connection.executemany(f"UPDATE run_usage SET {counters} WHERE run_id = ? AND cell = ?", cells)
        connection.execute("COMMIT")

    return write


def cpu(work: Callable[[], object]) -> float:
    """Microseconds of CPU a run."""
    began = time.process_time()
    work()
    return (time.process_time() - began) / RUNS * 1e6


def writes(folder: Path) -> None:
    """The write bar."""
    ours, floor = open_store(f"sqlite:///{folder / 'ours.db'}"), open_store(f"sqlite:///{folder / 'floor.db'}")
    first = due(1)
    print(f"1,000 new runs in one write        {cpu(lambda: ours.write(first)):7.1f} µs a run")
    floor.write(first)
    floor.dispose()
    write = raw(folder / "floor.db")
    mine, floors = [], []
    for revision in range(2, 42):
        batch = due(revision)
        mine.append(cpu(lambda batch=batch: ours.write(batch)))  # type: ignore[misc]
        write(revision)
        floors.append((time.process_time() - write.began) / RUNS * 1e6)  # type: ignore[attr-defined]
    ratio = statistics.median(one / other for one, other in zip(mine, floors, strict=True))
    print(
        f"1,000 runs due in one write        {statistics.median(mine):7.1f} µs a run, "
        f"raw executemany {statistics.median(floors):.1f}: {ratio:.1f} ×"
    )
    last = due(42, final=True)
    print(f"1,000 runs ended in one write      {cpu(lambda: ours.write(last)):7.1f} µs a run (200 threads)")
    later = due(43, final=True)
    print(f"1,000 ended runs with late usage   {cpu(lambda: ours.write(later)):7.1f} µs a run")
    assert ours.verify() == []
    ours.dispose()


def fill(store: RunStore, runs: int) -> None:
    """Ended runs: one thread of 10,000, many of 10."""
    for start in range(0, runs, 5000):
        store.write(
            [
                RunSnapshot(
                    run_id=run_id(number),
                    source=SOURCE,
                    revision=1,
                    final=True,
                    status="success",
                    thread_id="large" if number < 10_000 else f"small-{number // 10}",
                    service="bench",
                    started_at=NOON + number,
                    updated_at=NOON + number,
                    usage_by={KEY: Usage(10, 1, calls=1, messages=1)},
                )
                for number in range(start, min(start + 5000, runs))
            ]
        )


def milliseconds(work: Callable[[], object]) -> float:
    """Median of 200, wall."""
    times = []
    for _ in range(200):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def answers(folder: Path, runs: int) -> None:
    """The bars on answers."""
    few, many = open_store(f"sqlite:///{folder / 'few.db'}"), open_store(f"sqlite:///{folder / 'many.db'}", deadline=60)
    fill(few, 1000)
    fill(many, max(runs, 20_000))
    small = milliseconds(lambda: many.thread_usage("small-1500"))
    large = milliseconds(lambda: many.thread_usage("large"))
    print(f"a thread of 10 runs, of 10,000     {small:7.3f} ms, {large:.3f} ms: {large / small:.2f} ×")
    little, much = milliseconds(few.scrape), milliseconds(many.scrape)
    print(f"a scrape of 1,000 runs, of {runs:<8,} {little:6.3f} ms, {much:.3f} ms: {much / little:.2f} ×")
    cursor = many.runs(limit=50)["next_cursor"]
    print(f"a page of 50 runs, the next        {milliseconds(lambda: many.runs(limit=50, cursor=cursor)):7.3f} ms")
    print(f"a page of 50 threads               {milliseconds(lambda: many.threads(limit=50)):7.3f} ms")
    few.dispose()
    many.dispose()


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        writes(Path(folder))
        answers(Path(folder), runs)


if __name__ == "__main__":
    main()
