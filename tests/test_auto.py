"""No code at all: `opentelemetry-instrument` and `runmeter exec`, with real programs in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fresh
import pytest
from provider import Provider

from runmeter_exporter import open_store

AGENT = """
import os, sys, threading
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
def ask():
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
ask()
thread = threading.Thread(target=ask)
thread.start()
thread.join()
sys.exit(int(sys.argv[2]))
"""

OWN_PROVIDER = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")))
trace.set_tracer_provider(provider)
"""
"""A host with OpenTelemetry of its own, which it sets up in its first lines."""

EXEC = """
import sys
from runmeter.launch.exec import exec_command
url, run_id, *command = sys.argv[1:]
sys.exit(exec_command(command, run_id=run_id, thread_id="t", agent="cli", database_url=url))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'runs.db'}"


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as found:
        yield found


def stored(url: str, run_id: str) -> dict[str, Any]:
    store = open_store(url)
    try:
        found = store.run(run_id)
        assert found is not None
        return found
    finally:
        store.dispose()


def execute(url: str, run_id: str, *command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return fresh.run(EXEC, url, run_id, *command, **more)


@pytest.mark.parametrize(("code", "status", "reason"), [(0, "success", None), (3, "error", "exit 3")])
def test_exec_runs_any_program_as_one_run(
    url: str, provider: Provider, code: int, status: str, reason: str | None
) -> None:
    """A program that knows nothing of us is one run: all its threads' calls, its exit code, its status."""
    done = execute(url, "r", sys.executable, "-c", AGENT, provider.openai_url, str(code))
    assert done.returncode == code, done.stderr
    truth = provider.truth()
    run = stored(url, "r")
    assert truth["calls"] == 2
    assert (run["total_input_tokens"], run["total_output_tokens"], run["llm_call_count"]) == (
        truth["input_tokens"], truth["output_tokens"], 2,
    )  # fmt: skip
    assert (run["status"], run["stop_reason"], run["thread_id"], run["agent"]) == (status, reason, "t", "cli")


def test_exec_of_a_program_with_its_own_opentelemetry(url: str, provider: Provider) -> None:
    """A program that sets a provider of its own is counted, and its exporter gets every call, as without us."""
    done = execute(url, "r", sys.executable, "-c", OWN_PROVIDER + AGENT, provider.openai_url, "0")
    assert (done.returncode, done.stdout) == (0, "chat gpt-5-mini\n" * 2), done.stderr
    assert "Overriding" not in done.stderr
    assert stored(url, "r")["llm_call_count"] == provider.truth()["calls"] == 2


def test_exec_passes_the_context_in_the_environment(url: str) -> None:
    """Every program below finds the run where OpenTelemetry's environment carriers put it, and its own environment."""
    code = "import os; print(os.environ['TRACEPARENT'], os.environ['BAGGAGE'], os.environ['PYTHONPATH'])"
    done = execute(url, "r 1", sys.executable, "-S", "-c", code, environment={"PYTHONPATH": "mine"})
    traceparent, baggage, path = done.stdout.split()
    assert traceparent.startswith("00-")
    assert baggage == "runmeter.run.id=r+1"
    assert path.split(os.pathsep)[1:] == ["mine"]


def test_exec_lets_another_sitecustomize_have_its_turn(url: str, tmp_path: Path) -> None:
    """A sitecustomize of the environment's own still runs, with the program's arguments and input untouched."""
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.theirs = 'ran'\n")
    done = execute(
        url, "r", sys.executable, "-c", "import sys; print(theirs, sys.stdin.read(), sys.argv[1:])", "a b",
        input="in", environment={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.split(" ", 2) == ["ran", "in", "['a b']\n"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_exec_passes_signals_on(url: str, name: str) -> None:
    """A signal reaches the program; dying of it is an interrupted run and the shell's exit code for it."""
    number = signal.Signals[name]
    code = f"import signal, sys; signal.signal(signal.{name}, signal.SIG_DFL); print('up', flush=True); signal.pause()"
    command = [sys.executable, "-c", EXEC, url, "r", sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    process.stdout.close()
    run = stored(url, "r")
    assert (run["status"], run["stop_reason"]) == ("interrupted", name)


def test_exec_of_a_program_that_handles_its_signal(url: str) -> None:
    """A program that ends by itself with 0 after a signal has succeeded; with another code it was interrupted."""
    for exit_code, status in ((0, "success"), (9, "interrupted")):
        code = (
            "import signal, sys, os\n"
            f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({exit_code}))\n"
            "print('up', flush=True)\nsignal.pause()"
        )
        command = [sys.executable, "-c", EXEC, url, f"r{exit_code}", sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        assert process.wait(30) == exit_code
        process.stdout.close()
        assert stored(url, f"r{exit_code}")["status"] == status


def test_exec_of_a_program_that_is_killed(url: str) -> None:
    """SIGKILL of the program is an interrupted run, not a lower bound: its wrapper lives to tell."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert execute(url, "r", sys.executable, "-c", code).returncode == 128 + signal.SIGKILL
    assert stored(url, "r")["stop_reason"] == "SIGKILL"


def test_exec_of_nothing(url: str, tmp_path: Path) -> None:
    """A program that is not there, or not a program, is said in one line with the shell's exit code."""
    missing = execute(url, "r", "no-such-program-here")
    assert (missing.returncode, missing.stderr.count("\n")) == (127, 1)
    broken = tmp_path / "broken"
    broken.write_text("\x7fELF nothing")
    broken.chmod(0o755)
    done = execute(url, "r", str(broken))
    assert done.returncode == 126
    assert "broken" in done.stderr


def test_opentelemetry_instrument(url: str, provider: Provider) -> None:
    """`opentelemetry-instrument python agent.py` counts a program without a line of ours in it."""
    command = Path(sys.executable).with_name("opentelemetry-instrument")
    none = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    environment = {**os.environ, **none, "RUNMETER_DATABASE_URL": url, "OTEL_SERVICE_NAME": "agent"}
    done = subprocess.run(
        [str(command), sys.executable, "-c", AGENT, provider.openai_url, "0"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    truth = provider.truth()
    store = open_store(url)
    usage = store.usage()
    store.dispose()
    assert (usage["total_input_tokens"], usage["total_output_tokens"]) == (
        truth["input_tokens"], truth["output_tokens"],
    )  # fmt: skip
    assert usage["llm_call_count"] == 2


def test_opentelemetry_instrument_inside_exec(url: str, provider: Provider) -> None:
    """Both at once count once, in the run of exec."""
    command = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    none = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}
    done = execute(
        url, "r", command, sys.executable, "-c", AGENT, provider.openai_url, "0", environment=none
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert stored(url, "r")["llm_call_count"] == provider.truth()["calls"] == 2
