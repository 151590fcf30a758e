"""The main job with real processes: agents with the real OpenAI client, a sidecar, SQLite, and a provider's ledger.

Goal: what REST says equals, to the token, what the provider says it returned, while runs work and after they end.
Method: agents are driven a command at a time, so the provider's ledger is known at every look.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from provider import Provider
from sidecar_process import Agent, Sidecar, until

from runmeter_exporter import open_store

COUNTS = {"total_input_tokens": "input_tokens", "total_output_tokens": "output_tokens", "llm_call_count": "calls",
          "llm_call_failures": "failures", "cache_read_tokens": "cache_read_tokens",
          "reasoning_tokens": "reasoning_tokens"}


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    with Sidecar(f"sqlite:///{tmp_path}/store.sqlite") as sidecar:
        yield sidecar


def agrees(answer: dict[str, object], truth: dict[str, int]) -> bool:
    return all(answer[ours] == truth[theirs] for ours, theirs in COUNTS.items())


def test_a_run_rises_while_it_works_and_ends_with_the_providers_numbers(sidecar: Sidecar, provider: Provider) -> None:
    """A running run shows its calls as they settle, its thread only on request, and both are exact at the end."""
    agent = Agent(sidecar.database_url, provider.openai_url, "run-1", "thread/1 %")
    path = "/api/threads/thread%2F1%20%25/token-usage"
    for command in ("call", "stream", "tool subagent:researcher", "fail", "call middleware:summarize"):
        agent.tell(command)
        until(lambda: agrees(sidecar.get("/api/runs/run-1") or {}, provider.truth(run_id="run-1"))
              if sidecar.get("/api/runs/run-1") else None, f"the run shows {command!r}")
        assert sidecar.get("/api/runs/run-1")["status"] == "running"
        assert sidecar.get(path)["total_tokens"] == 0
    listed = sidecar.get("/api/runs?status=running")["runs"]
    assert [run["run_id"] for run in listed] == ["run-1"]
    assert agrees(listed[0], provider.truth(run_id="run-1"))
    active = sidecar.get(path + "?include_active=true")
    assert agrees(active, provider.truth(run_id="run-1"))
    assert active["active_runs"] == 1

    assert agent.end() == 0
    thread = until(lambda: (t := sidecar.get(path)) and t["total_runs"] and t, "the run is settled")
    assert agrees(thread, provider.truth(run_id="run-1"))
    for kind, who in (("lead_agent", "lead_agent"), ("subagent", "subagent:researcher"),
                      ("middleware", "middleware:summarize")):
        truth = provider.truth(caller=who)
        assert thread["by_caller"][kind] == truth["input_tokens"] + truth["output_tokens"] > 0
    [(model, line)] = thread["by_model"].items()
    assert (model.startswith("gpt-5-mini"), line) == (True, {"tokens": thread["total_tokens"], "runs": 1})
    assert sidecar.get("/api/runs/run-1")["status"] == "success"


def test_kill_of_an_agent_and_of_the_sidecar_leaves_every_number(sidecar: Sidecar, provider: Provider) -> None:
    """After kill -9 of an agent its last snapshot stays readable; killing and restarting the sidecar changes none."""
    agents = [Agent(sidecar.database_url, provider.openai_url, f"run-{i}", "shared") for i in range(3)]
    for agent in agents:
        agent.tell("call")
        agent.tell("stream")
        until(lambda agent=agent: (run := sidecar.get(f"/api/runs/{agent.run_id}"))  # type: ignore[misc]
              and agrees(run, provider.truth(run_id=agent.run_id)), "the snapshot is there")
    agents[0].kill()
    before = {a.run_id: sidecar.get(f"/api/runs/{a.run_id}") for a in agents}
    sidecar.kill()
    agents[1].tell("call")
    sidecar.start()
    assert sidecar.get("/api/runs/run-0") == before["run-0"]
    assert sidecar.get("/api/runs/run-2") == before["run-2"]
    assert agents[1].end() == agents[2].end() == 0
    until(lambda: agrees(sidecar.get("/api/threads/shared/token-usage?include_active=true"),
                         provider.truth(thread_id="shared")), "the thread has all three runs")
    assert sidecar.stop() == 0
    assert open_store(sidecar.database_url).verify() == []


def test_an_exception_ends_the_run_as_error_and_counts(sidecar: Sidecar, provider: Provider) -> None:
    """A run that fails is settled with status error, and the process keeps its own exit code."""
    agent = Agent(sidecar.database_url, provider.openai_url, "failing", "t")
    agent.tell("call")
    agent.send("raise")
    assert agent.process.wait(60) == 1
    run = until(lambda: (r := sidecar.get("/api/runs/failing")) and r["usage_state"] == "settled" and r, "settled")
    assert run["status"] == "error"
    assert agrees(run, provider.truth(run_id="failing"))
