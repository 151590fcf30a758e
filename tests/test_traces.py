"""Which run a span belongs to is a function of the spans known, however they came."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from runmeter.reading.read import Reading
from runmeter_exporter.ingest.cache import Cache
from runmeter_exporter.ingest.traces import Trace
from runmeter_exporter.store.ledger_row import INHERITED, PINNED, STAMPED, Row, default_run

TRACE = 7
DEFAULT = default_run(TRACE)


def default(reading: Reading) -> str:
    """Nobody knows better."""
    return default_run(reading.trace_id)


spans = st.dictionaries(
    st.integers(1, 24), st.tuples(st.none() | st.integers(1, 24), st.none() | st.sampled_from("ab")), max_size=24
)
"""Span id → (parent id, run id said); parents may be missing, and may form circles."""


def expected(known: dict[int, tuple[int | None, str | None]], span_id: int) -> str | None:
    """The nearest run id said by the span or an ancestor, else the trace's own; None in a circle, where any will do."""
    met: set[int] = set()
    at: int | None = span_id
    while at is not None and at in known:
        if at in met:
            return None
        met.add(at)
        parent, said = known[at]
        if said is not None:
            return said
        at = parent
    return DEFAULT


@given(known=spans, seed=st.integers(0, 2**32), pieces=st.integers(1, 8), reload=st.booleans())
def test_the_nearest_run_id_above_counts(
    known: dict[int, tuple[int | None, str | None]], seed: int, pieces: int, reload: bool
) -> None:
    """In any order, any batches, read again from the ledger in between or not; every change of an old span is said."""
    draw = random.Random(seed)
    readings = [Reading(TRACE, span_id, parent, run_id=said) for span_id, (parent, said) in known.items()]
    draw.shuffle(readings)
    trace = Trace(TRACE)
    rows: dict[int, Row] = {}
    for number in range(pieces):
        batch = readings[number::pieces]
        for move in trace.take(batch, default):
            row = rows[move.key[1]]
            assert row.run_id == move.was != move.now
            rows[move.key[1]] = row._replace(run_id=move.now)
        for reading in batch:
            why = STAMPED if reading.run_id is not None else INHERITED
            rows[reading.span_id] = Row(TRACE, reading.span_id, reading.parent_id, trace.run_of(reading.span_id), why)
        if reload:
            trace = Trace(TRACE, rows.values())
    for span_id in known:
        wanted = expected(known, span_id)
        assert trace.run_of(span_id) == rows[span_id].run_id
        assert wanted is None or rows[span_id].run_id == wanted


@given(known=spans, seed=st.integers(0, 2**32))
def test_what_two_sidecars_took_apart_comes_together(
    known: dict[int, tuple[int | None, str | None]], seed: int
) -> None:
    """Spans placed without knowledge of each other are placed by all of them when the trace is reviewed."""
    draw = random.Random(seed)
    halves: tuple[list[Reading], list[Reading]] = ([], [])
    for span_id, (parent, said) in known.items():
        draw.choice(halves).append(Reading(TRACE, span_id, parent, run_id=said))
    rows = {}
    for half in halves:
        trace = Trace(TRACE)
        trace.take(half, default)
        for reading in half:
            why = STAMPED if reading.run_id is not None else INHERITED
            rows[reading.span_id] = Row(TRACE, reading.span_id, reading.parent_id, trace.run_of(reading.span_id), why)
    for move in Trace(TRACE, rows.values()).review(lambda _span, _parent: DEFAULT):
        rows[move.key[1]] = rows[move.key[1]]._replace(run_id=move.now)
    for span_id in known:
        wanted = expected(known, span_id)
        assert wanted is None or rows[span_id].run_id == wanted


def test_a_pinned_span_stays_and_says_nothing_of_those_below_it_before() -> None:
    """A twin that was moved to another run is not moved back by an ancestor."""
    trace = Trace(TRACE, [Row(TRACE, 2, 1, "keeper", PINNED), Row(TRACE, 3, 1, DEFAULT)])
    moves = trace.take([Reading(TRACE, 1, None, run_id="a")], default)
    assert [(move.key, move.was, move.now) for move in moves] == [((TRACE, 3), DEFAULT, "a")]
    assert trace.run_of(2) == "keeper"


def test_the_least_recently_used_are_forgotten_beyond_the_bound() -> None:
    """In bytes, as they are after their use; what is larger than the bound alone is not kept either."""
    cache: Cache[int, list[int]] = Cache(100, sum)
    for key in range(1, 5):
        cache.put(key, [25])
    cache.trim()
    assert cache.bytes == 100
    first = cache.get(1)
    assert first is not None
    first.append(50)
    cache.trim()
    assert ([key for key in range(1, 5) if key in cache], cache.bytes) == ([1, 4], 100)
    first.append(26)
    cache.trim()
    assert cache.bytes == 100
    assert cache.get(1) is not None
    cache.trim()
    assert (1 in cache, cache.bytes) == (False, 0)
