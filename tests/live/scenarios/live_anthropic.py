"""The Anthropic client: cached and cache-writing calls, streams both ways, an error that it retries."""

from __future__ import annotations

import anthropic
from harness import live


def ask(text: str) -> dict[str, object]:
    return {"model": "claude-sonnet-5", "max_tokens": 100, "messages": [{"role": "user", "content": text}]}


with live() as scenario:
    if "genai" in scenario.modes:
        from opentelemetry.instrumentation.genai.anthropic import AnthropicInstrumentor

        AnthropicInstrumentor().instrument()
    client = anthropic.Anthropic(base_url=scenario.provider.url, api_key="none")
    with scenario.case("cached"):
        for i in range(3):
            client.messages.create(**ask(f"hello {i}"))
    with scenario.case("stream_helper"), client.messages.stream(**ask("hello")) as stream:
        for _ in stream.text_stream:
            pass
    with scenario.case("stream_raw"):
        for _ in client.messages.create(**ask("hello"), stream=True):
            pass
    with scenario.case("tools"):
        tools = [{"name": "look_up", "input_schema": {"type": "object"}}]
        client.messages.create(**ask("[[tool look_up {}]]"), tools=tools)
    with scenario.case("error_then_retry"):
        client.messages.create(**ask("[[fail 529]]"))
    client.close()
