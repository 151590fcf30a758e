"""Clocks that were set wrongly: what they date is counted, and does not lead every list for years."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import NOON, SECOND, final, snap

from runmeter.reading.read import Reading
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import EARLIEST, JSON, LATEST
from runmeter_exporter.ingest.otlp.reading import not_ahead
from runmeter_exporter.store import RunStore
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.bounds import AHEAD

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = st.integers(EARLIEST, LATEST - 1)


def body(began: int, ended: int) -> bytes:
    """A request with one call, in OTLP JSON."""
    said = '{"key":"gen_ai.operation.name","value":{"stringValue":"chat"}},'
    said += '{"key":"gen_ai.usage.input_tokens","value":{"intValue":"7"}}'
    span = (
        f'{{"traceId":"{"1" * 32}","spanId":"{"2" * 16}","startTimeUnixNano":"{began}","endTimeUnixNano":"{ended}",'
        f'"attributes":[{said}]}}'
    )
    return f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}]}}]}}]}}'.encode()


def last_heard(store: RunStore) -> datetime:
    return datetime.fromisoformat(str(store.usage(include_active=True)["updated_at"]))


def at(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


@settings(max_examples=100, deadline=None)
@given(began=TIMES, ended=TIMES, now=st.integers(NOON - 10**17, NOON + 10**17))
def test_a_span_of_the_future_is_of_now(began: int, ended: int, now: int) -> None:
    """At door 2: its call is counted on a day that has come, and it was heard of now. A little ahead is usual."""
    store = MemoryRunStore(clock=lambda: now)
    ingest = Ingest(store, price=lambda call: call.usage, now=lambda: now)
    status, _, answer = ingest.handle("/v1/traces", body(began, ended), JSON, None)
    assert (status, answer) == (200, b"{}")
    assert ingest.stop()
    assert store.usage(include_active=True)["total_input_tokens"] == 7
    assert last_heard(store) <= at(now + AHEAD)
    ingest = Ingest(store, price=lambda call: call.usage, now=lambda: now)
    ingest.close_runs([run.run_id for run in store.watch().runs])
    assert ingest.stop()
    assert all(day["day"] <= at(now + AHEAD).date().isoformat() for day in store.usage_daily())
    assert store.verify() == []


@given(began=TIMES, lasted=st.integers(0, 10**15), now=TIMES)
def test_it_takes_as_long_as_it_took(began: int, lasted: int, now: int) -> None:
    """What is moved keeps its length, what is not ahead is not touched."""
    reading = not_ahead(Reading(1, 2, started_at=began, ended_at=began + lasted), now)
    if began + lasted <= now + AHEAD:
        assert (reading.started_at, reading.ended_at) == (began, began + lasted)
    else:
        assert reading.ended_at == now
        assert reading.ended_at - reading.started_at in (lasted, now)


@settings(max_examples=100, deadline=None)
@given(updated=TIMES, ended=st.none() | TIMES)
def test_a_snapshot_says_nothing_of_the_future(updated: int, ended: int | None) -> None:
    """At door 1: a span's end may be any number that the program gave it."""
    now = NOON + 10 * SECOND
    store = MemoryRunStore(clock=lambda: now)
    if ended is None:
        store.write([snap("r", 1, 7, updated_at=updated)])
    else:
        store.write([final("r", 1, 7, updated_at=updated, ended_at=ended)])
    assert store.usage(include_active=True)["total_input_tokens"] == 7
    assert last_heard(store) <= at(now + AHEAD)
