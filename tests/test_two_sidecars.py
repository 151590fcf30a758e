"""Several sidecars on one store: together they say what one would, and none reads twice what it knows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from doors import unpriced
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from otlp_files import recordings
from otlp_requests import usage_of

from runmeter.reading.read import Reading, Role, read
from runmeter.usage import Usage
from runmeter_exporter.ingest import closing, remembered
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.intake import Intake
from runmeter_exporter.store import RunStore, StoreUnavailable, Transaction, open_store
from runmeter_exporter.store.ledger_row import default_run

MS = 1_000_000
START = 1_763_812_800_000 * MS
RECORDINGS = {one.name: one for one in recordings() if 3 <= len(one.spans()) <= 80}


def call(span_id: int, parent_id: int | None = 1, trace_id: int = 7) -> Reading:
    """A call that used as many tokens of input as its span's number."""
    at = START + span_id * MS
    return Reading(
        trace_id, span_id, parent_id, started_at=at, ended_at=at + 1, scope="s", role=Role.CALL, provider="p",
        model="m", usage=Usage(span_id, 10, calls=1), response_id=f"r{trace_id}-{span_id}",
    )  # fmt: skip


def totals(store: RunStore) -> tuple[int, int]:
    """(calls, input) of everything, running or not."""
    usage = usage_of(store.usage(include_active=True))
    return usage.calls, usage.input_tokens


def close_all(store: RunStore, ingest: Ingest) -> None:
    ingest.close_runs([run.run_id for run in store.watch().runs])


def counted(store: RunStore) -> dict[str, Usage]:
    """What each run used."""
    page = store.runs(limit=200)
    return {run["run_id"]: usage_of(run) for run in page["runs"]}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(RECORDINGS)), seed=st.integers(0, 2**32), sidecars=st.integers(2, 3))
def test_recorded_spans_come_to_the_same_whichever_sidecar_gets_them(name: str, seed: int, sidecars: int) -> None:
    """Span by span, in any order, to any sidecar: as if one had taken all, while the run runs and when it closed."""
    readings = [read(span) for span in RECORDINGS[name].spans()]
    random.Random(seed).shuffle(readings)
    said = []
    for number in (1, sidecars):
        draw = random.Random(seed)
        store = open_store("memory://")
        ingests = [Ingest(store, price=unpriced) for _ in range(number)]
        for reading in readings:
            draw.choice(ingests).submit([reading])
        live = totals(store)
        close_all(store, draw.choice(ingests))
        said.append((live, counted(store)))
        assert store.verify() == []
        assert all(ingest.stop() for ingest in ingests)
    assert said[0] == said[1]


def plain(span_id: int, parent_id: int | None, run_id: str | None = None) -> Reading:
    """A span that says nothing of usage."""
    at = START + span_id * MS
    return Reading(7, span_id, parent_id, started_at=at, ended_at=at + 1, scope="s", run_id=run_id)


def outer(span_id: int, used: int) -> Reading:
    """A call of a framework, around others."""
    said = call(span_id, None)
    return said._replace(role=Role.WEAK, usage=Usage(used, 20, calls=1), ended_at=START + 1_000 * MS)


@settings(max_examples=200, deadline=None)
@given(order=st.permutations(range(6)), to=st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_what_links_two_calls_is_known_to_both(order: list[int], to: list[int]) -> None:
    """A plain span between a framework's call and the client's, wherever it arrives: the usage counts once, at once."""
    spans = [plain(90, 2), outer(2, 107), plain(3, 2), call(57, 3), call(50, 3), plain(91, 57)]
    store = open_store("memory://")
    intakes = [Intake(store, unpriced, lambda: START) for _ in range(2)]
    for number in order:
        intakes[to[number]].take([spans[number]])
    assert totals(store) == (2, 107)


def two() -> tuple[RunStore, Intake, Intake]:
    """Two sidecars that both have taken calls of a trace, and know it."""
    store = open_store("memory://")
    mine, other = (Intake(store, unpriced, lambda: START) for _ in range(2))
    mine.take([call(2)])
    other.take([call(3)])
    mine.take([call(4)])
    return store, mine, other


def test_a_parent_that_the_other_took_says_which_run() -> None:
    """Of a trace that both take spans of, who is above is looked up before anything is placed."""
    store, mine, other = two()
    other.take([plain(5, 1, run_id="x")])
    mine.take([call(6, 5)])
    other.take([call(7, 6)])
    assert {run_id: usage.input_tokens for run_id, usage in counted(store).items()} == {default_run(7): 9, "x": 13}


def test_a_child_that_the_other_took_follows_its_parent() -> None:
    """It was in the trace's own run, which this sidecar learns as it reads what joined that."""
    store = open_store("memory://")
    mine, other = (Intake(store, unpriced, lambda: START) for _ in range(2))
    mine.take([call(2)])
    other.take([call(8, 7)])
    mine.take([plain(7, 1, run_id="x"), call(9)])
    assert {run_id: usage.input_tokens for run_id, usage in counted(store).items()} == {default_run(7): 11, "x": 8}


def test_what_left_a_run_has_left_it_for_both() -> None:
    """A sidecar that remembers a run with a call that the other moved does not count it on."""
    store, mine, other = two()
    mine.take([call(8, 7)])
    other.take([plain(7, 1, run_id="x")])
    mine.take([call(10)])
    assert {run_id: usage.input_tokens for run_id, usage in counted(store).items()} == {default_run(7): 19, "x": 8}
    mine.take([call(11, 8)])
    assert counted(store)["x"].input_tokens == 19


class Counting:
    """A ledger that counts the rows that are read from it."""

    def __init__(self, ledger: Any, seen: list[int]) -> None:
        self._ledger, self._seen = ledger, seen

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ledger, name)
        if name not in ("traces", "runs", "at", "twins", "near", "calls"):
            return found

        def counted(*arguments: Any) -> Any:
            rows = found(*arguments)
            self._seen[0] += len(rows or ())
            return rows

        return counted


class Seen:
    """A transaction whose ledger counts."""

    def __init__(self, tx: Transaction, seen: list[int]) -> None:
        self._tx = tx
        self.ledger = Counting(tx.ledger, seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tx, name)


class Watched:
    """A store that counts the rows that door 2 reads."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.seen = [0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        with self._store.transaction() as tx:
            yield Seen(tx, self.seen)


@pytest.mark.parametrize("sql_url", ["memory", "sqlite", "postgresql"], indirect=True)
def test_a_run_that_two_share_is_not_read_again_and_again(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """What a sidecar reads for a span does not grow with the run: some rows for each of the other's."""
    store = Watched(open_stores(sql_url))
    intakes = [Intake(store, unpriced, lambda: START) for _ in range(2)]  # type: ignore[arg-type]
    read_by_then = []
    for number in range(60):
        intakes[number % 2].take([call(10 * number + each + 2) for each in range(10)])
        read_by_then.append(store.seen[0])
    assert totals(store) == (600, sum(range(2, 602)))  # type: ignore[arg-type]
    late, early = read_by_then[-1] - read_by_then[40], read_by_then[20] - read_by_then[1]
    assert late <= 1.2 * early
    close_all(open_stores(sql_url), Ingest(open_stores(sql_url), price=unpriced))
    assert store.usage()["total_input_tokens"] == sum(range(2, 602))
    assert store.verify() == []


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty spans are large, and read by ten."""
    monkeypatch.setattr(remembered, "LARGE", 40)
    monkeypatch.setattr(remembered, "PAGE", 10)
    monkeypatch.setattr("runmeter_exporter.ingest.intake.LARGE", 40)


def taken(ingest: Ingest, readings: Sequence[Reading]) -> int:
    """How often it had to be sent until it was stored."""
    for tries in range(1, 1_000):
        with suppress(StoreUnavailable):
            ingest.submit(readings)
            return tries
    raise AssertionError("was never stored")


@pytest.mark.parametrize("sql_url", ["memory", "sqlite", "postgresql"], indirect=True)
@pytest.mark.parametrize("run_id", [None, "named"])
def test_a_large_run_goes_on_after_a_restart(
    sql_url: str, run_id: str | None, open_stores: Callable[..., RunStore], small: None
) -> None:
    """It is read page by page before its next span is taken, and once; what came with it is stored at once, and what it
    had is not counted again."""
    store = open_stores(sql_url)
    first = Ingest(store, price=unpriced)
    before = [call(number)._replace(run_id=run_id) for number in range(2, 102)]
    first.submit(before)
    assert first.stop()
    ingest = Ingest(store, price=unpriced)
    more = [call(200)._replace(run_id=run_id), call(5, trace_id=8), call(7)._replace(run_id=run_id)]
    with pytest.raises(StoreUnavailable, match="large"):
        ingest.submit(more)
    then = sum(range(2, 102))
    assert totals(store) == (101, then + 5)
    assert taken(ingest, more) >= 1
    assert totals(store) == (102, then + 205)
    ingest.submit([call(201)._replace(run_id=run_id)])
    assert totals(store) == (103, then + 406)
    close_all(store, ingest)
    assert store.usage()["total_input_tokens"] == then + 406
    assert ingest.stop()
    assert store.verify() == []


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_a_large_run_that_nobody_remembers_closes(
    sql_url: str, open_stores: Callable[..., RunStore], small: None
) -> None:
    """Also what became of its spans is said, once; between two pages it is the others' turn."""
    store = open_stores(sql_url)
    first = Ingest(store, price=unpriced)
    first.submit([call(number) for number in range(2, 102)])
    assert first.stop()
    intake = Intake(store, unpriced, lambda: START)
    steps = list(closing.close_runs(intake, [default_run(7)]))
    assert len(steps) > 10
    assert min(steps) > 0  # else nobody else would get the lock
    assert store.usage()["total_input_tokens"] == sum(range(2, 102))
    assert sum(spans for (fate, _), spans in intake.fates.items() if fate == "counted") == 100


def test_what_the_other_takes_while_a_large_run_is_read_is_counted_once(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages and its arrivals overlap, also where the fold no longer knows each span."""
    monkeypatch.setattr("runmeter_exporter.ingest.fold.SPAN_LIMIT", 8)
    store = open_store("memory://")
    other = Intake(store, unpriced, lambda: START)
    other.take([call(number) for number in range(2, 52)])
    other.take([call(number) for number in range(52, 102)])
    mine = Intake(store, unpriced, lambda: START)
    others = iter(range(200, 2_000))

    def until_taken(intake: Intake, reading: Reading) -> int:
        for times in range(10):
            try:
                intake.take([reading])
            except remembered.Large as large:
                for _ in intake.remembered.warm_up(large):
                    other.take([call(next(others)) for _ in range(5)])
            else:
                return times
        raise AssertionError("was never taken")

    assert until_taken(mine, call(150)) == 2  # the trace, then the run
    other.take([call(151)])
    assert until_taken(mine, call(152)) == 0
    with store.looking() as now:
        stored = [row.span_id for row in now.ledger.traces([7])]
    assert len(stored) > 120
    assert totals(store) == (len(stored), sum(stored))
    assert store.verify() == []


@pytest.mark.parametrize("sql_url", ["postgresql"], indirect=True)
def test_a_long_run_is_looked_at_in_pieces_before_it_closes(
    sql_url: str, open_stores: Callable[..., RunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halves of calls that two sidecars took at the same moment are found though the run has many; one that somebody
    writes to meanwhile closes another time."""
    monkeypatch.setattr(closing, "PIECE", 10)
    store = open_stores(sql_url)
    mine, other = (Intake(store, unpriced, lambda: START) for _ in range(2))
    mine.take([call(number) for number in range(2, 62)])
    twins = [call(number, trace_id=8)._replace(scope="z", response_id=f"r7-{number}") for number in range(2, 62)]
    with monkeypatch.context() as patched:
        patched.setattr("runmeter_exporter.ingest.intake.Sharing.resolve", lambda *_: ([], set()))
        other.take(twins)  # as if neither had seen what the other was about to store
    assert totals(store)[0] == 120
    runs = [default_run(7), default_run(8)]
    steps = closing.close_runs(mine, runs)
    next(steps)
    other.take([call(100)])
    list(steps)
    assert [run.run_id for run in store.watch().runs] == [default_run(7)]
    assert totals(store) == (61, sum(range(2, 62)) + 100)
    list(closing.close_runs(mine, runs))
    assert store.watch().runs == []
    assert store.usage()["llm_call_count"] == 61
    assert store.verify() == []
