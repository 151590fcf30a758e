"""Agno: an agent, one with a tool, a team with members, streams, async, sessions."""

from __future__ import annotations

import asyncio
from typing import Any

from agno.agent import Agent
from agno.models.openai import OpenAIChat, OpenAIResponses
from agno.team import Team
from harness import live

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.agno", "AgnoInstrumentor"),
              "openllmetry": ("opentelemetry.instrumentation.agno", "AgnoInstrumentor")}  # fmt: skip
ONE_SPAN = "its span of a run has the usage of one call, that of a stream none, and no details"


def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    modes = scenario.modes
    scenario.switch_on(INSTRUMENT)
    named = "openinference" in modes
    lost = ONE_SPAN if modes == ["openllmetry"] else None
    unsaid = ("reasoning_tokens",) if modes == ["openinference"] else ()

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, impossible=lost, unsaid=unsaid, **more)

    def model() -> OpenAIChat:
        return OpenAIChat(id="gpt-4.1-mini", base_url=scenario.provider.openai_url, api_key="none", max_retries=0)

    def agent(name: str, **more: Any) -> Agent:
        return Agent(name=name, model=model(), telemetry=False, **more)

    with case("run", agent="boss" if named else None):
        for i in range(3):
            agent("boss").run(f"hello {i}")
    with case("tools"):
        agent("expert", tools=[look_up]).run('[[tool look_up {"q": "a"}]]')
    with case("responses"):
        Agent(model=OpenAIResponses(id="gpt-5-mini", base_url=scenario.provider.openai_url, api_key="none"),
              telemetry=False).run("hello")  # fmt: skip
    callers = {"lead_agent": 2, "subagent:expert": 1} if named else None
    with case("team", agent="boss" if named else None, callers=callers):
        expert = agent("expert", tools=[look_up])
        Team(members=[expert], name="boss", model=model(), telemetry=False).run(
            '[[tool delegate_task_to_member {"member_id": "expert", "task": "why"}]]'
        )
    with case("stream"):
        for _ in agent("boss").run("hello", stream=True):
            pass
    with case("failed"):
        try:
            agent("boss").run("[[fail 400]] ours")
        except Exception:
            pass
        agent("boss").run("[[fail 400]] ours")

    async def asynchronous() -> None:
        with case("async_at_once"):
            boss = agent("boss", tools=[look_up])
            await asyncio.gather(*[boss.arun('[[tool look_up {"q": "a"}]]', session_id=f"s{i}") for i in range(3)])
        with case("async_stream"):
            async for _ in agent("boss").arun("hello", stream=True):
                pass

    asyncio.run(asynchronous())
