"""The `Call` that some spans speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runmeter.counting.tree import Node, ancestors, caller_of, thread_of
from runmeter.reading.operations import CHAT, INVOKE_AGENT, INVOKE_WORKFLOW
from runmeter.reading.read import Reading
from runmeter.reading.roles import AGENT, AGGREGATE, WHOLE
from runmeter.reading.semconv import SCOPE
from runmeter.spans import UNNAMED, Call
from runmeter.usage import Usage

UNKNOWN: Final = "unknown"
_SUMMARIES: Final[Mapping[int, str]] = {AGENT: INVOKE_AGENT, AGGREGATE: INVOKE_WORKFLOW}
_BRIEF: Final = 1_000_000
"""Nanoseconds in which no model answers."""
_new: Final[Any] = tuple.__new__


def innermost(reading: Reading) -> tuple[int, int, int, int]:
    """Orders spans of one call from the outermost to the innermost: who starts last was called last."""
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id


def call_of_one(node: Node) -> Call:
    """The call that one span speaks of."""
    reading = node.reading
    assert reading is not None
    return _call(
        reading.usage,
        reading.failed,
        reading.provider,
        reading.model or _model_above(node),
        caller_of(node)[0],
        reading.cost_nanousd,
        reading.messages,
        reading.retries,
        reading.ended_at,
        _SUMMARIES.get(node.role) or reading.operation,
        reading.request_model,
        _began(reading),
        reading.error,
        reading.first_chunk,
        thread_of(node),
    )


def call_around(reading: Reading, caller: str, thread_id: str | None) -> Call:
    """The same of a call with usage that did not fail and says its model, where it is known who called and what thread
    is above."""
    usage = reading.usage
    assert usage is not None
    messages = reading.messages
    call: Call = _new(
        Call,
        (
            reading.provider or UNKNOWN,
            reading.model,
            caller,
            _new(Usage, (*usage[:5], 1, reading.retries, 0, 1 if messages is None else messages, 0, 0)),
            reading.cost_nanousd,
            reading.ended_at,
            reading.operation,
            reading.request_model,
            _began(reading),
            None,
            reading.first_chunk,
            thread_id or reading.thread_id,
        ),
    )
    return call


def call_of(nodes: Sequence[Node]) -> Call:
    """The call that these spans speak of: usage of the innermost that has one, what it lacks from the others."""
    if len(nodes) == 1:
        return call_of_one(nodes[0])
    ranked = sorted(nodes, key=_rank, reverse=True)
    readings = [node.reading for node in ranked if node.reading is not None]
    best = next((reading for reading in readings if reading.usage is not None), readings[0])
    usage = best.usage
    if usage is not None:
        tokens_in, tokens_out, cached, written, thought = usage[:5]
        for other in readings:
            if other.usage is not None:
                cached = cached or min(other.usage[2], tokens_in - written)
                written = written or min(other.usage[3], tokens_in - cached)
                thought = thought or min(other.usage[4], tokens_out)
        usage = Usage(tokens_in, tokens_out, cached, written, thought)
    model = best.model or next((reading.model for reading in readings if reading.model), None)
    if model is None:
        model = next((above for above in map(_model_above, ranked) if above), None)
    return _call(
        usage,
        best.failed,
        best.provider or next((reading.provider for reading in readings if reading.provider), None),
        model,
        max((caller_of(node) for node in ranked), key=_depth)[0],
        next((reading.cost_nanousd for reading in readings if reading.cost_nanousd is not None), None),
        next((reading.messages for reading in readings if reading.messages is not None), None),
        max(reading.retries for reading in readings),
        best.ended_at,
        next((reading.operation for reading in readings if reading.operation != CHAT), CHAT),
        next((reading.request_model for reading in readings if reading.request_model), None),
        _began(best),
        best.error or next((reading.error for reading in readings if reading.error), None),
        next((reading.first_chunk for reading in readings if reading.first_chunk is not None), None),
        next((named for named in map(thread_of, ranked) if named is not None), None),
    )


def best_of(nodes: Sequence[Node]) -> Node:
    """The span whose usage counts."""
    return max(nodes, key=lambda node: (node.reading is not None and node.reading.usage is not None, _rank(node)))


def _model_above(node: Node) -> str | None:
    """Codex names the model on the turn around its calls."""
    for above in ancestors(node):
        if above.reading is not None and above.reading.model is not None:
            return above.reading.model
    return None


def _began(reading: Reading) -> int:
    """When the call began, or 0 where the span is not as long as the call: one that tells of its beginning only, or
    that was made to say what a call has used (`record_usage`)."""
    took = reading.ended_at - reading.started_at
    if took <= 0 or reading.tells != WHOLE or (took < _BRIEF and reading.scope == SCOPE):
        return 0
    return reading.started_at


def _rank(node: Node) -> tuple[int, int, int, int]:
    assert node.reading is not None
    return innermost(node.reading)


def _depth(found: tuple[str, int]) -> int:
    return found[1]


def _call(
    usage: Usage | None,
    failed: bool,
    provider: str | None,
    model: str | None,
    caller: str,
    cost: int | None,
    messages: int | None,
    retries: int,
    ended_at: int,
    operation: str,
    request_model: str | None,
    started_at: int,
    error: str | None,
    first_chunk: float | None,
    thread_id: str | None,
) -> Call:
    if messages is None:
        messages = 1
    counts: Usage
    if usage is not None:
        counts = _new(Usage, (*usage[:5], 1, retries, 0, messages, 0, 0))
    elif failed:
        counts = Usage(failures=1 + retries)
    else:
        counts = Usage(calls=1, failures=retries, calls_without_usage=1, messages=messages)
    if failed:
        error = error or UNNAMED
    elif error is not None:
        error = None
    call: Call = _new(
        Call,
        (
            provider or UNKNOWN,
            model or UNKNOWN,
            caller,
            counts,
            cost,
            ended_at,
            operation,
            request_model,
            started_at,
            error,
            first_chunk,
            thread_id,
        ),
    )
    return call
