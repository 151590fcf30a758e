"""Pydantic AI: an agent with a tool, a subagent, a stream."""

from __future__ import annotations

import asyncio

from harness import live
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

with live() as scenario:
    if "hook" in scenario.modes:
        from runmeter.hooks import pydantic_ai as hook

        assert hook.install()
    if "otel" in scenario.modes:
        Agent.instrument_all()
    if "openai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    provider = OpenAIProvider(base_url=scenario.provider.openai_url, api_key="none")
    model = OpenAIChatModel("gpt-5-mini", provider=provider)
    expert, boss = Agent(model, name="expert"), Agent(model, name="boss")

    @expert.tool_plain
    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    @boss.tool_plain
    async def ask_expert(question: str) -> str:
        """Ask another agent."""
        return str((await expert.run(f'{question} [[tool look_up {{"q": "x"}}]]')).output)

    with scenario.case("run", agent="boss", callers={"lead_agent": 3}):
        for i in range(3):
            boss.run_sync(f"hello {i}")
    with scenario.case("tools"):
        expert.run_sync('[[tool look_up {"q": "a"}]] [[tool look_up {"q": "b"}]]')
    with scenario.case("subagent", callers={"lead_agent": 2, "subagent:expert": 2}):
        boss.run_sync('[[tool ask_expert {"question": "why"}]]')
    with scenario.case("responses"):
        Agent(OpenAIResponsesModel("gpt-5-mini", provider=provider)).run_sync("hello")
    with scenario.case("stream"):

        async def streamed() -> None:
            async with boss.run_stream("hello") as result:
                async for _ in result.stream_text():
                    pass

        asyncio.run(streamed())
    with scenario.case("stream_sync"):
        # Not kept in a variable: 2.68 ends the spans of a sync stream only when its result is let go.
        for _ in boss.run_stream_sync("hello").stream_text():
            pass
