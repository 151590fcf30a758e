"""What a span costs in the agent process, beside four `counter.add` in the same run.

Wall microseconds, medians over spans and interleaved rounds, on real SDK spans just begun and just ended: a
usage-bearing span as the official OpenAI instrumentation makes it, under an agent; and a plain span (an HTTP request).
The sinks are the real ones, counters and recorder, without what the recorder does in its own writer thread, off the
agent's path.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

from harness import Options, Row, main
from opentelemetry.context import Context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, use_span

from runmeter.otel.context import run
from runmeter.otel.counters import Counters
from runmeter.otel.processor import PROCESSOR
from runmeter_exporter.recorder import open_recorder

SPANS = 500
PEER = "OTel `counter.add` × 4"

CALL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "server.address": "api.openai.com",
    "server.port": 443,
    "gen_ai.request.temperature": 0.2,
    "gen_ai.request.max_tokens": 512,
}
ANSWER = {
    "gen_ai.response.model": "gpt-5-mini-2026-08-07",
    "gen_ai.response.finish_reasons": ["stop"],
    "gen_ai.usage.input_tokens": 1200,
    "gen_ai.usage.output_tokens": 310,
    "gen_ai.usage.cache_read.input_tokens": 1024,
    "gen_ai.usage.reasoning.output_tokens": 128,
}
PLAIN = {
    "http.request.method": "POST",
    "url.full": "https://api.openai.com/v1/chat/completions",
    "server.address": "api.openai.com",
    "server.port": 443,
    "network.protocol.version": "1.1",
    "user_agent.original": "OpenAI/Python",
    "http.request.resend_count": 0,
}


class Bench:
    """Spans are made without the processor, whose two calls alone are timed."""

    def __init__(self) -> None:
        reader = InMemoryMetricReader()
        self.meters = MeterProvider([reader])
        meter = self.meters.get_meter("bench")
        self.adds = [meter.create_counter(f"c{index}") for index in range(4)]
        self.labels = {f"label{index}": "value" for index in range(5)}
        resource = Resource({"service.name": "bench"})
        self.recorder = open_recorder("memory://", throttle=1.0, resource=dict(resource.attributes))
        self.sinks = (Counters(self.meters), self.recorder)
        self.made: list[Span] = []
        bench = self

        class Collect(SpanProcessor):
            def on_start(self, span: Span, parent_context: Any = None) -> None:
                bench.made.append(span)

        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(Collect())
        self.openai = self.provider.get_tracer("opentelemetry.instrumentation.genai.openai")
        self.http = self.provider.get_tracer("opentelemetry.instrumentation.httpx")
        PROCESSOR.tracer = self.openai
        PROCESSOR.start(self.sinks, source_id=self.recorder.source_id, service="bench")

    def spans(self, calls: bool, number: int) -> list[Span]:
        self.made.clear()
        for index in range(SPANS):
            if calls:
                span = self.openai.start_span("chat gpt-5-mini", kind=SpanKind.CLIENT, attributes=CALL)
                span.set_attributes({**ANSWER, "gen_ai.response.id": f"chatcmpl-{number}-{index}"})
            else:
                self.http.start_span("POST", kind=SpanKind.CLIENT, attributes=PLAIN)
        return list(self.made)

    def round(self, number: int, calls: bool, explicit: bool = True) -> tuple[float, float]:
        """(on_start, on_end) in microseconds a span."""
        block = run(thread_id="bench") if explicit else None
        if block is not None:
            block.__enter__()
        agent = self.openai.start_span("invoke_agent a", attributes={"gen_ai.operation.name": "invoke_agent"})
        assert isinstance(agent, Span)
        PROCESSOR.on_start(agent)
        with use_span(agent, end_on_exit=False):
            started: list[int] = []
            finished: list[int] = []
            for span in self.spans(calls, number):
                clock = time.perf_counter_ns()
                PROCESSOR.on_start(span)
                started.append(time.perf_counter_ns() - clock)
                span.end()
                ended = span._readable_span()
                clock = time.perf_counter_ns()
                PROCESSOR.on_end(ended)
                finished.append(time.perf_counter_ns() - clock)
        agent.end()
        PROCESSOR.on_end(agent._readable_span())
        if block is not None:
            block.__exit__(None, None, None)
        return median(started), median(finished)

    def open_calls(self, number: int) -> None:
        """So many calls of another instrumentation under way in traces of their own, as in a busy server."""
        framework = self.provider.get_tracer("openinference.instrumentation.langchain")
        for _ in range(number):
            span = framework.start_span("ChatOpenAI", Context())
            assert isinstance(span, Span)
            PROCESSOR.on_start(span, Context())

    def lookalikes(self, number: int) -> None:
        """So many calls with the same usage, told by two instrumentations in traces of their own."""
        for index in range(number // 2):
            began = time.time_ns()
            for scope in ("openinference.instrumentation.langchain", "opentelemetry.instrumentation.genai.openai"):
                tracer = self.provider.get_tracer(scope)
                said = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 1200}
                span = tracer.start_span("call", Context(), attributes=said, start_time=began)
                assert isinstance(span, Span)
                PROCESSOR.on_start(span, Context())
                span.end(began + 1_000_000 + index)
                PROCESSOR.on_end(span._readable_span())

    def four_adds(self, number: int) -> float:
        """Microseconds of the peer, where it would be called: after a call's span has ended, inside its agent's."""
        adds, labels = self.adds, self.labels
        taken: list[int] = []
        agent = self.openai.start_span("invoke_agent a")
        with use_span(agent, end_on_exit=True):
            for span in self.spans(True, number):
                span.end()
                clock = time.perf_counter_ns()
                for counter in adds:
                    counter.add(3, labels)
                taken.append(time.perf_counter_ns() - clock)
        return median(taken)


def clock_itself() -> float:
    """Nanoseconds of asking the clock."""
    taken = []
    for _ in range(10_000):
        clock = time.perf_counter_ns()
        taken.append(time.perf_counter_ns() - clock)
    return statistics.median(taken)


CLOCK = clock_itself()


def median(nanoseconds: list[int]) -> float:
    """Microseconds, without the clock's own time."""
    return (statistics.median(nanoseconds) - CLOCK) / 1000


def measure(options: Options) -> Iterator[Row]:
    """A row for each kind of span in a run, and for the beginning of it; and what is dearer without a run."""
    bench = Bench()
    took: dict[str, list[float]] = {}
    for number in range(options.of(30, 1)):
        took.setdefault(PEER, []).append(bench.four_adds(number))
        for calls in (True, False):
            for explicit in (True, False):
                began, ended = bench.round(number, calls, explicit)
                kind = (
                    f"{'a usage-bearing span' if calls else 'any other span'}{'' if explicit else ' of a bare trace'}"
                )
                took.setdefault(f"{kind} ended", []).append(ended)
                took.setdefault(f"{kind} begun", []).append(began)
    for crowd, fill, size in (
        ("5,000 calls open", bench.open_calls, options.of(5_000, 50)),
        ("10,000 lookalikes known", bench.lookalikes, options.of(10_000, 50)),
    ):
        fill(size)
        for number in range(options.of(10, 1)):
            _, ended = bench.round(number, True)
            took.setdefault(f"a usage-bearing span ended, {crowd}", []).append(ended)
    PROCESSOR.stop()
    PROCESSOR.shutdown_sinks(2.0)
    medians = {name: statistics.median(values) for name, values in took.items()}
    bars = {
        "a usage-bearing span ended": (12.0, 0.25),
        "any other span ended": (1.0, None),
        "a usage-bearing span ended, 5,000 calls open": (25.0, None),
        "a usage-bearing span ended, 10,000 lookalikes known": (25.0, None),
    }
    for name, value in medians.items():
        if name != PEER:
            at_most, ratio_at_most = bars.get(name, (None, None))
            yield Row(
                what=f"processor, {name}",
                measured=value,
                unit="µs",
                peer=PEER,
                beside=medians[PEER],
                at_most=at_most,
                ratio_at_most=ratio_at_most,
            )


if __name__ == "__main__":
    main(measure)
