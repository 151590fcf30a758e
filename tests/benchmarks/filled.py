"""Stores that hold a thousand and a million runs, showing the same series, for the answers that must not notice.

A thousand runs and the runs of two threads are written as agents write them; the rest are copies of the thousand, made
in SQL, their threads' rollups included. The grand totals stay those of the originals: what an answer costs hangs on
how many rows there are, not on what they say.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path

from harness import Options, note
from sqlalchemy.schema import CreateIndex, CreateTable

from runmeter.usage import Usage
from runmeter_exporter.store import RunStore, open_store
from runmeter_exporter.store.sql.setup import metadata
from runmeter_exporter.totals.run import CellKey, RunSnapshot

FEW = 1_000
ACTIVE = 200
MODELS, SERVICES, CALLERS = 10, 5, ("lead_agent", "subagent:researcher")
SMALL_THREAD, LARGE_THREAD = "thread-small", "thread-large"
SMALL_SIZE = 10
SECOND = 10**9
START = 1_795_000_000 * SECOND


def many(options: Options) -> int:
    """Runs of the larger store."""
    return options.of(1_000_000, 4_000)


def large_size(options: Options) -> int:
    """Runs of the larger thread."""
    return options.of(10_000, 200)


@contextmanager
def stores(options: Options) -> Iterator[dict[int, Path]]:
    """Number of runs → the SQLite file that holds them; kept in the temporary directory when it is the full size."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if not options.quick:
            place = Path(tempfile.gettempdir(), f"runmeter-bench-{os.getuid()}")
            place.mkdir(mode=0o700, exist_ok=True)
        made = {}
        for runs in (FEW, many(options)):
            made[runs] = place / f"{runs}-{_version()}.db"
            if not made[runs].exists():
                for old in place.glob(f"{runs}-*"):
                    old.unlink()
                _make(made[runs], runs, large_size(options))
        yield made


def _version() -> str:
    """Of everything that decides what the file holds."""
    tables = metadata.sorted_tables
    statements = [CreateTable(table) for table in tables]
    indexes = [CreateIndex(index) for table in tables for index in sorted(table.indexes, key=lambda one: str(one.name))]
    schema = "".join(map(str, [*statements, *indexes]))
    return blake2b(schema.encode() + Path(__file__).read_bytes(), digest_size=6).hexdigest()


def _make(path: Path, runs: int, large: int) -> None:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder, path.name)
        store = open_store(f"sqlite:///{partial}", deadline=60)
        store.write([snapshot(number, f"thread-{number % 300}") for number in range(FEW)])
        store.write([snapshot(FEW + number, f"thread-{number % 300}", closed=False) for number in range(ACTIVE)])
        if runs > FEW:
            _write_thread(store, SMALL_THREAD, SMALL_SIZE)
            _write_thread(store, LARGE_THREAD, large)
        store.dispose()
        if runs > FEW:
            _multiply(partial, -(-(runs - SMALL_SIZE - large) // FEW))
        partial.replace(path)
    note(f"{runs:,} runs made in {time.monotonic() - began:.0f} s, {path.stat().st_size / 2**20:,.0f} MiB")


def _write_thread(store: RunStore, thread: str, size: int) -> None:
    for begin in range(0, size, FEW):
        numbers = range(begin, min(begin + FEW, size))
        store.write([snapshot(number, thread, run_id=f"{thread}-{number}") for number in numbers])


def snapshot(number: int, thread: str, *, closed: bool = True, run_id: str | None = None) -> RunSnapshot:
    """A run of two cells; models, services and callers go round."""
    day = f"2026-11-{1 + number % 20:02}"
    at = START + number * SECOND
    return RunSnapshot(
        run_id=run_id or f"run-{number}",
        source="bench",
        revision=1,
        final=closed,
        status="success" if closed else "running",
        thread_id=thread,
        service=f"service-{number // MODELS % SERVICES}",
        started_at=at,
        updated_at=at,
        ended_at=at if closed else None,
        usage_by={
            CellKey(day, "openai", f"model-{number % MODELS}", caller): Usage(
                1000 + number % FEW, 100, calls=3, messages=3, cost_nanousd=number
            )
            for caller in CALLERS
        },
    )


def _multiply(path: Path, times: int) -> None:
    """Each of the thousand closed runs, its cells and its thread's rollup `times` times, under ids of their own."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TEMP TABLE copies (copy_number INTEGER PRIMARY KEY)")
        db.executemany("INSERT INTO copies VALUES (?)", ((number,) for number in range(1, times)))
        db.execute("CREATE TEMP TABLE originals AS SELECT run_id FROM runs WHERE is_open = 0 AND run_id LIKE 'run-%'")
        originals = "run_id IN (SELECT run_id FROM originals)"
        copied = "|| '/' || copies.copy_number"
        _copy(db, "run_usage", originals, run_id=f"run_id {copied}")
        _copy(db, "runs", originals, run_id=f"run_id {copied}", thread_id=f"thread_id {copied}")
        threads = f"scope LIKE 't:thread-%' AND scope NOT IN ('t:{SMALL_THREAD}', 't:{LARGE_THREAD}')"
        _copy(db, "rollup", threads, scope=f"scope {copied}")
        db.execute("ANALYZE")


def _copy(db: sqlite3.Connection, table: str, which: str, **changed: str) -> None:
    """Insert copies of the rows, one for each row of `copies`, with some columns changed."""
    columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changed.get(name, name) for name in columns)
    db.execute(f"INSERT INTO {table} SELECT {values} FROM {table}, copies WHERE {which}")
