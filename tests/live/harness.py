"""What every live scenario shares: the provider, a store, and a comparison of the two for each case."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
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


SECONDS = 20.0
"""How long the sidecar may take to close the runs of a scenario."""
Case = tuple[int, int, dict[str, Any]]


class Live:
    """One scenario in one mode: `with live.case("name"):` is one run, compared when everything is over.

    At door 1 runmeter is in this process. At door 2 it is not: the process has OpenTelemetry with an OTLP exporter to
    a `runmeter serve`, and a run is a span of the application's that names its thread, as any tracing program has it.
    """

    def __init__(self, provider: Provider, modes: list[str]) -> None:
        self.provider, self.modes = provider, modes
        self.door = 2 if "RUNMETER_LIVE_OTLP" in os.environ else 1
        self._folder = tempfile.TemporaryDirectory(prefix="runmeter-live-")
        self.url = os.environ.get("RUNMETER_LIVE_STORE") or f"sqlite:///{Path(self._folder.name) / 'store.sqlite'}"
        self._cases: dict[str, Case] = {}
        self._handle: Any = None
        self._telemetry: Any = None
        if self.door == 1:
            self._handle = runmeter.instrument(database_url=self.url, throttle=0.05, instrumentations="auto" in modes)
        else:
            self._telemetry = _telemetry(os.environ["RUNMETER_LIVE_OTLP"])

    @contextmanager
    def case(
        self, name: str, *, impossible: str | None = None, unsaid: tuple[str, ...] = (), agent: str | None = None,
        callers: Mapping[str, int] | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """`impossible`: why no reading of what the library says can be right. `unsaid`: what it never says. `agent`
        and `callers` (calls by caller) are what the framework's own names should come to."""
        before = len(self.provider.ledger)
        if self.door == 1:
            with runmeter.run(run_id=name, thread_id=f"thread-{name}") as run:
                yield run
        else:
            said = {"runmeter.run.id": name, "gen_ai.conversation.id": f"thread-{name}"}
            with self._telemetry.get_tracer("the-application").start_as_current_span(name, attributes=said):
                yield None
        about = {"impossible": impossible, "unsaid": unsaid, "agent": agent, "callers": callers}
        self._cases[name] = (before, len(self.provider.ledger), about)

    def switch_on(self, instrumentors: Mapping[str, tuple[str, str]]) -> None:
        """Switch on the instrumentations of the scenario's modes: mode → (module, class)."""
        for mode in self.modes:
            if mode in instrumentors:
                module, name = instrumentors[mode]
                getattr(importlib.import_module(module), name)().instrument()

    def flush(self) -> None:
        """Until what was done is in the store: at door 2 in runs that are closed."""
        if self.door == 1:
            self._handle.flush(10)
            return
        self._telemetry.force_flush()
        store, end = open_store(self.url), time.monotonic() + SECONDS
        while time.monotonic() < end and not all(map(_closed, store.runs(limit=500)["runs"])):
            time.sleep(0.1)
        store.dispose()

    def finish(self) -> None:
        """Print a line for each case."""
        self.flush()
        if self.door == 1:
            self._handle.shutdown(10)
        else:
            self._telemetry.shutdown()
        store = open_store(self.url)
        for name, case in self._cases.items():
            print("CASE " + json.dumps({"case": name, **self._compared(store.run(name), *case)}), flush=True)
        store.dispose()
        self._folder.cleanup()

    def _compared(self, stored: Any, start: int, end: int, about: dict[str, Any]) -> dict[str, Any]:
        answered = [e for e in self.provider.ledger[start:end] if e.status == 200]
        told = [e for e in answered if e.reported]
        truth: dict[str, Any] = {key: sum(getattr(e, key) for e in told) for key in COUNTS if key.endswith("_tokens")}
        truth |= {"calls": len(answered), "calls_without_usage": len(answered) - len(told)}
        ours = {key: stored[field] if stored else None for key, field in COUNTS.items()}
        if about["agent"]:
            truth["agent"], ours["agent"] = about["agent"], stored["agent"] if stored else None
        if about["callers"]:
            truth["callers"], by = dict(about["callers"]), Counter[str]()
            for cell in stored["usage"] if stored else ():
                by[cell["caller"]] += cell["llm_call_count"]
            ours["callers"] = dict(by)
        differ = {key: f"{ours[key]} not {truth[key]}" for key in truth if ours[key] != truth[key]}
        wrong = {key: what for key, what in differ.items() if key not in about["unsaid"]}
        why = ", ".join(f"{key}: {what}" for key, what in wrong.items()) or ("" if answered else "no call")
        report = {"ok": not wrong and bool(answered), "why": why, "checked": sorted(truth), "differ": sorted(differ)}
        if about["impossible"]:
            report |= {"impossible": True, "why": f"{why} ({about['impossible']})"}
        return report


def _closed(run: Any) -> bool:
    return run["usage_state"] in ("settled", "lower_bound")


def _telemetry(url: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    trace.set_tracer_provider(made)
    return made


@contextmanager
def live() -> Iterator[Live]:
    """The scenario's provider and store; modes are the command line's argument."""
    with Provider(numbers=numbers) as provider:
        scenario = Live(provider, sys.argv[1].split("+"))
        yield scenario
        scenario.finish()
