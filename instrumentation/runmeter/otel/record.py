"""`record_usage()`: a settled model call that no instrumentation sees."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, StatusCode

from runmeter import guard
from runmeter.guard import harmless, once
from runmeter.otel.in_force import in_force, now_in_force
from runmeter.otel.processor import PROCESSOR, Processor
from runmeter.reading import semconv
from runmeter.spans import EndedSpan


@harmless(None)
def record_usage(
    *,
    provider: str | None = None,
    model: str | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    cache_read_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    messages: int | None = None,
    cost_usd: float | None = None,
    failed: bool = False,
    call_id: str | None = None,
    run_id: str | None = None,
    caller: str | None = None,
) -> None:
    """Count one settled model call that no instrumentation sees. Counts are inclusive: cache tokens are a part of
    `input_tokens`, reasoning tokens of `output_tokens`. With neither input nor output given it is an answered call
    without usage.

    A `call_id` (the provider's response id) seen before in the run adds nothing. `run_id` addresses a run wherever this
    is called from; without it the call belongs to the run in force, or else to the current trace, or else
    it is a run of its own. `cost_usd` is used only where no price is known.
    """
    processor = PROCESSOR
    if not processor.enabled:
        once("off", "runmeter: usage was recorded while nothing counts: call runmeter.instrument() first", level=20)
        return
    attributes = _usage_attributes(locals())
    who = guard.text(caller)
    if who is not None:
        attributes[semconv.CALLER] = who
    context = _context_of(processor, guard.identifier(run_id), who)
    name = f"chat {attributes.get(semconv.REQUEST_MODEL, 'unknown')}"
    tracer = processor.tracer
    span: trace.Span = trace.INVALID_SPAN
    if tracer is not None:
        span = tracer.start_span(name, context, SpanKind.CLIENT, attributes)
    if span.is_recording():
        if failed:
            span.set_status(StatusCode.ERROR)
        span.end()
        return
    scope = now_in_force(context)
    if scope is not None and scope.caller is not None:
        attributes.setdefault(semconv.CALLER, scope.caller)
    around = span.get_span_context()
    now = processor.clock()
    identity = uuid.uuid4().int
    processor.feed(
        EndedSpan(
            around.trace_id or identity, identity & (2**64 - 1), None, False, name, 3, semconv.SCOPE, {}, attributes,
            now, now, bool(failed),
        ),
        None if scope is None else scope.run,
    )  # fmt: skip


def _context_of(processor: Processor, run_id: str | None, who: str | None) -> Context:
    """The context a record belongs in: the current one, or that of the run it names."""
    context = get_current()
    scope = now_in_force(context)
    if run_id is None or (scope is not None and scope.run is not None and scope.run.info.run_id == run_id):
        return context
    state = processor.joined(run_id)
    return state.context if state.context is not None else in_force(state, Context())


def _usage_attributes(given: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {semconv.OPERATION_NAME: "chat"}
    for key, argument in (
        (semconv.PROVIDER_NAME, "provider"),
        (semconv.REQUEST_MODEL, "model"),
        (semconv.RESPONSE_ID, "call_id"),
    ):
        words = guard.identifier(given[argument])
        if words is not None:
            attributes[key] = words
    rejected = 0
    for key, argument in (
        (semconv.INPUT_TOKENS, "input_tokens"),
        (semconv.OUTPUT_TOKENS, "output_tokens"),
        (semconv.CACHE_READ_TOKENS, "cache_read_tokens"),
        (semconv.CACHE_WRITE_TOKENS, "cache_write_tokens"),
        (semconv.REASONING_TOKENS, "reasoning_tokens"),
        (semconv.MESSAGES, "messages"),
    ):
        number = guard.count(given[argument])
        if number is not None:
            attributes[key] = number
        elif given[argument] is not None:
            rejected += 1
            once(
                f"count {argument}",
                "runmeter: %s=%s is not a count and was left out",
                argument,
                (guard.text(given[argument]) or '')[:40],
            )
    if semconv.INPUT_TOKENS not in attributes and semconv.OUTPUT_TOKENS not in attributes:
        # Zeros by default are no usage.
        for key in (semconv.CACHE_READ_TOKENS, semconv.CACHE_WRITE_TOKENS, semconv.REASONING_TOKENS):
            if not attributes.get(key):
                attributes.pop(key, None)
    cost = guard.dollars(given["cost_usd"])
    if cost is not None:
        attributes[semconv.COST_USD] = cost
    elif given["cost_usd"] is not None:
        rejected += 1
    if rejected:
        PROCESSOR.lost("rejected_value", rejected)
    return attributes
