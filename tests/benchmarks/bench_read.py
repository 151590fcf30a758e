"""Reading a span and settling it, the pure part of what the processor does, beside four `counter.add`."""

from __future__ import annotations

from collections.abc import Iterator

from bench_processor import ANSWER, CALL, PEER, PLAIN
from harness import Options, Row, interleaved, main
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from runmeter.counting.settler import Settler
from runmeter.reading.read import is_plain, read
from runmeter.spans import EndedSpan

RESOURCE = {"service.name": "bench", "service.instance.id": "1"}
SCOPE = "opentelemetry.instrumentation.genai.openai"


def call(index: int) -> EndedSpan:
    """A call as the official OpenAI instrumentation writes it, below an agent."""
    attributes = {**CALL, **ANSWER, "gen_ai.response.id": f"chatcmpl-{index}"}
    attributes["gen_ai.usage.input_tokens"] = 1100 + index % 977
    began = index * 10_000_000
    return EndedSpan(1, index + 10, 5, False, "chat", 3, SCOPE, RESOURCE, attributes, began, began + 9_000_000, False)


def measure(options: Options) -> Iterator[Row]:
    """Four rows, in microseconds a span."""
    count = options.of(5000, 200)
    spans = [call(index) for index in range(count)]
    readings = [read(span) for span in spans]
    meter = MeterProvider(metric_readers=[InMemoryMetricReader()]).get_meter("bench")
    counters = [meter.create_counter(f"c{index}") for index in range(4)]
    labels = {f"label{index}": "value" for index in range(5)}

    def settling() -> None:
        settler = Settler()
        for reading in readings:
            settler.add(reading)

    def links() -> None:
        settler = Settler()
        for index in range(count):
            settler.ancestor(1, index + 1, index // 2 + 1)

    def adding() -> None:
        for _ in range(count):
            for counter in counters:
                counter.add(1, labels)

    work = {
        "a call read": lambda: [read(span) for span in spans],
        "a call settled": settling,
        "another span told from a call": lambda: [is_plain("http", PLAIN) for _ in range(count)],
        "another span linked": links,
        PEER: adding,
    }
    took = {name: seconds / count * 1e6 for name, seconds in interleaved(work, options.of(9, 1)).items()}
    for name, value in took.items():
        if name != PEER:
            yield Row(what=f"{name}, CPU", measured=value, unit="µs", peer=PEER, beside=took[PEER])


if __name__ == "__main__":
    main(measure)
