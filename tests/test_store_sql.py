"""What databases do to a store: many writers, other schemas, hostile values, servers that stop, die or come back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from histories import NOON
from sqlalchemy import text
from test_store import LEAD, final, snap

from runmeter.usage import Usage
from runmeter_exporter import open_store
from runmeter_exporter.store import RunStore, SchemaMismatch, StoreError, StoreUnavailable
from runmeter_exporter.store.sql import turn
from runmeter_exporter.store.sql.deadline import Deadlines, bounded
from runmeter_exporter.store.sql.store import SqlRunStore
from runmeter_exporter.totals.run import CellKey, RunSnapshot

BOTH = pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
ROUNDS, RUNS = 6, 10


def work(url: str, writer: int) -> None:
    """One writer: its own runs and a share of runs that all write to, in threads that all use, to the end."""
    store = open_store(url, deadline=60, pool_size=1)
    for revision in range(1, ROUNDS + 1):
        last = revision == ROUNDS
        batch = [
            RunSnapshot(
                run_id=f"shared-{number}" if shared else f"own-{writer}-{number}",
                source=f"writer-{writer}",
                revision=revision,
                owns=not shared or writer == 0,
                final=last,
                status="success" if last else "running",
                thread_id=f"t{number % 3}",
                started_at=NOON,
                updated_at=NOON + revision,
                usage_by={LEAD._replace(model=f"m{number % 4}"): Usage(input_tokens=revision, calls=revision)},
            )
            for number in range(RUNS)
            for shared in (False, True)
        ]
        # Each in an order of its own: the store sorts, or they deadlock.
        batch = batch[writer:] + batch[:writer]
        store.write(batch)
        store.thread_usage("t0", include_active=True)
    store.dispose()


def check(store: RunStore, writers: int) -> None:
    """Every token of `work` by that many writers is there, once."""
    tokens = writers * RUNS * 2 * ROUNDS
    assert store.verify() == []
    assert store.usage()["total_tokens"] == tokens
    assert store.usage()["total_runs"] == writers * RUNS + RUNS
    assert sum(thread["total_tokens"] for thread in store.threads()["threads"]) == tokens
    assert store.scrape().threads == 3


@BOTH
def test_threads_write_at_once(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Eight threads with a store each, on one empty database: sums exact, nothing locked, no deadlock, one schema."""
    failures: list[BaseException] = []

    def run(writer: int) -> None:
        try:
            work(sql_url, writer)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(writer,)) for writer in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check(open_stores(sql_url), 8)


@BOTH
def test_processes_write_at_once(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Four processes on one empty database: sums exact, nothing locked, no deadlock, one schema."""
    processes = [multiprocessing.get_context("spawn").Process(target=work, args=(sql_url, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    check(open_stores(sql_url), 4)


@BOTH
def test_one_store_serves_many_threads(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """A store with two connections is shared by six threads that write and read; everybody gets a turn."""
    store = open_stores(sql_url, pool_size=2, deadline=30)
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for revision in range(1, 6):
                store.write([snap(f"r{number}", revision, tokens=revision), snap("all", source=f"s{number}", tokens=1)])
                store.scrape(include_active=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.usage(include_active=True)["total_tokens"] == 6 * 5 + 6
    assert store.verify() == []


@BOTH
def test_sidecars_may_prune_at_once_while_agents_write(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Two sidecars prune the same runs while somebody writes: no total changes, nothing is left of what went."""
    store = open_stores(sql_url, deadline=30)
    store.write([final(f"r{number:03d}", tokens=1) for number in range(60)])
    failures: list[BaseException] = []

    def run(what: Callable[[RunStore], object]) -> None:
        try:
            what(open_stores(sql_url, deadline=30))
        except BaseException as error:
            failures.append(error)

    def write(writer: RunStore) -> None:
        for revision in range(10):
            writer.write([snap("young", revision, tokens=revision, started_at=NOON * 2)])

    def prune(sidecar: RunStore) -> None:
        sidecar.prune(NOON + 10**12, batch=7)

    threads = [threading.Thread(target=run, args=(what,)) for what in (prune, write, prune)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [run["run_id"] for run in store.runs()["runs"]] == ["young"]
    assert store.usage(include_active=True)["total_tokens"] == 60 + 9
    assert store.verify() == []


@BOTH
def test_another_schema_version_is_refused(sql_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """The sentence names both versions, and nothing is touched."""
    first = open_stores(sql_url)
    first.write([snap(tokens=1)])
    with first.engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE name = 'schema_version'"))
    with pytest.raises(SchemaMismatch, match="version 99, this runmeter needs 1"):
        open_stores(sql_url).usage()


@BOTH
def test_somebody_elses_tables_are_refused(
    sql_url: str, open_stores: Callable[..., SqlRunStore], tmp_path: Path
) -> None:
    """A database that has a table `runs` of another program is left alone."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "runmeter.db").touch()
    store = open_stores(sql_url)
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE runs (distance INTEGER)"))
    with pytest.raises(SchemaMismatch, match="not runmeter's"):
        store.write([snap()])


@BOTH
def test_tables_that_vanish_are_made_again(sql_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """Somebody dropped everything under us: one call says that the store is away, the next ones work."""
    store = open_stores(sql_url)
    store.write([snap(tokens=1)])
    with store.engine.begin() as connection:
        for table in ("runs", "run_usage", "rollup", "usage_daily", "sources", "spans", "meta"):
            connection.execute(text(f"DROP TABLE {table}"))
    with pytest.raises(StoreUnavailable):
        store.write([snap(tokens=1)])
    assert store.write([snap(tokens=1)]).applied == 1
    assert store.verify() == []


@BOTH
def test_a_hostile_row_never_poisons_the_batch(sql_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """A row that the database refuses is found by halving, dropped and counted; all others are written."""
    store = open_stores(sql_url)
    store.usage()
    with store.engine.begin() as connection:
        if "sqlite" in sql_url:
            connection.execute(
                text(
                    "CREATE TRIGGER hostile BEFORE INSERT ON run_usage WHEN NEW.model = 'hostile' "
                    "BEGIN SELECT RAISE(ABORT, 'refused'); END"
                )
            )
        else:
            connection.execute(text("ALTER TABLE run_usage ADD CONSTRAINT hostile CHECK (model <> 'hostile')"))
    hostile = CellKey("2026-05-28", "p", "hostile", "lead_agent")
    batch = [final(f"r{number:02d}", tokens=1) for number in range(20)]
    batch[7] = final("bad1", usage_by={hostile: Usage(1)})
    batch[13] = final("bad2", usage_by={hostile: Usage(1)})
    result = store.write(batch)
    assert (result.applied, result.refused) == (18, {"rejected": 2})
    assert store.usage()["total_tokens"] == 18
    assert store.run("bad1") is None
    assert store.scrape().counts["snapshots_dropped", "rejected"] == 2
    assert store.verify() == []


def test_a_locked_file_is_unavailable_not_for_ever(sqlite_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """While somebody else holds the lock writes say so within the deadline and reads go on; then writes resume."""
    store = open_stores(sqlite_url, deadline=0.3)
    store.write([snap(tokens=1)])
    other = sqlite3.connect(store.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"locked|did not answer"):
        store.write([snap(revision=2, tokens=2)])
    assert time.monotonic() - began < 5
    assert store.usage(include_active=True)["total_tokens"] == 1
    other.execute("ROLLBACK")
    other.close()
    assert store.write([snap(revision=2, tokens=2)]).applied == 1


@pytest.mark.parametrize("gone", ["deleted", "replaced", "replaced by a copy"])
def test_a_file_that_was_deleted_or_replaced_is_not_written_to(
    gone: str, sqlite_url: str, open_stores: Callable[..., SqlRunStore], tmp_path: Path
) -> None:
    """Its old self would go on working until the process ends, and all that was acknowledged would be gone with it.
    Idle or not, nothing is made in its place, and when it is back all goes on."""
    store = open_stores(sqlite_url)
    store.write([snap("r", 1, 3)])
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    aside = tmp_path / "aside.db"
    path.rename(aside)
    if gone == "replaced":
        path.touch()
    elif gone == "replaced by a copy":
        path.write_bytes(aside.read_bytes())
    there = path.read_bytes() if path.exists() else None
    for idle in (False, True):
        if idle:
            store.release()
        with pytest.raises(StoreUnavailable, match="deleted or moved" if gone == "deleted" else "was replaced: device"):
            store.write([snap("r", 2, 5)])
        with pytest.raises(StoreUnavailable, match="until that file is back, or this process is restarted"):
            store.runs(limit=1)
    assert (path.read_bytes() if path.exists() else None) == there
    aside.rename(path)
    store.write([snap("r", 2, 5)])
    assert store.usage(include_active=True)["total_input_tokens"] == 5


def test_a_database_that_cannot_be_reached_is_unavailable(tmp_path: Path) -> None:
    """No server, or a directory in place of the file: StoreUnavailable, which names the store and no password."""
    nowhere = open_store(f"postgresql://user:secret@/x?host={tmp_path}", deadline=2)
    with pytest.raises(StoreUnavailable, match=r"postgresql.*user:\*\*\*") as caught:
        nowhere.usage()
    assert "secret" not in str(caught.value)
    (tmp_path / "directory.db").mkdir()
    with pytest.raises(StoreUnavailable, match=r"directory\.db"):
        open_store(f"sqlite:///{tmp_path}/directory.db").usage()


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes are frozen."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def backend(store: SqlRunStore) -> int:
    """The server process of the store's one connection."""
    with store.engine.connect() as connection:
        return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


def test_a_frozen_server_holds_nobody_beyond_the_deadline(
    postgres_url: str, open_stores: Callable[..., SqlRunStore]
) -> None:
    """PostgreSQL stopped with SIGSTOP: reads, writes and open transactions end within the deadline, then resume."""
    store = open_stores(postgres_url, deadline=1.0, pool_size=1)
    store.write([snap(tokens=1)])
    for call in (store.usage, lambda: store.write([snap(revision=2, tokens=2)]), lambda: changing(store)):
        pid = backend(store)
        began = time.monotonic()
        with stopped(pid), pytest.raises(StoreUnavailable):
            call()
        assert time.monotonic() - began < 6
    assert store.write([snap(revision=3, tokens=3)]).applied == 1
    assert store.usage(include_active=True)["total_tokens"] == 3


def changing(store: RunStore) -> None:
    """A transaction with a step in it."""
    with store.transaction(["r"]) as transaction:
        transaction.apply([snap(revision=2, tokens=2)])


def test_a_frozen_server_holds_no_new_connection(
    postgres_server: Any, postgres_url: str, open_stores: Callable[..., SqlRunStore]
) -> None:
    """Connecting to a server that accepts and never answers ends within the deadline too."""
    store = open_stores(postgres_url, deadline=1.0, pool_size=1)
    store.write([snap(tokens=1)])
    store.release()
    postmaster = int((Path(postgres_server.pgdata) / "postmaster.pid").read_text().split()[0])
    began = time.monotonic()
    with stopped(postmaster), pytest.raises(StoreUnavailable, match="1 s"):
        store.usage()
    assert time.monotonic() - began < 6
    assert store.usage(include_active=True)["total_tokens"] == 1


def test_a_connection_closed_by_the_server_is_replaced(
    postgres_url: str, open_stores: Callable[..., SqlRunStore]
) -> None:
    """A write on a connection that the server closed meanwhile is tried again on a new one; nobody notices."""
    store = open_stores(postgres_url, pool_size=1)
    store.write([snap(tokens=1)])
    pid = backend(store)
    other = open_stores(postgres_url)
    with other.engine.begin() as connection:
        connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    assert store.write([snap(revision=2, tokens=2)]).applied == 1
    assert backend(store) != pid


def test_an_idle_store_holds_no_connection(postgres_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """After `release` the server has no connection of it; the next call opens one."""
    store = open_stores(postgres_url, pool_size=1)
    store.write([snap(tokens=1)])
    store.release()
    with open_stores(postgres_url).engine.connect() as connection:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        deadline = time.monotonic() + 10
        while connection.execute(text(count)).scalar_one() and time.monotonic() < deadline:
            connection.rollback()
        assert connection.execute(text(count)).scalar_one() == 0
    assert store.usage(include_active=True)["total_tokens"] == 1


@BOTH
def test_a_forked_child_has_connections_of_its_own(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Parent and child of a fork both go on with the same store object."""
    store = open_stores(sql_url)
    store.write([snap("before", tokens=1)])
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if store.write([snap("child", tokens=2)]).applied == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    store.write([snap("parent", tokens=4)])
    assert store.usage(include_active=True)["total_tokens"] == 7


def test_permission_is_no_hostile_row(postgres_url: str, open_stores: Callable[..., SqlRunStore]) -> None:
    """A database that refuses everybody's writes is an error, not a batch to be dropped row by row."""
    store = open_stores(postgres_url)
    store.write([snap(tokens=1)])
    with store.engine.begin() as connection:
        connection.execute(
            text(
                "ALTER DATABASE " + postgres_url.split("/")[3].split("?")[0] + " SET default_transaction_read_only = on"
            )
        )
    store.release()
    with pytest.raises(StoreError):
        store.write([snap(revision=2, tokens=2), snap("other", tokens=1)])
    assert store.usage(include_active=True)["total_tokens"] == 1
    assert store.scrape(include_active=True).active_runs == 1


def test_a_deadline_cuts_what_it_was_given() -> None:
    """A call past its deadline has its connections cut, also those that it gets later; others are left alone."""
    cut: list[str] = []
    happened = threading.Event()

    def cutting(connection: str) -> None:
        cut.append(connection)
        happened.set()

    deadlines = Deadlines(cutting)
    with deadlines.call(60) as patient, deadlines.call(0.01) as call:
        patient.attach("kept")
        call.attach("first")
        assert happened.wait(10)
        call.attach("second")
        assert cut == ["first", "second"]
        assert (call.expired, patient.expired) == (True, False)
    deadlines.stop()
    happened.clear()
    with deadlines.call(0.01) as call:
        call.attach("third")
        assert happened.wait(10)
    deadlines.stop()


def test_what_comes_too_late_is_discarded() -> None:
    """Work that cannot be cut is given up in time; its late result is cleaned up; errors come through."""
    release, discarded = threading.Event(), threading.Event()

    def slow() -> str:
        release.wait(10)
        return "late"

    with pytest.raises(TimeoutError):
        bounded(slow, 0.01, lambda _: discarded.set())
    release.set()
    assert discarded.wait(10)
    assert bounded(lambda: 7, 10, lambda _: None) == 7
    with pytest.raises(ZeroDivisionError):
        bounded(lambda: 1 // 0, 10, lambda _: None)


def test_a_folder_that_cannot_be_made_is_said_plainly(tmp_path: Path) -> None:
    """The file, the reason and what to do, as a StoreUnavailable; made possible, the same store goes on."""
    taken = tmp_path / "taken"
    taken.write_text("a file where a folder should be")
    path = taken / "runmeter" / "store.sqlite"
    store = open_store(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable, match=r"Not a directory.*--database-url or RUNMETER_DATABASE_URL") as away:
        store.write([snap()])
    assert str(path) in str(away.value)
    taken.unlink()
    store.write([snap()])
    assert store.runs()["runs"]
    store.dispose()


def test_runs_that_close_at_once_do_not_wait_for_each_other(
    postgres_url: str, open_stores: Callable[..., SqlRunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The totals of everything are kept in stripes: who adds to one waits for nobody who adds to another, and readers
    see the sum as one row."""
    store = open_stores(postgres_url, deadline=2)
    stripe = [0]
    monkeypatch.setattr("runmeter_exporter.store.sql.rows.any_stripe", lambda: stripe[0])
    store.write([final("first", tokens=1, service="a")])
    with store.engine.begin() as elsewhere:
        elsewhere.execute(text("UPDATE rollup SET number = number WHERE scope = ''"))
        elsewhere.execute(text("UPDATE usage_daily SET calls = calls"))
        with pytest.raises(StoreUnavailable):
            store.write([final("waits", tokens=2, service="a", thread_id="other")])
        stripe[0] = 5
        store.write([final("passes", tokens=4, service="a", thread_id="another")])
    stripe[0] = 3
    store.write([final("waits", tokens=2, service="a", thread_id="other")])
    assert store.verify() == []
    assert store.usage()["total_tokens"] == 7
    assert store.usage()["total_runs"] == 3
    assert [row["total_tokens"] for row in store.usage_daily()] == [7]
    assert [usage.total_tokens for usage in store.scrape().settled.values()] == [7]
    assert store.prune(NOON * 2) == 3
    assert store.verify() == []
    assert store.usage()["total_tokens"] == 7


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_a_run_that_somebody_broke_is_due_and_hides_no_other(
    sql_url: str, open_stores: Callable[..., RunStore]
) -> None:
    """The reaper sees all open runs; closing the broken one says what is wrong with it."""
    store = open_stores(sql_url)
    store.write([snap("whole"), snap("broken")])
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET sources = '{' WHERE run_id = 'broken'"))
    assert {run.run_id: run.ended for run in store.watch().runs} == {"whole": False, "broken": True}
    with pytest.raises(ValueError, match=r"double quotes|property name"):
        store.close(["broken"])


def test_who_had_a_long_turn_lets_others_have_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one is followed by the next at once, a long one by a pause as long as two looks of those who wait."""
    now = 100.0
    slept: list[float] = []
    monkeypatch.setattr(turn, "begin_to_write", lambda connection, patience: None)
    monkeypatch.setattr(turn, "time", SimpleNamespace(monotonic=lambda: now, sleep=slept.append))
    turns = turn.Turns()
    for lasted, after, pause in ((0.0, 0.0, 0), (0.02, 0.0, 0), (0.2, 0.0, 0.05), (0.2, 0.03, 0.02), (0.2, 9.0, 0)):
        turns.begin(None, 1.0)
        now += lasted
        turns.end()
        now += after
        slept.clear()
        turns.begin(None, 1.0)
        turns.end()
        assert slept == ([pytest.approx(pause)] if pause else [])
