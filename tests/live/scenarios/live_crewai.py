"""CrewAI: a model by itself, a crew with a tool, two agents of which one delegates, streams, async, a flow of crews."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ |= {"CREWAI_DISABLE_TELEMETRY": "true", "OTEL_SDK_DISABLED": "false", "CREWAI_TRACING_ENABLED": "false"}
from crewai import LLM, Agent, Crew, Process, Task
from crewai.tools import tool
from harness import live

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.crewai", "CrewAIInstrumentor"),
              "openllmetry": ("opentelemetry.instrumentation.crewai", "CrewAIInstrumentor")}  # fmt: skip
# A coworker's work is a tool's span of the delegating agent: no span names the coworker.
NO_CALLS = "it writes no span for a call: a run without calls"


@tool("look_up")
def look_up(q: str) -> str:
    """Look something up."""
    return "42"


with live() as scenario:
    modes = scenario.modes
    scenario.switch_on(INSTRUMENT)
    lost = None if "openai" in modes else NO_CALLS
    named = modes == ["openinference", "openai"]

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, impossible=lost, **more)

    def model(**more: Any) -> LLM:
        return LLM(model="openai/gpt-4.1-mini", base_url=scenario.provider.openai_url, api_key="none", **more)

    def agent(role: str, **more: Any) -> Agent:
        return Agent(role=role, goal="answer", backstory="knows", llm=model(), max_iter=2, verbose=False, **more)

    def crew(text: str, *agents: Agent, **more: Any) -> Crew:
        task = Task(description=text, expected_output="an answer", agent=agents[0])
        return Crew(agents=list(agents), tasks=[task], verbose=False, **more)

    with case("model"):
        for i in range(3):
            model().call(f"hello {i}")
    with case("crew", agent="boss" if named else None, callers={"lead_agent": 1} if named else None):
        crew("hello", agent("boss")).kickoff()
    with case("tools"):
        crew('[[tool look_up {"q": "a"}]]', agent("expert", tools=[look_up])).kickoff()
    with case("delegates", agent="boss" if named else None):
        crew(
            '[[tool delegate_work_to_coworker {"task": "why", "context": "none", "coworker": "expert"}]]',
            agent("boss", allow_delegation=True), agent("expert"), process=Process.sequential,
        ).kickoff()  # fmt: skip
    with case("stream"):
        model(stream=True).call("hello")
    with case("failed"):
        try:
            model(max_retries=0).call("[[fail 400]] ours")
        except Exception:
            pass
        model().call("[[fail 400]] ours")

    async def asynchronous() -> None:
        with case("async"):
            await asyncio.gather(*[crew("hello", agent("boss")).kickoff_async() for _ in range(3)])

    asyncio.run(asynchronous())
