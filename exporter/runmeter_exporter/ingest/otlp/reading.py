"""What door 2 reads of a span; most say nothing of usage, and are told by a few set operations on their keys."""

from __future__ import annotations

from runmeter import clean
from runmeter.reading import semconv
from runmeter.reading.read import Reading, is_plain, read
from runmeter.spans import EndedSpan
from runmeter_exporter.totals.bounds import AHEAD


def not_ahead(reading: Reading, now: int) -> Reading:
    """The reading; one that ended later than `now` by more than clocks may differ ended now, and took as long."""
    ahead = reading.ended_at - now
    if ahead <= AHEAD:
        return reading
    return reading._replace(started_at=max(0, reading.started_at - ahead), ended_at=now)


def reading_of(span: EndedSpan) -> Reading:
    """What a span says; of one that is only a link between its parent and its children no more than its place."""
    attributes = span.attributes
    if span.parent_id is None or span.parent_is_remote:
        return read(span)
    explicit = semconv.RUN_ID in attributes
    if not is_plain(span.scope, attributes, below_a_run=explicit):
        return read(span)
    run_id = attributes[semconv.RUN_ID] if explicit else None
    return Reading(
        span.trace_id,
        span.span_id,
        span.parent_id,
        scope=span.scope,
        started_at=span.started_at,
        ended_at=span.ended_at,
        run_id=clean.identifier(run_id),
    )
