"""Door 2's ledger does the same in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, delete

from runmeter_exporter.store.ledger_row import (
    ARRIVALS,
    INHERITED,
    PINNED,
    STAMPED,
    Arrival,
    TooMany,
    default_run,
    implied_trace,
    pack_keys,
    unpack_keys,
)
from runmeter_exporter.store.sql.ledger import Ledger, MemoryLedger, Row, SqlLedger, arrivals, spans

Open = Callable[[], AbstractContextManager[Ledger]]
"""One transaction on an empty or used ledger: committed when left, undone by an exception."""

T1, T2 = 2**127 + 5, 7
R1, R2 = default_run(T1), default_run(T2)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory, postgres_server: Any) -> Iterator[dict[str, Engine]]:
    """The two databases, each with an empty table."""
    postgres_server.psql("CREATE DATABASE ledger;")
    url = postgres_server.get_uri(database="ledger").replace("postgresql://", "postgresql+psycopg://")
    sqlite = f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'ledger.db'}"
    made = {"sqlite": create_engine(sqlite), "postgresql": create_engine(url)}
    for engine in made.values():
        spans.metadata.create_all(engine, tables=[spans, arrivals])
    yield made
    for engine in made.values():
        engine.dispose()
    postgres_server.psql("DROP DATABASE ledger WITH (FORCE);")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def transaction(request: pytest.FixtureRequest, engines: dict[str, Engine]) -> Open:
    """Opens transactions on one empty ledger."""
    memory = MemoryLedger()
    engine = engines.get(request.param)
    if engine is not None:
        with engine.begin() as connection:
            connection.execute(delete(spans))
            connection.execute(delete(arrivals))

    @contextmanager
    def opened() -> Iterator[Ledger]:
        if engine is not None:
            with engine.begin() as connection:
                yield SqlLedger(connection)
            return
        memory.begin()
        try:
            yield memory
        except BaseException:
            memory.undo()
            raise

    return opened


def by_key(rows: list[Row]) -> dict[tuple[int, int], Row]:
    return {row.key: row for row in rows}


def test_rows_round_trip(transaction: Open) -> None:
    """What was inserted is read back whole by its run, and as ancestry by its trace."""
    plain = Row(T1, 1, None, R1, seen=9)
    call = Row(T1, 2**64 - 1, 1, "run/1 ✓", STAMPED, 3, 9, b"reading\0", b"twin....", b"too.....", 5, b"priced")
    with transaction() as ledger:
        assert ledger.insert([call, plain]) == 2
    with transaction() as ledger:
        assert ledger.runs([R1]) == [plain]
        assert ledger.runs(["run/1 ✓"]) == [call]
        assert by_key(ledger.runs(["run/1 ✓", R1, "unknown"])) == by_key([plain, call])
        ancestry = call._replace(reading=None, twin=None, twin_too=None, ended_at=None, priced=None)
        found = by_key(ledger.traces([T1, T2]))
        assert {key: row[:7] for key, row in found.items()} == {plain.key: plain[:7], call.key: ancestry[:7]}


def test_a_span_is_in_it_once(transaction: Open) -> None:
    """Inserting a (trace, span) again changes nothing and is not counted as new."""
    with transaction() as ledger:
        assert ledger.insert([Row(T1, 1, None, R1, reading=b"first")]) == 1
    with transaction() as ledger:
        assert ledger.insert([Row(T1, 1, 5, "other", reading=b"second"), Row(T2, 1, None, R2)]) == 1
        assert ledger.runs([R1])[0].reading == b"first"
        assert ledger.runs(["other"]) == []


def test_what_is_undone_never_was(transaction: Open) -> None:
    """An exception in the transaction takes back inserts, moves, prices and deletions."""
    first = Row(T1, 1, None, R1)
    with transaction() as ledger:
        ledger.insert([first, Row(T1, 2, 1, "x")])

    def fail() -> None:
        with transaction() as ledger:
            ledger.insert([Row(T2, 9, None, R2)])
            ledger.move([(T1, 1)], "other", PINNED, 4)
            ledger.price([((T1, 1), b"p")])
            ledger.forget(["x"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with transaction() as ledger:
        assert by_key(ledger.runs([R1, R2, "x", "other"])) == by_key([first, Row(T1, 2, 1, "x")])


def test_move_and_price(transaction: Open) -> None:
    """A moved span belongs to the other run alone, also back to its trace's own; a price is kept with its span."""
    with transaction() as ledger:
        ledger.insert([Row(T1, 1, None, R1), Row(T1, 2, 1, R1)])
        ledger.move([(T1, 2)], "explicit", PINNED, 7)
        ledger.price([((T1, 2), b"12 nano")])
    with transaction() as ledger:
        assert ledger.runs(["explicit"]) == [Row(T1, 2, 1, "explicit", PINNED, 7, priced=b"12 nano")]
        ledger.move([(T1, 2)], R1, INHERITED, 0)
    with transaction() as ledger:
        assert [row.span_id for row in ledger.runs(["explicit"])] == []
        assert sorted(row.span_id for row in ledger.runs([R1])) == [1, 2]


def test_twins_are_found_by_either_key_and_near_in_time(transaction: Open) -> None:
    """Rows come back that share a key and ended within the times asked for, each once."""
    rows = [
        Row(T1, 1, None, R1, twin=b"aaaaaaaa", twin_too=b"xxxxxxxx", ended_at=100),
        Row(T2, 1, None, R2, twin=b"aaaaaaaa", twin_too=b"yyyyyyyy", ended_at=200),
        Row(T2, 2, None, R2, twin=b"zzzzzzzz", twin_too=b"xxxxxxxx", ended_at=10**18),
        Row(T2, 3, None, R2, twin=b"aaaaaaaa", ended_at=201),
        Row(T2, 4, None, R2, twin=b"zzzzzzzz", ended_at=100),
        Row(T2, 5, None, R2),
    ]
    with transaction() as ledger:
        ledger.insert(rows)
        assert by_key(ledger.twins([b"aaaaaaaa", b"xxxxxxxx"], 100, 200, 2) or []) == by_key(rows[:2])
        assert by_key(ledger.twins([b"xxxxxxxx"], 0, 10**18, 9) or []) == by_key([rows[0], rows[2]])
        assert ledger.twins([], 0, 10**18, 9) == []


def test_of_many_twins_the_nearest_are_had(transaction: Open) -> None:
    """More rows than the limit are none; the nearest to a moment come from before and after it, by either key."""
    rows = [Row(T1, n, None, R1, twin=b"aaaaaaaa", twin_too=b"xxxxxxxx", ended_at=10 * n) for n in range(1, 20)]
    rows.append(Row(T2, 1, None, R2, twin=b"zzzzzzzz", twin_too=b"aaaaaaaa", ended_at=101))
    with transaction() as ledger:
        ledger.insert(rows)
        assert ledger.twins([b"aaaaaaaa"], 0, 10**18, 19) is None
        assert len(ledger.twins([b"aaaaaaaa"], 0, 10**18, 20) or []) == 20
        near = ledger.near(b"aaaaaaaa", 100, 1000, 3)
        assert sorted(row.ended_at or 0 for row in near) == [80, 90, 100, 101, 110, 120]
        assert sorted(row.ended_at or 0 for row in ledger.near(b"aaaaaaaa", 100, 10, 3)) == [90, 100, 101, 110]
        assert ledger.near(b"yyyyyyyy", 100, 1000, 3) == []


def test_what_is_old_is_paged_through_and_forgotten(transaction: Open) -> None:
    """The traces of an hour come once, page by page, with the runs they are in; forgetting deletes a run's rows."""
    rows = [Row(trace, 1, None, default_run(trace), seen=trace % 2) for trace in range(1, 20)]
    rows += [Row(T1, span, None, f"run {span % 5}", seen=span) for span in range(2, 40)]
    with transaction() as ledger:
        assert ledger.oldest() is None
        ledger.insert(rows)
        assert ledger.oldest() == 0
        found: list[int] = []
        after = 0
        while page := ledger.taken_in(1, after, 3):
            found += page
            after = page[-1]
        assert found == list(range(1, 20, 2))
        assert ledger.taken_in(7, 0, 9) == [T1]
        assert ledger.runs_in([T1, 3]) == sorted([default_run(3), *(f"run {n}" for n in range(5))])
        assert ledger.last_seen("run 4") == 39
        assert ledger.last_seen(default_run(3)) == 1
        assert ledger.last_seen("unknown") == 0
        assert ledger.forget(["run 4", default_run(3), "unknown"]) == 9
        assert ledger.runs(["run 4", default_run(3)]) == []
        assert len(ledger.runs([f"run {n}" for n in range(5)])) == 30


def test_more_keys_than_a_statement_takes(transaction: Open) -> None:
    """Thousands of runs and traces are read in one question."""
    rows = [Row(trace, 1, None, default_run(trace)) for trace in range(1, 2500)]
    with transaction() as ledger:
        assert ledger.insert(rows) == 2499
        assert len(ledger.runs([row.run_id for row in rows])) == 2499
        assert len(ledger.traces([row.trace_id for row in rows])) == 2499


@given(st.text(max_size=40) | st.integers(0, 2**128 - 1).map(default_run))
def test_an_implicit_run_is_named_by_its_trace_and_no_other(run_id: str) -> None:
    """Only the 32 lower-case digits that we write ourselves mean a trace, so that a lookalike is a run of its own."""
    trace_id = implied_trace(run_id)
    assert trace_id is None or default_run(trace_id) == run_id


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_sql_does_as_memory_does(engines: dict[str, Engine], data: st.DataObject) -> None:
    """Any sequence of changes leaves the same rows in the table as in the dict."""
    trace, span, run = st.integers(1, 3), st.integers(1, 4), st.sampled_from(["a", "b", default_run(1)])
    rows = st.tuples(trace, span, st.none() | span, run, st.integers(0, 2), st.integers(0, 3), st.integers(0, 5))
    row = rows.map(lambda values: Row(*values))
    memory = MemoryLedger()
    with engines["sqlite"].begin() as connection:
        connection.execute(delete(spans))
        connection.execute(delete(arrivals))
        sql = SqlLedger(connection)
        for _ in range(data.draw(st.integers(1, 12))):
            step = data.draw(st.sampled_from(["insert", "move", "forget", "price", "arrive", "over"]))
            known = sorted(row.key for row in memory.traces([1, 2, 3]))
            if step == "insert":
                batch = list({row.key: row for row in data.draw(st.lists(row, max_size=6))}.values())
                assert memory.insert(batch) == sql.insert(batch)
            elif step == "arrive":
                turns = [0, *data.draw(st.lists(st.integers(1, 3 * ARRIVALS), min_size=1, max_size=3))]
                since, turn = sorted({sum(turns[:-1]), sum(turns)})
                arrival = Arrival(data.draw(run), since, turn, data.draw(st.none() | st.just(pack_keys([(1, 2)]))))
                latest = max((one.turn for one in memory.arrived(arrival.run_id, 0)), default=0)
                if turn > latest:
                    memory.arrive([arrival])
                    sql.arrive([arrival])
            elif step == "over":
                memory.over(["a"])
                sql.over(["a"])
            elif step == "forget":
                forgotten = [data.draw(run)]
                assert memory.forget(forgotten) == sql.forget(forgotten)
            elif known:
                keys = data.draw(st.lists(st.sampled_from(known), unique=True))
                if step == "price":
                    priced = [(key, data.draw(st.binary(max_size=3))) for key in keys]
                    memory.price(priced)
                    sql.price(priced)
                else:
                    to = data.draw(run), data.draw(st.integers(0, 2)), data.draw(st.integers(0, 3))
                    memory.move(keys, *to)
                    sql.move(keys, *to)
            runs = ["a", "b", *map(default_run, (1, 2, 3))]
            assert by_key(sql.runs(runs)) == by_key(memory.runs(runs))
            assert [sql.last_seen(run_id) for run_id in runs] == [memory.last_seen(run_id) for run_id in runs]
            assert [sql.traces_of(run_id) for run_id in runs[:2]] == [memory.traces_of(run_id) for run_id in runs[:2]]
            assert by_key(sql.at([(1, 1), (1, 9), (3, 2)])) == by_key(memory.at([(1, 1), (1, 9), (3, 2)]))
            for run_id in (*runs, None):
                pages = [[row.key for row in one.page(1, run_id, 1, 2)] for one in (sql, memory)]
                assert pages[0] == pages[1]
            for run_id in runs:
                kept = [list(held.arrived(run_id, 0))[-1:] for held in (sql, memory)]
                assert kept[0] == kept[1]


def test_what_is_too_much_is_named_and_the_rest_is_had(transaction: Open) -> None:
    """Of several traces or runs only those that are too large are named; others are as long as they like together."""
    rows = [Row(trace, span, None, default_run(trace)) for trace in range(1, 6) for span in range(1, 5)]
    rows += [Row(9, span, None, "explicit") for span in range(1, 8)]
    with transaction() as ledger:
        ledger.insert(rows)
    with transaction() as ledger:
        assert len(ledger.traces(range(1, 6), 4)) == 20
        assert len(ledger.runs([default_run(trace) for trace in range(1, 6)], 4)) == 20
        with pytest.raises(TooMany) as told:
            ledger.traces([1, 9, 2], 4)
        assert told.value.ids == [9]
        with pytest.raises(TooMany) as told:
            ledger.runs(["explicit", default_run(1)], 6)
        assert told.value.ids == ["explicit"]


def test_a_run_is_had_page_by_page(transaction: Open) -> None:
    """All rows, once, in order, of whichever traces they are."""
    places = [(trace, span) for trace in (T2, T1) for span in range(1, 9)]
    rows = [Row(*place, None, "ab"[place[1] % 2], reading=b"[]") for place in places]
    with transaction() as ledger:
        ledger.insert(rows)
    with transaction() as ledger:
        found: list[Row] = []
        for trace_id in ledger.traces_of("a"):
            after = 0
            while page := ledger.page(trace_id, "a", after, 3):
                found += page
                after = page[-1].span_id
    assert found == sorted(row for row in rows if row.run_id == "a")


def test_arrivals_are_had_in_order_until_they_are_old(transaction: Open) -> None:
    """Those after a turn; the last ones at least; none of a run that is over, or of whom nothing is remembered."""
    with transaction() as ledger:
        for turn in range(1, 3 * ARRIVALS):
            ledger.arrive([Arrival("a", turn, turn + 1, pack_keys([(T1, turn), (T2, turn)]))])
        ledger.arrive([Arrival("b", 1, 2, None)])
    with transaction() as ledger:
        last = ledger.arrived("a", 2 * ARRIVALS)
        assert [one.turn for one in last] == list(range(2 * ARRIVALS + 1, 3 * ARRIVALS + 1))
        assert unpack_keys(last[-1].keys or b"") == [(T1, 3 * ARRIVALS - 1), (T2, 3 * ARRIVALS - 1)]
        assert len(ledger.arrived("a", 0)) <= 2 * ARRIVALS
        ledger.over(["a"])
        assert (ledger.arrived("a", 0), ledger.arrived("b", 0)) == ([], [Arrival("b", 1, 2, None)])
        ledger.forget(["b"])
        assert ledger.arrived("b", 0) == []
