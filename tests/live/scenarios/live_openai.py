"""The OpenAI client: chat and responses, streamed with and without usage, abandoned, and failing first."""

from __future__ import annotations

import asyncio

import openai
from harness import live

MODEL = "gpt-5-mini"


def ask(text: str, **more: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


async def parallel(client: openai.AsyncOpenAI) -> None:
    async def streamed(number: int) -> None:
        options = {"stream_options": {"include_usage": True}}
        async for _ in await client.chat.completions.create(**ask(f"stream {number}", stream=True, **options)):
            pass

    async with client:
        whole = [client.chat.completions.create(**ask(f"{i}")) for i in range(4)]
        await asyncio.gather(*whole, *map(streamed, range(3)))


with live() as scenario:
    if "genai" in scenario.modes:
        from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor

        OpenAIInstrumentor().instrument()
    if "openinference" in scenario.modes:
        from openinference.instrumentation.openai import OpenAIInstrumentor as OpenInference

        OpenInference().instrument()
    url = scenario.provider.openai_url
    client = openai.OpenAI(base_url=url, api_key="none")
    usage = {"stream_options": {"include_usage": True}}
    with scenario.case("chat"):
        for i in range(3):
            client.chat.completions.create(**ask(f"hello {i}"))
    with scenario.case("tools"):
        tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
        client.chat.completions.create(**ask("[[tool look_up {}]]", tools=tools))
    with scenario.case("stream"):
        list(client.chat.completions.create(**ask("hello", stream=True, **usage)))
    with scenario.case("stream_without_usage"):
        list(client.chat.completions.create(**ask("hello", stream=True)))
    with scenario.case("abandoned_stream"):
        abandoned = client.chat.completions.create(**ask("[[hold]]", stream=True, **usage))
        next(iter(abandoned))
        abandoned.close()
    with scenario.case("error_then_retry"):
        client.chat.completions.create(**ask("[[fail 500]]"))
    with scenario.case("error_then_our_retry"):
        impatient = client.with_options(max_retries=0)
        try:
            impatient.chat.completions.create(**ask("[[fail 429]] once"))
        except openai.RateLimitError:
            impatient.chat.completions.create(**ask("[[fail 429]] once"))
    with scenario.case("responses"):
        client.responses.create(model=MODEL, input="hello")
    with scenario.case("responses_stream"):
        list(client.responses.create(model=MODEL, input="hello", stream=True))
    with scenario.case("embeddings"):
        client.embeddings.create(model="text-embedding-3-small", input="hello")
    with scenario.case("async_at_once"):
        asyncio.run(parallel(openai.AsyncOpenAI(base_url=url, api_key="none")))
    client.close()
