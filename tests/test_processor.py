"""The span processor: implicit runs, calls seen twice, streams that outlive their run, a host that is never harmed."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from fake_sink import FakeSink, Meter
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context, use_span

import runmeter
from runmeter.otel.processor import PROCESSOR, Processor
from runmeter.runs.known import ENDED_LIMIT
from runmeter.runs.waiting import HELD_LIMIT


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    yield found
    found.close()


def remote(trace_id: int = 0xABC, span_id: int = 0xDEF) -> Any:
    """A context whose parent is in another process."""
    return set_span_in_context(NonRecordingSpan(SpanContext(trace_id, span_id, True, TraceFlags(1))))


def test_a_trace_is_a_run(meter: Meter) -> None:
    """Without an explicit run the trace is one: from the first call to the local root's end, thread from spans."""
    with meter.span("GET /", session__id="thread-1") as root:
        assert meter.sink.runs == []
        meter.call(10, 5)
        (info,) = meter.sink.runs
        assert info.run_id == format(root.get_span_context().trace_id, "032x")
        assert (info.status, info.thread_id, info.owns) == ("running", "thread-1", True)
        meter.call(1, 0)
        assert meter.sink.ends == []
    assert [(run, run.status) for run, _ in meter.sink.ends] == [(info, "success")]
    assert meter.sink.usage(info.run_id).total_tokens == 16


def test_a_trace_without_calls_is_no_run(meter: Meter) -> None:
    """Spans of the host's web framework and database make no run."""
    with meter.span("GET /", http__request__method="GET"), meter.span("SELECT"):
        pass
    assert meter.sink.runs == []


def test_an_agent_makes_a_run_at_once(meter: Meter) -> None:
    """A run is seen as soon as its agent has begun, before its first call has settled."""
    with meter.agent("boss"):
        assert [run.status for run in meter.sink.runs] == ["running"]
        meter.call()
    assert meter.sink.runs[0].agent == "boss"
    assert len(meter.sink.ends) == 1


def test_an_implicit_run_that_failed(meter: Meter) -> None:
    """The local root's error is the run's."""

    def request() -> None:
        with meter.span("GET /"):
            meter.call()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        request()
    assert [run.status for run, _ in meter.sink.ends] == ["error"]


def test_each_request_of_a_remote_trace_adds(meter: Meter) -> None:
    """Two requests of one trace, one after the other, are one run that ends twice and keeps both."""
    for tokens in (1, 10):
        with meter.tracer.start_as_current_span("POST /", remote()):
            meter.call(tokens, 0)
    assert {run.run_id for run in meter.sink.runs} == {format(0xABC, "032x")}
    assert meter.sink.usage(format(0xABC, "032x")).total_tokens == 11
    assert len(meter.sink.ends) == 2


def test_two_local_roots_at_once_end_together(meter: Meter) -> None:
    """A trace with two spans from outside open here ends when the last of them does."""
    first = meter.tracer.start_span("one", remote())
    second = meter.tracer.start_span("two", remote())
    with use_span(first, end_on_exit=True):
        meter.call(1, 0)
    assert meter.sink.ends == []
    with use_span(second, end_on_exit=True):
        meter.call(2, 0)
    assert len(meter.sink.ends) == 1


def test_a_stream_that_outlives_its_run(meter: Meter) -> None:
    """Usage that comes after the run's end is added, by a later final; a repeat of what was counted is not."""
    with runmeter.run() as run:
        other = meter.provider.get_tracer("opentelemetry.instrumentation.openai")
        repeat = other.start_span("openai.chat", attributes={"gen_ai.operation.name": "chat"})
        meter.call(1, 0, response_id="first")
        stream = meter.begin_call()
    assert [info.run_id for info, _ in meter.sink.ends] == [run.run_id]
    meter.finish(stream, 100, 50)
    assert meter.sink.usage(run.run_id).total_tokens == 151
    assert len(meter.sink.ends) == 2
    meter.finish(repeat, 1, 0, response_id="first")  # type: ignore[arg-type]
    assert meter.sink.usage(run.run_id).total_tokens == 151
    assert meter.sink.runs[0].set_aside == {"late": 1}
    assert run.usage.total_tokens == 151


def test_a_stream_that_outlives_an_implicit_run(meter: Meter) -> None:
    """The same for a trace: its run's id finds it again."""
    with meter.span("GET /"):
        meter.call(1, 0)
        stream = meter.begin_call()
    assert len(meter.sink.ends) == 1
    meter.finish(stream, 100, 0)
    assert [meter.sink.usage(run.run_id).total_tokens for run in meter.sink.runs] == [101]
    assert len(meter.sink.ends) == 2


def test_a_first_call_that_outlives_its_trace(meter: Meter) -> None:
    """A trace whose only call is a stream that outlives its root is a run all the same, begun and ended by it."""
    with meter.span("GET /"):
        stream = meter.begin_call()
    assert meter.sink.runs == []
    meter.finish(stream, 100, 0)
    assert list(meter.sink.tokens().values()) == [100]
    assert [run.status for run, _ in meter.sink.ends] == ["success"]


def test_aggregates_do_not_count(meter: Meter) -> None:
    """An agent span repeats what its calls used; it counts only where no call is known."""
    with runmeter.run() as run:
        with meter.agent("boss") as agent:
            meter.call(10, 5)
            agent.set_attribute("gen_ai.usage.input_tokens", 10)
            agent.set_attribute("gen_ai.usage.output_tokens", 5)
        with meter.agent("silent") as agent:
            agent.set_attribute("gen_ai.usage.input_tokens", 100)
            agent.set_attribute("gen_ai.usage.output_tokens", 50)
    assert meter.sink.usage(run.run_id).total_tokens == 165
    assert dict(meter.sink.run(run.run_id).set_aside) == {"aggregate": 1}


def oi_span(meter: Meter, name: str, kind: str) -> Any:
    tracer = meter.provider.get_tracer("openinference.instrumentation.langchain")
    return tracer.start_span(name, attributes={"openinference.span.kind": kind})


def framework_call(meter: Meter, thread_id: str, tokens: tuple[int, int]) -> None:
    """A call as a framework's instrumentation and its client's see it: two spans in two traces, no id in common."""
    graph = oi_span(meter, "LangGraph", "CHAIN")
    graph.set_attribute("session.id", thread_id)
    with use_span(graph, end_on_exit=True):
        outer = oi_span(meter, "ChatOpenAI", "LLM")
        inner = meter.begin_call(context=set_span_in_context(INVALID_SPAN))
        meter.finish(inner, *tokens)
        outer.set_attribute("llm.token_count.prompt", tokens[0])
        outer.set_attribute("llm.token_count.completion", tokens[1])
        outer.set_attribute("llm.model_name", "m")
        outer.end()


def test_twins_in_two_traces_count_once_in_the_run_with_the_thread(meter: Meter) -> None:
    """A client's span in a trace of its own moves to the framework's run, and its own run is never heard of."""
    for thread_id, tokens in (("a", (100, 10)), ("b", (100, 10)), ("a", (7, 3))):
        framework_call(meter, thread_id, tokens)
    shown = [(run.thread_id, meter.sink.usage(run.run_id).total_tokens) for run in meter.sink.runs]
    assert shown == [("a", 110), ("b", 110), ("a", 10)]
    assert len(meter.sink.ends) == len(meter.sink.runs)


def test_two_calls_with_equal_numbers_are_two(meter: Meter) -> None:
    """Two explicit runs with equal calls at the same time, seen by two instrumentations, keep their own."""
    other = meter.provider.get_tracer("openinference.instrumentation.anthropic")
    with runmeter.run() as first:
        one = meter.begin_call()
        with runmeter.run() as second:
            two = other.start_span("messages.create", attributes={"openinference.span.kind": "LLM"})
            two.set_attribute("llm.token_count.prompt", 10)
            two.set_attribute("llm.token_count.completion", 5)
            two.end()
        meter.finish(one, 10, 5)
    assert meter.sink.tokens() == {first.run_id: 15, second.run_id: 15}


def test_a_held_run_is_let_go(meter: Meter) -> None:
    """A lone call that waited for a possible twin is a run as soon as it proves to be no twin."""
    framework_call(meter, "warm-up", (1, 1))
    meter.sink.runs.clear()
    waiting = oi_span(meter, "ChatOpenAI", "LLM")
    meter.call(5, 5)
    assert meter.sink.runs == []
    waiting.set_attribute("llm.token_count.prompt", 9999)
    waiting.end()
    assert sorted(meter.sink.tokens().values()) == [10, 9999]
    assert {run.status for run in meter.sink.runs} == {"success"}


def test_held_runs_are_bounded(meter: Meter) -> None:
    """No more than a few hundred runs wait; a flood of calls beside a span that never ends is counted all the same."""
    framework_call(meter, "warm-up", (30, 40))  # unlike those below, which follow within the slack of twins
    before = len(meter.sink.runs)
    never = oi_span(meter, "ChatOpenAI", "LLM")
    for _ in range(HELD_LIMIT + 10):
        meter.call(1, 0)
    assert len(meter.sink.runs) - before == 10
    PROCESSOR.stop()
    assert len(meter.sink.runs) - before == HELD_LIMIT + 10
    assert sum(meter.sink.tokens().values()) == 70 + HELD_LIMIT + 10
    PROCESSOR.enabled = True
    never.end()


def test_start_attributes_survive_eviction(meter: Meter) -> None:
    """A span with more than 128 attributes loses the oldest in the SDK, and is still read by what it began with."""
    logging.getLogger("opentelemetry.attributes").disabled = True
    try:
        with runmeter.run() as run:
            span = meter.begin_call("the-model")
            for index in range(200):
                span.set_attribute(f"llm.input_messages.{index}", "x")
            meter.finish(span, 10, 5)
    finally:
        logging.getLogger("opentelemetry.attributes").disabled = False
    exported = meter.spans()["chat the-model"]
    assert "gen_ai.request.model" not in exported
    (call,) = meter.sink.of(run.run_id)
    assert (call.model, call.provider, call.usage.total_tokens) == ("the-model", "openai", 15)


def test_spans_that_never_end_are_let_go() -> None:
    """Beyond the limit the oldest open span is given up and counted, and memory stays bounded."""
    processor, sink = Processor(span_limit=100), FakeSink()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    processor.start((sink,))
    tracer = provider.get_tracer("t")
    kept = [tracer.start_span("never", attributes={"gen_ai.operation.name": "invoke_agent"}) for _ in range(150)]
    assert sink.losses == {"span_evicted": 50}
    assert len(processor._spans) == 100
    assert len(sink.ends) == 50
    for span in kept:
        span.end()
    assert len(processor._spans) == 0
    assert len(processor.fold.traces) == 0
    assert len(processor.fold.leaves) == 0


def test_nothing_is_left_of_ended_runs(meter: Meter) -> None:
    """Thousands of ended runs leave a bounded memory, and their settlers are gone."""
    with runmeter.run() as run:
        meter.call()
    gone = weakref.ref(run)
    settlers = [weakref.ref(run._state.settler)]
    del run
    for _ in range(ENDED_LIMIT + 300):
        with runmeter.run():
            meter.call()
        meter.call()
    gc.collect()
    assert gone() is None
    assert settlers[0]() is None
    fold = PROCESSOR.fold
    assert len(fold.runs._ended) == ENDED_LIMIT
    assert (len(fold.runs._open), len(fold.traces), len(PROCESSOR._spans), len(fold.leaves)) == (0, 0, 0, 0)


def test_a_span_that_ends_inside_our_own_work(meter: Meter) -> None:
    """A span ended by a finalizer while a sink is being told waits its turn, and is counted."""
    inner: list[Any] = []
    settled = meter.sink.settled

    def reentrant(run: Any, changes: Any) -> None:
        if inner:
            meter.finish(inner.pop(), 100, 0)
        settled(run, changes)

    meter.sink.settled = reentrant  # type: ignore[method-assign]
    with runmeter.run() as run:
        inner.append(meter.begin_call())
        meter.call(1, 0)
    assert meter.sink.usage(run.run_id).total_tokens == 101
    assert meter.sink.losses == {}


def test_a_sink_that_raises(meter: Meter, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of ours is said once, counted each time, and never reaches the host."""

    def broken(run: Any, changes: Any) -> None:
        raise RuntimeError("broken sink")

    meter.sink.settled = broken  # type: ignore[method-assign]
    PROCESSOR._warned.clear()
    with runmeter.run() as run:
        for _ in range(3):
            meter.call()
    assert meter.sink.losses == {"error": 3}
    assert caplog.text.count("what it was about is not counted") == 1
    assert [info.run_id for info, _ in meter.sink.ends] == [run.run_id]


def test_many_threads(meter: Meter) -> None:
    """Calls from many threads in runs, nested runs and bare traces are all counted, each where it belongs."""
    totals: dict[str, int] = {}
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for index in range(50):
            with runmeter.run(run_id=f"{number}-{index}"):
                meter.call(number, 0)
                with meter.agent("a"):
                    meter.call(index, 1)
            meter.call(1, 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = meter.sink.tokens()
    for number in range(8):
        for index in range(50):
            assert totals.pop(f"{number}-{index}") == number + index + 1
    assert sum(totals.values()) == 8 * 50 * 2
    assert meter.sink.losses == {}
    assert len(meter.sink.ends) == len(meter.sink.runs)


HOSTILE = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), st.binary(max_size=5),
    st.lists(st.integers(), max_size=3),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "gen_ai.operation.name",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.request.model",
        "gen_ai.conversation.id",
        "openinference.span.kind",
        "llm.token_count.prompt",
        "runmeter.run.id",
        "runmeter.caller",
        "runmeter.run.root",
        "x",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.dictionaries(KEYS, HOSTILE, max_size=6), st.integers(0, 3)), max_size=12))
def test_hostile_attributes(spans: list[tuple[dict[str, Any], int]]) -> None:
    """Whatever stands on spans, nothing raises, no count is negative, and every run that began ends."""
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    meter = Meter()
    open_spans: list[Any] = []
    try:
        for attributes, ends in spans:
            around = open_spans[-1] if open_spans else INVALID_SPAN
            open_spans.append(meter.tracer.start_span("s", set_span_in_context(around), attributes=attributes))
            for _ in range(min(ends, len(open_spans))):
                open_spans.pop().end()
        for span in open_spans:
            span.end()
        assert "error" not in meter.sink.losses
        for run in meter.sink.runs:
            assert min(meter.sink.usage(run.run_id)) >= 0
        assert {id(run) for run, _ in meter.sink.ends} == {id(run) for run in meter.sink.runs}
    finally:
        meter.close()
        logging.getLogger("opentelemetry").setLevel(logging.NOTSET)
