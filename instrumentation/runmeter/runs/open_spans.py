"""What is kept of a span between its start and its end, and of a trace while it has spans open here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from opentelemetry.sdk.trace import ReadableSpan, Span
from opentelemetry.trace import StatusCode

from runmeter.reading import semconv
from runmeter.reading.read import Reading, read
from runmeter.runs.known import RunState
from runmeter.spans import EndedSpan

READ = frozenset(
    key
    for found in vars(semconv).values()
    for key in (found if isinstance(found, tuple) else (found,))
    if isinstance(key, str) and "." in key
)
"""Every attribute key we read; of what a span starts with, nothing else is kept (rule 11)."""

_ERROR: Final = StatusCode.ERROR
_new: Final[Any] = tuple.__new__


class OpenTrace:
    """A trace with spans open here. It is a run once it has something to count."""

    __slots__ = ("root_span_id", "roots", "run", "trace_id")

    def __init__(self, trace_id: int, root_span_id: int | None = None) -> None:
        self.trace_id = trace_id
        self.root_span_id = root_span_id
        """Its first root here."""
        self.roots = 0
        """Open spans with nothing above them here."""
        self.run: RunState | None = None


class OpenSpan:
    """A span that has begun; once it has ended only what is still open below holds it."""

    __slots__ = ("above", "callish", "fed", "kids", "may_be_call", "run", "scope", "span", "start", "trace")

    def __init__(
        self,
        trace: OpenTrace,
        scope: str = "",
        span: ReadableSpan | None = None,
        above: OpenSpan | None = None,
        run: RunState | None = None,
        start: dict[str, Any] | None = None,
    ) -> None:
        self.trace = trace
        self.scope = scope
        """Name of its instrumentation scope."""
        self.span = span
        self.above = above
        self.run = run
        """The explicit run it belongs to; without one the trace's."""
        self.start = start
        """The attributes it started with that we read: the SDK drops the oldest of more than 128."""
        self.callish = 0
        """Whether its scope makes calls or agents, as the processor says it."""
        self.fed = False
        """Its run's settler knows it as an ancestor."""
        self.kids = 0
        """Open spans directly below it."""
        self.may_be_call = False
        """Of a scope that makes calls or agents, not known to be anything else, and still open."""

    def read(self) -> Reading | None:
        """What it says so far."""
        span = self.span
        if span is None:
            return None
        return read(ended_span(span, {**(self.start or {}), **attributes_of(span)}, self.scope))


def scope_name(span: ReadableSpan) -> str:
    """The name of its instrumentation scope."""
    scope = span.instrumentation_scope
    return "" if scope is None else scope.name


def attributes_of(span: ReadableSpan) -> Mapping[str, Any]:
    """Its attributes as a dict, not to be changed.

    The SDK's own dict where it can be had: asked through the SDK's mapping, in Python, every look-up costs more than
    everything else that is done to a plain span.
    """
    try:
        return span._attributes._dict  # type: ignore[union-attr, no-any-return]
    except AttributeError:
        return dict(span.attributes or {})


def stamp(span: Span, marks: dict[str, str]) -> None:
    """Put attributes of ours on a span that is just beginning.

    Into the SDK's own dict where it can be had: nobody else has the span yet, and `set_attribute`, which locks twice
    and cleans what is clean, takes longer for three of them than everything else that is done when a span begins.
    """
    try:
        span._attributes._dict.update(marks)  # type: ignore[union-attr]
    except AttributeError:
        span.set_attributes(marks)


def ended_span(span: ReadableSpan, attributes: Mapping[str, Any], scope: str) -> EndedSpan:
    """The SDK's span as both doors have it; `scope` is its `scope_name`."""
    parent = span.parent
    trace_id, span_id = span.context[:2]
    started_at = span.start_time or 0
    found: EndedSpan = _new(
        EndedSpan,
        (
            trace_id,
            span_id,
            None if parent is None else parent.span_id,
            parent is not None and parent.is_remote,
            span.name,
            0,  # nothing is told from the kind, and asking an enumeration for its value is slow
            scope,
            span.resource.attributes,
            attributes,
            started_at,
            span.end_time or started_at,
            span.status.status_code is _ERROR,
        ),
    )
    return found
