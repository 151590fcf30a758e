"""What a run keeps in the agent's memory, door 1 whole: processor, settling, counters and recorder, in bytes.

Python's own allocations, by tracemalloc, of some hundred runs at once, each with agents' spans and calls below them
that have ended; then of the same runs after many more calls, and after their end. Spans are the SDK's, and
nobody but us could keep one.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator

from harness import Options, Row, main
from nowhere import Nowhere
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind

from runmeter.otel.context import Run, start_run
from runmeter.otel.counters import Counters
from runmeter.otel.processor import PROCESSOR
from runmeter.runs.known import ENDED_LIMIT
from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.recorder import Recorder
from runmeter_exporter.recorder.core import RecorderCore

FEW, MANY, MORE = 10, 100, 300


class Agents:
    """Runs that all work at once."""

    def __init__(self) -> None:
        self.meters = MeterProvider([InMemoryMetricReader()])
        self.recorder = Recorder(Nowhere, throttle=0.1)  # type: ignore[arg-type]
        self.provider = TracerProvider(resource=Resource({"service.name": "bench"}), shutdown_on_exit=False)
        self.provider.add_span_processor(PROCESSOR)
        self.tracer = self.provider.get_tracer("opentelemetry.instrumentation.genai.openai")
        PROCESSOR.tracer = self.tracer
        PROCESSOR.start((Counters(self.meters), self.recorder), source_id=self.recorder.source_id, service="bench")
        self.number = 0

    def turn(self, run: Run, calls: int) -> None:
        """An agent's span, and calls below it as the official OpenAI instrumentation writes them, of three models."""
        agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "helper"}
        with run.activate(), self.tracer.start_as_current_span("invoke_agent helper", attributes=agent):
            for call in range(calls):
                self.number += 1
                attributes = {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": f"gpt-{call % 3}",
                    "gen_ai.response.id": f"chatcmpl-{self.number}",
                    "gen_ai.usage.input_tokens": 1200,
                    "gen_ai.usage.output_tokens": 310,
                }
                self.tracer.start_span("chat", kind=SpanKind.CLIENT, attributes=attributes).end()

    def settled(self) -> int:
        """Bytes held once everything is written."""
        assert self.recorder.flush(60)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    def stop(self) -> None:
        """Count nothing any more."""
        PROCESSOR.stop()
        PROCESSOR.shutdown_sinks(5.0)


def lives(agents: Agents, number: int, calls: tuple[int, ...]) -> list[float]:
    """Bytes a run after each number of calls, and after its end; beyond what was held before."""
    empty = agents.settled()
    runs = [start_run(thread_id="bench") for _ in range(number)]
    held = []
    made = 0
    for goal in calls:
        while made < goal:
            for run in runs:
                agents.turn(run, FEW)
            made += FEW
        held.append((agents.settled() - empty) / number)
    for run in runs:
        run.end()
    runs.clear()
    del run
    held.append((agents.settled() - empty) / number)
    return held


def recorder_alone(number: int) -> float:
    """Bytes of an active run of three models in the recorder, after any number of calls."""
    core = RecorderCore("s", throttle=1.0, price=lambda call: call.usage)
    empty = tracemalloc.get_traced_memory()[0]
    infos = [RunInfo(f"run-{run}", 0, thread_id="bench") for run in range(number)]
    for step in range(FEW):
        call = Call("openai", f"gpt-{step % 3}", "lead_agent", Usage(1200, 310, calls=1), None, step)
        for info in infos:
            core.settled(info, [Change(None, call)], float(step))
    core.take(float(FEW))
    core.wrote(float(FEW))
    gc.collect()
    return (tracemalloc.get_traced_memory()[0] - empty) / number


def measure(options: Options) -> Iterator[Row]:
    """Bytes."""
    number, recent = options.of(400, 20), options.of(ENDED_LIMIT, 20)
    goals = (FEW, options.of(MANY, 20), options.of(MORE, 30))
    agents = Agents()
    lives(agents, 1, (FEW,))  # imports, which tracemalloc would make slow
    tracemalloc.start()
    first = lives(agents, recent, (FEW,))[-1]  # fills what is kept of the runs that ended last
    few, many, more, _ = lives(agents, number, goals)
    lives(agents, recent, (FEW,))
    left = lives(agents, number, (FEW,))[-1]
    recorder = recorder_alone(number)
    tracemalloc.stop()
    agents.stop()
    yield Row(what=f"memory of an active run of {number}, {FEW} calls", measured=few, unit="B", at_most=4096)
    yield Row(what=f"the same after {goals[1]} calls", measured=many, unit="B", peer=f"after {FEW}", beside=few)
    yield Row(
        what=f"the same after {goals[2]} calls (flat in calls)",
        measured=more,
        unit="B",
        peer=f"after {goals[1]}",
        beside=many,
        ratio_at_most=1.1,
    )
    yield Row(what="the recorder's part of it", measured=recorder, unit="B", peer="all of door 1", beside=few)
    yield Row(
        what=f"memory kept of each of the last {ENDED_LIMIT} ended runs, for streams that outlive theirs",
        measured=first,
        unit="B",
        peer="active",
        beside=few,
    )
    yield Row(what="memory left of any other ended run", measured=max(0.0, left), unit="B", at_most=200)


if __name__ == "__main__":
    main(measure)
