"""The two values that pass between the rooms: what both doors build, and what sinks receive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from runmeter.reading.operations import CHAT
from runmeter.usage import Usage

UNNAMED: Final = "_OTHER"
"""What the conventions call an error without a name."""


class EndedSpan(NamedTuple):
    """A finished span as both doors build it: door 1 from the SDK's ReadableSpan, door 2 from OTLP.

    Ids are the integers OpenTelemetry uses in memory; they become hexadecimal text only at the edges
    (`format(trace_id, "032x")`). Times are nanoseconds since the epoch, UTC.
    """

    trace_id: int
    span_id: int
    parent_id: int | None
    """None for a root; a parent in another process keeps its id and sets `parent_is_remote`."""
    parent_is_remote: bool
    name: str
    kind: int
    """OTLP's SpanKind numbers: 1 internal, 2 server, 3 client, 4 producer, 5 consumer; 0 unknown."""
    scope: str
    """Name of the instrumentation scope."""
    resource: Mapping[str, Any]
    attributes: Mapping[str, Any]
    """The span's own attributes. Never stored, never logged (rule 11): `call.read` takes what counts and lets go."""
    started_at: int
    ended_at: int
    failed: bool
    """Status code ERROR."""


class Call(NamedTuple):
    """One settled model call, counted once, as sinks receive it."""

    provider: str
    model: str
    """The response's model where known, else the requested one, else "unknown"."""
    caller: str
    """`lead_agent`, `subagent:<name>` or `middleware:<name>`."""
    usage: Usage
    """Without cost: sinks price a call once, before its first write (rule 13)."""
    reported_cost_nanousd: int | None
    """What the instrumentation says the call cost; used only where no price is known."""
    ended_at: int
    """Nanoseconds since the epoch; its UTC day is the cell's day."""
    operation: str = CHAT
    """The conventions' name of what was asked of the model; one of `SUMMARIES` where nobody saw the calls."""
    request_model: str | None = None
    """The model that was asked for, where that is known."""
    started_at: int = 0
    """Nanoseconds since the epoch; 0 where nobody saw the call from its beginning to its end."""
    error: str | None = None
    """Of a call that failed: the kind of error, `UNNAMED` where nobody names it; None of one that did not."""
    first_chunk: float | None = None
    """Of a streamed call: seconds until its first chunk came, where that is known."""
    thread_id: str | None = None
    """The conversation that it is part of, as the topmost span around it that names one says."""


class Change(NamedTuple):
    """One step of a run's totals: `was` is taken back, `now` is added; either may be None.

    A new call is (None, call). A call recognised as a repeat is (call, None). A call whose usage, model or caller
    became better known is (old, new). The sum over all changes is the run's totals at every moment.
    """

    was: Call | None
    now: Call | None
