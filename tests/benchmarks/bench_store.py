"""The store: 1,000 runs due in one write, beside a raw executemany of the same rows in one transaction of SQLite."""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Options, Row, cpu, main, undisturbed
from sqlalchemy import event

from runmeter.usage import Usage
from runmeter_exporter import open_store
from runmeter_exporter.store.records import cell_id
from runmeter_exporter.totals.run import CellKey, RunSnapshot

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


def raw(path: Path) -> Callable[[int], float]:
    """The floor: the same rows, whole and prebuilt, written by sqlite3's executemany in one transaction; CPU seconds.

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

    def write(revision: int) -> float:
        runs = [(*row[1:version], revision, *row[version + 1 :], row[0]) for row in before.values()]
        cells = [(10 * revision, revision, 0, 0, 0, revision, 0, 0, revision, 0, 0, key, cell) for key in before]
        with undisturbed():
            began = time.process_time()
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(update, runs)
            connection.executemany(f"UPDATE run_usage SET {counters} WHERE run_id = ? AND cell = ?", cells)
            connection.execute("COMMIT")
            return time.process_time() - began

    return write


def measure(options: Options) -> Iterator[Row]:
    """Microseconds of CPU a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours, floor = (open_store(f"sqlite:///{folder / name}.db", create=True) for name in ("ours", "floor"))
        ours.runs(limit=1)  # the schema is made before the clock starts

        def writing(revision: int, final: bool = False) -> float:
            batch = due(revision, final)
            return cpu(lambda: ours.write(batch)) / RUNS * 1e6

        commits: list[object] = []
        event.listen(ours.engine, "commit", commits.append)  # type: ignore[attr-defined]
        new = writing(1)
        floor.write(due(1))
        floor.dispose()
        write = raw(folder / "floor.db")
        mine, floors = [], []
        last = options.of(41, 3)
        commits.clear()
        for revision in range(2, last + 1):
            mine.append(writing(revision))
            floors.append(write(revision) / RUNS * 1e6)
        transactions = len(commits) / len(mine)
        ended, late = writing(last + 1, final=True), writing(last + 2, final=True)
        assert ours.verify() == []
        ours.dispose()
    beside = statistics.median(floors)
    for what, measured, at_most, ratio_at_most in (
        ("1,000 runs due in one write, a run, CPU", statistics.median(mine), 60.0, 3.0),
        ("1,000 new runs in one write, a run, CPU", new, None, None),
        ("1,000 runs ended in one write (200 threads), a run, CPU", ended, None, None),
        ("late usage of 1,000 ended runs, a run, CPU", late, None, None),
    ):
        yield Row(
            what=what,
            measured=measured,
            unit="µs",
            peer="raw executemany of 1,000",
            beside=beside,
            at_most=at_most,
            ratio_at_most=ratio_at_most,
        )
    yield Row(what="transactions of such a write", measured=transactions, unit="", at_most=1)


if __name__ == "__main__":
    main(measure)
