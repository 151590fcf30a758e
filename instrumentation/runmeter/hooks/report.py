"""What every hook shares: a call as a framework tells of it, and its way into the processor."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from opentelemetry.context import Context, attach, detach, get_current
from opentelemetry.trace import SpanKind, StatusCode

from runmeter import guard
from runmeter.otel.in_force import IN_FORCE, InForce
from runmeter.otel.processor import PROCESSOR
from runmeter.otel.record import record_usage
from runmeter.reading import semconv

REMEMBERED = 16_384
"""Calls that a hook remembers at once, open or done; the oldest goes first."""


class Told(NamedTuple):
    """One call as a framework tells of it. Counts are inclusive; None where nobody reported usage."""

    provider: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    call_id: str | None = None
    """The provider's response id where the framework hands it on: it joins the call with what others saw of it."""
    cost_usd: float | None = None
    messages: int | None = None


class Begun(NamedTuple):
    """A call under way: where it belongs, and since when (nanoseconds since the epoch)."""

    context: Context
    started_at: int


def field(value: Any, *path: str) -> Any:
    """`value.a.b` or `value["a"]["b"]`, whichever there is; None where the path ends early."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None:
            return None
    return value


def first(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)


def number(value: Any) -> int:
    """A count, or 0 for anything that is none."""
    return guard.count(value) or 0


def now() -> Begun:
    """A call that begins here and now."""
    return Begun(get_current(), PROCESSOR.clock())


def report(
    told: Told, begun: Begun, *, ended_at: int | None = None, caller: str | None = None, thread_id: str | None = None,
    run_id: str | None = None, failed: bool = False,
) -> None:  # fmt: skip
    """Count the call: as a span over its time, or directly where that span would not be recorded."""
    if not PROCESSOR.enabled:
        guard.once("off", "runmeter: a hook saw a call while nothing counts: call runmeter.instrument()", level=20)
        return
    tracer, scope = PROCESSOR.tracer, begun.context.get(IN_FORCE)
    elsewhere = run_id is not None and not (
        isinstance(scope, InForce) and scope.run is not None and scope.run.info.run_id == run_id
    )
    if tracer is not None and not elsewhere:
        span = tracer.start_span(
            f"chat {guard.text(told.model) or 'unknown'}", begun.context, SpanKind.CLIENT,
            _attributes(told, caller, thread_id), start_time=begun.started_at,
        )  # fmt: skip
        if span.is_recording():
            if failed:
                span.set_status(StatusCode.ERROR)
            span.end(ended_at)
            return
    token = attach(begun.context)
    try:
        record_usage(**told._asdict(), caller=caller, run_id=run_id, failed=failed)
    finally:
        detach(token)


def _attributes(told: Told, caller: str | None, thread_id: str | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {semconv.OPERATION_NAME: "chat"}
    for key, text in (
        (semconv.PROVIDER_NAME, told.provider), (semconv.REQUEST_MODEL, told.model), (semconv.CALLER, caller),
        (semconv.RESPONSE_ID, told.call_id), (semconv.CONVERSATION_ID, thread_id),
    ):  # fmt: skip
        clean = guard.identifier(text)
        if clean is not None:
            attributes[key] = clean
    if told.input_tokens is not None or told.output_tokens is not None:
        for key, count in (
            (semconv.INPUT_TOKENS, told.input_tokens), (semconv.OUTPUT_TOKENS, told.output_tokens),
            (semconv.CACHE_READ_TOKENS, told.cache_read_tokens), (semconv.CACHE_WRITE_TOKENS, told.cache_write_tokens),
            (semconv.REASONING_TOKENS, told.reasoning_tokens),
        ):  # fmt: skip
            attributes[key] = number(count)
    if told.messages is not None:
        attributes[semconv.MESSAGES] = number(told.messages)
    cost = guard.dollars(told.cost_usd)
    if cost is not None:
        attributes[semconv.COST_USD] = cost
    return attributes


class Memory:
    """Which calls are under way and which were reported, by the framework's own ids; bounded, safe from any thread."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[Hashable, Any] = OrderedDict()
        self._done: OrderedDict[Hashable, None] = OrderedDict()

    def begin(self, key: Hashable, what: Any) -> None:
        """The first beginning is kept."""
        with self._lock:
            self._open.setdefault(key, what)
            if len(self._open) > self._limit:
                self._open.popitem(last=False)

    def peek(self, key: Hashable) -> Any:
        """What is kept of a call under way, or None."""
        with self._lock:
            return self._open.get(key)

    def take(self, key: Hashable) -> Any:
        """What is kept of it, which is then forgotten."""
        with self._lock:
            return self._open.pop(key, None)

    def first_time(self, key: Hashable) -> bool:
        """True once for each key: what was reported before adds nothing."""
        with self._lock:
            if key in self._done:
                return False
            self._done[key] = None
            if len(self._done) > self._limit:
                self._done.popitem(last=False)
            return True


def missing(framework: str, line: str) -> bool:
    """Say which line installs a framework that is not there; always False, as `install` answers then."""
    guard.logger.warning("runmeter: %s is not installed, so there is nothing to hook into. Run: %s", framework, line)
    return False
