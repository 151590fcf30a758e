"""What every live scenario shares: the provider, a store, and a comparison of the two for each case."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import runmeter
from runmeter_exporter import open_store
from runmeter_exporter.demo.asked import Asked
from runmeter_exporter.demo.provider import Provider, decodable
from runmeter_exporter.demo.wire import Numbers

COUNTS = {
    "calls": "llm_call_count", "input_tokens": "total_input_tokens", "output_tokens": "total_output_tokens",
    "cache_read_tokens": "cache_read_tokens", "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "reasoning_tokens", "calls_without_usage": "calls_without_usage",
}  # fmt: skip


def numbers(number: int, asked: Asked) -> Numbers:
    """As the provider's own, with cache writes where the wire can say them."""
    plain = decodable(number, asked)
    return plain._replace(cache_write_tokens=200, reasoning_tokens=0) if asked.wire == "messages" else plain


class Live:
    """One scenario in one mode: `with live.case("name"):` is one run, compared when everything is over."""

    def __init__(self, provider: Provider, modes: list[str]) -> None:
        self.provider, self.modes = provider, modes
        self._folder = tempfile.TemporaryDirectory(prefix="runmeter-live-")
        self.url = f"sqlite:///{Path(self._folder.name) / 'store.sqlite'}"
        self._handle = runmeter.instrument(database_url=self.url, throttle=0.05, instrumentations="auto" in modes)
        self._cases: dict[str, tuple[int, int, str | None, tuple[str, ...]]] = {}

    @contextmanager
    def case(self, name: str, *, impossible: str | None = None, unsaid: tuple[str, ...] = ()) -> Iterator[Any]:
        """`impossible`: why no reading of what the library says can be right. `unsaid`: counts it never says."""
        before = len(self.provider.ledger)
        with runmeter.run(run_id=name, thread_id=f"thread-{name}") as run:
            yield run
        self._cases[name] = (before, len(self.provider.ledger), impossible, unsaid)

    def finish(self) -> None:
        """Print a line for each case."""
        self._handle.shutdown(10)
        store = open_store(self.url)
        for name, (start, end, impossible, unsaid) in self._cases.items():
            entries = self.provider.ledger[start:end]
            answered = [e for e in entries if e.status == 200]
            told = [e for e in answered if e.reported]
            truth = {key: sum(getattr(e, key) for e in told) for key in COUNTS if key.endswith("_tokens")}
            truth |= {"calls": len(answered), "calls_without_usage": len(answered) - len(told)}
            stored = store.run(name)
            ours = {key: stored[field] if stored else None for key, field in COUNTS.items()}
            differ = {k: f"{ours[k]} not {truth[k]}" for k in COUNTS if k not in unsaid and ours[k] != truth[k]}
            why = ", ".join(f"{key}: {what}" for key, what in differ.items())
            report = {"case": name, "ok": not differ and bool(answered), "why": why or ("" if answered else "no call")}
            if impossible:
                report |= {"impossible": True, "why": f"{why} ({impossible})"}
            print("CASE " + json.dumps(report), flush=True)
        store.dispose()
        self._folder.cleanup()


@contextmanager
def live() -> Iterator[Live]:
    """The scenario's provider and store; modes are the command line's argument."""
    with Provider(numbers=numbers) as provider:
        scenario = Live(provider, sys.argv[1].split("+"))
        yield scenario
        scenario.finish()
