"""Calls that say what others said before, all but usage, response id and times: what they have in common is read once.

The calls of an agent differ in little else, and reading all of it costs three times as much as reading that.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any, Final

from runmeter import clean
from runmeter.reading import semconv
from runmeter.reading.plan import Plan, Shape
from runmeter.reading.reading import Reading
from runmeter.reading.roles import CALL
from runmeter.reading.tokens import inclusive, without_cache
from runmeter.reading.values import as_seconds
from runmeter.spans import EndedSpan

Words = tuple[Any, ...]
"""What calls may have in common, as their spans say it."""

_new: Final[Any] = tuple.__new__
_COMMON: Final = slice(Reading._fields.index("provider"), Reading._fields.index("first_chunk"))
"""Of a reading, what follows from its words."""
_LIMIT: Final = 1024
"""Kinds of calls known; beyond, all are learned anew."""
_known: dict[Words, Words] = {}


def words_of(plan: Plan, shape: Shape, span: EndedSpan, resource_key: str) -> Words | None:
    """What the span may have in common with others; None where there is more to it."""
    if shape.words is None or not plan.repeats or span.failed:
        return None
    return shape, span.scope, span.name, resource_key, shape.words(span.attributes)


def read_again(words: Words, plan: Plan, span: EndedSpan) -> Reading | None:
    """The reading of a span whose words were read before; None where they were not."""
    try:
        common = _known.get(words)
    except TypeError:  # something that cannot be a key; it is no text either
        return None
    if common is None:
        return None
    shape, scope, _, resource_key, _ = words
    trace_id, span_id, parent_id, remote, _, _, _, _, attributes, started_at, ended_at, _ = span
    *counts, response_id = map(attributes.get, shape.apart)
    rejected: list[str] = []
    given = map(clean.count, counts, repeat(rejected))
    usage = inclusive(given, without_cache(shape, plan.dialect, attributes))
    if rejected:
        return None
    reading: Reading = _new(
        Reading,
        (
            trace_id,
            span_id,
            parent_id,
            bool(remote),
            CALL,
            scope,
            resource_key,
            started_at,
            ended_at,
            False,
            usage,
            clean.identifier(response_id),
            *common,
            as_seconds(attributes[semconv.FIRST_CHUNK]) if semconv.FIRST_CHUNK in attributes else None,
        ),
    )
    return reading


def remember(words: Words, span: EndedSpan, reading: Reading) -> None:
    """Know what follows from these words: of calls only, and as far as they are short text. Numbers are equal that are
    not the same, and what is long is not kept (rule 11)."""
    if reading.role != CALL or reading.rejected or reading.scope != span.scope or reading.scope == semconv.SCOPE:
        return
    said = words[-1] if isinstance(words[-1], tuple) else words[-1:]
    if all(text is None or (type(text) is str and len(text) <= clean.ID_LIMIT) for text in (*words[1:4], *said)):
        if len(_known) >= _LIMIT:
            _known.clear()
        common: tuple[Any, ...] = reading
        _known[words] = common[_COMMON]
