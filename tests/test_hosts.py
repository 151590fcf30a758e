"""Hosts of every kind that run agents: each is the real one, and the totals are exact in all."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import fresh
import pytest

from runmeter_exporter import open_store
from runmeter_exporter.store import RunStore

TOKENS = 15
"""Of a call of the agents here."""
CALL = 'runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)'
PATIENCE = 90
STRANGER = ("unshare", "--user", "--map-user=54321", "--map-group=54321")
"""A user whose number the system has no name for, as in containers that run under any."""


def outside(environment: dict[str, str]) -> dict[str, str]:
    """This process's environment without what configures us, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNMETER_", "OTEL_"))}
    return {**kept, **environment}


def exact(store: RunStore, run_id: str, calls: int, status: str = "success") -> None:
    """The run has so many calls and is settled."""
    run = store.run(run_id)
    assert run is not None
    assert (run["status"], run["usage_state"], run["llm_call_count"]) == (status, "settled", calls)
    assert run["total_tokens"] == TOKENS * calls


def test_gevent_goes_on_while_the_file_is_locked(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Where one thread is everybody, only the greenlet that writes waits for SQLite's one writer."""
    pytest.importorskip("gevent", reason="gevent is not installed (dev extra)")
    program = f"""
from gevent import monkey; monkey.patch_all()
import contextvars, logging, sys, gevent, runmeter
said = []
runmeter.instrument(throttle=0, instrumentations=False, otel_metrics=False)
handler = logging.Handler()
handler.emit = lambda record: said.append(record.getMessage())
logging.getLogger("runmeter").addHandler(handler)
with runmeter.run(run_id="r", thread_id="t"):
    {CALL}
    print("ready", flush=True)
    sys.stdin.readline()
    writer = gevent.spawn(contextvars.copy_context().run, lambda: {CALL})
    for _ in range(100):
        gevent.sleep(0.001)
    print("written" if writer.ready() else "given up" if said else "waiting", *said, flush=True)
    sys.stdin.readline()
    writer.join()
"""
    agent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=outside({"RUNMETER_DATABASE_URL": sqlite_url}),
    )  # fmt: skip
    try:
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n"
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        agent.stdin.write("go\n")
        agent.stdin.flush()
        # Had it waited inside SQLite, nobody else would have had a turn before that gave up.
        assert agent.stdout.readline() == "waiting\n"
        other.execute("ROLLBACK")
        other.close()
        assert agent.communicate("go\n", timeout=PATIENCE) is not None
        assert agent.returncode == 0
    finally:
        agent.kill()
        agent.wait()
    exact(open_stores(sqlite_url), "r", 2)


@contextmanager
def asgi(url: str, *server: str) -> Iterator[int]:
    """An ASGI server with several workers on a port; at the end it is told to stop, and does.

    Nothing is throttled: uvicorn gives its workers the signal again when it is done, and they die of it.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:
        descriptor = listener.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", *(part.format(fd=descriptor) for part in server)],
            pass_fds=[descriptor], cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True,
            env=outside({"RUNMETER_DATABASE_URL": url, "WEB_AGENT_THROTTLE": "0"}),
        )  # fmt: skip
        try:
            yield listener.getsockname()[1]
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=PATIENCE)
            assert "runmeter" not in said, said
        finally:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    "server",
    [
        ("uvicorn", "--fd", "{fd}", "--workers", "2", "--log-level", "error", "asgi_agent:app"),
        ("gunicorn", "--bind", "fd://{fd}", "--workers", "2", "--preload", "--log-level", "error",
         "--worker-class", "uvicorn_worker.UvicornWorker", "asgi_agent:app"),
    ],
    ids=["uvicorn", "gunicorn --preload"],
)  # fmt: skip
def test_workers_with_event_loops(
    server: tuple[str, ...], sqlite_url: str, open_stores: Callable[..., RunStore]
) -> None:
    """Workers that import the agent, or are forked from one that has: each request's run is whole after a SIGTERM."""
    for module in ("uvicorn", "uvicorn_worker", "gunicorn"):
        pytest.importorskip(module, reason=f"{module} is not installed (dev extra)")

    def ask(port: int, number: int) -> None:
        for turn in range(5):
            connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
            connection.request("GET", f"/web-{number}-{turn}/{turn + 1}")
            assert connection.getresponse().status == 200
            connection.close()

    failures: list[BaseException] = []

    def browse(port: int, number: int) -> None:
        try:
            ask(port, number)
        except BaseException as error:
            failures.append(error)

    with asgi(sqlite_url, *server) as port:
        browsers = [threading.Thread(target=browse, args=(port, number)) for number in range(6)]
        for browser in browsers:
            browser.start()
        for browser in browsers:
            browser.join()
    assert failures == []
    store = open_stores(sqlite_url)
    for number in range(6):
        for turn in range(5):
            exact(store, f"web-{number}-{turn}", turn + 1)
    assert store.usage()["llm_call_count"] == 6 * 15
    assert store.verify() == []


@pytest.mark.chaos
def test_celery_and_its_soft_time_limit(
    sqlite_url: str, tmp_path: Path, open_stores: Callable[..., RunStore]
) -> None:
    """Celery's pool forks after runmeter was set up, and interrupts a task by raising wherever it is: the exception
    reaches the task, and every call that was made is counted."""
    pytest.importorskip("celery", reason="celery is not installed (dev extra)")
    for folder in ("queue", "control"):
        (tmp_path / folder).mkdir()
    environment = outside({"RUNMETER_DATABASE_URL": sqlite_url, "CELERY_AGENT_FOLDER": str(tmp_path)})
    sent = subprocess.run(
        [sys.executable, "-c", textwrap.dedent("""
            from celery_agent import work
            for number in range(6):
                work.apply_async((f"short-{number}", 20))
            work.apply_async(("long", 10**9), soft_time_limit=1)
            """)],
        env=environment, cwd=Path(__file__).parent, timeout=PATIENCE, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert sent.returncode == 0, sent.stderr
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "celery_agent", "worker", "--pool", "prefork", "--concurrency", "2",
         "--loglevel", "INFO", "--without-gossip", "--without-mingle"],
        env={**environment, "C_FORCE_ROOT": "1"}, cwd=Path(__file__).parent, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    ends = 0
    said = []
    try:
        assert worker.stderr is not None
        for line in worker.stderr:
            said.append(line)
            ends += "] succeeded in" in line or "raised unexpected: SoftTimeLimitExceeded" in line
            if ends == 7:
                break
        worker.terminate()
        said.append(worker.communicate(timeout=PATIENCE)[1])
    finally:
        worker.kill()
        worker.communicate()
    assert ends == 7, "".join(said)
    store = open_stores(sqlite_url)
    for number in range(6):
        exact(store, f"short-{number}", 20)
    made = (tmp_path / "long").stat().st_size
    run = store.run("long")
    assert run is not None
    assert (run["status"], run["usage_state"]) == ("error", "settled")
    # The exception may have come between a call's being counted and its line in the ledger.
    assert run["llm_call_count"] - made in (0, 1)
    assert made > 0
    assert store.verify() == []


def test_trio(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Under trio, by way of anyio: tasks keep their run, and one that is cancelled is interrupted."""
    for module in ("trio", "anyio"):
        pytest.importorskip(module, reason=f"{module} is not installed (dev extra)")
    done = fresh.run(
        textwrap.dedent(f"""
        import anyio, runmeter
        runmeter.instrument(instrumentations=False, otel_metrics=False)

        async def agent(name, calls):
            async with runmeter.run(run_id=name, thread_id="t"):
                async def one():
                    await anyio.sleep(0)
                    {CALL}
                async with anyio.create_task_group() as group:
                    for _ in range(calls):
                        group.start_soon(one)
                await anyio.to_thread.run_sync(lambda: {CALL})
                if name == "cancelled":
                    cancelled.cancel()
                    await anyio.sleep_forever()

        async def main():
            global cancelled
            cancelled = anyio.CancelScope()
            async with anyio.create_task_group() as group:
                for number in range(5):
                    group.start_soon(agent, f"r{{number}}", number)
            with cancelled:
                await agent("cancelled", 3)

        anyio.run(main, backend="trio")
        """),
        environment={"RUNMETER_DATABASE_URL": sqlite_url},
    )
    assert (done.returncode, done.stderr) == (0, "")
    store = open_stores(sqlite_url)
    for number in range(5):
        exact(store, f"r{number}", number + 1)
    exact(store, "cancelled", 4, "interrupted")


def stranger(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of a user without a name or a home."""
    if shutil.which("unshare") is None or subprocess.run([*STRANGER, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here, so nobody can be somebody without a name")
    environ = outside(environment)
    for name in ("HOME", "USER", "LOGNAME", "XDG_STATE_HOME"):
        environ.pop(name, None)
    return subprocess.run(
        [*STRANGER, *command], env=environ, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


AGENT = f"""
import runmeter
runmeter.instrument(instrumentations=False, otel_metrics=False)
with runmeter.run(run_id="r", thread_id="t") as run:
    {CALL}
print(run.usage.total_tokens)
"""


@pytest.mark.parametrize("command", ["runs", "serve", "verify", "top --once", "usage"])
def test_a_user_without_a_home_is_told_what_to_set(command: str) -> None:
    """One line and exit code 2, not a traceback."""
    done = stranger(sys.executable, "-m", "runmeter.launch.main", *command.split())
    assert done.returncode == 2
    assert done.stderr.startswith("runmeter: user 54321 has no home directory for a store")
    assert done.stderr.count("\n") == 1


def test_an_agent_of_a_user_without_a_home(tmp_path: Path) -> None:
    """It works: without a store it says so and counts; with one that is named it writes there."""
    done = stranger(sys.executable, "-c", AGENT)
    assert (done.returncode, done.stdout) == (0, f"{TOKENS}\n")
    assert done.stderr.count("\n") == 1
    assert "no home directory for a store" in done.stderr
    url = f"sqlite:///{tmp_path / 'runmeter.db'}"
    done = stranger(sys.executable, "-c", AGENT, RUNMETER_DATABASE_URL=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{TOKENS}\n", "")
    store = open_store(url)
    exact(store, "r", 1)
    store.dispose()


def test_an_agent_on_a_read_only_file_system(tmp_path: Path) -> None:
    """Nothing can be written: the agent works on, leaves with its own exit code, and says what was not stored."""
    inside = f"mount -t tmpfs -o ro,size=1m none {tmp_path} && exec \"$@\""
    mounted: Any = ("unshare", "--mount", "sh", "-c", inside, "sh")
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here, so nothing can be mounted read-only for one process")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", AGENT],
        env=outside({"RUNMETER_DATABASE_URL": f"sqlite:///{tmp_path / 'state' / 'runmeter.db'}"}),
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{TOKENS}\n")
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr
