"""Semantic Kernel: chat, agents with plugins, one that has another for a plugin, streams, embeddings, a sequence and a
handoff of agents."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

if "own" in sys.argv[1]:
    os.environ |= {"SEMANTICKERNEL_EXPERIMENTAL_GENAI_ENABLE_OTEL_DIAGNOSTICS": "true"}
from harness import live
from openai import AsyncOpenAI
from own import own as runs
from semantic_kernel.agents import (
    ChatCompletionAgent,
    HandoffOrchestration,
    OpenAIResponsesAgent,
    OrchestrationHandoffs,
    SequentialOrchestration,
)
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.connectors.ai.open_ai import (
    OpenAIChatCompletion,
    OpenAIChatPromptExecutionSettings,
    OpenAITextEmbedding,
)
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "oi-openai": ("openinference.instrumentation.openai", "OpenAIInstrumentor")}  # fmt: skip
NO_SPAN = "it makes no spans of embeddings and of the Responses API"


class Tools:
    """A plugin."""

    @kernel_function(description="Look something up.")
    def look_up(self, q: str) -> str:
        """Look something up."""
        return "42"


with live() as scenario:
    scenario.switch_on(INSTRUMENT)
    alone = scenario.modes == ["own"]
    # The client knows of no agents, Semantic Kernel of no details.
    unsaid = ("cache_read_tokens", "reasoning_tokens") if alone else ()
    unsaid += () if "own" in scenario.modes else ("agent", "callers")

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, unsaid=unsaid, **more)

    def client() -> AsyncOpenAI:
        return AsyncOpenAI(base_url=scenario.provider.openai_url, api_key="none", max_retries=0)

    def service() -> OpenAIChatCompletion:
        return OpenAIChatCompletion(ai_model_id="gpt-4.1-mini", async_client=client())

    def agent(name: str, **more: Any) -> ChatCompletionAgent:
        return ChatCompletionAgent(service=service(), name=name, instructions="answer", **more)

    def said(text: str) -> ChatHistory:
        history = ChatHistory()
        history.add_user_message(text)
        return history

    async def main() -> None:
        with case("chat"):
            for i in range(3):
                await service().get_chat_message_content(said(f"hello {i}"), OpenAIChatPromptExecutionSettings())
        with case("tools", agent="expert"):
            await agent("expert", plugins=[Tools()]).get_response('[[tool Tools-look_up {"q": "a"}]]')
        with case("agent_as_plugin", agent="boss", callers={"lead_agent": 2, "subagent:expert": 1}):
            boss = agent("boss", plugins=[agent("expert")])
            await boss.get_response('[[tool expert-expert {"messages": "why"}]]')
        with case("stream"):
            async for _ in service().get_streaming_chat_message_contents(
                said("hello"), OpenAIChatPromptExecutionSettings()
            ):
                pass
        with case("agent_stream"):
            async for _ in agent("boss").invoke_stream("hello"):
                pass
        with case("embeddings", impossible=NO_SPAN if alone else None):
            await OpenAITextEmbedding(ai_model_id="text-embedding-3-small", async_client=client()).generate_embeddings(
                ["a", "b"]
            )
        with case("responses", impossible=NO_SPAN if alone else None, agent="boss"):
            modern = OpenAIResponsesAgent(ai_model_id="gpt-5-mini", client=client(), name="boss", plugins=[Tools()])
            await modern.get_response('[[tool Tools-look_up {"q": "a"}]]')
        with case("handoff"):
            boss, expert = agent("boss", description="boss"), agent("expert", description="expert")
            moves = OrchestrationHandoffs().add(source_agent=boss, target_agent=expert, description="for experts")
            runtime = InProcessRuntime()
            runtime.start()
            handed = HandoffOrchestration(members=[boss, expert], handoffs=moves)
            await (await handed.invoke("[[tool Handoff-transfer_to_expert {}]]", runtime)).get(timeout=30)
            await runtime.stop_when_idle()
        with case("failed"):
            for _ in range(2):
                try:
                    await agent("boss").get_response("[[fail 400]] ours")
                except Exception:
                    pass
        with case("at_once"):
            await asyncio.gather(*[agent(f"a{i}").get_response("hello") for i in range(3)])
        with case("sequence"):
            runtime = InProcessRuntime()
            runtime.start()
            result = await SequentialOrchestration(members=[agent("one"), agent("two")]).invoke("hello", runtime)
            await result.get(timeout=30)
            await runtime.stop_when_idle()

    asyncio.run(main())
    loose = dict.fromkeys(unsaid, "it leaves them out")
    both = {"lead_agent": 2, "subagent:expert": 1}
    with runs(scenario, "no_run", {None: 1}, agent="boss", callers=both, loose=loose):
        boss = agent("boss", plugins=[agent("expert")])
        asyncio.run(boss.get_response('[[tool expert-expert {"messages": "why"}]]'))
