"""The `openai`, `anthropic` and `langchain` extras: README's first program runs after that one line, and is exact."""

from __future__ import annotations

import json
import os
import sys

from wheel_kit import compare, did, from_the_wheel, ledger, provider, python, readme_program, runmeter_command

from_the_wheel()
client, base = sys.argv[1], provider()
first = readme_program("openai.OpenAI()")
program, agent, wire = {
    "openai": (
        first,
        "import openai\nfor _ in range(2): openai.OpenAI().chat.completions.create("
        'model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])',
        "openai",
    ),
    "anthropic": (
        first.replace("import openai", "import anthropic").replace("openai.OpenAI()", "anthropic.Anthropic()")
        .replace("chat.completions.create(", "messages.create(max_tokens=9, ")
        .replace("gpt-5-mini", "claude-haiku-4-5"),
        "import anthropic\nfor _ in range(2): anthropic.Anthropic().messages.create(max_tokens=9, "
        'model="claude-haiku-4-5", messages=[{"role": "user", "content": "Hello"}])',
        "anthropic",
    ),
    "langchain": (
        first.replace("import openai", "from langchain.chat_models import init_chat_model")
        .replace("openai.OpenAI()", 'init_chat_model("openai:gpt-5-mini")')
        .replace('chat.completions.create(model="gpt-5-mini", messages=', "invoke("),
        'from langchain.chat_models import init_chat_model\nfor _ in range(2): init_chat_model("openai:gpt-5-mini")'
        '.invoke([{"role": "user", "content": "Hello"}])',
        "openai",
    ),
}[client]  # fmt: skip
os.environ |= {
    "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": f"{base}/v1", "ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": base,
}  # fmt: skip
said = python(program)
entries = ledger()
tokens = sum(entry["input_tokens"] + entry["output_tokens"] for entry in entries)
assert len(entries) == 2, entries
assert said.splitlines()[-1] == f"{tokens} tokens in 2 calls", (said, tokens)
compare("conversation-1", entries, wire)
did("README's first program; totals and cost exact")

runmeter_command("exec", "--thread", "exec-thread", "--", sys.executable, "-P", "-c", agent)
compare("exec-thread", ledger(since=2), wire)
did("exec: a program without a line of runmeter, exact")

report = json.loads(runmeter_command("doctor", "--json"))
states = {row["subject"]: row["state"] for row in report["environment"]}
name = "langchain-core" if client == "langchain" else client
assert states[name] == "ok", report["environment"]
assert report["store"]["llm_call_count"] == 4, report["store"]
assert client in runmeter_command("doctor")
did("doctor")
