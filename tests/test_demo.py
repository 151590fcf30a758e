"""`runmeter demo` with real processes: its numbers equal the provider's, and nothing of it is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sidecar_process import until

from runmeter_exporter import open_store
from runmeter_exporter.console.options import Address
from runmeter_exporter.demo.asked import Asked
from runmeter_exporter.demo.fleet import Fleet, _free, realistic
from runmeter_exporter.demo.provider import Provider

LOOPBACK = Address("127.0.0.1", 0)
PATIENCE = 60
COUNTS = {
    "total_input_tokens": "input_tokens", "total_output_tokens": "output_tokens", "llm_call_count": "calls",
    "llm_call_failures": "failures", "calls_without_usage": "calls_without_usage",
    "cache_read_tokens": "cache_read_tokens", "reasoning_tokens": "reasoning_tokens",
}  # fmt: skip


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def expected(truth: dict[str, int]) -> dict[str, int]:
    return {ours: truth[theirs] for ours, theirs in COUNTS.items()}


def test_every_number_of_the_fleet_equals_the_providers(tmp_path: Path) -> None:
    """Per run, thread, caller and model, to the token, for streams, tools, a subagent, failures and silent streams."""
    fleet = Fleet(tmp_path, 0.01)
    try:
        fleet.start_sidecar(LOOPBACK, LOOPBACK)
        fleet.start_agents(4, runs=4)
        assert [agent.process.wait(PATIENCE) for agent in fleet.agents] == [0, 0, 0, 0]
        ledger, provider = fleet.provider.ledger, fleet.provider
        for run_id in {e.run_id for e in ledger}:
            answer = get(f"{fleet.rest}/api/runs/{run_id}")
            assert (answer["status"], answer["usage_state"]) == ("success", "settled")
            assert {key: answer[key] for key in COUNTS} == expected(provider.truth(run_id=run_id))
        for thread in {e.thread_id for e in ledger}:
            answer = get(f"{fleet.rest}/api/threads/{urllib.parse.quote(thread or '', safe='')}/token-usage")
            assert {key: answer[key] for key in COUNTS} == expected(provider.truth(thread_id=thread))
        total = get(f"{fleet.rest}/api/usage")
        assert {key: total[key] for key in COUNTS} == expected(provider.truth())
        assert total["total_runs"] == 16
        for kind, caller in (("subagent", "subagent:reader"), ("middleware", "middleware:summarize")):
            truth = provider.truth(caller=caller)
            assert total["by_caller"][kind] == truth["input_tokens"] + truth["output_tokens"] > 0
        for model in {e.model for e in ledger}:
            truth = provider.truth(model=model)
            assert total["by_model"][model]["tokens"] == truth["input_tokens"] + truth["output_tokens"]
        assert provider.truth()["failures"] > 0
        assert provider.truth()["calls_without_usage"] > 0
    finally:
        fleet.close()
    assert open_store(fleet.database_url).verify() == []


@contextmanager
def demo(*options: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str], list[psutil.Process]]]:
    """A demo whose agents are at work: its process, the addresses it printed, and its children."""
    command = [sys.executable, "-m", "runmeter.launch.main", "demo", "--listen", "127.0.0.1:0", "--otlp-listen",
               "127.0.0.1:0", "--answer-time", "0.2s", *options]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    children: list[psutil.Process] = []
    try:
        assert process.stdout is not None
        said, places = "", {}
        for line in process.stdout:
            said += line
            if match := re.match(r"\s+(store|page, REST|OTLP|provider)\s+(\S+)", line):
                places[match[1]] = match[2]
            if re.search(r"Z   \S+ \S+ [1-9][\d,]* tokens", line):
                break
        else:
            pytest.fail(f"the demo ended early: {said}")
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 5, "a sidecar and four agents"
        yield process, places, children
    finally:
        for one in [psutil.Process(process.pid), *children] if process.poll() is None else children:
            if one.is_running():
                one.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_ctrl_c_ends_everything_and_interrupts_the_runs_at_work(tmp_path: Path) -> None:
    """Exit code 0, no process left, and every run that worked ends as interrupted with its usage settled."""
    with demo("--directory", str(tmp_path)) as (process, places, children):
        running = get(f"{places['page, REST']}/api/runs?status=running")["runs"]
        assert any(run["total_tokens"] > 0 for run in running)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        process.stdout.read()
        assert process.wait(PATIENCE) == 0
        assert psutil.wait_procs(children, timeout=0)[1] == []
    store = open_store(places["store"])
    assert store.runs(status="running")["runs"] == []
    assert [run for run in store.runs(limit=500)["runs"] if run["usage_state"] != "settled"] == []
    assert store.runs(status="interrupted")["runs"]
    assert store.verify() == []
    store.dispose()


def test_each_is_asked_to_end_once_and_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C would break off what an agent does about the first: its last writes. Nobody is killed."""
    asked: list[tuple[int, int]] = []
    send = subprocess.Popen.send_signal

    def noted(process: subprocess.Popen[str], number: int) -> None:
        asked.append((process.pid, number))
        send(process, number)

    monkeypatch.setattr(subprocess.Popen, "send_signal", noted)
    fleet = Fleet(tmp_path, 0.01)
    try:
        fleet.start_sidecar(LOOPBACK, None)
        fleet.start_agents(2, runs=None)
        store = open_store(fleet.database_url)
        begun = {"demo-researcher", "demo-coder"}
        until(lambda: begun <= {run["service"] for run in store.runs(status="running")["runs"]}, "both are at work")
    finally:
        fleet.close()
    assert fleet.sidecar is not None
    agents = [(agent.process.pid, signal.SIGINT) for agent in fleet.agents]
    assert asked == [*agents, (fleet.sidecar.process.pid, signal.SIGTERM)]
    assert [agent.process.returncode for agent in fleet.agents] == [0, 0]
    assert {run["usage_state"] for run in store.runs(limit=500)["runs"]} == {"settled"}
    store.dispose()


INTERRUPTED = """
import signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "opentelemetry.instrumentation.genai.openai":
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_amid_an_agents_imports_is_not_lost(tmp_path: Path) -> None:
    """It leaves as well as ever, instead of going on to work with a client that nothing instruments."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    with Provider() as provider:
        command = [sys.executable, "-m", "runmeter_exporter.demo.child", "agent", "--provider", provider.openai_url,
                   "--number", "2", "--runs", "1", "--seconds", "0"]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "RUNMETER_DATABASE_URL": url}
        pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, text=True, env=environment, **pipes) as one:
            assert one.stderr is not None
            assert one.stderr.read() == ""
            assert one.wait(PATIENCE) == 0
        assert provider.ledger == ()


def test_a_killed_demo_leaves_no_process(tmp_path: Path) -> None:
    """SIGKILL gives the demo no chance to tidy up; its children notice that it is gone."""
    with demo("--directory", str(tmp_path)) as (process, _, children):
        process.kill()
        process.wait()
        assert psutil.wait_procs(children, timeout=PATIENCE)[1] == []


def test_a_killed_agent_keeps_its_last_snapshot_and_a_killed_sidecar_comes_back(tmp_path: Path) -> None:
    """The others go on; the numbers of the killed agent's run are still there after the sidecar's restart."""
    with demo("--directory", str(tmp_path)) as (process, places, children):
        rest = places["page, REST"]
        run = max(get(f"{rest}/api/runs?status=running")["runs"], key=lambda run: run["total_tokens"])
        persona = run["agent"]
        [agent] = [c for c in children if "agent" in c.cmdline() and _persona(c) == persona]
        [sidecar] = [c for c in children if "serve" in c.cmdline()]
        agent.kill()
        agent.wait(PATIENCE)
        before = get(f"{rest}/api/runs/{run['run_id']}")
        sidecar.kill()
        assert process.stdout is not None
        for line in process.stdout:
            if "the sidecar ended; starting it again" in line:
                break
        for line in process.stdout:
            if re.search(r"\d+ active, [\d,]+ tokens", line):
                break
        after = get(f"{rest}/api/runs/{run['run_id']}")
        assert after["total_tokens"] == before["total_tokens"] >= run["total_tokens"] > 0
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(PATIENCE) == 0


def _persona(process: psutil.Process) -> str:
    arguments = process.cmdline()
    names = ("researcher", "coder", "support", "writer")
    return names[int(arguments[arguments.index("--number") + 1])]


def test_with_a_number_of_runs_it_ends_by_itself_and_compares(tmp_path: Path) -> None:
    """Both sides' numbers are shown, and agree."""
    command = [sys.executable, "-m", "runmeter.launch.main", "demo", "--listen", "127.0.0.1:0", "--otlp-listen", "",
               "--answer-time", "10ms", "--runs", "1", "--agents", "1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    theirs = re.search(r"the provider answered(.*)", done.stdout)
    ours = re.search(r"runmeter counted(.*)", done.stdout)
    assert theirs
    assert ours
    assert theirs[1].split() == ours[1].split()
    assert "OTLP       off" in done.stdout


def test_a_taken_port_is_said_and_another_one_used(capsys: pytest.CaptureFixture[str]) -> None:
    """The demo has no opinion about ports."""
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert _free(Address("127.0.0.1", port)) == Address("127.0.0.1", 0)
    assert f"127.0.0.1:{port} is taken" in capsys.readouterr().out



def test_demo_numbers_are_inclusive() -> None:
    """Cache is a part of input, reasoning of output, whatever the number of the answer."""
    asked = Asked("chat", "gpt-5", False, True, frozenset(), "", 0)
    for number in range(1, 500):
        numbers = realistic(number, asked)
        assert 0 <= numbers.cache_read_tokens <= numbers.input_tokens
        assert 0 <= numbers.reasoning_tokens <= numbers.output_tokens
