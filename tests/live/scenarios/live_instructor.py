"""Instructor: answers as models, retried where they do not fit, streamed, asynchronous; two providers."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from typing import Any

import anthropic
import instructor
import openai
from harness import COUNTS, live
from instructor.core.exceptions import InstructorRetryException
from own import own as runs
from pydantic import BaseModel, field_validator

PROXIES = "Instructor takes the stream that this instrumentation wraps for an asynchronous one, and a sync one fails"
NO_CALLS = "its spans are of what Instructor is asked for, and carry no usage"


class Found(BaseModel):
    """What was found."""

    q: str


class Picky(BaseModel):
    """Nothing is good enough the first time."""

    q: str

    @field_validator("q")
    @classmethod
    def better(cls, q: str) -> str:
        if q == "worse":
            raise ValueError("try again")
        return q


with live() as scenario:
    scenario.switch_on(
        {
            "openai": ("opentelemetry.instrumentation.genai.openai", "OpenAIInstrumentor"),
            "openinference": ("openinference.instrumentation.instructor", "InstructorInstrumentor"),
            "oi-openai": ("openinference.instrumentation.openai", "OpenAIInstrumentor"),
            "openllmetry": ("opentelemetry.instrumentation.openai", "OpenAIInstrumentor"),
        }
    )
    where: dict[str, Any] = {"base_url": scenario.provider.openai_url, "api_key": "none"}
    chat: dict[str, Any] = {"model": "gpt-5-mini", "response_model": Found}
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}}
    FOUND = '[[tool Found {"q": "a"}]]'

    def say(text: str = FOUND) -> Any:
        return [{"role": "user", "content": text}]

    client = instructor.from_openai(openai.OpenAI(**where))
    blind = scenario.modes == ["openinference"]

    def case(name: str, **more: Any) -> Any:
        return scenario.case(name, **({"impossible": NO_CALLS} if blind else {}) | more)

    with case("create"):
        for _ in range(3):
            assert client.chat.completions.create(messages=say(), **chat).q == "a"
    with case("json_mode"):
        plain = instructor.from_openai(openai.OpenAI(**where), mode=instructor.Mode.JSON)
        with suppress(InstructorRetryException):  # the provider says no JSON: every attempt was paid for
            plain.chat.completions.create(messages=say("hello"), max_retries=1, **chat)
    with case("with_completion"):
        client.chat.completions.create_with_completion(messages=say(), **chat)
    with case("asked_again"):
        client.chat.completions.create(
            model="gpt-5-mini", response_model=Picky, max_retries=3,
            messages=say('[[tool Picky {"q": "worse"}]] [[tool Picky {"q": "better"}]]'),
        )  # fmt: skip
    with case("failed_once"):
        client.chat.completions.create(messages=say(f"{FOUND} [[fail 500]]"), **chat)
    with case("failed"):
        client.chat.completions.create(messages=say(), **chat)
        with suppress(InstructorRetryException):
            client.chat.completions.create(messages=say(f"{FOUND} [[fail 400 9]]"), max_retries=0, **chat)
    proxied = bool({"oi-openai", "openllmetry"} & set(scenario.modes))
    broken: dict[str, Any] = {"impossible": PROXIES} if proxied else {}
    with case("partial", **broken), suppress(TypeError) if proxied else nullcontext():
        list(client.chat.completions.create_partial(messages=say(), **usage, **chat))
    with case("iterable", **broken), suppress(TypeError) if proxied else nullcontext():
        both = '[[tool IterableFound {"tasks": [{"q": "a"}, {"q": "b"}]}]]'
        list(client.chat.completions.create_iterable(messages=say(both), **usage, **chat))
    with case("responses"):
        modern = instructor.from_openai(openai.OpenAI(**where), mode=instructor.Mode.RESPONSES_TOOLS)
        modern.responses.create(model="gpt-5-mini", input=FOUND, response_model=Found)
    with case("anthropic"):
        other = instructor.from_anthropic(anthropic.Anthropic(base_url=scenario.provider.url, api_key="none"))
        other.messages.create(model="claude-sonnet-5", max_tokens=100, messages=say(), response_model=Found)
    with case("provider_by_name"):
        named = instructor.from_provider("openai/gpt-5-mini", **where)
        named.chat.completions.create(messages=say(), response_model=Found)

    async def asynchronous() -> None:
        later = instructor.from_openai(openai.AsyncOpenAI(**where))
        with case("async"):
            await later.chat.completions.create(messages=say(), **chat)
        with case("async_at_once"):
            await asyncio.gather(*[later.chat.completions.create(messages=say(), **chat) for _ in range(3)])
        # OpenLLMetry leaves reasoning out of a stream.
        with case("async_partial", unsaid=("reasoning_tokens",) if "openllmetry" in scenario.modes else ()):
            async for _ in later.chat.completions.create_partial(messages=say(), **usage, **chat):
                pass

    asyncio.run(asynchronous())
    loose = dict.fromkeys((*COUNTS, "threads"), NO_CALLS) if blind else None
    with runs(scenario, "no_run", {None: 1}, loose=loose):
        client.chat.completions.create(messages=say(), **chat)
