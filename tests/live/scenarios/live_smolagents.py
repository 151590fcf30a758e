"""smolagents: a model by itself, an agent with a tool, one that manages another, a stream, code for an action."""

from __future__ import annotations

from typing import Any

from harness import live
from smolagents import ChatMessage, CodeAgent, MessageRole, OpenAIModel, ToolCallingAgent, tool

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.smolagents", "SmolagentsInstrumentor")}  # fmt: skip


@tool
def look_up(q: str) -> str:
    """Look something up.

    Args:
        q: what to look up
    """
    return "42"


with live() as scenario:
    modes = scenario.modes
    scenario.switch_on(INSTRUMENT)
    named = "openinference" in modes
    alone = modes == ["openinference"]

    def model(**more: Any) -> OpenAIModel:
        return OpenAIModel("gpt-4.1-mini", api_base=scenario.provider.openai_url, api_key="none", **more)

    def agent(name: str, *, quiet: int = 0, **more: Any) -> ToolCallingAgent:
        return ToolCallingAgent(tools=[look_up], model=model(), name=name, description=f"the {name}",
                                max_steps=2, verbosity_level=quiet, **more)  # fmt: skip

    unsaid = ("cache_read_tokens", "reasoning_tokens") if alone else ()
    with scenario.case("model", unsaid=unsaid):
        for i in range(3):
            model()([ChatMessage(MessageRole.USER, f"hello {i}")])
    with scenario.case("tools", unsaid=unsaid, agent="expert" if named else None):
        agent("expert").run('[[tool look_up {"q": "a"}]]')
    callers = {"lead_agent": 3, "subagent:expert": 3} if named else None
    with scenario.case("managed", unsaid=unsaid, agent="boss" if named else None, callers=callers):
        boss = agent("boss", managed_agents=[agent("expert")])
        boss.run('[[tool expert {"task": "why"}]]')
    with scenario.case("code", unsaid=unsaid):
        CodeAgent(tools=[], model=model(), max_steps=2, verbosity_level=0).run("hello")
    with scenario.case("stream", unsaid=unsaid):
        for _ in model().generate_stream([ChatMessage(MessageRole.USER, "hello")]):
            pass
    with scenario.case("failed", unsaid=unsaid):
        try:
            model(client_kwargs={"max_retries": 0}, retry=False)([ChatMessage(MessageRole.USER, "[[fail 400]]")])
        except Exception:
            model()([ChatMessage(MessageRole.USER, "hello")])
