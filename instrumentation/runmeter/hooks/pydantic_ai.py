"""Pydantic AI: turns on the spans it makes itself, without content; they say all there is to count."""

from __future__ import annotations

from typing import Any

from runmeter.hooks.report import Told, field, missing, number

PIP = "pip install pydantic-ai-slim"


def usage_from(response: Any) -> Told:
    """What a `ModelResponse` says of its call, for `runmeter.record_usage(**usage_from(response)._asdict())` where
    spans are not wanted; counts are inclusive, as Pydantic AI's are."""
    usage = field(response, "usage")
    told = Told(
        provider=field(response, "provider_name"), model=field(response, "model_name"),
        call_id=field(response, "provider_response_id"),
    )  # fmt: skip
    given, answered = field(usage, "input_tokens"), field(usage, "output_tokens")
    if not number(given) and not number(answered):
        return told
    return told._replace(
        input_tokens=number(given), output_tokens=number(answered),
        cache_read_tokens=number(field(usage, "cache_read_tokens")),
        cache_write_tokens=number(field(usage, "cache_write_tokens")),
        reasoning_tokens=number(field(usage, "details", "reasoning_tokens")),
    )  # fmt: skip


def install() -> bool:
    """Turn the spans of every agent on, unless the program did it already. False, with the `pip install` line in the
    log, without Pydantic AI."""
    try:
        from pydantic_ai import Agent
        from pydantic_ai.models.instrumented import InstrumentationSettings
    except ImportError:
        return missing("Pydantic AI", PIP)
    if not getattr(Agent, "_instrument_default", False):
        Agent.instrument_all(InstrumentationSettings(include_content=False))
    return True


def uninstall() -> None:
    """Turn them off again."""
    try:
        from pydantic_ai import Agent
    except ImportError:
        return
    Agent.instrument_all(False)
