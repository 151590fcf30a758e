"""Hooks: one table of scenarios for all of them, then what each promises. The real frameworks are in tests/live."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_sink import Meter
from hypothesis import given
from hypothesis import strategies as st

import runmeter
from runmeter.hooks import claude_agent_sdk, dspy, langchain, litellm, openai_agents, pydantic_ai
from runmeter.hooks.messages import Unanswered
from runmeter.hooks.report import Memory, Told, field, report

HOOKS = {
    "langchain": "langchain_core", "litellm": "litellm", "openai_agents": "agents", "pydantic_ai": "pydantic_ai",
    "claude_agent_sdk": "claude_agent_sdk", "dspy": "dspy", "llama_index": "llama_index",
}  # fmt: skip


def space(value: Any) -> Any:
    """Nested dicts as objects, as the frameworks' own classes are; `usage` of LangChain stays the dict it is."""
    return SimpleNamespace(**{k: space(v) for k, v in value.items()}) if isinstance(value, dict) else value


def langchain_result(usage: dict[str, Any] | None, **meta: Any) -> Any:
    message = SimpleNamespace(usage_metadata=usage, response_metadata=meta, id="lc_run--7-0")
    return SimpleNamespace(generations=[[SimpleNamespace(message=message)]], llm_output=None)


def lc(given: int, answered: int, read: int = 0, reasoning: int = 0) -> Any:
    usage = {"input_tokens": given, "output_tokens": answered, "total_tokens": given + answered,
             "input_token_details": {"cache_read": read}, "output_token_details": {"reasoning": reasoning}}  # fmt: skip
    return langchain_result(usage, model_name="gpt-5-mini", model_provider="openai", id="chatcmpl-1")


def lite(given: int, answered: int, read: int = 0, reasoning: int = 0) -> Any:
    usage = {"prompt_tokens": given, "completion_tokens": answered, "prompt_tokens_details": {"cached_tokens": read},
             "completion_tokens_details": {"reasoning_tokens": reasoning}}  # fmt: skip
    return space({"id": "chatcmpl-1", "model": "gpt-5-mini", "usage": usage})


def result(given: int, answered: int, read: int = 0, reasoning: int = 0, **more: Any) -> Any:
    usage = {"prompt_tokens": given, "completion_tokens": answered, "prompt_tokens_details": {"cached_tokens": read},
             "completion_tokens_details": {"reasoning_tokens": reasoning}}  # fmt: skip
    raw = SimpleNamespace(id="chatcmpl-1", **more)
    return SimpleNamespace(usage=usage, raw=raw, response_model="gpt-5-mini")


def agents(given: int, answered: int, read: int = 0, reasoning: int = 0) -> Any:
    usage = {"input_tokens": given, "output_tokens": answered, "input_tokens_details": {"cached_tokens": read},
             "output_tokens_details": {"reasoning_tokens": reasoning}}  # fmt: skip
    return space({"type": "response", "response": {"id": "chatcmpl-1", "model": "gpt-5-mini", "usage": usage}})


def pydantic(given: int, answered: int, read: int = 0, reasoning: int = 0) -> Any:
    details = {"reasoning_tokens": reasoning}
    usage = SimpleNamespace(input_tokens=given, output_tokens=answered, cache_read_tokens=read, details=details)
    return SimpleNamespace(
        usage=usage, model_name="gpt-5-mini", provider_name="openai", provider_response_id="chatcmpl-1"
    )


def claude(given: int, answered: int, read: int = 0, reasoning: int = 0) -> Any:
    usage = {"input_tokens": given - read, "output_tokens": answered, "cache_read_input_tokens": read}
    models = {"claude-haiku-5": {"outputTokens": 0}, "claude-sonnet-5": {"outputTokens": answered + 1}}
    return ResultMessage(usage=usage, model_usage=models, num_turns=3, uuid="chatcmpl-1", session_id="s")


class ResultMessage(SimpleNamespace):
    """By its name the hook knows it."""


READ: dict[str, tuple[Callable[..., Any], Callable[[Any], Told], str]] = {
    "langchain": (lc, langchain.usage_from, "gpt-5-mini"),
    "litellm": (lite, lambda r: litellm.usage_from({"custom_llm_provider": "openai"}, r), "gpt-5-mini"),
    "openai_agents": (agents, openai_agents.usage_from, "gpt-5-mini"),
    "pydantic_ai": (pydantic, pydantic_ai.usage_from, "gpt-5-mini"),
    "dspy": (result, dspy.usage_from, "gpt-5-mini"),
    "claude_agent_sdk": (claude, claude_agent_sdk.usage_from, "claude-sonnet-5"),
}


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    yield found
    found.close()


@pytest.mark.parametrize("hook", READ)
@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1011, 107), (1011, 107, 0, 0)),
        ((1011, 107, 65), (1011, 107, 65, 0)),
        ((1011, 107, 65, 13), (1011, 107, 65, 13)),
        ((1011, 0, 1011), (1011, 0, 1011, 0)),
    ],
    ids=["plain", "cached", "reasoning", "all cached, no answer"],
)
def test_every_hook_reads_the_same_usage(hook: str, counts: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Inclusive counts, the model and the id that joins the call with what others saw of it."""
    make, read, model = READ[hook]
    told = read(make(*counts))
    reasoning = 0 if hook == "claude_agent_sdk" else told.reasoning_tokens
    wanted = expected[:3] + ((0,) if hook == "claude_agent_sdk" else expected[3:])
    assert (told.input_tokens, told.output_tokens, told.cache_read_tokens, reasoning) == wanted
    assert (told.model, told.call_id) == (model, "chatcmpl-1")


@pytest.mark.parametrize(
    ("hook", "silent"),
    [
        ("langchain", langchain_result(None, model_name="m")),
        ("litellm", space({"id": "x", "model": "m"})),
        ("openai_agents", space({"model": "m", "usage": {"input_tokens": 0, "output_tokens": 0}})),
        ("pydantic_ai", space({"model_name": "m", "usage": {"input_tokens": 0, "output_tokens": 0}})),
        ("dspy", SimpleNamespace(usage={}, raw=None, response_model="m")),
        ("claude_agent_sdk", ResultMessage(usage=None, model_usage={"m": {}}, num_turns=1)),
    ],
)
def test_an_answer_without_usage_is_not_taken_for_a_free_one(hook: str, silent: Any) -> None:
    """No counts rather than zeros: it becomes a call without usage."""
    told = READ[hook][1](silent)
    assert (told.input_tokens, told.output_tokens, told.model) == (None, None, "m")


@given(
    st.sampled_from(sorted(READ)),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text() | st.booleans(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
            st.sampled_from(["usage", "input_tokens", "output_tokens", "id", "model", "response", "details"]), inner
        ),
        max_leaves=8,
    ),
)
def test_hostile_shapes_count_nothing_negative(hook: str, shape: Any) -> None:
    """What a framework may change into tomorrow is refused inside the hook, never in the host."""
    try:
        told = READ[hook][1](shape)
    except (TypeError, AttributeError, ValueError):
        return  # kept from the host by `harmless` in every path that a framework calls
    for count in (told.input_tokens, told.output_tokens, told.cache_read_tokens, told.reasoning_tokens):
        assert count is None or count >= 0


@pytest.mark.parametrize(("hook", "framework"), HOOKS.items())
def test_a_missing_framework_gives_the_pip_line(
    hook: str, framework: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`install()` answers False and logs the line; nothing is raised; `uninstall()` is harmless, too."""
    for name in [one for one in sys.modules if one.split(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    module = import_module(f"runmeter.hooks.{hook}")
    for cached in ("_register", "_logger", "_handler_class", "_handlers"):
        getattr(getattr(module, cached, None), "cache_clear", lambda: None)()
    with caplog.at_level(logging.WARNING, "runmeter"):
        assert module.install() is False
    assert module.PIP in caplog.text
    assert module.PIP.startswith("pip install ")
    module.uninstall()


def test_hooks_import_no_framework() -> None:
    """Importing a hook costs what importing runmeter costs."""
    import subprocess

    code = (
        f"import sys\nfor hook in {list(HOOKS)}: __import__('runmeter.hooks.' + hook)\n"
        f"print([name for name in {list(HOOKS.values())} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


# --- LangChain


@pytest.fixture
def handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The handler class over a stand-in for LangChain's base, where LangChain is not installed."""
    package, callbacks = ModuleType("langchain_core"), ModuleType("langchain_core.callbacks")
    callbacks.BaseCallbackHandler = type("BaseCallbackHandler", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "langchain_core", package)
    monkeypatch.setitem(sys.modules, "langchain_core.callbacks", callbacks)
    langchain._handler_class.cache_clear()
    monkeypatch.setattr(langchain, "_CALLS", Memory())
    monkeypatch.setattr(langchain, "_WAITING", Unanswered())
    yield langchain.UsageCallbackHandler
    langchain._handler_class.cache_clear()


def test_callers_come_from_tags(meter: Meter, handler: type[Any]) -> None:
    """The innermost tag names the caller; without one the spans around the call do."""
    with runmeter.run(run_id="r"):
        for number, tags in enumerate((None, ["x"], ["lead_agent"], ["lead_agent", "subagent:a"], ["middleware:m"])):
            handler().on_chat_model_start({}, [], run_id=number)
            handler().on_llm_end(_answer(number), run_id=number, tags=tags)
    assert [call.caller for call in meter.sink.of("r")] == [
        "lead_agent", "lead_agent", "lead_agent", "subagent:a", "middleware:m",
    ]  # fmt: skip


def _answer(number: int) -> Any:
    usage = {"input_tokens": 10, "output_tokens": 5}
    return langchain_result(usage, model_name="m", id=f"id-{number}")


def test_two_handlers_on_one_call_count_it_once(meter: Meter, handler: type[Any]) -> None:
    """Deduplicated by LangChain's run id, whichever handler hears of it, and however often."""
    with runmeter.run(run_id="r"):
        for one in (handler(), handler()):
            one.on_llm_start({}, [], run_id="same")
        for one in (handler(), handler()):
            one.on_llm_end(lc(10, 5), run_id="same")
    assert meter.sink.usage("r").calls == 1


def test_a_hook_and_an_instrumentation_of_the_client_count_once(meter: Meter, handler: type[Any]) -> None:
    """With the provider's id in both, and, as streams have it, without one."""
    for run_id, shared in (("with", "chatcmpl-1"), ("without", None)):
        with runmeter.run(run_id=run_id):
            handler().on_chat_model_start({}, [], run_id=run_id)
            meter.call(10, 5, model="gpt-5-mini", response_id=shared or "chatcmpl-2")
            answer = lc(10, 5)
            if shared is None:
                del answer.generations[0][0].message.response_metadata["id"]
            handler().on_llm_end(answer, run_id=run_id, tags=["subagent:x"])
        assert meter.sink.usage(run_id).calls == 1
        assert [call.caller for call in meter.sink.of(run_id)] == ["subagent:x"]


def test_worker_threads_without_an_event_loop_count(meter: Meter, handler: type[Any]) -> None:
    """A bare thread loses the context; a handler that was given the run id finds its run."""
    with runmeter.run(run_id="r"):
        one = handler(run_id="r")

        def work() -> None:
            one.on_llm_start({}, [], run_id="w")
            one.on_llm_end(lc(10, 5), run_id="w", tags=["subagent:w"])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert [(call.caller, call.usage.input_tokens) for call in meter.sink.of("r")] == [("subagent:w", 10)]


def test_external_records_count_once_by_their_source_id(meter: Meter, handler: type[Any]) -> None:
    """Usage of subagents that ran elsewhere; a source id that was seen in this run adds nothing, in another it does."""
    record = {"source_run_id": "s", "caller": "subagent:c", "model_name": "m", "input_tokens": 7, "output_tokens": 3}
    for run_id in ("r", "other"):
        with runmeter.run(run_id=run_id):
            one = handler(run_id=run_id)
            one.record_external_llm_usage_records([record, record])
            one.record_external([record, {**record, "source_run_id": "sibling"}])
        assert [(call.caller, call.model, call.usage.total_tokens) for call in meter.sink.of(run_id)] == [
            ("subagent:c", "m", 10), ("subagent:c", "m", 10),
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "caller", "counted"),
    [
        ({"total_tokens": 12}, "lead_agent", (12, 0)),
        ({"total_tokens": 12, "output_tokens": 5, "caller": "middleware:title"}, "middleware:title", (7, 5)),
        ({"total_tokens": 0, "input_tokens": 7, "output_tokens": 3}, "lead_agent", (7, 3)),
        ({"input_tokens": 7, "output_tokens": None, "caller": "somebody"}, "lead_agent", (7, 0)),
        ({"total_tokens": 12, "input_tokens": 7, "output_tokens": 3, "caller": "subagent:c"}, "subagent:c", (9, 3)),
    ],
)
def test_external_records_are_taken_in_the_shapes_of_deer_flow(
    meter: Meter, handler: type[Any], record: dict[str, Any], caller: str, counted: tuple[int, int]
) -> None:
    """`total_tokens` alone is a total; who is neither subagent nor middleware is the lead agent; no message is told."""
    with runmeter.run(run_id="r"):
        handler(run_id="r").record_external_llm_usage_records([{"source_run_id": "s", **record}])
    (call,) = meter.sink.of("r")
    assert (call.caller, call.usage[:2], call.usage.messages) == (caller, counted, 0)


@pytest.mark.parametrize(
    "record",
    [
        {"source_run_id": "", "total_tokens": 5},
        {"total_tokens": 5},
        {"source_run_id": None, "total_tokens": 5},
        {"source_run_id": "s"},
        {"source_run_id": "s", "total_tokens": 0, "input_tokens": 0, "output_tokens": None},
        {"source_run_id": "s", "total_tokens": -5},
    ],
)
def test_external_records_without_source_or_usage_are_skipped(
    meter: Meter, handler: type[Any], record: dict[str, Any]
) -> None:
    """And an empty one does not use its source id up: usage that comes under it later counts."""
    with runmeter.run(run_id="r"):
        one = handler(run_id="r")
        one.record_external_llm_usage_records([record])
        assert meter.sink.usage("r").calls == 0
        one.record_external_llm_usage_records([{"source_run_id": "s", "total_tokens": 5}])
    assert meter.sink.usage("r").total_tokens == 5


# What LangChain hands to callbacks, by the fields that matter.
HUMAN, SUMMARY = SimpleNamespace(type="human", name=None), SimpleNamespace(type="human", name="summary")
SYSTEM, RESULT = SimpleNamespace(type="system", name=None), SimpleNamespace(type="tool")


def test_messages_are_counted_as_deer_flow_counts_them(meter: Meter, handler: type[Any]) -> None:
    """The first human message, what models answered and what tools returned: 14 where eight calls used five tools."""
    with runmeter.run(run_id="r"):
        one = handler()
        for number in range(8):
            one.on_chat_model_start({}, [[SYSTEM, HUMAN]], run_id=number)
            one.on_llm_end(_answer(number), run_id=number)
            if number < 5:
                for heard in (one, handler()):
                    heard.on_tool_end(RESULT, run_id=f"tool {number}")
    assert (meter.sink.usage("r").messages, meter.sink.usage("r").calls) == (14, 8)


def test_messages_that_no_call_carries_any_more_are_added(meter: Meter, handler: type[Any]) -> None:
    """A tool whose result is the answer, or that a command hands back, counts when the outermost chain ends."""
    command = SimpleNamespace(update={"messages": [RESULT, HUMAN, "text", {"type": "tool"}]})
    for number, ending in enumerate(("on_chain_end", "on_chain_error")):
        with runmeter.run(run_id=ending):
            one = handler()
            one.on_chat_model_start({}, [[HUMAN]], run_id=f"{ending} llm")
            one.on_llm_end(_answer(number), run_id=f"{ending} llm")
            one.on_tool_end(command, run_id=f"{ending} tool")
            one.on_tool_end("text", run_id=f"{ending} other tool")
            getattr(one, ending)(RuntimeError(), run_id="inner", parent_run_id="outer")
            assert meter.sink.usage(ending).messages == 2
            for _ in range(2):
                getattr(one, ending)(RuntimeError(), run_id="outer")
        assert (meter.sink.usage(ending).messages, meter.sink.usage(ending).calls) == (4, 1)


def test_a_summary_is_no_question_and_a_failed_attempt_carries_nothing(meter: Meter, handler: type[Any]) -> None:
    """What waits goes to the attempt that is answered; each of several answers counts."""
    two = lc(10, 5)
    two.generations.append(two.generations[0])
    with runmeter.run(run_id="r"):
        one = handler()
        one.on_chat_model_start({}, [[SYSTEM, SUMMARY]], run_id="s")
        one.on_llm_end(_answer(1), run_id="s")
        assert meter.sink.usage("r").messages == 1
        one.on_chat_model_start({}, [[HUMAN]], run_id="f")
        one.on_llm_error(RuntimeError("no"), run_id="f")
        one.on_chat_model_start({}, [[HUMAN]], run_id="g")
        one.on_llm_end(two, run_id="g")
    assert meter.sink.usage("r").messages == 4


def test_a_failed_call_is_a_failed_attempt(meter: Meter, handler: type[Any]) -> None:
    """No call, one failure, and what it belongs to."""
    with runmeter.run(run_id="r"):
        handler().on_llm_start({}, [], run_id="f")
        handler().on_llm_error(RuntimeError("no"), run_id="f")
    assert (meter.sink.usage("r").calls, meter.sink.usage("r").failures) == (0, 1)


def test_what_a_handler_cannot_read_does_not_reach_the_host(meter: Meter, handler: type[Any]) -> None:
    """A result of another shape is counted as a call without usage, or not at all; nothing is raised."""
    with runmeter.run(run_id="r"):
        for number, result in enumerate((None, 5, SimpleNamespace(generations=[[]], llm_output=None))):
            handler().on_llm_start({}, [], run_id=number)
            handler().on_llm_end(result, run_id=number)
    assert meter.sink.usage("r").total_tokens == 0


def test_older_models_word_their_usage_in_llm_output() -> None:
    """`token_usage` in OpenAI's words, where a message has no usage_metadata."""
    old = SimpleNamespace(
        generations=[[SimpleNamespace(text="x")]],
        llm_output={"token_usage": {"prompt_tokens": 3, "completion_tokens": 2}, "model_name": "m"},
    )
    assert langchain.usage_from(old)[:4] == (None, "m", 3, 2)


# --- LiteLLM


def test_litellm_calls_back_from_its_own_thread_into_the_right_run(
    meter: Meter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a call belongs is remembered when it is sent; both of its paths tell of it, and it counts once."""
    monkeypatch.setattr(litellm, "_CALLS", Memory())
    kwargs = {"litellm_call_id": "c", "custom_llm_provider": "openai"}
    moment = datetime.now(UTC)
    with runmeter.run(run_id="r"):
        litellm._sent(kwargs)
        for _ in range(2):
            thread = threading.Thread(target=litellm._answered, args=(kwargs, lite(10, 5), moment, moment, False))
            thread.start()
            thread.join()
    assert [(call.provider, call.usage.input_tokens) for call in meter.sink.of("r")] == [("openai", 10)]


def test_litellm_attempts_count_apart_and_its_cache_not_at_all(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry keeps LiteLLM's call id; an answer from its cache cost nothing; chunks on their way say nothing yet."""
    monkeypatch.setattr(litellm, "_CALLS", Memory())
    kwargs = {"litellm_call_id": "c"}
    with runmeter.run(run_id="r"):
        litellm._sent(kwargs)
        litellm._answered(kwargs, None, datetime.now(UTC), datetime.now(UTC), True)
        litellm._answered(kwargs | {"stream": True}, space({"id": "x"}), None, None, False)
        litellm._answered(kwargs | {"cache_hit": True}, lite(9, 9), None, None, False)
        litellm._answered(kwargs, lite(10, 5), None, None, False)
    usage = meter.sink.usage("r")
    assert (usage.calls, usage.failures, usage.total_tokens) == (1, 1, 15)


def test_litellm_adds_cache_counts_that_stand_beside_the_input() -> None:
    """More cached than sent cannot be inclusive."""
    cached = {"cache_read_input_tokens": 90, "cache_creation_input_tokens": 5}
    usage = {"prompt_tokens": 10, "completion_tokens": 1, **cached}
    told = litellm.usage_from({}, space({"id": "x", "model": "m", "usage": usage}))
    assert (told.input_tokens, told.cache_read_tokens, told.cache_write_tokens) == (105, 90, 5)


def test_litellm_tells_the_hook_before_its_own_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was installed first, and also where calls were made before: its lists of callbacks have a copy then."""
    stand_in: Any = SimpleNamespace(callbacks=["otel"], success_callback=["otel"], _async_success_callback=[])
    monkeypatch.setitem(sys.modules, "litellm", stand_in)
    monkeypatch.setattr(litellm, "_logger", lambda: "ours")
    assert litellm.install()
    assert litellm.install()
    assert (stand_in.callbacks, stand_in.success_callback) == (["ours", "otel"], ["ours", "otel"])
    assert stand_in._async_success_callback == []  # LiteLLM fills it in the order of `callbacks`
    litellm.uninstall()
    assert (stand_in.callbacks, stand_in.success_callback) == (["otel"], ["otel"])


# --- DSPy


LM = SimpleNamespace(model="openai/gpt-5-mini")


def attempt(*results: Any, inner: Callable[[], Any] | None = None, managed: bool = True, error: str = "") -> Any:
    """What DSPy does once for each attempt, wrapped as the hook wraps it."""

    def original(lm: Any, call: Any, backend: Any, request: Any, provider: Any, state: Any, found: list[Any]) -> None:
        if inner is not None:
            inner()
        found.extend(results)
        if error:
            raise RuntimeError(error)

    return dspy._attempt(original)(LM, SimpleNamespace(managed=managed), None, None, None, None, [])


def test_an_attempt_of_dspy_is_a_call_and_one_that_failed_is_none(meter: Meter) -> None:
    """An answer that DSPy could not convert was given, and paid for, all the same."""
    with runmeter.run(run_id="r"):
        attempt(result(10, 5))
        for answers in ((), (SimpleNamespace(usage={"prompt_tokens": 7}, raw=None, response_model=None),)):
            with pytest.raises(RuntimeError, match="gone"):
                attempt(*answers, error="gone")
    usage = meter.sink.usage("r")
    assert (usage.calls, usage.failures, usage.input_tokens) == (2, 1, 17)
    assert {(call.provider, call.model) for call in meter.sink.of("r")} == {("openai", "gpt-5-mini")}


def test_a_model_of_ones_own_that_asks_another_is_one_call(meter: Meter) -> None:
    """The attempt of the inner one counts, or nothing where that was answered from DSPy's cache."""
    with runmeter.run(run_id="r"):
        attempt(result(10, 5), inner=lambda: attempt(result(10, 5)), managed=False)
        attempt(result(10, 5, cache_hit=True), managed=False)
    assert (meter.sink.usage("r").calls, meter.sink.usage("r").total_tokens) == (1, 15)


def test_dspys_threads_work_in_the_run_of_their_caller(meter: Meter) -> None:
    """They have none of its context."""

    def execute(_: Any, function: Callable[[Any], Any], data: list[Any]) -> None:
        for item in data:
            thread = threading.Thread(target=function, args=(item,))
            thread.start()
            thread.join()

    with runmeter.run(run_id="r"):
        dspy._carrying(execute)(None, lambda _: attempt(result(10, 5)), [1])
    assert meter.sink.usage("r").calls == 1


# --- OpenAI Agents


def trace(**more: Any) -> Any:
    return SimpleNamespace(**({"trace_id": "t", "group_id": "g"} | more))


def agent_span(span_id: str, parent: str | None, **data: Any) -> Any:
    moment = datetime.now(UTC).isoformat()
    return SimpleNamespace(
        span_id=span_id, parent_id=parent, trace_id="t", span_data=SimpleNamespace(**data), error=None,
        started_at=moment, ended_at=moment,
    )  # fmt: skip


def walk(traces: openai_agents.Traces, *spans: Any) -> None:
    for span in spans:
        traces.span_begins(span)
    for span in reversed(spans):
        traces.span_ends(span)


def test_a_trace_of_the_agents_sdk_is_a_run_of_its_group(meter: Meter) -> None:
    """Where no run is in force; an agent as a tool of another is a subagent, a handoff's target is the lead."""
    traces = openai_agents.Traces()
    traces.trace_begins(trace())
    walk(traces, agent_span("a", None, type="agent", name="boss"), agent_span("f", "a", type="function", name="ask"),
         agent_span("b", "f", type="agent", name="expert"), agent_span("c", "b", **vars(agents(10, 5))))  # fmt: skip
    second = agents(20, 5)
    second.response.id = "chatcmpl-2"
    walk(traces, agent_span("h", None, type="agent", name="other"), agent_span("d", "h", **vars(second)))
    traces.trace_ends(trace())
    [info] = meter.sink.runs
    assert (info.thread_id, info.status) == ("g", "success")
    assert sorted((c.caller, c.usage.input_tokens) for c in meter.sink.of(info.run_id)) == [
        ("lead_agent", 20), ("subagent:expert", 10),
    ]  # fmt: skip


def test_a_trace_inside_a_run_belongs_to_it(meter: Meter) -> None:
    """And failed calls are failures."""
    traces = openai_agents.Traces()
    with runmeter.run(run_id="r"):
        traces.trace_begins(trace())
        span = agent_span("c", None, type="generation", model="m", usage=None)
        span.error = {"message": "no"}
        walk(traces, span)
        traces.trace_ends(trace())
    assert [info.run_id for info in meter.sink.runs] == ["r"]
    assert meter.sink.usage("r").failures == 1


# --- Claude Agent SDK


def test_a_result_message_is_one_call_with_its_turns(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heard twice it counts once; other messages are none of our business."""
    monkeypatch.setattr(claude_agent_sdk, "_SEEN", Memory())
    with runmeter.run(run_id="r"):
        claude_agent_sdk.heard(claude(100, 7, 60))
        claude_agent_sdk.heard(claude(100, 7, 60))
        claude_agent_sdk.heard(SimpleNamespace(usage={"input_tokens": 5}))
    [call] = meter.sink.of("r")
    assert call.usage[:3] == (100, 7, 60)
    assert (call.usage.messages, call.model, call.provider) == (3, "claude-sonnet-5", "anthropic")


# --- what they share


def test_a_memory_is_bounded() -> None:
    """The oldest goes first, and a key that was forgotten may count again rather than memory grow."""
    memory = Memory(limit=2)
    for key in "abc":
        memory.begin(key, key)
        assert memory.first_time(key)
    assert memory.take("a") is None
    assert memory.peek("b") == "b"
    assert not memory.first_time("c")
    assert memory.first_time("a")


def test_fields_are_read_from_mappings_and_objects_alike() -> None:
    """A path that ends early is None."""
    value = SimpleNamespace(a={"b": SimpleNamespace(c=5)})
    assert (field(value, "a", "b", "c"), field(value, "a", "x", "c"), field(None, "a")) == (5, None, None)


def test_without_instrument_a_hook_does_nothing() -> None:
    """It says so in the log, once, and raises nothing."""
    report(Told(model="m", input_tokens=1), runmeter.hooks.report.now())
