"""LangChain's outermost invocation is a run, over a stand-in for LangChain; the real one is in tests/live."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_sink import Meter

import runmeter
from runmeter.hooks import langchain
from runmeter.hooks.invocations import Invocations, thread_of
from runmeter.hooks.messages import Unanswered
from runmeter.hooks.report import Memory
from runmeter.otel.in_force import now_in_force


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    yield found
    found.close()


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The handler class over a stand-in for LangChain's base."""
    package, callbacks = ModuleType("langchain_core"), ModuleType("langchain_core.callbacks")
    callbacks.BaseCallbackHandler = type("BaseCallbackHandler", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langchain_core", package)
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", callbacks)
    langchain._handler_class.cache_clear()
    for name, fresh in (("_CALLS", Memory()), ("_WAITING", Unanswered()), ("_INVOCATIONS", Invocations())):
        monkeypatch.setattr(langchain, name, fresh)
    yield langchain.UsageCallbackHandler
    langchain._handler_class.cache_clear()


def answer(number: str, tokens: int = 10) -> Any:
    usage = {"input_tokens": tokens, "output_tokens": 5}
    meta = {"id": f"id-{number}", "model_name": "m"}
    message = SimpleNamespace(usage_metadata=usage, response_metadata=meta, id=None)
    return SimpleNamespace(generations=[[SimpleNamespace(message=message)]], llm_output=None)


def call(one: Any, run_id: str, parent: str | None, **metadata: Any) -> None:
    one.on_chat_model_start({}, [], run_id=run_id, parent_run_id=parent, metadata=metadata)
    one.on_llm_end(answer(run_id), run_id=run_id, parent_run_id=parent)


def begin(one: Any, run_id: str, parent: str | None = None, **metadata: Any) -> None:
    one.on_chain_start({}, {}, run_id=run_id, parent_run_id=parent, metadata=metadata, name=metadata.get("name"))


def test_the_outermost_invocation_is_a_run_of_its_thread(meter: Meter, handler: type[Any]) -> None:
    """Two calls, one run: LangChain's id, the thread, user and agent of its metadata, and the time that it took."""
    one = handler()
    begin(one, "outer", thread_id="t", user_id="u", lc_agent_name="boss")
    assert meter.sink.runs == []
    begin(one, "node", "outer")
    call(one, "a", "node")
    (info,) = meter.sink.runs
    assert (info.run_id, info.thread_id, info.user_id, info.agent, info.status) == (
        "outer", "t", "u", "boss", "running",
    )  # fmt: skip
    call(one, "b", "outer")
    one.on_chain_end({}, run_id="node", parent_run_id="outer")
    assert info.status == "running"
    one.on_chain_end({}, run_id="outer")
    assert [(run.run_id, run.status) for run in meter.sink.runs] == [("outer", "success")]
    assert meter.sink.usage("outer").calls == 2
    assert now_in_force() is None


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError(), "error"), (asyncio.CancelledError(), "interrupted"), (GeneratorExit(), "interrupted"),
     (KeyboardInterrupt(), "interrupted"), (TimeoutError(), "timeout")],
)  # fmt: skip
def test_the_run_ends_as_the_invocation_does(
    meter: Meter, handler: type[Any], error: BaseException, status: str
) -> None:
    """As `runmeter.run` would, left by that exception."""
    one = handler()
    begin(one, "outer")
    call(one, "a", "outer")
    one.on_chain_error(error, run_id="outer")
    assert [(run.status, run.stop_reason) for run in meter.sink.runs] == [(status, type(error).__name__)]


def test_what_calls_no_model_is_no_run(meter: Meter, handler: type[Any]) -> None:
    """Prompts, parsers and tools are invocations too; nor does an agent's span that ends later make one."""
    one = handler()
    begin(one, "outer", thread_id="t")
    span = meter.tracer.start_span(
        "invoke_agent x", attributes={"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "x"}
    )
    one.on_tool_start({}, "", run_id="tool", parent_run_id="outer")
    one.on_tool_end("text", run_id="tool")
    one.on_chain_end({}, run_id="outer")
    span.end()
    assert meter.sink.runs == []


def test_calls_that_only_the_client_tells_of_are_in_the_run(meter: Meter, handler: type[Any]) -> None:
    """A chain that asks a model past LangChain."""
    one = handler()
    begin(one, "outer", thread_id="t")
    meter.call(10, 5)
    one.on_chain_end({}, run_id="outer")
    assert [(run.run_id, run.thread_id, run.status) for run in meter.sink.runs] == [("outer", "t", "success")]
    assert meter.sink.usage("outer").calls == 1


def test_a_run_of_the_host_keeps_its_calls(meter: Meter, handler: type[Any]) -> None:
    """Around the invocation, or inside of it."""
    one = handler()
    with runmeter.run(run_id="around", thread_id="mine"):
        begin(one, "outer", thread_id="theirs")
        call(one, "a", "outer", thread_id="theirs")
        one.on_chain_end({}, run_id="outer")
    begin(one, "second")
    call(one, "b", "second")
    with runmeter.run(run_id="inside"):
        call(one, "c", "second")
    one.on_chain_end({}, run_id="second")
    assert [(run.run_id, run.thread_id, meter.sink.usage(run.run_id).calls) for run in meter.sink.runs] == [
        ("around", "mine", 1), ("second", None, 1), ("inside", None, 1),
    ]  # fmt: skip


def test_an_agent_of_another_framework_around_it_keeps_its_calls(meter: Meter, handler: type[Any]) -> None:
    """Its trace is a run already."""
    one = handler()
    with meter.agent("autogen"):
        begin(one, "outer", thread_id="t")
        call(one, "a", "outer")
        one.on_chain_end({}, run_id="outer")
    assert [meter.sink.usage(run.run_id).calls for run in meter.sink.runs] == [1]


def test_a_web_server_s_span_around_it_does_not(meter: Meter, handler: type[Any]) -> None:
    """Two invocations in one trace are two runs of their threads."""
    one = handler()
    with meter.span("POST /chat"):
        for number in "12":
            begin(one, f"outer {number}", thread_id=f"t{number}")
            call(one, number, f"outer {number}")
            one.on_chain_end({}, run_id=f"outer {number}")
    assert [(run.run_id, run.thread_id) for run in meter.sink.runs] == [("outer 1", "t1"), ("outer 2", "t2")]


def test_threads_without_the_context_are_found_by_what_is_around(meter: Meter, handler: type[Any]) -> None:
    """The callbacks say it, also where Python's context does not."""
    one = handler()
    begin(one, "outer", thread_id="t")
    thread = threading.Thread(target=call, args=(one, "a", "outer"))
    thread.start()
    thread.join()
    one.on_chain_end({}, run_id="outer")
    assert meter.sink.usage("outer").calls == 1


def test_nothing_of_a_run_is_left_where_its_end_cannot_be_seen(meter: Meter, handler: type[Any]) -> None:
    """An end in another context takes nothing back in this one; what comes after is in no run all the same."""
    one = handler()
    begin(one, "outer", thread_id="t")
    call(one, "a", "outer")
    thread = threading.Thread(target=one.on_chain_end, args=({},), kwargs={"run_id": "outer"})
    thread.start()
    thread.join()
    scope = now_in_force()
    assert scope is not None
    assert scope.run is None
    meter.call(10, 5)
    assert meter.sink.usage("outer").calls == 1
    begin(one, "next", thread_id="t2")
    call(one, "b", "next")
    one.on_chain_end({}, run_id="next")
    assert meter.sink.run("next").thread_id == "t2"
    assert len(meter.sink.runs) == 3


def test_interleaved_streams_keep_their_calls_apart(meter: Meter, handler: type[Any]) -> None:
    """Two that began in one context, one after the other, and go on by turns; what the client tells goes with them."""
    one = handler()
    for name in ("x", "y"):
        begin(one, name, thread_id=name)
    for turn in "12":
        for name in ("x", "y"):
            one.on_chat_model_start({}, [], run_id=name + turn, parent_run_id=name, metadata={})
            meter.call(10, 5, response_id=f"id-{name + turn}")
            one.on_llm_end(answer(name + turn), run_id=name + turn)
    for name in ("x", "y"):
        one.on_chain_end({}, run_id=name)
    assert {run.run_id: meter.sink.usage(run.run_id).calls for run in meter.sink.runs} == {"x": 2, "y": 2}


def test_callers_come_from_the_names_of_agents_and_middlewares(meter: Meter, handler: type[Any]) -> None:
    """The agent in front, one that a tool of its asked, one that asked itself, and a step of a middleware; a tag wins,
    and so does the host's own word."""
    one = handler()
    begin(one, "outer", lc_agent_name="boss", name="boss")
    call(one, "a", "outer", lc_agent_name="boss")
    call(one, "m", "outer", lc_agent_name="boss", langgraph_node="Summary.before_model")
    one.on_tool_start({}, "", run_id="tool", parent_run_id="outer", metadata={"lc_agent_name": "boss"})
    begin(one, "expert", "tool", lc_agent_name="expert", name="expert")
    call(one, "b", "expert", lc_agent_name="expert")
    begin(one, "again", "tool", lc_agent_name="boss", name="boss")
    call(one, "c", "again", lc_agent_name="boss")
    one.on_chat_model_start({}, [], run_id="d", parent_run_id="expert", metadata={"lc_agent_name": "expert"})
    one.on_llm_end(answer("d"), run_id="d", tags=["lead_agent", "subagent:tagged"])
    with runmeter.caller("middleware:mine"):
        call(one, "e", "expert", lc_agent_name="expert")
    one.on_chain_end({}, run_id="outer")
    assert [found.caller for found in meter.sink.of("outer")] == [
        "lead_agent", "middleware:Summary", "subagent:expert", "subagent:boss", "subagent:tagged", "middleware:mine",
    ]  # fmt: skip


def test_a_handler_that_names_its_run_makes_no_other(meter: Meter, handler: type[Any]) -> None:
    """Also beside one that names none, whichever hears first."""
    for order in (1, -1):
        runs = [f"named {order}", None]
        both = [handler(run_id=run_id) for run_id in runs[::order]]
        for one in both:
            begin(one, f"outer {order}")
        for one in both:
            one.on_chat_model_start({}, [], run_id=f"c {order}", parent_run_id=f"outer {order}", metadata={})
        for one in both:
            one.on_llm_end(answer(f"c {order}"), run_id=f"c {order}")
        for one in both:
            one.on_chain_end({}, run_id=f"outer {order}")
        assert meter.sink.runs[-1].run_id == f"named {order}"
    assert len(meter.sink.runs) == 2


def test_the_same_id_again_is_another_run(meter: Meter, handler: type[Any]) -> None:
    """LangChain's ids may be given by the host, twice."""
    one = handler()
    for number in "12":
        begin(one, "outer")
        call(one, number, "outer")
        one.on_chain_end({}, run_id="outer")
    assert len({run.run_id for run in meter.sink.runs}) == 2


def test_a_span_of_an_instrumentation_of_langchain_around_it_is_of_its_run(meter: Meter, handler: type[Any]) -> None:
    """OpenLLMetry begins a graph's span before any callback, and says only then that it is an agent's."""
    tracer, one = meter.provider.get_tracer("opentelemetry.instrumentation.langchain"), handler()
    with tracer.start_as_current_span("invoke_agent boss") as span:
        span.set_attributes({"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "boss"})
        begin(one, "outer", thread_id="t")
        call(one, "a", "outer")
        one.on_chain_end({}, run_id="outer")
    assert [run.run_id for run in meter.sink.runs] == ["outer"]


@pytest.mark.parametrize("metadata", [None, 5, {}, {"thread_id": ""}, {"thread_id": None}, [("thread_id", "t")]])
def test_metadata_that_names_no_thread(metadata: Any) -> None:
    """And whatever else is there."""
    assert thread_of(metadata) is None
    assert thread_of({"thread_id": 7}) == "7"
    assert thread_of({"session_id": "s", "conversation_id": "c"}) == "s"
