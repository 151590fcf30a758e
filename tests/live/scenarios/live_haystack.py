"""Haystack: a generator, a pipeline, an agent with a tool, an agent as another's tool, a stream, embeddings, async."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"
from harness import live
from haystack import Pipeline
from haystack.components.agents import Agent
from haystack.components.embedders import OpenAITextEmbedder
from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import ComponentTool, create_tool_from_function
from haystack.utils import Secret

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.haystack", "HaystackInstrumentor")}  # fmt: skip
# opentelemetry-instrumentation-haystack 0.62.4 does not load beside Haystack 3: it wraps a module that is not there.
BLANK = "its spans of the Responses API and of embeddings have no usage"


def look_up(q: str) -> str:
    """Look something up."""
    return "42"


def say(text: str) -> list[ChatMessage]:
    return [ChatMessage.from_user(text)]


with live() as scenario:
    modes = scenario.modes
    scenario.switch_on(INSTRUMENT)
    unsaid = ("cache_read_tokens", "reasoning_tokens") if modes == ["openinference"] else ()
    blank = BLANK if modes == ["openinference"] else None

    def case(name: str, impossible: str | None = None, **more: Any) -> Any:
        return scenario.case(name, impossible=impossible, unsaid=unsaid, **more)
    asks: dict[str, Any] = {"api_key": Secret.from_token("none"), "api_base_url": scenario.provider.openai_url,
                            "max_retries": 0}  # fmt: skip

    def model(**more: Any) -> OpenAIChatGenerator:
        return OpenAIChatGenerator(model="gpt-4.1-mini", **asks, **more)

    usage = {"generation_kwargs": {"stream_options": {"include_usage": True}}}
    tool = create_tool_from_function(look_up)
    with case("generator"):
        for i in range(3):
            model().run(say(f"hello {i}"))
    with case("responses", blank):
        OpenAIResponsesChatGenerator(model="gpt-5-mini", **asks).run(say("hello"))
    with case("pipeline"):
        pipeline = Pipeline()
        pipeline.add_component("llm", model())
        pipeline.run({"llm": {"messages": say("hello")}})
    with case("agent"):
        Agent(chat_generator=model(), tools=[tool]).run(messages=say('[[tool look_up {"q": "a"}]]'))
    with case("stream_with_usage"):
        model(streaming_callback=lambda chunk: None, **usage).run(say("hello"))
    with case("embeddings", blank):
        OpenAITextEmbedder(model="text-embedding-3-small", **asks).run("hello")
    with case("failed"):
        try:
            model().run(say("[[fail 400]] ours"))
        except Exception:
            model().run(say("[[fail 400]] ours"))
    with case("agent_as_tool"):
        expert = ComponentTool(
            component=Agent(chat_generator=model(), tools=[tool]), name="expert", description="an expert",
            parameters={"type": "object", "properties": {"q": {"type": "string"}}}, inputs_from_state={},
        )  # fmt: skip
        Agent(chat_generator=model(), tools=[expert]).run(messages=say("hello"))

    async def asynchronous() -> None:
        with case("async_at_once"):
            await asyncio.gather(*[model().run_async(say(f"hello {i}")) for i in range(3)])

    asyncio.run(asynchronous())
