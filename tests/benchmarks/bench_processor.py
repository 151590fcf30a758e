"""What a span costs in the agent process, against four `counter.add` in the same run (facts: "What we want").

    python tests/benchmarks/bench_processor.py

Microseconds, medians over spans and interleaved rounds, on real SDK spans just begun and just ended: a usage-bearing
span as the official OpenAI instrumentation makes it, under an agent; and a plain span (an HTTP request). The sinks are
the real ones, counters and recorder, without what the recorder does in its own writer thread, off the agent's path.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind, use_span

from runmeter.context import run
from runmeter.counters import Counters
from runmeter.processor import PROCESSOR
from runmeter_exporter.recorder import open_recorder

ROUNDS = 30
SPANS = 500

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

    def four_adds(self) -> float:
        adds, labels = self.adds, self.labels
        taken: list[int] = []
        for _ in range(SPANS):
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


def main() -> int:
    bench = Bench()
    rows: dict[str, list[float]] = {}
    for number in range(ROUNDS):
        rows.setdefault("counter.add x 4", []).append(bench.four_adds())
        for name, calls, explicit in (
            ("usage-bearing span, in a run", True, True),
            ("usage-bearing span, bare trace", True, False),
            ("other span, in a run", False, True),
            ("other span, bare trace", False, False),
        ):
            started, ended = bench.round(number, calls, explicit)
            rows.setdefault(f"{name}: on_start", []).append(started)
            rows.setdefault(f"{name}: on_end", []).append(ended)
    medians = {name: statistics.median(values) for name, values in rows.items()}
    adds = medians["counter.add x 4"]
    print(f"{'':48}{'µs':>8}{'of 4 adds':>11}")
    for name, value in medians.items():
        print(f"{name:48}{value:8.2f}{value / adds:11.2f}")
    PROCESSOR.stop()
    PROCESSOR.shutdown_sinks(2.0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
