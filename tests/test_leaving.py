"""How processes leave: real ones, on one SQLite file. It has what they spent, or says that it may lack some."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from runmeter_exporter.reaper import Reaper
from runmeter_exporter.store import open_store

PRELUDE = """
import os, sys, threading
import runmeter
handle = runmeter.instrument(throttle=60.0, otel_metrics=False, instrumentations=False)

def call(tokens=5):
    runmeter.record_usage(provider="p", model="m", input_tokens=tokens, output_tokens=tokens)
"""


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'runs.db'}"


@pytest.fixture
def store(url):
    store = open_store(url, create=True)
    yield store
    assert store.verify() == []
    store.dispose()


FORKS = "ignore:This process:DeprecationWarning"
"""From Python 3.12 on, whoever forks a process with threads is warned, the recorder's among them. It is about the
program's own fork: what is ours in the child begins anew (`recorder/forking.py`), which is what these tests show; and
to stop the writer for a fork would have the program wait for its store."""


@pytest.fixture
def leave(url, tmp_path):
    """Run a script to its end; (exit code, stderr)."""

    def run(script: str, *, database: str = url) -> tuple[int, str]:
        path = tmp_path / "agent.py"
        path.write_text(PRELUDE + textwrap.dedent(script))
        environ = {key: value for key, value in os.environ.items() if not key.startswith(("RUNMETER_", "OTEL_"))}
        done = subprocess.run(
            [sys.executable, "-W", FORKS, str(path)],
            env={**environ, "RUNMETER_DATABASE_URL": database},
            capture_output=True,
            text=True,
            timeout=90,
        )
        return done.returncode, done.stderr

    return run


def statuses(store) -> dict[str, tuple[str, str, int]]:
    return {run["run_id"]: (run["status"], run["usage_state"], run["total_tokens"]) for run in store.runs()["runs"]}


def orphan(store) -> None:
    """A sidecar looks until the lease has passed."""
    seconds = iter(range(10_000))
    reaper = Reaper(store, lease=30, clock=lambda: float(next(seconds)))
    for _ in range(40):
        reaper.tick()


def test_a_normal_exit(leave, store):
    """The last call before the end of the script is there, though nobody flushed."""
    code, said = leave(
        """
        with runmeter.run(run_id="r", thread_id="t"):
            call(); call()
        """
    )
    assert (code, said) == (0, "")
    assert statuses(store) == {"r": ("success", "settled", 20)}


@pytest.mark.parametrize(("exit_with", "code", "status"), [("0", 0, "success"), ("3", 3, "interrupted")])
def test_sys_exit(leave, store, exit_with, code, status):
    """The exit code is the agent's own, the run ends as the design says."""
    found, said = leave(
        f"""
        with runmeter.run(run_id="r"):
            call()
            sys.exit({exit_with})
        """
    )
    assert (found, said) == (code, "")
    assert statuses(store) == {"r": (status, "settled", 10)}


def test_an_unhandled_exception(leave, store):
    """The traceback and the exit code are Python's; the run is an error and counted."""
    code, said = leave(
        """
        with runmeter.run(run_id="r"):
            call()
            raise RuntimeError("boom")
        """
    )
    assert code == 1
    assert said.endswith("RuntimeError: boom\n")
    assert statuses(store) == {"r": ("error", "settled", 10)}


def test_nested_runs_and_a_cancelled_task(leave, store):
    """asyncio cancellation interrupts the inner run; the outer one ends by itself."""
    leave(
        """
        import asyncio
        async def work(started):
            async with runmeter.run(run_id="inner"):
                call(1)
                started.set()
                await asyncio.Event().wait()
        async def main():
            async with runmeter.run(run_id="outer"):
                call(2)
                started = asyncio.Event()
                task = asyncio.create_task(work(started))
                await started.wait()
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        asyncio.run(main())
        """
    )
    assert statuses(store) == {"inner": ("interrupted", "settled", 2), "outer": ("success", "settled", 4)}


def test_a_generator_left_open_at_the_end(leave, store):
    """A run inside a generator that nobody exhausts is interrupted when Python closes it."""
    leave(
        """
        def stream():
            with runmeter.run(run_id="r"):
                call()
                yield 1
        left = stream()
        next(left)
        left.close()
        """
    )
    assert statuses(store) == {"r": ("interrupted", "settled", 10)}


def test_daemon_threads_in_the_middle_of_their_runs(leave, store):
    """What daemon threads had settled when the interpreter left is counted; their runs are interrupted."""
    code, said = leave(
        """
        ready = threading.Barrier(4)
        def work(number):
            with runmeter.run(run_id=f"r{number}"):
                call()
                ready.wait()
                threading.Event().wait()
        for number in range(3):
            threading.Thread(target=work, args=(number,), daemon=True).start()
        ready.wait()
        """
    )
    assert (code, said) == (0, "")
    assert statuses(store) == {f"r{number}": ("interrupted", "settled", 10) for number in range(3)}


def test_threads_that_outlive_the_main_one(leave, store):
    """Python waits for them, and so what they do after the main thread's end is counted."""
    leave(
        """
        main_is_over = threading.main_thread().join
        def work():
            main_is_over()
            with runmeter.run(run_id="r"):
                call()
        threading.Thread(target=work).start()
        """
    )
    assert statuses(store) == {"r": ("success", "settled", 10)}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_children(leave, store, method):
    """Workers leave by os._exit, and their runs are settled all the same, each process a source of its own."""
    code, said = leave(
        f"""
        import multiprocessing
        def work(number):
            with runmeter.run(run_id=f"child-{{number}}"):
                call()
        if __name__ == "__main__":
            start = multiprocessing.get_context("{method}")
            with runmeter.run(run_id="parent"):
                call(1)
                children = [start.Process(target=work, args=(number,)) for number in range(2)]
                for child in children: child.start()
                for child in children: child.join()
                call(1)
                assert [child.exitcode for child in children] == [0, 0]
        """
    )
    assert (code, said) == (0, "")
    found = statuses(store)
    assert found.pop("parent") == ("success", "settled", 4)
    assert found == {"child-0": ("success", "settled", 10), "child-1": ("success", "settled", 10)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_that_leaves_like_the_parent(leave, store):
    """As a pre-forking server does it: the child goes on, counts, and leaves through the interpreter's own exit."""
    code, said = leave(
        """
        with runmeter.run(run_id="before"):
            call(1)
        child = os.fork()
        with runmeter.run(run_id="child" if child == 0 else "parent"):
            call()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        """
    )
    assert (code, said) == (0, "")
    assert statuses(store) == {
        "before": ("success", "settled", 2),
        "child": ("success", "settled", 10),
        "parent": ("success", "settled", 10),
    }


@pytest.mark.parametrize("crash", ["os._exit(7)", "os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 9)"])
def test_a_crash_is_a_lower_bound(leave, store, crash):
    """os._exit, SIGTERM without a handler and SIGKILL are crashes: what was written is counted, and said to be less."""
    code, _ = leave(
        f"""
        with runmeter.run(run_id="r", thread_id="t"):
            call()
            assert handle.flush(10)
            call()
            {crash}
        """
    )
    assert code in (7, -signal.SIGTERM, -signal.SIGKILL)
    assert statuses(store) == {"r": ("running", "active", 10)}
    orphan(store)
    assert statuses(store) == {"r": ("interrupted", "lower_bound", 10)}
    assert store.thread_usage("t")["lower_bound_runs"] == 1


def test_without_a_throttle_a_crash_loses_nothing_that_was_settled(leave, store):
    """`throttle=0`: every call that returned is in the store, whatever comes next."""
    leave(
        """
        handle.shutdown()
        handle = runmeter.instrument(throttle=0, otel_metrics=False, instrumentations=False)
        with runmeter.run(run_id="r"):
            for _ in range(20):
                call()
            os.kill(os.getpid(), 9)
        """
    )
    assert statuses(store)["r"] == ("running", "active", 200)


def test_what_could_not_be_written_is_said_and_the_exit_code_stays(leave, tmp_path):
    """A store that cannot be had delays the exit by two seconds at most, and one line says what is missing."""
    (tmp_path / "file").write_text("no directory")
    code, said = leave(
        """
        with runmeter.run(run_id="r"):
            call(500)
        sys.exit(5)
        """,
        database=f"sqlite:///{tmp_path / 'file' / 'runs.db'}",
    )
    assert code == 5
    lines = [line for line in said.splitlines() if "could not write the last of" in line]
    assert len(lines) == 1, said
    assert "1 run (1 calls, 1,000 tokens in all)" in lines[0]


def test_no_signal_handler_is_touched(leave):
    """Handlers are what Python made them, before and after instrumenting and at the exit."""
    code, said = leave(
        """
        import atexit, signal
        def handlers():
            return [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        before = handlers()
        with runmeter.run():
            call()
        assert handlers() == before
        """
    )
    assert (code, said) == (0, "")


def test_keyboard_interrupt(leave, store):
    """Ctrl-C interrupts the run and ends Python its own way."""
    code, said = leave(
        """
        import signal
        with runmeter.run(run_id="r"):
            call()
            signal.raise_signal(signal.SIGINT)
        """
    )
    assert code == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert statuses(store) == {"r": ("interrupted", "settled", 10)}


def test_the_scripts_are_where_they_claim(tmp_path):
    """The tests run this tree's code, not an installed copy."""
    import runmeter
    import runmeter_exporter

    root = Path(__file__).parents[1]
    assert root in Path(runmeter.__file__).parents
    assert root in Path(runmeter_exporter.__file__).parents
