"""No code at all: what `opentelemetry-instrument` and `runmeter exec` start in a Python process."""

from __future__ import annotations

import os

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runmeter import durations, guard
from runmeter.otel.handle import Handle, instrument
from runmeter.otel.processor import PROCESSOR
from runmeter.reading import semconv
from runmeter.sink import RunInfo

THREAD_VARIABLE = "RUNMETER_THREAD_ID"
"""Beside the baggage, which carries only the run id (rule 11): the thread of the run this process is part of."""


def post_instrument() -> None:
    """Entry point `opentelemetry_post_instrument`: the provider is set up, the instrumentations are on."""
    start()


def start() -> Handle:
    """Instrument this process, and join the run that its environment names. Never raises."""
    handle = instrument(throttle=_throttle())
    try:
        if handle.active:
            _join()
    except Exception as error:
        guard.unless_the_hosts(error)
        guard.once("auto", "runmeter: this process could not join the run it was started in")
    return handle


def _throttle() -> float:
    """Seconds. A variable that is no duration costs a warning, not the program."""
    try:
        return durations.seconds(os.environ.get("RUNMETER_THROTTLE") or "1s")
    except ValueError as problem:
        guard.once("throttle", "runmeter: RUNMETER_THROTTLE: %s; totals are written once a second", problem)
        return 1.0


def _join() -> None:
    """The environment carries the context as TRACEPARENT and BAGGAGE (OpenTelemetry's environment carriers)."""
    carrier = {name: os.environ.get(name.upper(), "") for name in ("traceparent", "tracestate", "baggage")}
    context = W3CBaggagePropagator().extract(carrier, Context())
    run_id = guard.identifier(baggage.get_baggage(semconv.RUN_ID, context))
    if run_id is None:
        return
    thread_id = guard.identifier(os.environ.get(THREAD_VARIABLE))
    # Every thread of this process belongs to the run, also those that begin without a context.
    PROCESSOR.join_all(RunInfo(run_id, 0, thread_id=thread_id))
    attach(TraceContextTextMapPropagator().extract(carrier, context))
