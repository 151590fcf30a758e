"""What the checks share. Copied into each environment, since nothing else of the source may be importable there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
TAKEN_FROM = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")


def did(what: str) -> None:
    """A line of the matrix: `what` was done in this environment, and was right."""
    print(f"did {what}", flush=True)


def from_the_wheel() -> None:
    """Neither package is imported from the source."""
    import runmeter
    import runmeter_exporter

    for module in (runmeter, runmeter_exporter):
        assert str(module.__file__).startswith(sys.prefix), module.__file__


def installed() -> set[str]:
    """Names of everything in this environment, as on a package index."""
    return {re.sub(r"[-_.]+", "-", one.name).lower() for one in distributions()}


def readme_program(having: str) -> str:
    """The Python block of the README, as the wheel carries it, that has this in it."""
    # As a text: the importlib-metadata that older OpenTelemetry brings reads it in a way of its own.
    readme = distribution("runmeter").read_text("METADATA")
    [program] = [code for code in re.findall(r"^```python\n(.*?)^```", str(readme), re.M | re.S) if having in code]
    return str(program)


def python(code: str, **environment: str) -> str:
    """What a program prints that is run by this environment's interpreter alone; it has to end well."""
    done = subprocess.run([sys.executable, "-P", "-c", code], env=os.environ | environment, capture_output=True,
                          text=True, timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}: {code}\n{done.stderr}"
    print(done.stderr, end="", file=sys.stderr)
    return done.stdout


def runmeter_command(*arguments: str, code: int = 0, **environment: str) -> str:
    """What this environment's `runmeter` command prints."""
    done = subprocess.run([BIN / "runmeter", *arguments], env=os.environ | environment, capture_output=True,
                          text=True, timeout=100, check=False)  # fmt: skip
    assert done.returncode == code, f"runmeter {arguments}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def provider() -> str:
    """The address of the loopback provider."""
    return os.environ["CHECK_PROVIDER"]


def ledger(since: int = 0) -> list[dict[str, Any]]:
    """What the provider says it answered, after the first `since` answers."""
    with urllib.request.urlopen(f"{provider()}/ledger", timeout=10) as response:
        entries: list[dict[str, Any]] = json.load(response)
    return entries[since:]


def compare(thread_id: str, entries: list[dict[str, Any]], provider_id: str) -> None:
    """The thread's stored totals are the ledger's, and its cost is what genai-prices itself says of each answer."""
    from genai_prices import Usage, calc_price

    import runmeter_exporter

    store = runmeter_exporter.open_store()
    stored = store.thread_usage(thread_id)
    runs = store.runs(thread_id=thread_id)["runs"]
    store.dispose()
    assert len(runs) == 1, f"{len(runs)} runs of thread {thread_id} are stored"
    assert entries, "the provider was not asked"
    truth = {name: sum(entry[name] for entry in entries) for name in TAKEN_FROM}
    if all(entry["wire"] == "messages" for entry in entries):
        truth["reasoning_tokens"] = 0  # Anthropic's answers do not say them
    ours = {
        "input_tokens": stored["total_input_tokens"], "output_tokens": stored["total_output_tokens"],
        **{name: stored[name] for name in TAKEN_FROM[2:]},
    }  # fmt: skip
    assert ours == truth, f"stored {ours}, the provider says {truth}"
    assert stored["llm_call_count"] == len(entries), (stored["llm_call_count"], len(entries))
    cost = sum(
        calc_price(
            Usage(input_tokens=entry["input_tokens"], output_tokens=entry["output_tokens"],
                  cache_read_tokens=entry["cache_read_tokens"], cache_write_tokens=entry["cache_write_tokens"]),
            entry["model"], provider_id=provider_id,
        ).total_price
        for entry in entries
    )  # fmt: skip
    assert stored["cost_usd"] is not None
    assert abs(float(cost) - stored["cost_usd"]) < 1e-9, f"stored {stored['cost_usd']} USD, genai-prices says {cost}"
    assert runs[0]["status"] == "success", runs[0]
