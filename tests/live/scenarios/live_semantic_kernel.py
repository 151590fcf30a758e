"""Semantic Kernel: chat, an agent with a plugin, one that has another for a plugin, streams, agents in a sequence."""

from __future__ import annotations

import asyncio
import os
from typing import Any

os.environ |= {"SEMANTICKERNEL_EXPERIMENTAL_GENAI_ENABLE_OTEL_DIAGNOSTICS": "true"}
from harness import live
from openai import AsyncOpenAI
from semantic_kernel.agents import ChatCompletionAgent, SequentialOrchestration
from semantic_kernel.agents.runtime import InProcessRuntime
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion, OpenAIChatPromptExecutionSettings
from semantic_kernel.contents import ChatHistory
from semantic_kernel.functions import kernel_function

INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor")}


class Tools:
    """A plugin."""

    @kernel_function(description="Look something up.")
    def look_up(self, q: str) -> str:
        """Look something up."""
        return "42"


with live() as scenario:
    scenario.switch_on(INSTRUMENT)
    unsaid = () if "openai" in scenario.modes else ("cache_read_tokens", "reasoning_tokens")

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, unsaid=unsaid, **more)

    def service() -> OpenAIChatCompletion:
        client = AsyncOpenAI(base_url=scenario.provider.openai_url, api_key="none", max_retries=0)
        return OpenAIChatCompletion(ai_model_id="gpt-4.1-mini", async_client=client)

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
