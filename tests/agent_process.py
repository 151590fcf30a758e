"""A real agent process for tests, driven line by line over stdin so that a test never waits for time.

    python agent_process.py DATABASE_URL PROVIDER_URL RUN_ID THREAD_ID [THROTTLE]

Each line is one command, answered with one line when it is done:

    call [CALLER]    a chat completion            stream [CALLER]   a streamed one
    tool             an answer that calls a tool  fail              a failure, tried again by the agent
    end              leave the run and exit       raise             leave the run with an exception
"""

from __future__ import annotations

import sys
from contextlib import nullcontext

from openai import InternalServerError, OpenAI

import runmeter

MODEL = "gpt-5-mini"


def main(database_url: str, provider_url: str, run_id: str, thread_id: str, throttle: str = "0.05") -> None:
    """Work through the commands inside one run."""
    runmeter.instrument(database_url=database_url, throttle=float(throttle))
    # A retry inside the client leaves no span, so nobody outside could count it; an agent's own does.
    client = OpenAI(base_url=provider_url, api_key="none", max_retries=0)
    with runmeter.run(thread_id=thread_id, run_id=run_id, agent="tester"):
        print("ready", flush=True)
        for number, line in enumerate(sys.stdin):
            command, _, caller = line.strip().partition(" ")
            if command == "end":
                break
            if command == "raise":
                raise RuntimeError("the agent failed, as it was told to")
            with runmeter.caller(caller) if caller else nullcontext():
                _act(client, command, number, {"x-demo-run": run_id, "x-demo-thread": thread_id,
                                               "x-demo-caller": caller or "lead_agent"})
            print("done", flush=True)
    print("ended", flush=True)


def _act(client: OpenAI, command: str, number: int, headers: dict[str, str]) -> None:
    prompt = {"fail": f"[[fail 500]] {number}", "tool": '[[tool look_up {"q": "tea"}]]'}.get(command, f"say {number}")
    messages = [{"role": "user", "content": prompt}]
    if command == "stream":
        chunks = client.chat.completions.create(model=MODEL, messages=messages, stream=True,
                                                stream_options={"include_usage": True}, extra_headers=headers)
        for _ in chunks:
            pass
        return
    tools = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
    try:
        client.chat.completions.create(model=MODEL, messages=messages, tools=tools, extra_headers=headers)
    except InternalServerError:
        client.chat.completions.create(model=MODEL, messages=messages, tools=tools, extra_headers=headers)


if __name__ == "__main__":
    main(*sys.argv[1:])
