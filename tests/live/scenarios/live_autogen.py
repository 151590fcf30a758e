"""AutoGen: a model client, an assistant with a tool, an assistant as a tool of another, a team, streams."""

from __future__ import annotations

import asyncio
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_agentchat.tools import AgentTool
from autogen_core.models import UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
from harness import live

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.autogen_agentchat",
                                "AutogenAgentChatInstrumentor")}  # fmt: skip


def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    modes = scenario.modes
    scenario.switch_on(INSTRUMENT)
    unsaid = ("cache_read_tokens", "reasoning_tokens") if modes == ["openinference"] else ()

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, unsaid=unsaid, **more)

    def model(**more: Any) -> OpenAIChatCompletionClient:
        return OpenAIChatCompletionClient(
            model="gpt-4.1-mini", base_url=scenario.provider.openai_url, api_key="none", max_retries=0, **more
        )

    async def main() -> None:
        with case("model"):
            for i in range(3):
                await model().create([UserMessage(content=f"hello {i}", source="user")])
        with case("tools", agent="expert", callers={"lead_agent": 2}):
            expert = AssistantAgent("expert", model(), tools=[look_up], reflect_on_tool_use=True)
            await expert.run(task='[[tool look_up {"q": "a"}]]')
        with case("agent_as_tool", agent="boss", callers={"lead_agent": 2, "subagent:helper": 1}):
            helper = AssistantAgent("helper", model(), description="helps")
            boss = AssistantAgent(
                "boss", model(parallel_tool_calls=False), tools=[AgentTool(helper)], reflect_on_tool_use=True
            )
            await boss.run(task='[[tool helper {"task": "why"}]]')
        with case("team"):
            team = [AssistantAgent(name, model()) for name in ("one", "two")]
            await RoundRobinGroupChat(team, termination_condition=MaxMessageTermination(4)).run(task="hello")
        with case("stream"):
            asks = [UserMessage(content="hello", source="user")]
            async for _ in model().create_stream(asks, include_usage=True):
                pass
        with case("agent_stream"):
            talker = AssistantAgent("talker", model(), model_client_stream=True)
            async for _ in talker.run_stream(task="hello"):
                pass
        with case("at_once"):
            await asyncio.gather(*[AssistantAgent(f"a{i}", model()).run(task="hello") for i in range(3)])
        with case("failed"):
            asks = [UserMessage(content="[[fail 400]] ours", source="user")]
            try:
                await model().create(asks)
            except Exception:
                await model().create(asks)

    asyncio.run(main())
