"""Reading a span and settling it, beside what it is compared with in the same run: adding to four OTel counters.

`python tests/benchmarks/bench_read.py [spans]`; the bar of the design: 12 µs and under a quarter of the counters for a
usage-bearing span, 1 µs for any other.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from runmeter.call import is_plain, read
from runmeter.settle import Settler
from runmeter.spans import EndedSpan

RESOURCE = {"service.name": "bench", "service.instance.id": "1"}
PLAIN = {"http.request.method": "POST", "url.full": "https://example.org/", "server.port": 443, "thread.id": 7}


def call(index: int) -> EndedSpan:
    """A call as the official OpenAI instrumentation writes it, below an agent."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
        "server.address": "api.openai.com",
        "server.port": 443,
        "gen_ai.request.temperature": 0.1,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.response.model": "gpt-5-mini-2025-08-07",
        "gen_ai.response.id": f"chatcmpl-{index}",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 1000 + index % 977,
        "gen_ai.usage.output_tokens": 100,
        "gen_ai.usage.cache_read.input_tokens": 64,
        "gen_ai.usage.reasoning.output_tokens": 10,
    }
    began = index * 10_000_000
    scope = "opentelemetry.instrumentation.genai.openai"
    return EndedSpan(1, index + 10, 5, False, "chat", 3, scope, RESOURCE, attributes, began, began + 9_000_000, False)


def microseconds(work: Callable[[], object], count: int) -> float:
    """CPU time of one of `count`, the median of several runs."""
    took = []
    for _ in range(7):
        before = time.process_time()
        work()
        took.append(time.process_time() - before)
    return statistics.median(took) / count * 1e6


def main(count: int) -> None:
    """Print a line per kind of work."""
    spans = [call(index) for index in range(count)]
    readings = [read(span) for span in spans]

    def settle(limit: int) -> None:
        settler = Settler(limit=limit)
        for reading in readings:
            settler.add(reading)

    def both() -> None:
        settler = Settler()
        for span in spans:
            settler.add(read(span))

    def links() -> None:
        settler = Settler()
        for index in range(count):
            settler.ancestor(1, index + 1, index // 2 + 1)

    provider = MeterProvider(metric_readers=[InMemoryMetricReader()])
    meter = provider.get_meter("bench")
    counters = [meter.create_counter(f"c{index}") for index in range(4)]
    labels = {"a": "1", "b": "2", "c": "3", "d": "4", "e": "5"}

    def peer() -> None:
        for _ in range(count):
            for counter in counters:
                counter.add(1, labels)

    peers = microseconds(peer, count)
    whole = microseconds(both, count)
    print(f"read                      {microseconds(lambda: [read(span) for span in spans], count):7.2f} µs")
    print(f"settle, nothing forgotten {microseconds(lambda: settle(2**30), count):7.2f} µs")
    print(f"settle, limit 1024        {microseconds(lambda: settle(1024), count):7.2f} µs")
    print(f"read and settle           {whole:7.2f} µs   {whole / peers:.2f} of counter.add × 4 ({peers:.1f} µs)")
    print(f"is_plain                  {microseconds(lambda: [is_plain('x', PLAIN) for _ in spans], count):7.2f} µs")
    print(f"a plain span's link       {microseconds(links, count):7.2f} µs")
    provider.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
