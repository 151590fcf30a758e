"""The Claude Agent SDK's hook, with messages as Claude Code 2.1.332 sends them (`tests/live` runs it)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_sink import Meter

import runmeter
from runmeter.hooks import claude_agent_sdk as hook
from runmeter.hooks.report import Memory

BIG, SMALL = "claude-sonnet-5", "claude-haiku-5"
Counts = tuple[int, int]
"""Input beside 10 read from the cache and 5 written to it, output."""


class AssistantMessage(SimpleNamespace):
    """By its name the hook knows it."""


class UserMessage(SimpleNamespace):
    """The same."""


class ResultMessage(SimpleNamespace):
    """The same."""


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    for name in ("_SEEN", "_SESSIONS", "_STARTED"):
        monkeypatch.setattr(hook, name, Memory())
    found = Meter()
    yield found
    found.close()


def usage(given: int, wrote: int) -> dict[str, int]:
    return {"input_tokens": given, "output_tokens": wrote, "cache_read_input_tokens": 10,
            "cache_creation_input_tokens": 5}  # fmt: skip


def call(number: int, given: int, *, model: str = BIG, under: str | None = None, starts: str | None = None) -> None:
    """One call's answer begins: what it will have written is not known yet."""
    block = SimpleNamespace(id=f"use-{number}", input={"subagent_type": starts} if starts else {})
    for _ in range(2):  # a message for each block of the answer
        hook.heard(
            AssistantMessage(
                message_id=f"msg-{number}", usage=usage(given, 1), model=model, parent_tool_use_id=under,
                session_id="s", content=[block],
            )
        )  # fmt: skip


def result(number: int, own: Counts, calls: int, by_model: dict[str, tuple[Counts, int]], **more: Any) -> None:
    """A query of so many own calls is over; `by_model` is what the session has come to, and in how many calls."""
    said = usage(*own) | {"cache_read_input_tokens": 10 * calls, "cache_creation_input_tokens": 5 * calls}
    models = {
        model: {"inputTokens": given, "outputTokens": wrote, "cacheReadInputTokens": 10 * times,
                "cacheCreationInputTokens": 5 * times, "thinkingTokens": 3 if model == BIG else 0}
        for model, ((given, wrote), times) in by_model.items()
    }  # fmt: skip
    hook.heard(
        ResultMessage(**{"uuid": f"result-{number}", "usage": said, "model_usage": models, "session_id": "s",
                         "num_turns": calls, "duration_ms": 5} | more)
    )  # fmt: skip


def by_caller(meter: Meter, run_id: str) -> dict[str, tuple[int, ...]]:
    """(input, output, cache read, calls) by caller."""
    found: dict[str, tuple[int, ...]] = {}
    for one in meter.sink.of(run_id):
        now = (one.usage.input_tokens, one.usage.output_tokens, one.usage.cache_read_tokens, one.usage.calls)
        found[one.caller] = tuple(map(sum, zip(found.get(one.caller, (0, 0, 0, 0)), now, strict=True)))
    return found


def test_calls_count_as_they_come_and_their_output_when_the_query_is_over(meter: Meter) -> None:
    """The session's sums run on: the second query counts what they grew by."""
    with runmeter.run(run_id="r"):
        call(1, 100)
        assert by_caller(meter, "r") == {"lead_agent": (115, 0, 10, 1)}
        call(2, 200)
        result(1, (300, 30), 2, {BIG: ((300, 30), 2)})
        assert by_caller(meter, "r") == {"lead_agent": (330, 30, 20, 2)}
        call(3, 400)
        result(2, (400, 40), 1, {BIG: ((700, 70), 3)})
    assert by_caller(meter, "r") == {"lead_agent": (745, 70, 30, 3)}
    assert meter.sink.usage("r").reasoning_tokens == 3


def test_subagents_count_as_themselves(meter: Meter) -> None:
    """One whose calls are told, of another model, and one whose last call stands in what its tool returned."""
    with runmeter.run(run_id="r"):
        call(1, 100, starts="reader")
        call(2, 1000, model=SMALL, under="use-1")
        call(3, 100, starts="writer")
        ended = {"agentId": "a", "agentType": "writer", "resolvedModel": BIG, "usage": usage(50, 5)}
        for _ in range(2):
            hook.heard(UserMessage(content=[SimpleNamespace(tool_use_id="use-3")], tool_use_result=ended))
        result(1, (200, 20), 2, {BIG: ((250, 25), 3), SMALL: ((1000, 7), 1)})
    assert by_caller(meter, "r") == {
        "lead_agent": (230, 20, 20, 2), "subagent:reader": (1015, 7, 10, 1), "subagent:writer": (65, 5, 10, 1),
    }  # fmt: skip


def test_a_call_that_no_message_told_of_is_in_the_sums(meter: Meter) -> None:
    """Claude Code asks a small model by itself."""
    with runmeter.run(run_id="r"):
        call(1, 100)
        result(1, (100, 10), 1, {BIG: ((100, 10), 1), SMALL: ((40, 4), 1)})
    assert by_caller(meter, "r") == {"lead_agent": (170, 14, 20, 2)}


def test_what_a_session_spent_elsewhere_is_not_this_query_s(meter: Meter) -> None:
    """Resumed, its sums begin with what another process spent; from the second query on they say what is ours."""
    with runmeter.run(run_id="r"):
        call(1, 100)
        result(1, (100, 10), 1, {BIG: ((9_100, 910), 10), SMALL: ((800, 80), 8)})
        assert by_caller(meter, "r") == {"lead_agent": (115, 10, 10, 1)}
        call(2, 100)
        result(2, (100, 10), 1, {BIG: ((9_200, 920), 11), SMALL: ((850, 85), 9)})
    assert by_caller(meter, "r") == {"lead_agent": (295, 25, 30, 3)}


@pytest.mark.parametrize(
    ("more", "status"),
    [({}, "success"), ({"is_error": True}, "error"), ({"terminal_reason": "aborted_tools"}, "interrupted")],
)
def test_without_a_run_a_query_is_one(more: dict[str, Any], status: str, meter: Meter) -> None:
    """Its session is the thread; how it went is how the run ends."""
    call(1, 100)
    result(1, (100, 10), 1, {BIG: ((100, 10), 1)}, **more)
    [run] = meter.sink.runs
    assert (run.thread_id, run.status) == ("s", status)
    assert by_caller(meter, run.run_id) == {"lead_agent": (115, 10, 10, 1)}


def test_what_claude_code_writes_itself_is_no_call(meter: Meter) -> None:
    """An error's message; the query that it ended is one failed attempt."""
    with runmeter.run(run_id="r"):
        hook.heard(AssistantMessage(message_id="x", usage=usage(0, 0), model="<synthetic>", session_id="s", content=[]))
        nothing = {"input_tokens": 0, "output_tokens": 0}
        result(1, (0, 0), 0, {}, is_error=True, usage=nothing)
        assert (meter.sink.usage("r").calls, meter.sink.usage("r").failures) == (0, 1)
        call(1, 100)
        result(2, (100, 10), 1, {BIG: ((100, 10), 1)})
        result(3, (0, 0), 0, {BIG: ((100, 10), 1)}, is_error=True, usage=nothing)
    assert (meter.sink.usage("r").calls, meter.sink.usage("r").failures) == (1, 2)
