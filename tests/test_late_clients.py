"""A zero explains itself: client libraries that are imported late, and calls that nothing sees."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import fresh
import pytest
from hypothesis import given
from hypothesis import strategies as st
from provider import Provider

from runmeter import guard
from runmeter.otel.clients import CLIENTS, Client, Coverage, warn_uncovered
from runmeter.otel.watching import Watcher
from runmeter_exporter import open_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "latecomer.py").write_text("answer = 42\n")
    (tmp_path / "broken_latecomer.py").write_text("raise ValueError('the library itself')\n")
    (tmp_path / "space" / "inside").mkdir(parents=True)
    (tmp_path / "space" / "inside" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    for name in ("latecomer", "broken_latecomer", "space", "space.inside"):
        sys.modules.pop(name, None)


NAMES = ("latecomer", "broken_latecomer", "space", "space.inside", "nowhere_to_be_found")


@pytest.fixture
def told() -> Iterator[list[str]]:
    seen: list[str] = []
    watcher = Watcher(NAMES, seen.append)
    watcher.start()
    yield seen
    watcher.stop()
    assert watcher not in sys.meta_path


def test_an_import_is_told_once_and_leaves_no_trace(folder: Path, told: list[str]) -> None:
    """After the module has run; looking for it does not tell, nor does loading it again."""
    assert importlib.util.find_spec("latecomer") is not None
    assert not told
    module = importlib.import_module("latecomer")
    assert told == ["latecomer"]
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None
    assert module.__spec__.loader is module.__loader__
    assert importlib.reload(module).answer == 42
    assert told == ["latecomer"]


def test_what_fails_or_is_not_there_fails_as_ever(folder: Path, told: list[str]) -> None:
    """The library's own error, a missing module, a namespace and what is in it."""
    with pytest.raises(ValueError, match="the library itself"):
        importlib.import_module("broken_latecomer")
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        importlib.import_module("nowhere_to_be_found")
    importlib.import_module("space.inside")
    assert told == ["space.inside"]


def test_a_fault_of_ours_is_not_the_imports(folder: Path) -> None:
    """Whatever the one that is told does, the import goes on; and after `stop` nobody is told."""

    def fails(name: str) -> None:
        raise RuntimeError(name)

    watcher = Watcher(NAMES, fails)
    watcher.start()
    assert importlib.import_module("latecomer").answer == 42
    spec = importlib.util.find_spec("space.inside")
    watcher.stop()
    assert spec is not None
    assert importlib.import_module("space.inside")


def test_threads_that_import_it_at_once_are_told_of_once(folder: Path, told: list[str]) -> None:
    """Every thread gets the whole module."""
    together, found = threading.Barrier(8), []

    def work() -> None:
        together.wait()
        found.append(importlib.import_module("latecomer").answer)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [42] * 8
    assert told == ["latecomer"]


@given(st.text(max_size=20))
def test_it_finds_nothing_that_it_does_not_watch(name: str) -> None:
    """Of any other name it is silent: the finders after it answer as they always do."""
    watcher = Watcher(NAMES, lambda _: None)
    assert name in NAMES or watcher.find_spec(name, None) is None


LATE = """
import sys, runmeter
handle = runmeter.instrument(sys.argv[1], instrumentations=False)
assert "openai" not in sys.modules
from openai import OpenAI, AsyncOpenAI
def call():
    client = OpenAI(base_url=sys.argv[2], api_key="none", max_retries=0)
    client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
with runmeter.run(run_id="unseen", thread_id="t"):
    call()
with runmeter.run(run_id="recorded", thread_id="t"):
    call()
    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=1, output_tokens=2)
with runmeter.run(run_id="quiet", thread_id="t"):
    OpenAI(base_url=sys.argv[2], api_key="none")
async def later():
    client = AsyncOpenAI(base_url=sys.argv[2], api_key="none", max_retries=0)
    async with runmeter.run(run_id="async", thread_id="t"):
        await client.chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])
import asyncio
asyncio.run(later())
print([row.client.name for row in handle.coverage if row.imported and not row.enabled])
handle.shutdown(60)
"""


def test_a_late_client_that_nothing_instruments_is_said(sqlite_url: str) -> None:
    """It is warned about when it comes; the runs that called through it say so, and no other run does."""
    with Provider() as provider:
        done = fresh.run(LATE, sqlite_url, provider.openai_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['openai']"
    assert done.stderr.count("is imported and nothing instruments it") == 1
    store = open_store(sqlite_url)
    try:
        found = {run_id: store.run(run_id) for run_id in ("unseen", "async", "recorded", "quiet")}
        assert {run_id: said(run) for run_id, run in found.items()} == {
            "unseen": ("success", "lower_bound", {"uninstrumented_client": 1}),
            "async": ("success", "lower_bound", {"uninstrumented_client": 1}),
            "recorded": ("success", "settled", {}),
            "quiet": ("success", "settled", {}),
        }
        assert store.verify() == []
    finally:
        store.dispose()


def said(run: Any) -> tuple[str, str, dict[str, int]]:
    return run["status"], run["usage_state"], run["set_aside"]


def test_what_a_framework_tells_of_itself_is_not_said_to_be_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Strands makes spans of the calls that it makes through a client which nothing instruments."""
    monkeypatch.setattr(guard, "_said", set())
    row = Coverage(client("openai"), "9", True, None, None, False, (), "pip install it")
    warn_uncovered([row])
    monkeypatch.setitem(sys.modules, "strands", ModuleType("strands"))
    monkeypatch.setattr(guard, "_said", set())
    warn_uncovered([row])
    plain, with_strands = [record.getMessage() for record in caplog.records]
    assert plain.endswith("9 is imported and nothing instruments it, so its calls are not counted: pip install it")
    assert "not counted but for those that strands-agents makes: pip install it" in with_strands


def client(name: str) -> Client:
    return next(one for one in CLIENTS if one.name == name)
