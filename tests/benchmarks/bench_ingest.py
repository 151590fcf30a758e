"""OTLP intake: spans a second and CPU per span, exactly once on SQLite, beside the floor of parsing alone.

`python tests/benchmarks/bench_ingest.py [spans]`; the bar of the design: 15,000 spans/s a core, one in five a model
call, visible in REST within a second.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runmeter_exporter.ingest import Ingest
from runmeter_exporter.otlp import PROTOBUF, decode
from runmeter_exporter.store import open_store

BATCH = 512
TRACE = 64
"""Spans of a trace: an agent span, then tools, HTTP and database spans below it, and a call for one in five."""
BEGAN = 1_790_000_000 * 10**9


def requests(spans: int) -> tuple[list[bytes], int]:
    """Serialized requests of 512 spans with some 20 attributes each, and the tokens that they say."""
    draw = random.Random(7)
    made: list[bytes] = []
    tokens = 0
    number = 0
    while number < spans:
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "bench"
        scope = resource.scope_spans.add()
        scope.scope.name = "opentelemetry.instrumentation.openai"
        for _ in range(BATCH):
            if number % TRACE == 0:
                trace_id, root = draw.randbytes(16), draw.randbytes(8)
            is_root = number % TRACE == 0
            span = scope.spans.add(trace_id=trace_id, span_id=root if is_root else draw.randbytes(8), name="span")
            if not is_root:
                span.parent_span_id = root
            span.start_time_unix_nano = BEGAN + number * 10**6
            span.end_time_unix_nano = span.start_time_unix_nano + 10**6
            for key in range(14):
                span.attributes.add(key=f"http.request.header.number.{key}").value.string_value = f"value {key}"
            if is_root:
                span.attributes.add(key="gen_ai.operation.name").value.string_value = "invoke_agent"
            elif number % 5 == 0:
                for key, value in (
                    ("gen_ai.operation.name", "chat"),
                    ("gen_ai.provider.name", "openai"),
                    ("gen_ai.request.model", "gpt-5-mini"),
                    ("gen_ai.response.id", f"chatcmpl-{number}"),
                ):
                    span.attributes.add(key=key).value.string_value = value
                span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 1000 + number
                span.attributes.add(key="gen_ai.usage.output_tokens").value.int_value = 100
                tokens += 1100 + number
            number += 1
        made.append(request.SerializeToString())
    return made, tokens


def cpu_of(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of all our threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    bodies, tokens = requests(int(sys.argv[1]) if len(sys.argv) > 1 else 51_200)
    spans = len(bodies) * BATCH
    parsed = [cpu_of(lambda: [decode(body, PROTOBUF, None) for body in bodies])[1] for _ in range(3)]
    floor = statistics.median(parsed)
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'bench.db'}")
        ingest = Ingest(store)
        store.usage()  # the schema is made before the clock starts

        def post() -> None:
            for body in bodies:
                status, _, _ = ingest.handle("/v1/traces", body, PROTOBUF, None)
                assert status == 200, status

        wall, cpu = cpu_of(post)
        seen = store.usage(include_active=True)["total_tokens"]
        assert seen == tokens, (seen, tokens)
        _, again_cpu = cpu_of(post)
        run_ids = [run.run_id for run in store.watch().runs]
        _, closing = cpu_of(lambda: ingest.close_runs(run_ids))
        assert store.usage()["total_tokens"] == tokens
        ingest.stop()
        store.dispose()
    for name, seconds in (("parse only", floor), ("taken in", cpu), ("repeated", again_cpu), ("closed", closing)):
        print(f"{name:12} {seconds / spans * 1e6:7.1f} µs CPU/span  {spans / seconds:10,.0f} spans/s a core")
    print(f"taken in / parse only: {cpu / floor:.1f}; wall {spans / wall:,.0f} spans/s, visible when answered")


if __name__ == "__main__":
    main()
