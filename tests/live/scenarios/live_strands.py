"""Strands: agents with tools, agents as tools, a graph, a swarm; streamed, asynchronous, at once; three providers.

Strands makes spans by itself. `latest` are those that it makes when asked for the conventions' current words.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

MODES = sys.argv[1].split("+")
if "latest" in MODES:  # read when Strands makes its tracer, which is once
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental,gen_ai_use_latest_invocation_tokens"

from harness import live  # noqa: E402
from opentelemetry import trace  # noqa: E402
from own import own as runs  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from strands import Agent, tool  # noqa: E402
from strands.models.anthropic import AnthropicModel  # noqa: E402
from strands.models.gemini import GeminiModel  # noqa: E402
from strands.models.openai import OpenAIModel  # noqa: E402
from strands.models.openai_responses import OpenAIResponsesModel  # noqa: E402
from strands.multiagent import GraphBuilder, Swarm  # noqa: E402

LOOK = '[[tool look_up {"q": "a"}]]'
# The client's instrumentation says them where it is one that Strands' model goes through.
REASONING = () if {"openai", "auto"} & {*MODES} else ("reasoning_tokens",)


def openinference() -> None:
    """It is no instrumentation but a processor, which rewrites Strands' spans when they end."""
    from openinference.instrumentation.strands_agents import StrandsAgentsToOpenInferenceProcessor

    trace.get_tracer_provider().add_span_processor(StrandsAgentsToOpenInferenceProcessor())  # type: ignore[attr-defined]


if "openinference" in MODES and "RUNMETER_LIVE_OTLP" not in os.environ:
    from opentelemetry.sdk.trace import TracerProvider

    trace.set_tracer_provider(TracerProvider())  # the application's, before runmeter: its processors come first
    openinference()

with live() as scenario:
    if "openinference" in MODES and scenario.door == 2:
        openinference()
    scenario.switch_on({"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor")})
    where: dict[str, Any] = {"base_url": scenario.provider.openai_url, "api_key": "none"}
    chat = OpenAIModel(client_args=where, model_id="gpt-5-mini")

    @tool
    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    def agent(name: str = "boss", model: Any = chat, **more: Any) -> Agent:
        return Agent(model=model, name=name, callback_handler=None, **({"tools": [look_up]} | more))

    @tool
    def ask_expert(question: str) -> str:
        """Ask another agent."""
        return str(agent("expert")(f'{question} [[tool look_up {{"q": "inner"}}]]'))

    with scenario.case("run", agent="boss", callers={"lead_agent": 3}, unsaid=REASONING):
        for i in range(3):
            agent()(f"hello {i}")
    with scenario.case("turns_of_one_agent", callers={"lead_agent": 4}, unsaid=REASONING):
        boss = agent()
        for i in range(2):
            boss(f"{LOOK} {i}")
    with scenario.case("tools", unsaid=REASONING):
        agent()(f"{LOOK} {LOOK}")
    with scenario.case("subagent", agent="boss", callers={"lead_agent": 2, "subagent:expert": 2}, unsaid=REASONING):
        agent(tools=[ask_expert])('[[tool ask_expert {"question": "why"}]]')
    with scenario.case("agent_as_tool", callers={"lead_agent": 2, "subagent:expert": 1}, unsaid=REASONING):
        expert = agent("expert")
        agent(tools=[expert.as_tool()])('[[tool expert {"input": "why"}]]')
    with scenario.case("whole", unsaid=REASONING):
        agent(model=OpenAIModel(client_args=where, model_id="gpt-5-mini", stream=False))(LOOK)
    with scenario.case("responses", unsaid=REASONING):
        agent(model=OpenAIResponsesModel(client_args=where, model_id="gpt-5-mini"))(LOOK)
    with scenario.case("anthropic"):
        there = {"base_url": scenario.provider.url, "api_key": "none"}
        agent(model=AnthropicModel(client_args=there, model_id="claude-sonnet-5", max_tokens=100))(LOOK)
    if REASONING:  # otherwise it is the OpenAI client that is looked at
        with scenario.case("gemini", unsaid=REASONING):
            there = {"api_key": "none", "http_options": {"base_url": scenario.provider.url}}
            agent(model=GeminiModel(client_args=there, model_id="gemini-3-flash"))(LOOK)
    with scenario.case("failed_once", unsaid=REASONING):
        agent()("hello [[fail 500]]")
    with scenario.case("failed", unsaid=REASONING):
        agent()("hello")
        with suppress(Exception):
            agent()("[[fail 400 9]] ours")
    with scenario.case("structured", unsaid=REASONING):

        class Found(BaseModel):
            """What was found."""

            q: str

        agent(tools=[])('[[tool Found {"q": "a"}]]', structured_output_model=Found)

    with scenario.case("graph", callers={"lead_agent": 4}, unsaid=REASONING):
        builder = GraphBuilder()
        builder.add_node(agent("first"), "first")
        builder.add_node(agent("second"), "second")
        builder.add_edge("first", "second")
        builder.build()(LOOK)
    with scenario.case("swarm", unsaid=REASONING):
        Swarm([agent("first"), agent("second", tools=[])])(
            '[[tool handoff_to_agent {"agent_name": "second", "message": "yours"}]]'
        )

    async def asynchronous() -> None:
        with scenario.case("async", unsaid=REASONING):
            await agent().invoke_async(LOOK)
        with scenario.case("async_stream", unsaid=REASONING):
            async for _ in agent().stream_async(LOOK):
                pass
        with scenario.case("async_at_once", unsaid=REASONING):
            ask = '[[tool ask_expert {"question": "why"}]]'
            await asyncio.gather(*[agent(tools=[ask_expert]).invoke_async(f"{ask} {i}") for i in range(3)])

    asyncio.run(asynchronous())
    loose = {"reasoning_tokens": "its spans leave reasoning out"} if REASONING else {}
    with runs(scenario, "thread", {"t1": 2}, agent="boss", callers={"lead_agent": 4}, loose=loose):
        for _ in range(2):
            agent(trace_attributes={"session.id": "t1"})(LOOK)
    with runs(scenario, "no_thread", {None: 1}, agent="boss", loose=loose):
        agent()(LOOK)
    both = {"lead_agent": 2, "subagent:expert": 2}
    with runs(scenario, "thread_subagent", {"t2": 1}, agent="boss", callers=both, loose=loose):
        agent(tools=[ask_expert], trace_attributes={"session.id": "t2"})('[[tool ask_expert {"question": "why"}]]')
