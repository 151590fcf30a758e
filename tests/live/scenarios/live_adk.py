"""Google's ADK: an agent, one with a tool, one with a sub-agent, one with an agent for a tool, agents in parallel,
streams. Its sessions are threads."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from typing import Any

from google.adk.agents import LlmAgent, ParallelAgent, RunConfig
from google.adk.agents.run_config import StreamingMode
from google.adk.runners import InMemoryRunner
from google.adk.tools.agent_tool import AgentTool
from google.genai import types
from harness import live

INSTRUMENT = {"openinference": ("openinference.instrumentation.google_adk", "GoogleADKInstrumentor")}
# 1.0.5 of the instrumentation, on ADK 2: usage of every call goes onto the agent's span, each over the one before.
OVERWRITTEN = "on ADK 2 it writes each call's usage onto the agent's span, over that of the call before"


def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    os.environ |= {"GOOGLE_API_KEY": "none", "GOOGLE_GENAI_USE_VERTEXAI": "False",
                   "GOOGLE_GEMINI_BASE_URL": scenario.provider.url}  # fmt: skip
    scenario.switch_on(INSTRUMENT)
    lost = OVERWRITTEN if "openinference" in scenario.modes and version("google-adk") > "2" else None

    def agent(name: str, **more: Any) -> LlmAgent:
        return LlmAgent(name=name, model="gemini-2.5-flash", description=f"the {name}", **more)

    async def run(root: Any, text: str, session: str, **more: Any) -> None:
        runner = InMemoryRunner(agent=root, app_name="app")
        await runner.session_service.create_session(app_name="app", user_id="u", session_id=session)
        message = types.Content(role="user", parts=[types.Part(text=text)])
        async for _ in runner.run_async(user_id="u", session_id=session, new_message=message, **more):
            pass

    async def main() -> None:
        with scenario.case("run", agent="boss", callers={"lead_agent": 3}):
            for i in range(3):
                await run(agent("boss"), f"hello {i}", f"run-{i}")
        with scenario.case("tools", agent="expert", impossible=lost):
            await run(agent("expert", tools=[look_up]), '[[tool look_up {"q": "a"}]]', "tools")
        with scenario.case("sub_agent", agent="boss"):
            boss = agent("boss", sub_agents=[agent("expert", tools=[look_up])])
            await run(boss, '[[tool transfer_to_agent {"agent_name": "expert"}]]', "sub")
        callers = {"lead_agent": 2, "subagent:expert": 1}
        with scenario.case("agent_as_tool", agent="boss", impossible=lost, callers=callers):
            boss = agent("boss", tools=[AgentTool(agent("expert"))])
            await run(boss, '[[tool expert {"request": "why"}]]', "tool")
        with scenario.case("parallel"):
            await run(ParallelAgent(name="both", sub_agents=[agent("one"), agent("two")]), "hello", "parallel")
        with scenario.case("stream"):
            await run(agent("boss"), "hello", "stream", run_config=RunConfig(streaming_mode=StreamingMode.SSE))
        with scenario.case("at_once"):
            await asyncio.gather(*[run(agent("boss"), f"hello {i}", f"s{i}") for i in range(3)])

    asyncio.run(main())
