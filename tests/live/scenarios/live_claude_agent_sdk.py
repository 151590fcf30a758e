"""Claude Agent SDK: queries of the Claude Code program that its wheel brings, with tools, subagents, sessions resumed.

`own` is Claude Code's own telemetry, which it sends by itself: to runmeter only at door 2.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from typing import Any

import claude_agent_sdk
from claude_agent_sdk import AgentDefinition, ClaudeAgentOptions, ClaudeSDKClient, create_sdk_mcp_server, tool
from harness import COUNTS, live
from own import own as runs

if "own" in sys.argv[1]:
    # A run closes a second after its last span in these tests, and the application's comes when the exporter sends it.
    os.environ["OTEL_BSP_SCHEDULE_DELAY"] = "100"

ONE_SPAN = (
    "its spans are of queries: one count for all calls, outputs as they stood when the calls began, subagents left out"
)
# It names agents of the host's own only where it is told to write down the details of tools.
UNSAID = ("callers",) if sys.argv[1].startswith("own") else ()
LOOK = '[[tool mcp__tools__look_up {"q": "a"}]]'
ASK = '[[tool Agent {"description": "asks", "prompt": "%s", "subagent_type": "expert"}]]'


@tool("look_up", "Look something up.", {"q": str})
async def look_up(given: dict[str, Any]) -> dict[str, Any]:
    """Look something up."""
    return {"content": [{"type": "text", "text": "42"}]}


with live() as scenario, tempfile.TemporaryDirectory(prefix="runmeter-live-") as home:
    if "hook" in scenario.modes:
        from runmeter.hooks import claude_agent_sdk as hook

        assert hook.install()
    instrumentor = ("openinference.instrumentation.claude_agent_sdk", "ClaudeAgentSDKInstrumentor")
    scenario.switch_on({"openinference": instrumentor})
    environment = {
        "ANTHROPIC_BASE_URL": scenario.provider.url, "ANTHROPIC_API_KEY": "none", "HOME": home,
        "CLAUDE_CONFIG_DIR": home, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "ENABLE_TOOL_SEARCH": "false",
    }  # fmt: skip
    if "own" in scenario.modes:
        environment |= {
            "CLAUDE_CODE_ENABLE_TELEMETRY": "1", "CLAUDE_CODE_ENHANCED_TELEMETRY_BETA": "1",
            "OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": os.environ["RUNMETER_LIVE_OTLP"],
        }  # fmt: skip
    lost = ONE_SPAN if scenario.modes == ["openinference"] else None

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, **{"impossible": lost, "unsaid": UNSAID} | more)

    def options(**more: Any) -> ClaudeAgentOptions:
        """A program without anybody's settings, whose one subagent is waited for unless it is for the background."""
        background = more.pop("background", False)
        expert = AgentDefinition(
            description="Knows.", prompt="Be short.", tools=["mcp__tools__look_up"], background=background,
            model=more.pop("expert", "inherit"),
        )  # fmt: skip
        here = environment | ({} if background else {"CLAUDE_CODE_DISABLE_BACKGROUND_TASKS": "1"})
        given: dict[str, Any] = {
            "env": here, "cwd": home, "setting_sources": [], "system_prompt": "Be short.",
            "mcp_servers": {"tools": create_sdk_mcp_server("tools", tools=[look_up])},
            "allowed_tools": ["mcp__tools__look_up", "Agent", "Task"], "model": "claude-sonnet-5",
            "agents": {"expert": expert},
        }  # fmt: skip
        return ClaudeAgentOptions(**given | more)

    async def ask(text: str, **more: Any) -> str:
        """One query by a program of its own; its session."""
        session = ""
        async for message in claude_agent_sdk.query(prompt=text, options=options(**more)):
            if isinstance(message, claude_agent_sdk.ResultMessage):
                session = message.session_id
        return session

    async def turn(client: ClaudeSDKClient, text: str) -> None:
        await client.query(text)
        async for _ in client.receive_response():
            pass

    async def main() -> None:
        with case("query", callers={"lead_agent": 2}):
            for i in range(2):
                await ask(f"hello {i}")
        with case("tools", callers={"lead_agent": 3}):
            await ask(f"{LOOK} {LOOK}")
        with case("partial_messages", callers={"lead_agent": 2}):
            await ask(LOOK, include_partial_messages=True)
        with case("subagent", callers={"lead_agent": 2, "subagent:expert": 1}):
            await ask(ASK % "why")
        with case("subagent_of_another_model", callers={"lead_agent": 3, "subagent:expert": 1}):
            await ask(f"{LOOK} {ASK % 'why'}", expert="haiku")
        with case("subagent_in_the_background"):
            await ask(ASK % "why", background=True)
        with case("turns_of_one_client", impossible=lost, callers={"lead_agent": 6, "subagent:expert": 1}):
            async with ClaudeSDKClient(options()) as client:
                for text in (f"{LOOK} 1", "hello", ASK % "why", "hello again"):
                    await turn(client, text)
        with case("resumed", callers={"lead_agent": 5, "subagent:expert": 1}):
            session = await ask(f"{LOOK} {ASK % 'why'}")
            await ask("hello", resume=session)
            await ask("hello", resume=session, fork_session=True)
        with case("at_once"):
            await asyncio.gather(*[ask(f"{LOOK} {i}") for i in range(3)])
        with case("failed_once"):
            await ask("hello [[fail 500]]")

    asyncio.run(main())
    loose = dict.fromkeys((*COUNTS, "callers", "threads"), lost) if lost else None
    sessions: dict[str | None, int] = {}
    with runs(scenario, "session", sessions, callers={"lead_agent": 2}, loose=loose):
        sessions[asyncio.run(ask(LOOK))] = 1
