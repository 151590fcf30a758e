"""OpenAI Agents: a tool, a handoff, an agent as a tool, a stream; over the responses wire and over chat."""

from __future__ import annotations

import asyncio

import openai
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    RunConfig,
    Runner,
    function_tool,
    set_default_openai_client,
    set_trace_processors,
)
from harness import live

with live() as scenario:
    set_trace_processors([])  # the default one sends traces to OpenAI
    if "hook" in scenario.modes:
        from runmeter.hooks import openai_agents as hook

        assert hook.install()
    if "genai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai_agents import OpenAIAgentsInstrumentor

        OpenAIAgentsInstrumentor().instrument()
    if "openai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    client = openai.AsyncOpenAI(base_url=scenario.provider.openai_url, api_key="none")
    set_default_openai_client(client, use_for_tracing=False)

    @function_tool
    def look_up(q: str) -> str:
        """Look something up."""
        return "42"

    async def main() -> None:
        for wire, model in (("responses", "gpt-5-mini"), ("chat", OpenAIChatCompletionsModel("gpt-5-mini", client))):
            expert = Agent(name="expert", model=model, tools=[look_up])
            asked = expert.as_tool("ask_expert", "Ask the expert.")
            boss = Agent(name="boss", model=model, tools=[look_up, asked], handoffs=[expert])
            config = RunConfig(group_id="group")
            with scenario.case(f"{wire}_plain"):
                await Runner.run(boss, "hello", run_config=config)
            with scenario.case(f"{wire}_tools"):
                await Runner.run(boss, '[[tool look_up {"q": "a"}]] [[tool look_up {"q": "b"}]]', run_config=config)
            with scenario.case(f"{wire}_handoff"):
                await Runner.run(boss, "[[tool transfer_to_expert {}]]", run_config=config)
            with scenario.case(f"{wire}_agent_as_tool"):
                await Runner.run(boss, '[[tool ask_expert {"input": "why"}]]', run_config=config)
            with scenario.case(f"{wire}_stream"):
                streamed = Runner.run_streamed(boss, "hello", run_config=config)
                async for _ in streamed.stream_events():
                    pass
        await client.close()

    asyncio.run(main())
