"""Recorded spans through the two doors of the product, and what each says they come to: helpers for tests.

Nothing is settled here: door 1 is the span processor with a sink that remembers, door 2 what `serve` takes OTLP with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from fake_sink import FakeSink
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
from otlp_requests import difference, usage_of

from runmeter.otel.processor import Processor
from runmeter.spans import EndedSpan
from runmeter.usage import ZERO, Usage
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import RunStore

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


class Counted(NamedTuple):
    """What a door says that spans come to."""

    totals: Usage
    threads: dict[str | None, Usage]
    """Of the runs of each thread that used anything."""


def counted(runs: Iterable[tuple[str | None, Usage]]) -> Counted:
    """Of runs, given as (thread, usage)."""
    totals, threads = ZERO, dict[str | None, Usage]()
    for thread_id, usage in runs:
        totals = totals + usage
        if any(usage):
            threads[thread_id] = threads.get(thread_id, ZERO) + usage
    return Counted(totals, threads)


def door1(spans: Sequence[EndedSpan]) -> Counted:
    """Begun and ended in a process of the SDK's, in the order of their times."""
    sink = replay(list(spans))
    usages = ((run.thread_id, sum((call.usage for call in sink.calls[id(run)]), ZERO)) for run in sink.runs)
    return counted(usages)


def door2(store: RunStore, requests: Sequence[bytes], send: Callable[[int, bytes], Ingest]) -> tuple[Counted, Counted]:
    """(live, settled): what a store answers of these requests with `include_active` when they are acknowledged, and
    without it when their runs have closed. `send` posts one and says through whom to close.

    The store has no active runs of others; what it holds already is subtracted, and settled totals never fall.
    """
    before = usage_of(store.usage())
    ingest = None
    for number, request in enumerate(requests):
        ingest = send(number, request)
    run_ids = [run.run_id for run in store.watch().runs]
    live = answers(store, run_ids, before, include_active=True)
    if ingest is not None:
        ingest.close_runs(run_ids)
    return live, answers(store, run_ids, before, include_active=False)


def answers(store: RunStore, run_ids: Iterable[str], before: Usage = ZERO, *, include_active: bool) -> Counted:
    """What the store says of everything since `before`, and of these runs by thread."""
    runs = [run for run_id in run_ids if (run := store.run(run_id)) is not None]
    told = counted((run["thread_id"], usage_of(run)) for run in runs)
    return told._replace(totals=difference(usage_of(store.usage(include_active=include_active)), before))


def unpriced(call: Any) -> Usage:
    """Prices are not what these tests are about."""
    usage: Usage = call.usage._replace(unpriced_tokens=call.usage.total_tokens)
    return usage
