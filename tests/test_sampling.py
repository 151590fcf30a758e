"""What a sampler drops is still counted, and still not exported."""

from __future__ import annotations

import pytest
from fake_sink import Meter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

import runmeter
from runmeter.otel.sampling import CountUnsampled, count_unsampled, drops


@pytest.mark.parametrize("inner", [ALWAYS_OFF, TraceIdRatioBased(0.0), ParentBased(ALWAYS_OFF)])
def test_dropped_spans_are_recorded_with_their_attributes(inner: Sampler) -> None:
    """DROP becomes RECORD_ONLY, and what the span was started with is kept."""
    result = CountUnsampled(inner).should_sample(None, 1, "chat", attributes={"gen_ai.request.model": "m"})
    assert result.decision is Decision.RECORD_ONLY
    assert dict(result.attributes) == {"gen_ai.request.model": "m"}


def test_sampled_spans_are_left_alone() -> None:
    """What the sampler wants exported is."""
    result = CountUnsampled(ALWAYS_ON).should_sample(None, 1, "chat", attributes={"a": 1})
    assert result.decision is Decision.RECORD_AND_SAMPLE


def test_calls_in_sampled_out_traces_count() -> None:
    """With everything sampled out, calls count with model and run, and nothing is exported."""
    meter = Meter(sampler=CountUnsampled(ALWAYS_OFF))
    try:
        with runmeter.run(thread_id="t") as run:
            meter.call(10, 5, model="m1")
        meter.call(1, 2)
        assert meter.sink.usage(run.run_id).total_tokens == 15
        assert meter.sink.of(run.run_id)[0].model == "m1"
        assert sum(meter.sink.tokens().values()) == 18
        assert meter.exported.get_finished_spans() == ()
    finally:
        meter.close()


def test_an_unsampled_remote_parent_does_not_silence_the_process() -> None:
    """The default sampler follows an unsampled caller; its spans count all the same."""
    meter = Meter(sampler=CountUnsampled(DEFAULT_ON))
    try:
        remote = NonRecordingSpan(SpanContext(1, 2, True, TraceFlags(0)))
        meter.finish(meter.begin_call(context=set_span_in_context(remote)))
        assert list(meter.sink.tokens().values()) == [15]
        assert meter.exported.get_finished_spans() == ()
    finally:
        meter.close()


def test_without_the_wrapper_records_still_count() -> None:
    """Where the sampler drops a run's spans, recorded usage goes past it, with run and caller."""
    meter = Meter(sampler=ALWAYS_OFF)
    try:
        with runmeter.run() as run, runmeter.caller("subagent:x"):
            meter.call()
            runmeter.record_usage(provider="p", model="m", input_tokens=3, output_tokens=4)
        runmeter.record_usage(provider="p", model="m", input_tokens=1, output_tokens=1)
        assert [(call.caller, call.usage.total_tokens) for call in meter.sink.of(run.run_id)] == [("subagent:x", 7)]
        assert sorted(meter.sink.tokens().values()) == [2, 7]
        assert len(meter.sink.ends) == 2
    finally:
        meter.close()


def test_a_provider_with_tracers_is_wrapped_once() -> None:
    """A provider that exists already, and the tracers it gave out, see everything from now on."""
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    tracer = provider.get_tracer("early")
    assert not tracer.start_span("before").is_recording()
    count_unsampled(provider)
    count_unsampled(provider)
    span = tracer.start_span("after")
    assert span.is_recording()
    assert not span.get_span_context().trace_flags.sampled
    assert provider.sampler.get_description() == "CountUnsampled{AlwaysOffSampler}"


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (ALWAYS_ON, False),
        (DEFAULT_ON, False),
        (CountUnsampled(ALWAYS_OFF), False),
        (ALWAYS_OFF, True),
        (TraceIdRatioBased(0.5), True),
        (ParentBased(TraceIdRatioBased(0.1)), True),
        (object(), True),
    ],
)
def test_samplers_that_drop_are_known(sampler: object, expected: bool) -> None:
    """Only samplers that drop spans are worth a warning."""
    assert drops(sampler) is expected
