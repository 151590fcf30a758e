"""Strands: an agent, one with a tool, one with an agent for a tool, a graph of agents, async, a failure."""

from __future__ import annotations

import asyncio
from typing import Any

from harness import live
from strands import Agent, tool
from strands.models.openai import OpenAIModel
from strands.multiagent import GraphBuilder

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor")}


@tool
def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    scenario.switch_on(INSTRUMENT)
    unsaid = () if "openai" in scenario.modes else ("reasoning_tokens",)

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, unsaid=unsaid, **more)

    def agent(name: str, **more: Any) -> Agent:
        model = OpenAIModel(client_args={"base_url": scenario.provider.openai_url, "api_key": "none", "max_retries": 0},
                            model_id="gpt-4.1-mini")  # fmt: skip
        return Agent(model=model, name=name, callback_handler=None, **more)

    @tool
    def ask_expert(question: str) -> str:
        """Ask another agent."""
        return str(agent("expert", tools=[look_up])('[[tool look_up {"q": "inner"}]]'))

    with case("run", agent="boss", callers={"lead_agent": 3}):
        for i in range(3):
            agent("boss")(f"hello {i}")
    with case("tools", agent="expert"):
        agent("expert", tools=[look_up])('[[tool look_up {"q": "a"}]] [[tool look_up {"q": "b"}]]')
    with case("subagent", agent="boss", callers={"lead_agent": 2, "subagent:expert": 2}):
        agent("boss", tools=[ask_expert])('[[tool ask_expert {"question": "why"}]]')
    with case("graph"):
        graph = GraphBuilder()
        graph.add_node(agent("one"), "one")
        graph.add_node(agent("two"), "two")
        graph.add_edge("one", "two")
        graph.build()("hello")
    with case("failed"):
        for _ in range(2):
            try:
                agent("boss")("[[fail 400]] ours")
            except Exception:
                pass

    async def asynchronous() -> None:
        with case("async_at_once"):
            await asyncio.gather(*[agent(f"a{i}").invoke_async("hello") for i in range(3)])
        with case("async_stream"):
            async for _ in agent("boss").stream_async("hello"):
                pass

    asyncio.run(asynchronous())
