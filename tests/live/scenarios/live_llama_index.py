"""LlamaIndex: chat, completion, streams, embeddings, an agent with tools, one with a subagent; with and without a run
around them."""

from __future__ import annotations

import asyncio
from typing import Any

from harness import live
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.instrumentation.dispatcher import instrument_tags
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.llms.openai import OpenAI, OpenAIResponses
from own import own as runs

NO_CALLS = "it writes no span with usage for a call: a run without calls"
BEYOND = "neither it nor the client names LlamaIndex's threads and agents"
PREPARES = "it writes one more model span, without usage, for the preparing of each call with tools"
STREAMS = "its span of a stream and the client's are not known for the same"
COUNTS = ("calls", "input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens", "calls_without_usage")
RUNS = ("threads", "agent", "callers", "status")
LOOSE: dict[str, dict[str, str]] = {
    "hook+openinference": {"calls": PREPARES, "calls_without_usage": PREPARES, "callers": PREPARES, **dict.fromkeys(
        ("input_tokens", "output_tokens", "cache_read_tokens", "reasoning_tokens"), STREAMS)},
    "openai": dict.fromkeys(RUNS, BEYOND),
    "genai+openai": dict.fromkeys(RUNS, BEYOND), "openllmetry+openai": dict.fromkeys(RUNS, BEYOND),
    "own+openai": dict.fromkeys(RUNS, BEYOND),
    "openinference": {**dict.fromkeys(RUNS, BEYOND), **dict.fromkeys(COUNTS, PREPARES)},
    "openinference+openai": {**dict.fromkeys(RUNS, BEYOND), **dict.fromkeys(COUNTS, f"{PREPARES}; {STREAMS}")},
    **{name: dict.fromkeys((*COUNTS, *RUNS), NO_CALLS) for name in ("genai", "openllmetry", "own")},
}  # fmt: skip

with live() as scenario:
    modes = scenario.modes
    if "hook" in modes:
        from runmeter.hooks import llama_index as hook

        assert hook.install()
    if "genai" in modes:
        from opentelemetry.instrumentation.genai.llama_index import LlamaIndexInstrumentor

        LlamaIndexInstrumentor().instrument()
    if "openinference" in modes:
        from openinference.instrumentation.llama_index import LlamaIndexInstrumentor as OpenInference

        OpenInference().instrument()
    if "openllmetry" in modes:
        from opentelemetry.instrumentation.llamaindex import LlamaIndexInstrumentor as OpenLLMetry

        OpenLLMetry().instrument()
    if "own" in modes:
        from llama_index.observability.otel import LlamaIndexOpenTelemetry
        from opentelemetry.trace import get_tracer_provider

        LlamaIndexOpenTelemetry(tracer_provider=get_tracer_provider()).start_registering()
    if "openai" in modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    loose = LOOSE.get("+".join(modes), {})
    asks = {"api_base": scenario.provider.openai_url, "api_key": "none", "max_retries": 0}
    usage = {"additional_kwargs": {"stream_options": {"include_usage": True}}}

    def own(*args: Any, **more: Any) -> Any:
        return runs(scenario, *args, **more, loose=loose)

    def say(text: str) -> list[ChatMessage]:
        return [ChatMessage(role="user", content=text)]

    def model(**more: Any) -> OpenAI:
        return OpenAI(model="gpt-5-mini", **asks, **more)

    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    async def ask_expert(question: str) -> str:
        """Ask another agent."""
        expert = FunctionAgent(name="expert", tools=[look_up], llm=model(**usage))
        return str(await expert.run(f'{question} [[tool look_up {{"q": "inner"}}]]'))

    why = loose.get("calls") or loose.get("input_tokens")
    # In a run of the host's only what a mode gets wrong there; the runs' own threads and agents are below.
    streams = why if modes != ["openinference"] and modes != ["hook", "openinference"] else None
    plain = why if "openinference" not in modes else None
    unsaid = "it leaves cache and reasoning out" if modes == ["openinference"] else plain

    with scenario.case("chat", impossible=plain):
        for i in range(3):
            model().chat(say(f"hello {i}"))
    with scenario.case("complete", impossible=plain):
        model().complete("hello")
    with scenario.case("responses", impossible=unsaid):
        OpenAIResponses(model="gpt-5-mini", **asks).chat(say("hello"))
    with scenario.case("stream_with_usage", impossible=streams):
        for _ in model(**usage).stream_chat(say("hello")):
            pass
    with scenario.case("stream_without_usage", impossible=streams):
        for _ in model().stream_chat(say("hello")):
            pass
    with scenario.case("stream_complete", impossible=streams):
        for _ in model(**usage).stream_complete("hello"):
            pass
    with scenario.case("embeddings", impossible=None if "openai" in modes else "no event has an embedding's usage"):
        OpenAIEmbedding(**asks).get_text_embedding_batch(["one", "two"])
    with scenario.case("error_then_our_retry", impossible=plain):
        try:
            model().chat(say("[[fail 500]]"))
        except Exception:
            model().chat(say("[[fail 500]]"))

    async def agents() -> None:
        with scenario.case("achat_at_once", impossible=plain):
            await asyncio.gather(*[model().achat(say(f"hello {i}")) for i in range(3)])
        with scenario.case("agent", impossible=why):
            await FunctionAgent(name="boss", tools=[look_up], llm=model(**usage)).run('[[tool look_up {"q": "a"}]]')
        boss = FunctionAgent(name="boss", tools=[look_up, ask_expert], llm=model(**usage))
        with own("agent_thread", {"t1": 1}, agent="boss", callers={"lead_agent": 2}), instrument_tags(
            {"thread_id": "t1"}
        ):
            await boss.run('[[tool look_up {"q": "a"}]]')
        with own("subagent", {"t2": 1}, agent="boss", callers={"lead_agent": 2, "subagent:expert": 2}), instrument_tags(
            {"session_id": "t2"}
        ):
            await boss.run('[[tool ask_expert {"question": "why"}]]')

        async def turn(thread: str) -> None:
            with instrument_tags({"thread_id": thread}):
                await boss.run('[[tool look_up {"q": "a"}]]')

        with own("agents_at_once", {"t3": 1, "t4": 1}):
            await asyncio.gather(turn("t3"), turn("t4"))
        with own("one_after_the_other", {"t5": 2}):
            await turn("t5")
            await turn("t5")

    asyncio.run(agents())
    with own("chat_alone", {None: 1}):
        model().chat(say("hello"))
