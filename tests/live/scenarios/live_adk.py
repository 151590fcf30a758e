"""Google's ADK, 1 and 2: agents with tools, transfers, agents as tools, workflows; whole and streamed; sessions.

ADK makes spans by itself; `genai` is the instrumentation of the client below it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from google.adk.agents import LlmAgent, LoopAgent, ParallelAgent, SequentialAgent
from google.adk.agents.run_config import RunConfig, StreamingMode
from google.adk.runners import Runner
from google.adk.sessions import InMemorySessionService
from google.adk.tools.agent_tool import AgentTool
from google.genai import types
from harness import COUNTS, live
from own import own as runs

# 1.0.5 of OpenInference's, on ADK 2: usage of every call goes onto the agent's span, each over the one before.
OVERWRITTEN = "on ADK 2 it writes each call's usage onto the agent's span, over that of the call before"
ADK_1 = version("google-adk").startswith("1.")
LOOK = '[[tool look_up {"q": "a"}]]'
ASK = '[[tool expert {"request": "why"}]]'


def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    os.environ |= {"GOOGLE_GEMINI_BASE_URL": scenario.provider.url, "GOOGLE_API_KEY": "none"}
    scenario.switch_on(
        {
            "genai": ("opentelemetry.instrumentation.google_genai", "GoogleGenAiSdkInstrumentor"),
            "openinference": ("openinference.instrumentation.google_adk", "GoogleADKInstrumentor"),
            "oi-genai": ("openinference.instrumentation.google_genai", "GoogleGenAIInstrumentor"),
        }
    )
    lost = OVERWRITTEN if not ADK_1 and scenario.modes == ["openinference"] else None

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, **{"impossible": lost} | more)

    def own(*about: Any, **more: Any) -> Any:
        return runs(*about, loose=dict.fromkeys((*COUNTS, "callers"), lost) if lost else None, **more)

    sessions = InMemorySessionService()  # type: ignore[no-untyped-call]

    def agent(name: str = "boss", **more: Any) -> LlmAgent:
        given = {"tools": [look_up], "description": name, "instruction": "Be short."}
        return LlmAgent(name=name, model="gemini-3-flash", **(given | more))

    async def ask(who: Any, text: str, session: str = "s", mode: Any = StreamingMode.NONE) -> None:
        """One turn of a session; the runner's events are read to their end."""
        runner = Runner(agent=who, app_name="app", session_service=sessions)
        if await sessions.get_session(app_name="app", user_id="u", session_id=session) is None:
            await sessions.create_session(app_name="app", user_id="u", session_id=session)
        said = types.Content(role="user", parts=[types.Part(text=text)])
        async for _ in runner.run_async(
            user_id="u", session_id=session, new_message=said, run_config=RunConfig(streaming_mode=mode)
        ):
            pass

    async def cases() -> None:
        with case("run", agent="boss", callers={"lead_agent": 3}):
            for i in range(3):
                await ask(agent(), f"hello {i}", f"run{i}")
        with case("turns"):
            for i in range(2):
                await ask(agent(), f"{LOOK} {i}", "turns")
        with case("tools", agent="boss", callers={"lead_agent": 3}):
            await ask(agent(), f"{LOOK} {LOOK}", "tools")
        with case("stream", callers={"lead_agent": 2}):
            await ask(agent(), LOOK, "stream", StreamingMode.SSE)
        with case("agent_as_tool", agent="boss", callers={"lead_agent": 2, "subagent:expert": 1}):
            await ask(agent(tools=[AgentTool(agent("expert"))]), ASK, "agent_as_tool")
        # In ADK 1 who is transferred to is called from below who transfers; in ADK 2 it takes its place.
        moved = {"lead_agent": 1, "subagent:expert": 1} if ADK_1 else {"lead_agent": 2}
        with case("transfer", agent="boss", callers=moved):
            boss = agent(sub_agents=[agent("expert")])
            await ask(boss, '[[tool transfer_to_agent {"agent_name": "expert"}]]', "transfer")
        with case("sequential"):
            await ask(SequentialAgent(name="line", sub_agents=[agent("first"), agent("second")]), LOOK, "sequential")
        with case("parallel"):
            await ask(ParallelAgent(name="both", sub_agents=[agent("first"), agent("second")]), LOOK, "parallel")
        with case("loop"):
            await ask(LoopAgent(name="loop", sub_agents=[agent("first")], max_iterations=2), "hello", "loop")
        with case("failed"):
            await ask(agent(), "hello", "failed")
            with suppress(Exception):
                await ask(agent(), "[[fail 400 9]] ours", "failed")
        with case("at_once"):
            await asyncio.gather(*[ask(agent(), LOOK, f"at_once{i}") for i in range(3)])

    asyncio.run(cases())
    # In ADK 1 Runner.run works in a thread that does not get the context: what it does is a run of its own there.
    with own(scenario, "sync", {"sync": 1}, agent="boss"):
        runner = Runner(agent=agent(), app_name="app", session_service=sessions)
        asyncio.run(sessions.create_session(app_name="app", user_id="u", session_id="sync"))
        said = types.Content(role="user", parts=[types.Part(text=LOOK)])
        for _ in runner.run(user_id="u", session_id="sync", new_message=said):
            pass
    with own(scenario, "thread", {"t1": 2}, agent="boss", callers={"lead_agent": 4}):
        for i in range(2):
            asyncio.run(ask(agent(), f"{LOOK} {i}", "t1"))
    with own(scenario, "thread_subagent", {"t2": 1}, agent="boss", callers={"lead_agent": 2, "subagent:expert": 1}):
        asyncio.run(ask(agent(tools=[AgentTool(agent("expert"))]), ASK, "t2"))
    with own(scenario, "threads_at_once", {"t3": 1, "t4": 1}, agent="boss"):

        async def both() -> None:
            await asyncio.gather(ask(agent(), LOOK, "t3"), ask(agent(), LOOK, "t4"))

        asyncio.run(both())
