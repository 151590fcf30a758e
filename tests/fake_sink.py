"""A sink that remembers what it was told, and spans as the official instrumentations make them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Status, StatusCode

from runmeter.otel.processor import PROCESSOR
from runmeter.reading import semconv
from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage

SOURCE = "source-under-test"
_ids = itertools.count(1)


class FakeSink:
    """Keeps runs in the order in which they began, their calls, and every end."""

    def __init__(self) -> None:
        self.source_id = SOURCE
        self.runs: list[RunInfo] = []
        self.calls: dict[int, list[Call]] = {}
        self.ends: list[tuple[RunInfo, int]] = []
        self.updates: list[RunInfo] = []
        self.losses: dict[str, int] = {}
        self.fates: dict[tuple[str, str], int] = {}
        self.forks = 0
        self.flushed: list[float] = []

    def begin(self, run: RunInfo) -> None:
        self.runs.append(run)
        self.calls[id(run)] = []

    def update(self, run: RunInfo) -> None:
        self.updates.append(run)

    def settled(self, run: RunInfo, changes: Sequence[Change]) -> None:
        for was, now in changes:
            if was is not None:
                self.calls[id(run)].remove(was)
            if now is not None:
                self.calls[id(run)].append(now)

    def end(self, run: RunInfo, ended_at: int) -> None:
        self.ends.append((run, ended_at))

    def lost(self, reason: str, count: int = 1) -> None:
        self.losses[reason] = self.losses.get(reason, 0) + count

    def spans(self, fates: Mapping[tuple[str, str], int]) -> None:
        for key, count in fates.items():
            self.fates[key] = self.fates.get(key, 0) + count

    def flush(self, timeout: float) -> bool:
        self.flushed.append(timeout)
        return True

    def shutdown(self, timeout: float) -> bool:
        return True

    def after_fork(self) -> None:
        self.forks += 1
        self.source_id = f"{SOURCE}-fork{self.forks}"

    def run(self, run_id: str) -> RunInfo:
        """The one run of that id."""
        (found,) = [run for run in self.runs if run.run_id == run_id]
        return found

    def of(self, run_id: str) -> list[Call]:
        """The calls of every opening of that run."""
        return [call for run in self.runs if run.run_id == run_id for call in self.calls[id(run)]]

    def usage(self, run_id: str) -> Usage:
        return sum((call.usage for call in self.of(run_id)), Usage())

    def tokens(self) -> dict[str, int]:
        return {run.run_id: self.usage(run.run_id).total_tokens for run in self.runs}


class Meter:
    """The process's processor on a provider of the test's own, with a fake sink."""

    def __init__(self, **provider: Any) -> None:
        self.sink = FakeSink()
        self.exported = InMemorySpanExporter()
        self.provider = TracerProvider(resource=Resource({"service.name": "svc"}), shutdown_on_exit=False, **provider)
        self.provider.add_span_processor(PROCESSOR)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exported))
        self.tracer = self.provider.get_tracer("opentelemetry.instrumentation.genai.openai")
        PROCESSOR.tracer = self.provider.get_tracer(semconv.SCOPE)
        PROCESSOR.start((self.sink,), source_id=SOURCE, service="svc")

    def spans(self) -> dict[str, Any]:
        """The attributes of exported spans by name."""
        return {span.name: dict(span.attributes or {}) for span in self.exported.get_finished_spans()}

    def call(
        self, input_tokens: int = 10, output_tokens: int = 5, *, model: str = "m", failed: bool = False, **more: Any
    ) -> None:
        """One model call in the current context."""
        self.finish(self.begin_call(model), input_tokens, output_tokens, failed=failed, **more)

    def begin_call(self, model: str = "m", context: Any = None) -> Span:
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": model}
        return self.tracer.start_span(f"chat {model}", context, SpanKind.CLIENT, attributes)  # type: ignore[return-value]

    def finish(
        self, span: Span, input_tokens: int = 10, output_tokens: int = 5, *, failed: bool = False, **more: Any
    ) -> None:
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        else:
            span.set_attribute("gen_ai.usage.input_tokens", input_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", output_tokens)
            span.set_attribute("gen_ai.response.id", more.pop("response_id", None) or f"resp-{next(_ids)}")
        for key, value in more.items():
            span.set_attribute(key.replace("__", "."), value)
        span.end()

    @contextmanager
    def span(self, name: str, **attributes: Any) -> Iterator[Any]:
        found = {key.replace("__", "."): value for key, value in attributes.items()}
        with self.tracer.start_as_current_span(name, attributes=found) as span:
            yield span

    def agent(self, name: str) -> Any:
        return self.span(f"invoke_agent {name}", gen_ai__operation__name="invoke_agent", gen_ai__agent__name=name)

    def close(self) -> None:
        PROCESSOR.stop()
        PROCESSOR.fold.runs.sinks = ()
        PROCESSOR.tracer = None
        PROCESSOR.source_id = None
        PROCESSOR.fold.service = None
        self.provider.shutdown()
