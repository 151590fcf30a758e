"""Every recording replayed span by span, begun and ended in the order of its times, through the processor of door 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_sink import FakeSink
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from otlp_files import Recording, recordings

from runmeter.processor import Processor
from runmeter.spans import EndedSpan

AT_START = {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "openinference.span.kind"}
"""What instrumentations know when a call begins; the recordings hold only what was known at the end."""


class Replayed(ReadableSpan):
    """A recorded span as the SDK would hand it over."""

    def __init__(self, span: EndedSpan, resource: Resource, *, began: bool) -> None:
        flags = TraceFlags(TraceFlags.SAMPLED)
        parent = None
        if span.parent_id is not None:
            parent = SpanContext(span.trace_id, span.parent_id, span.parent_is_remote, flags)
        attributes = {key: value for key, value in span.attributes.items() if not began or key in AT_START}
        super().__init__(
            span.name,
            SpanContext(span.trace_id, span.span_id, False, flags),
            parent,
            resource,
            BoundedAttributes(None, attributes),
            kind=SpanKind(max(0, span.kind - 1)),
            status=Status(StatusCode.ERROR if span.failed and not began else StatusCode.UNSET),
            start_time=span.started_at,
            end_time=None if began else span.ended_at,
            instrumentation_scope=InstrumentationScope(span.scope),
        )

    def set_attribute(self, key: str, value: Any) -> None:
        """Stamps are of no interest here."""


def replay(spans: list[EndedSpan]) -> FakeSink:
    processor, sink = Processor(), FakeSink()
    processor.start((sink,))
    resources = {id(span.resource): Resource(dict(span.resource)) for span in spans}
    by_id = {(span.trace_id, span.span_id): span for span in spans}

    def depth(span: EndedSpan) -> int:
        above, levels = by_id.get((span.trace_id, span.parent_id or 0)), 0
        while above is not None and levels < len(spans):
            above, levels = by_id.get((above.trace_id, above.parent_id or 0)), levels + 1
        return levels

    # At one instant what ends comes before what begins, parents begin before and end after their children.
    events: list[tuple[int, int, int, EndedSpan]] = []
    for span in spans:
        events.append((span.started_at, 1, depth(span), span))
        events.append((span.ended_at, 0 if span.ended_at > span.started_at else 2, -depth(span), span))
    for _, kind, _, span in sorted(events, key=lambda event: event[:3]):
        moment = Replayed(span, resources[id(span.resource)], began=kind == 1)
        if kind == 1:
            processor.on_start(moment, Context())  # type: ignore[arg-type]
        else:
            processor.on_end(moment)
    processor.stop()
    return sink


def cases() -> Iterator[Any]:
    for recording in recordings():
        # The truth counts chat answers only; to us embedding calls are calls. The others no span can tell.
        if not recording.document.get("impossible_from_spans") and not recording.name.endswith("embeddings"):
            yield pytest.param(recording, id=recording.name)


@pytest.mark.parametrize("recording", cases())
def test_totals_and_threads(recording: Recording) -> None:
    """Calls, tokens and the totals of each thread are what the provider answered, and every run that began ended."""
    sink = replay(recording.spans())
    calls = [call for run in sink.runs for call in sink.calls[id(run)]]
    truth = recording.truth
    assert sum(call.usage.input_tokens for call in calls) == truth["input_tokens"]
    assert sum(call.usage.output_tokens for call in calls) == truth["output_tokens"]
    answered = sum(call.usage.calls for call in calls)
    assert truth["llm_calls"] <= answered <= truth["llm_calls"] + truth.get("interrupted_calls", 0)
    assert {id(run) for run, _ in sink.ends} == {id(run) for run in sink.runs}
    assert "error" not in sink.losses
    if len(truth.get("per_thread") or ()) > 1 and all(run.thread_id for run in sink.runs):
        threads: dict[str | None, int] = {}
        for run in sink.runs:
            threads[run.thread_id] = threads.get(run.thread_id, 0) + sink.usage(run.run_id).total_tokens
        told = sorted(one["input_tokens"] + one["output_tokens"] for one in truth["per_thread"].values())
        assert sorted(threads.values()) == told


def test_a_streams_call_waits_for_its_log_and_not_for_ever() -> None:
    """Logfire's call of a stream is told with the usage that its log brings; one whose stream nobody read is told, as a
    call without usage, when another call comes a minute later."""
    second = 10**9
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    used = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2}

    def span(number: int, began: int, ended: int, **attributes: Any) -> EndedSpan:
        said = {**chat, **attributes}
        return EndedSpan(number, number, None, False, "chat", 3, "logfire.openai", {}, said, began, ended, False)

    call = span(1, second, 2 * second)
    log = span(2, 3 * second, 3 * second, **used, **{"logfire.span_type": "log", "duration": 1.0})
    unread = span(3, 10 * second, 11 * second)
    later = span(4, 80 * second, 81 * second, **used)
    sink = FakeSink()
    processor = Processor()
    processor.start((sink,))
    resource = Resource({})
    told = []
    for one in (call, log, unread, later):
        processor.on_start(Replayed(one, resource, began=True), Context())  # type: ignore[arg-type]
        processor.on_end(Replayed(one, resource, began=False))
        usages = [sink.usage(run.run_id) for run in sink.runs]
        told.append(tuple((usage.calls, usage.calls_without_usage, usage.input_tokens) for usage in usages))
    processor.stop()
    assert told == [(), ((1, 0, 5),), ((1, 0, 5),), ((1, 0, 5), (1, 1, 0), (1, 0, 5))]
