"""LiteLLM: sync and async, streamed, an error, OpenAI and Anthropic behind it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import litellm
from harness import live
from litellm.litellm_core_utils.thread_pool_executor import executor

ELSEWHERE = "a stream's span is made on a thread of LiteLLM's without the context, in a trace of its own"
AFTERWARDS = "a stream's usage is written onto the application's span after that has ended"

with live() as scenario:
    if "otel" in scenario.modes:
        litellm.callbacks.append("otel")
    if "hook" in scenario.modes:
        from runmeter.hooks import litellm as hook

        assert hook.install()
    if "openai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    openai: dict[str, Any] = {"model": "openai/gpt-5-mini", "api_base": scenario.provider.openai_url, "api_key": "none"}
    claude: dict[str, Any] = {
        "model": "anthropic/claude-sonnet-5", "api_base": scenario.provider.url, "api_key": "none", "max_tokens": 99,
    }  # fmt: skip
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    alone = scenario.modes == ["otel"]

    def say(text: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": text}]}

    def told() -> None:
        """Wait until LiteLLM's own threads have told of what was answered: all of them are here at once."""
        threads = executor._max_workers
        everybody = threading.Barrier(threads)
        for one in [executor.submit(everybody.wait, 20) for _ in range(threads)]:
            one.result(20)

    async def asynchronous() -> None:
        from litellm.litellm_core_utils.logging_worker import GLOBAL_LOGGING_WORKER

        with scenario.case("async"):
            for _ in range(2):
                await litellm.acompletion(**openai, **say("hello"))
            await GLOBAL_LOGGING_WORKER.flush()
        with scenario.case("async_stream", impossible=AFTERWARDS if alone else None):
            async for _ in await litellm.acompletion(**openai, **say("hello"), **usage):
                pass
            await GLOBAL_LOGGING_WORKER.flush()

    with scenario.case("completion"):
        for i in range(3):
            litellm.completion(**openai, **say(f"hello {i}"))
        told()
    with scenario.case("stream", impossible=ELSEWHERE if alone else None):
        for _ in litellm.completion(**openai, **say("hello"), **usage):
            pass
        told()
    with scenario.case("anthropic_cached"):
        litellm.completion(**claude, **say("hello"))
        told()
    with scenario.case("error_then_our_retry"):
        try:
            litellm.completion(**openai, **say("[[fail 500]]"), max_retries=0)
        except litellm.InternalServerError:
            litellm.completion(**openai, **say("[[fail 500]]"), max_retries=0)
        told()
    asyncio.run(asynchronous())
