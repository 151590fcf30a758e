"""The LlamaIndex hook: how it reads answers, and what it hears of events and spans. The real library, where it is
installed, is asked without a provider; real calls are in tests/live."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fake_sink import Meter

import runmeter
from runmeter.hooks import llama_index
from runmeter.hooks.invocations import Invocations
from runmeter.hooks.report import Memory


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    for name, fresh in (("_CALLS", Memory()), ("_PACKAGES", Memory()), ("_INVOCATIONS", Invocations())):
        monkeypatch.setattr(llama_index, name, fresh)
    found = Meter()
    yield found
    found.close()


def event(kind: str, span_id: str, **fields: Any) -> Any:
    return type(kind, (SimpleNamespace,), {})(span_id=span_id, **fields)


BaseLLM = type("BaseLLM", (), {})
OpenAI = type("OpenAI", (BaseLLM,), {"__module__": "llama_index.llms.openai.base"})
Mine = type("Mine", (OpenAI,), {"__module__": "mine"})
Embedding = type("Embedding", (type("BaseEmbedding", (), {}),), {"__module__": "llama_index.embeddings.openai.base"})
Local = type("Local", (type("BaseEmbedding", (), {}),), {"__module__": "llama_index.embeddings.huggingface.base"})
Agent = type("FunctionAgent", (type("BaseWorkflowAgent", (), {}),), {})
Tool = type("FunctionTool", (type("BaseTool", (), {}),), {})


def answer(number: int = 1, **usage: int) -> Any:
    raw = {"id": f"id-{number}", "model": "m", "usage": usage or {"prompt_tokens": 10, "completion_tokens": 5}}
    return SimpleNamespace(raw=raw)


def call(span_id: str, parent: str | None = None, number: int = 1, llm: Any = None) -> None:
    llama_index.entered(span_id, parent, llm or OpenAI(), None)
    llama_index.heard(event("LLMChatStartEvent", span_id, model_dict={"model_name": "asked"}, tags={}))
    llama_index.heard(event("LLMChatEndEvent", span_id, response=answer(number)))
    llama_index.left(span_id)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 9, "prompt_tokens_details": {"cached_tokens": 60},
          "completion_tokens_details": {"reasoning_tokens": 4}}, (100, 9, 60, 0, 4)),
        ({"input_tokens": 100, "output_tokens": 9, "input_tokens_details": {"cached_tokens": 60},
          "output_tokens_details": {"reasoning_tokens": 4}}, (100, 9, 60, 0, 4)),
        ({"input_tokens": 30, "output_tokens": 9, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 10},
         (100, 9, 60, 10, 0)),
        ({"inputTokens": 40, "outputTokens": 9, "cacheReadInputTokens": 60}, (100, 9, 60, 0, 0)),
    ],
    ids=["chat", "responses", "anthropic", "bedrock"],
)  # fmt: skip
def test_usage_is_read_in_the_providers_words(usage: dict[str, Any], expected: tuple[int, ...]) -> None:
    """Inclusive counts, from the provider's own answer."""
    told = llama_index.usage_from(SimpleNamespace(raw={"id": "x", "model": "m", "usage": usage}))
    assert told[:7] == (None, "m", *expected)
    assert told.call_id == "x"


def test_gemini_counts_thoughts_apart() -> None:
    """Here they are a part of the output."""
    usage = {"prompt_token_count": 10, "candidates_token_count": 5, "thoughts_token_count": 3,
             "cached_content_token_count": 4}  # fmt: skip
    told = llama_index.usage_from(SimpleNamespace(raw={"usage_metadata": usage, "model_version": "gemini"}))
    assert told[1:7] == ("gemini", 10, 8, 4, 0, 3)


def test_an_answer_without_usage_is_not_taken_for_a_free_one() -> None:
    """None rather than zeros; what LlamaIndex counted for itself is taken where the answer is not kept."""
    assert llama_index.usage_from(SimpleNamespace(raw=None)).input_tokens is None
    assert llama_index.usage_from(None).input_tokens is None
    kept = SimpleNamespace(raw=None, additional_kwargs={"prompt_tokens": 3, "completion_tokens": 2})
    assert llama_index.usage_from(kept)[2:4] == (3, 2)


def test_a_call_is_counted_by_its_events(meter: Meter) -> None:
    """With the provider's name, from the package that asked, also under a class of the program's own."""
    with runmeter.run(run_id="r"):
        call("a", llm=Mine())
    assert [(one.provider, one.model, one.usage.total_tokens) for one in meter.sink.of("r")] == [("openai", "m", 15)]


def test_the_usage_of_a_stream_may_come_before_its_end(meter: Meter) -> None:
    """And a stream that breaks has failed; what nobody asked usage for is a call without."""
    with runmeter.run(run_id="r"):
        for number, last in enumerate((answer(7), SimpleNamespace(raw={"id": "id-8"}))):
            span_id = f"s{number}"
            llama_index.heard(event("LLMChatStartEvent", span_id, model_dict={}, tags={}))
            llama_index.heard(event("LLMChatInProgressEvent", span_id, response=last))
            llama_index.heard(event("LLMChatEndEvent", span_id, response=SimpleNamespace(raw={"id": f"id-{number}"})))
        llama_index.heard(event("LLMChatStartEvent", "x", model_dict={}, tags={}))
        llama_index.heard(event("ExceptionEvent", "x"))
        llama_index.heard(event("LLMChatEndEvent", "x", response=answer(9)))
    usage = meter.sink.usage("r")
    assert (usage.calls, usage.calls_without_usage, usage.failures, usage.total_tokens) == (2, 1, 1, 15)


def test_the_outermost_span_is_a_run_of_its_thread(meter: Meter) -> None:
    """An agent's; one that a tool of it runs is a subagent."""
    llama_index.entered("FunctionAgent.run-1", None, Agent(), {"thread_id": "t"})
    llama_index.entered("step", "FunctionAgent.run-1", None, {})
    call("a", "step", 1)
    tool, inner = Tool(), Agent()
    llama_index.entered("tool", "step", tool, None)
    inner.name = "expert"
    llama_index.entered("FunctionAgent.run-2", "tool", inner, None)
    call("b", "FunctionAgent.run-2", 2)
    for span_id in ("FunctionAgent.run-2", "tool", "step", "FunctionAgent.run-1"):
        llama_index.left(span_id)
    (info,) = meter.sink.runs
    assert (info.thread_id, info.status) == ("t", "success")
    assert meter.sink.usage(info.run_id).calls == 2


def test_agents_in_agents_are_subagents_and_an_error_is_one(meter: Meter) -> None:
    """By the names they were given."""
    boss, expert = Agent(), Agent()
    boss.name, expert.name = "boss", "expert"
    llama_index.entered("FunctionAgent.run-1", None, boss, None)
    call("a", "FunctionAgent.run-1", 1)
    llama_index.entered("tool", "FunctionAgent.run-1", Tool(), None)
    llama_index.entered("FunctionAgent.run-2", "tool", expert, None)
    call("b", "FunctionAgent.run-2", 2)
    llama_index.left("FunctionAgent.run-1", ValueError())
    (info,) = meter.sink.runs
    assert (info.agent, info.status) == ("boss", "error")
    assert [one.caller for one in meter.sink.of(info.run_id)] == ["lead_agent", "subagent:expert"]


def test_an_embedding_and_its_client_s_span_are_one_call(meter: Meter) -> None:
    """Without the client's it is a call without usage; one that is computed here is none."""
    with runmeter.run(run_id="r"):
        for number in (1, 2):
            llama_index.entered(f"e{number}", None, Embedding(), None)
            llama_index.heard(event("EmbeddingStartEvent", f"e{number}", model_dict={"model_name": "m"}, tags={}))
            if number == 1:
                meter.call(10, 0)
            llama_index.heard(event("EmbeddingEndEvent", f"e{number}"))
            llama_index.left(f"e{number}")
        llama_index.entered("local", None, Local(), None)
        llama_index.heard(event("EmbeddingStartEvent", "local", model_dict={}, tags={}))
        llama_index.heard(event("EmbeddingEndEvent", "local"))
    usage = meter.sink.usage("r")
    assert (usage.calls, usage.calls_without_usage, usage.input_tokens) == (2, 1, 10)


def test_the_real_library_tells_what_the_hook_reads(meter: Meter) -> None:
    """Its own model that asks nobody, through its own dispatcher."""
    pytest.importorskip("llama_index.core", reason="llama-index-core is not installed")
    from llama_index.core.llms import MockLLM

    assert llama_index.install()
    try:
        with runmeter.run(run_id="r"):
            MockLLM().complete("hello")
            list(MockLLM().stream_complete("hello"))
    finally:
        llama_index.uninstall()
    assert meter.sink.usage("r").calls_without_usage == 2
