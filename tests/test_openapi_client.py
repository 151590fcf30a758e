"""A client that nobody wrote: made from a running sidecar's own /openapi.json, installed nowhere, and called."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from runs_kit import snapshot, usage
from sidecar_process import Sidecar

from runmeter_exporter import open_store
from runmeter_exporter.totals.run import CellKey

TOKEN = "s3cret"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """Over runs of every kind; what is asked of it needs a token."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sidecar') / 'runs.db'}"
    store = open_store(url)
    large = {CellKey("2023-11-14", "openai", "gpt-5", "subagent:a"): usage(7, 3, cost_nanousd=100_000_000)}
    store.write(
        [
            snapshot("done", thread_id="a/b", tags={"team": "x"}, agent="writer", usage_by=large),
            snapshot("works", thread_id="a/b", status="running", number=1),
        ]
    )
    store.dispose()
    with Sidecar(url, "--read-token", TOKEN, "--lease", "1h") as sidecar:
        yield sidecar


@pytest.fixture(scope="module")
def client(sidecar: Sidecar, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The generated package, importable as `metered`."""
    folder = tmp_path_factory.mktemp("client")
    document, config = folder / "openapi.json", folder / "config.yml"
    document.write_text(json.dumps(sidecar.get("/openapi.json", Authorization=f"Bearer {TOKEN}")))
    config.write_text("post_hooks: []\n")
    made = subprocess.run(
        [Path(sys.executable).with_name("openapi-python-client"), "generate", "--path", document, "--config", config,
         "--meta", "none", "--output-path", folder / "metered"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "Warning" not in made.stdout + made.stderr
    sys.path.insert(0, str(folder))
    yield import_module("metered").AuthenticatedClient(base_url=sidecar.url, token=TOKEN)
    sys.path.remove(str(folder))


def route(name: str) -> Any:
    return import_module(f"metered.api.default.{name}")


def models(name: str) -> Any:
    return getattr(import_module("metered.models"), name)


def test_its_answers_are_typed(client: Any) -> None:
    """Threads, runs, totals and days come as objects whose fields are what REST has."""
    thread = route("thread_usage").sync(client=client, thread_id="a/b", include_active=True)
    assert (thread.thread_id, thread.total_tokens, thread.total_runs, thread.active_runs) == ("a/b", 130, 2, 1)
    assert (thread.by_model["gpt-5"].tokens, thread.by_caller.subagent, thread.active.total_tokens) == (10, 10, 120)
    assert thread.cost_usd == 0.1
    assert route("thread_usage").sync(client=client, thread_id="a/b").total_tokens == 10
    run = asyncio.run(route("run").asyncio(client=client, run_id="done"))
    assert (run.run_id, run.status, run.tags["team"], run.created_at.year) == ("done", "success", "x", 2023)
    assert route("usage").sync(client=client).unthreaded_runs == 0
    (day,) = route("usage_daily").sync(client=client, group_by="month,tag.team")
    assert (day.month, day["tag.team"], day.total_tokens) == ("2023-11", "x", 10)
    assert route("threads").sync(client=client, include_active=True).threads[0].total_tokens == 130


def test_it_can_ask_all_that_rest_can(client: Any) -> None:
    """Filters, several statuses, tags, orders and cursors go out as the sidecar reads them; a refusal is a problem."""
    status, order = models("RunsStatusItem"), models("RunsOrder")

    def ids(**asked: Any) -> list[str]:
        return [run.run_id for run in route("runs").sync(client=client, **asked).runs]

    assert ids() == ["works", "done"]
    assert ids(status=[status.SUCCESS, status.ERROR]) == ids(agent="writer") == ids(model="gpt-5") == ["done"]
    assert ids(tags=models("RunsTags").from_dict({"tag.team": "x"})) == ["done"]
    assert ids(order=order.COST, from_="2023-11-14") == ids(order=order.OLDEST) == ["done", "works"]
    page = route("runs").sync(client=client, limit=1)
    assert ids(limit=1, cursor=page.next_cursor) == ["done"]
    refused = route("runs").sync_detailed(client=client, limit=501)
    assert (refused.status_code, refused.parsed.status) == (400, 400)
    assert route("run").sync(client=client, run_id="none").status == 404


def test_it_ends_a_run(client: Any) -> None:
    """What is sent is typed, too."""
    end = models("RunEnd")(status=models("RunEndStatus").TIMEOUT, stop_reason="budget")
    ended = route("end_run").sync(client=client, run_id="works", body=end)
    assert (ended.status, ended.stop_reason) == ("timeout", "budget")
