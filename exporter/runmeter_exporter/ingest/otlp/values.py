"""What both encodings of a request share: when a span is not taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from runmeter.spans import EndedSpan

EARLIEST = 946_684_800 * 10**9
"""2000-01-01: a span that ended before was timed by a clock that was never set."""
LATEST = 7_258_118_400 * 10**9
"""2200-01-01: below 2^63 nanoseconds (2262), so that every stored time fits a signed column and a calendar."""
IS_REMOTE = 0x300
"""SpanFlags: CONTEXT_HAS_IS_REMOTE (0x100) and CONTEXT_IS_REMOTE (0x200); only both together say something."""


class Decoded(NamedTuple):
    """What one request says."""

    spans: list[EndedSpan]
    rejected: Mapping[str, int]
    """Spans not taken, by reason: `trace_id`, `span_id`, `parent_id` (wrong length or all zero), `time`."""


def problem(trace_id: bytes, span_id: bytes, parent_id: bytes, started_at: int, ended_at: int) -> str | None:
    """Why a span is not taken, or None."""
    if len(trace_id) != 16 or not any(trace_id):
        return "trace_id"
    if len(span_id) != 8 or not any(span_id):
        return "span_id"
    if parent_id and len(parent_id) != 8:
        return "parent_id"
    if not (EARLIEST <= started_at < LATEST and EARLIEST <= ended_at < LATEST):
        return "time"
    return None
