"""Processes that fork, reload, are killed and come back: every call counts once, where it was made."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest
from chaos_kit import IN, OUT, Nursery, all_runs, reap
from sidecar_process import Sidecar, until
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from runmeter_exporter.store import RunStore
from runmeter_exporter.store.sql.dialects import NoTables
from runmeter_exporter.store.sql.store import SqlRunStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

PRELUDE = """
import multiprocessing, os, sys, threading
from concurrent.futures import ProcessPoolExecutor
import runmeter
handle = runmeter.instrument(throttle=0.05, instrumentations=False)

def call(**more):
    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5, **more)

def task(number):
    with runmeter.run(run_id=f"task-{number}", thread_id="t"):
        call(); call(); call()
    call(run_id="parent")
"""


def play(script: str, folder: Path, url: str) -> None:
    """Run an agent to its end; it says nothing."""
    path = folder / "agent.py"
    path.write_text(PRELUDE + textwrap.dedent(script))
    done = subprocess.run([sys.executable, str(path)], env={**os.environ, "RUNMETER_DATABASE_URL": url},
                          capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_pools_of_processes(method: str, tmp_path: Path, sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Workers that come and go record runs of their own and add to their parent's; nothing is lost or doubled."""
    play(
        f"""
        if __name__ == "__main__":
            start = multiprocessing.get_context("{method}")
            with runmeter.run(run_id="parent", thread_id="t"):
                call()
                pool = start.Pool(3, maxtasksperchild=5)
                pool.map(task, range(20), chunksize=1)
                pool.close()
                pool.join()
                with ProcessPoolExecutor(3, mp_context=start) as executor:
                    list(executor.map(task, range(20, 40)))
                call()
        """, tmp_path, sqlite_url)
    store = open_stores(sqlite_url)
    runs = all_runs(store)
    assert {run["llm_call_count"] for run_id, run in runs.items() if run_id != "parent"} == {3}
    assert (len(runs), runs["parent"]["llm_call_count"]) == (41, 42)
    assert {(run["status"], run["usage_state"]) for run in runs.values()} == {("success", "settled")}
    assert store.thread_usage("t")["total_tokens"] == (IN + OUT) * (40 * 3 + 42)
    assert store.verify() == []


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_forks_under_load(sql_url: str, tmp_path: Path, open_stores: Callable[..., RunStore]) -> None:
    """A process that forks while its threads record and its writer writes: each side has its own calls, once."""
    play(
        """
        made, enough = [0] * 3, threading.Event()
        def record(which):
            with runmeter.run(run_id=f"thread-{which}", thread_id="t"):
                while not enough.is_set():
                    call()
                    made[which] += 1
        threads = [threading.Thread(target=record, args=(which,)) for which in range(3)]
        for thread in threads: thread.start()
        for number in range(25):
            child = os.fork()
            if not child:
                task(number)
                os._exit(0 if handle.shutdown(timeout=30) else 1)
            assert os.waitpid(child, 0)[1] == 0
        enough.set()
        for thread in threads: thread.join()
        with runmeter.run(run_id="sum"):
            call(messages=sum(made))
        """, tmp_path, sql_url)
    store = open_stores(sql_url)
    runs = all_runs(store)
    assert [runs[f"task-{number}"]["llm_call_count"] for number in range(25)] == [3] * 25
    made = sum(runs[f"thread-{which}"]["llm_call_count"] for which in range(3))
    assert made == runs["sum"]["message_count"] > 0
    reap(store)
    assert store.run("parent")["llm_call_count"] == 25  # type: ignore[index]
    assert store.usage()["llm_call_count"] == made + 1 + 25 * 3 + 25
    assert store.verify() == []


class Clients:
    """Browsers of the web agent: which runs they asked for, and which were answered."""

    def __init__(self, port: int) -> None:
        self.asked: dict[str, int] = {}
        self.answered: set[str] = set()
        self.changed = threading.Condition()
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._browse, args=(number,)) for number in range(4)]
        for thread in self._threads:
            thread.start()

    def _browse(self, number: int) -> None:
        dice = random.Random(number)
        turn = 0
        while not self._stop.is_set():
            turn += 1
            run_id, calls = f"web-{number}-{turn}", dice.randrange(1, 6)
            self.asked[run_id] = calls
            connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
            try:
                connection.request("GET", f"/{run_id}/{calls}")
                if connection.getresponse().status == 200:
                    with self.changed:
                        self.answered.add(run_id)
                        self.changed.notify_all()
            except (OSError, HTTPException):
                self._stop.wait(0.02)  # its worker was killed
            finally:
                connection.close()

    def more(self, count: int) -> None:
        """Until so many more are answered."""
        with self.changed:
            enough = len(self.answered) + count
            assert self.changed.wait_for(lambda: len(self.answered) >= enough, 120), f"{len(self.answered)} answered"

    def stop(self) -> None:
        """Ask no more, when what was asked has come back."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


@contextmanager
def gunicorn(url: str, throttle: str, *options: str) -> Iterator[tuple[psutil.Process, Clients]]:
    """gunicorn with three workers and clients; at the end it is told to stop, and does."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed (dev extra)")
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--workers", "3",
             "--worker-class", "gthread", "--threads", "2", "--log-level", "error",
             "--chdir", str(Path(__file__).parent), *options, "web_agent:app"],
            pass_fds=[listener.fileno()], stderr=subprocess.PIPE, text=True,
            env={**os.environ, "RUNMETER_DATABASE_URL": url, "WEB_AGENT_THROTTLE": throttle},
        )
        clients = Clients(listener.getsockname()[1])
        try:
            clients.more(1)
            yield psutil.Process(server.pid), clients
            clients.stop()
            server.send_signal(signal.SIGTERM)
            _, said = server.communicate(timeout=60)
            assert (server.returncode, "runmeter" in said) == (0, False), said
        finally:
            clients.stop()
            if server.poll() is None:
                for process in psutil.Process(server.pid).children(recursive=True):
                    process.kill()
                server.kill()
                server.communicate()


def check_answered(clients: Clients, store: RunStore) -> dict[str, int]:
    """Every answered request's run is complete; how many calls of the others are stored."""
    runs = all_runs(store)
    for run_id in clients.answered:
        run = runs.pop(run_id)
        assert (run["status"], run["usage_state"], run["llm_call_count"]) == (
            "success", "settled", clients.asked[run_id]), run_id
    assert store.usage()["total_tokens"] == (IN + OUT) * (
        sum(clients.asked[run_id] for run_id in clients.answered)
        + sum(run["llm_call_count"] for run in runs.values()))
    assert store.verify() == []
    return {run_id: run["llm_call_count"] for run_id, run in runs.items()}


@pytest.mark.parametrize("preload", [False, True])
def test_gunicorn_whose_workers_are_killed(
    preload: bool, sqlite_url: str, open_stores: Callable[..., RunStore]
) -> None:
    """With throttle=0 what was answered is stored whole, whoever was killed; the rest are lower bounds or successes."""
    dice = random.Random(preload)
    with gunicorn(sqlite_url, "0", *(["--preload"] if preload else [])) as (server, clients):
        for _ in range(12):
            clients.more(dice.randrange(1, 25))
            workers = until(server.children, "gunicorn has workers")
            dice.choice(workers).kill()
    store = open_stores(sqlite_url)
    reap(store)
    for run_id, calls in check_answered(clients, store).items():
        run = store.run(run_id)
        assert run is not None
        assert run["usage_state"] == ("settled" if run["status"] == "success" else "lower_bound")
        assert calls == clients.asked[run_id] if run["status"] == "success" else calls <= clients.asked[run_id]


def beaten(store: SqlRunStore) -> int:
    """How many sources ever did; none before there is a store."""
    try:
        with store.engine.connect() as connection:
            return connection.execute(text("SELECT count(*) FROM sources")).scalar_one()
    except (NoTables, OperationalError):
        return 0


def test_gunicorn_that_reloads(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Workers that leave for new ones, and at the end for good, write what they have: nothing is missing or unsure."""
    store = open_stores(sqlite_url)
    with gunicorn(sqlite_url, "1") as (server, clients):
        for generation in range(3):
            clients.more(20)
            # Who is still importing when told to leave has two seconds for its first write, on a very busy machine too.
            until(lambda: beaten(store) >= 3 * (generation + 1), "every worker writes")  # noqa: B023
            before = {worker.pid for worker in server.children()}
            server.send_signal(signal.SIGHUP)
            until(lambda: not before & {worker.pid for worker in server.children()}, "the workers are new")  # noqa: B023
        clients.more(20)
        until(lambda: beaten(store) >= 12, "every worker writes")
    assert check_answered(clients, store) == {}
    assert store.usage(include_active=True)["active_runs"] == 0


def test_an_owner_paused_beyond_its_lease(
    sqlite_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """A run whose process was stopped becomes a lower bound, and goes on to its real end when the process does."""
    with Sidecar(sqlite_url, "--lease", "1s") as sidecar:
        agents = nursery(sqlite_url, 0.05)
        for run_id in ("paused", "busy"):
            agents.start(run_id)
        until(lambda: sidecar.get("/api/runs/paused"), "the run is stored")
        agents.go_on()
        agents.signal("paused", signal.SIGSTOP)

        def state() -> tuple[str, str, str | None]:
            run = sidecar.get("/api/runs/paused")
            return run["usage_state"], run["status"], run["stop_reason"]

        until(lambda: state() == ("lower_bound", "interrupted", "orphaned"), "the run is a lower bound")
        settled = sidecar.get("/api/usage")
        assert settled["lower_bound_runs"] >= 1
        assert settled["total_tokens"] >= sidecar.get("/api/runs/paused")["total_tokens"] > 0
        assert orphaned(sidecar) >= 1

        agents.signal("paused", signal.SIGCONT)
        until(lambda: state()[:2] == ("active", "running"), "the run goes on")
        assert sidecar.get("/api/usage")["total_tokens"] >= settled["total_tokens"]
        calls = agents.finish()
        assert state() == ("settled", "success", None)
        assert sidecar.get("/api/runs/paused")["llm_call_count"] == agents.ended["paused"]
        usage = sidecar.get("/api/usage")
        assert (usage["llm_call_count"], usage["total_tokens"]) == (calls, (IN + OUT) * calls)
        assert usage["lower_bound_runs"] == 0
        assert orphaned(sidecar) >= 1
        assert sidecar.stop() == 0
    assert open_stores(sqlite_url).verify() == []


def orphaned(sidecar: Sidecar) -> float:
    """`runmeter_orphaned_runs_total`, once a scrape shows what is stored now."""
    lines = str(sidecar.get("/metrics")).splitlines()
    return float(next(line.split()[-1] for line in lines if line.startswith("runmeter_orphaned_runs_total")))
