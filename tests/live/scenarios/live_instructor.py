"""Instructor: a model's answer as an object, one that is asked again until it fits, streams of objects, async."""

from __future__ import annotations

import asyncio
from typing import Any

import instructor
from harness import live
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

NO_CALLS = "it writes spans of its own calls without usage: a run without calls"
INSTRUMENT = {"openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
              "openinference": ("openinference.instrumentation.instructor", "InstructorInstrumentor")}  # fmt: skip


class Person(BaseModel):
    """What is asked for."""

    name: str


with live() as scenario:
    scenario.switch_on(INSTRUMENT)
    lost = None if "openai" in scenario.modes else NO_CALLS
    asks: dict[str, Any] = {"base_url": scenario.provider.openai_url, "api_key": "none", "max_retries": 0}
    good, bad = '[[tool Person {"name": "Ann"}]]', '[[tool Person {"age": 3}]]'

    def want(text: str, **more: Any) -> dict[str, Any]:
        return {"model": "gpt-4.1-mini", "response_model": Person,
                "messages": [{"role": "user", "content": text}], **more}  # fmt: skip

    client = instructor.from_openai(OpenAI(**asks))
    with scenario.case("create", impossible=lost):
        for _ in range(3):
            client.chat.completions.create(**want(good))
    with scenario.case("asked_again", impossible=lost):
        try:
            client.chat.completions.create(**want(bad, max_retries=2))
        except Exception:
            pass
    with scenario.case("with_completion", impossible=lost):
        client.chat.completions.create_with_completion(**want(good))
    with scenario.case("partial_stream", impossible=lost):
        for _ in client.chat.completions.create_partial(**want(good, stream_options={"include_usage": True})):
            pass
    with scenario.case("failed", impossible=lost):
        for _ in range(2):
            try:
                client.chat.completions.create(**want(f"[[fail 400]] {good}", max_retries=0))
            except Exception:
                pass

    async def asynchronous() -> None:
        patched = instructor.from_openai(AsyncOpenAI(**asks))
        with scenario.case("async_at_once", impossible=lost):
            await asyncio.gather(*[patched.chat.completions.create(**want(good)) for _ in range(3)])

    asyncio.run(asynchronous())
