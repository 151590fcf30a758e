"""One agent process of the demo: the real OpenAI client, its official instrumentation, `runmeter.instrument()`.

Nothing here knows the sidecar or the store but through the environment, as in an agent of yours. The `x-demo-…` headers
are for the provider's ledger, so that totals can be compared with it per run, thread and caller.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
from collections.abc import Sequence
from typing import Any

import openai

import runmeter
from runmeter_exporter.demo.personas import PERSONAS, Persona

TOOL: Any = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {"type": "object", "properties": {"q": {"type": "string"}}},
    },
}
LEAVE_SECONDS = 10.0
"""How long the last writes may take, beside everybody else's to the same file on a busy machine."""


class Work:
    """Runs of one persona against the provider."""

    def __init__(self, client: openai.AsyncOpenAI, persona: Persona, number: int, seconds: float) -> None:
        self._client, self._persona, self._number, self._seconds = client, persona, number, seconds

    async def one_run(self, index: int) -> None:
        """A run: steps of the lead agent with a tool, a subagent that streams, a middleware that sums up."""
        persona = self._persona
        thread = f"{persona.agent}-{self._number}-{index % persona.threads}"
        user = f"user-{index % 3}"
        async with runmeter.run(thread_id=thread, agent=persona.agent, user_id=user, tags={"team": "demo"}) as run:
            about: dict[str, str] = {"x-demo-run": run.run_id, "x-demo-thread": thread}
            for step in range(persona.steps):
                await self._lead(about, f"run {index} step {step}")
                if step % 2 == 0:
                    with runmeter.caller("subagent:reader"):
                        await self._streamed(about | {"x-demo-caller": "subagent:reader"}, usage=True)
                if step % 3 == 2:
                    with runmeter.caller("middleware:summarize"):
                        await self._flaky(about | {"x-demo-caller": "middleware:summarize"}, run.run_id, step)
            if index % 4 == 3:
                # A client that forgets to ask for usage: shown as a call without usage, not guessed.
                await self._streamed(about | {"x-demo-caller": "lead_agent"}, usage=False)

    async def _lead(self, about: dict[str, str], text: str) -> None:
        headers = about | {"x-demo-caller": "lead_agent"}
        messages: list[Any] = [{"role": "user", "content": f'{text} [[tool look_up {{"q": "{text}"}}]]'}]
        for _ in range(2):
            answer = await self._client.chat.completions.create(
                model=self._persona.model, messages=messages, tools=[TOOL], extra_headers=headers
            )
            message = answer.choices[0].message
            if not message.tool_calls:
                return
            await asyncio.sleep(self._seconds)  # the tool at work
            found = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "42"}
            messages += [message.model_dump(exclude_none=True), found]

    async def _streamed(self, about: dict[str, str], *, usage: bool) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        stream = await self._client.chat.completions.create(
            model=self._persona.small_model, messages=[{"role": "user", "content": "read this"}], stream=True,
            extra_headers=about, **options,
        )  # fmt: skip
        async for _ in stream:
            pass

    async def _flaky(self, about: dict[str, str], run_id: str, step: int) -> None:
        """A call that fails once and is tried again: one failed attempt and one call."""
        impatient = self._client.with_options(max_retries=0)
        for _ in range(2):
            try:
                await impatient.chat.completions.create(
                    model=self._persona.small_model, extra_headers=about,
                    messages=[{"role": "user", "content": f"sum up {run_id} {step} [[fail 500]]"}],
                )  # fmt: skip
                return
            except openai.InternalServerError:
                continue


async def _work(work: Work, at_once: int, runs: int | None) -> None:
    numbers = itertools.count() if runs is None else iter(range(runs))

    async def worker() -> None:
        for index in numbers:
            await work.one_run(index)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


async def _main(arguments: argparse.Namespace) -> None:
    persona = PERSONAS[arguments.number % len(PERSONAS)]
    async with openai.AsyncOpenAI(base_url=arguments.provider, api_key="demo") as client:
        work = Work(client, persona, arguments.number, arguments.seconds)
        await _work(work, persona.at_once, arguments.runs)


def main(given: Sequence[str]) -> None:
    """Entry point; ends by itself after `--runs` runs, or by SIGINT, which interrupts the runs at work."""
    parser = argparse.ArgumentParser(prog="demo agent")
    parser.add_argument("--provider", required=True)
    parser.add_argument("--number", type=int, required=True)
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args(given)
    handle = runmeter.instrument()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # `child` says why it was blocked
        asyncio.run(_main(arguments))
    except KeyboardInterrupt:
        pass
    finally:
        handle.shutdown(LEAVE_SECONDS)
