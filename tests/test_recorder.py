"""Door 1's recorder: the pure core first, then the thread around it."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import NOON, FlakyStore, call, new, run_info, unpriced

from runmeter.spans import Change
from runmeter.usage import Usage
from runmeter_exporter.recorder import Recorder, open_recorder
from runmeter_exporter.recorder import link as link_module
from runmeter_exporter.recorder import writer as writer_module
from runmeter_exporter.recorder.core import RecorderCore
from runmeter_exporter.recorder.totals import Ending, RunTotals
from runmeter_exporter.store import SchemaMismatch
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.cells import CELLS, day_of
from runmeter_exporter.totals.run import CellKey


def make_core(throttle: float = 1.0, **options) -> RecorderCore:
    return RecorderCore("s", throttle=throttle, price=unpriced, **options)


def write_all(core: RecorderCore, store: MemoryRunStore, now: float) -> int:
    """Write what is due; how many snapshots."""
    snapshots = core.take(now)
    if snapshots:
        store.write(snapshots)
        core.wrote(now)
    return len(snapshots)


# The core


def test_leading_write_at_once():
    """The first settled call of a run is due the moment it settles, also just after the run was announced."""
    core, run = make_core(throttle=60.0), run_info()
    core.begin(run, 100.0)
    [announced] = core.take(100.0)
    core.wrote(100.0)
    assert announced.usage_by is None
    assert announced.status == "running"
    core.settled(run, new(call(10)), 107.0)
    [leading] = core.take(107.0)
    assert leading.usage_by == {CellKey("2025-11-22", "p", "m", "lead_agent"): unpriced(call(10))}
    assert not leading.final


def test_trailing_write_after_a_burst():
    """Calls inside the interval are one write of the latest totals, due without another call."""
    core, run, store = make_core(), run_info(), MemoryRunStore()
    core.settled(run, new(call(1)), 100.0)
    assert write_all(core, store, 100.0) == 1
    for number in range(5):
        core.settled(run, new(call(10)), 100.1 + number / 10)
    assert core.take(100.9) == []
    due = core.throttle.next_due()
    assert due is not None
    assert due <= 101.1 + 1e-9
    assert write_all(core, store, due) == 1
    assert store.thread_usage("t", include_active=True)["total_tokens"] == 102


def test_no_progress_write_after_the_final_one():
    """The final snapshot goes out once, in place of the pending trailing write, and nothing follows it."""
    core, run = make_core(), run_info()
    core.settled(run, new(call(1)), 100.0)
    core.take(100.0)
    core.wrote(100.0)
    core.settled(run, new(call(1)), 100.2)
    core.end(run, Ending(NOON + 1, "success", None), 100.3)
    due = core.throttle.next_due()
    assert due is not None
    assert due < 100.5
    [final] = core.take(due)
    assert final.final
    assert final.status == "success"
    core.wrote(due)
    assert core.throttle.next_due() is None
    assert len(core) == 0
    core.update(run, 100.6)
    core.end(run, Ending(NOON + 1, "success", None), 100.7)
    assert core.take(200.0) == []


def test_omitted_counters_are_preserved():
    """A snapshot in which nothing changed omits the counters, and the store keeps what it had."""
    core, run, store = make_core(), run_info(thread_id=None), MemoryRunStore()
    core.settled(run, new(call(5)), 100.0)
    write_all(core, store, 100.0)
    run.thread_id = "t"
    core.update(run, 105.0)
    [update] = core.take(105.0)
    assert update.usage_by is None
    store.write([update])
    core.wrote(105.0)
    assert store.thread_usage("t", include_active=True)["total_tokens"] == 10


def test_a_lost_write_is_made_good_by_the_next():
    """After a failure everything is said again, also what the lost snapshot said."""
    core, run, store = make_core(), run_info(), MemoryRunStore()
    core.settled(run, new(call(5)), 100.0)
    assert core.take(100.0)
    core.failed(100.0, 100.5)
    core.update(run, 100.1)
    assert core.take(100.4) == []
    assert write_all(core, store, 100.5) == 1
    assert store.thread_usage("t", include_active=True)["total_tokens"] == 10


def test_usage_after_the_end_is_a_later_final_and_adds():
    """A stream that outlives its run is added to the closed run; the status stays."""
    core, run, store = make_core(), run_info(), MemoryRunStore()
    core.begin(run, 100.0)
    core.settled(run, new(call(5)), 100.0)
    run.status = "success"
    core.end(run, Ending(NOON + 5, "success", None), 100.0)
    write_all(core, store, 100.2)
    core.settled(run, new(call(7)), 103.0)
    [late] = core.take(103.2)
    assert late.final
    assert late.source != "s", "absolute totals of another writer would be replaced"
    store.write([late])
    core.wrote(103.2)
    assert len(core) == 0
    assert store.thread_usage("t")["total_tokens"] == 24
    assert store.run("r")["status"] == "success"
    assert store.verify() == []


def test_usage_that_comes_while_the_final_is_under_way_is_written_after_it():
    """A change between taking and storing the final is not swallowed with it."""
    core, run, store = make_core(), run_info(), MemoryRunStore()
    core.settled(run, new(call(5)), 100.0)
    core.end(run, Ending(NOON + 5, "success", None), 100.0)
    snapshots = core.take(100.0)
    core.settled(run, new(call(7)), 100.01)
    store.write(snapshots)
    core.wrote(100.05)
    assert write_all(core, store, 100.2) == 1
    assert len(core) == 0
    assert store.thread_usage("t")["total_tokens"] == 24


def test_what_was_set_aside_before_is_not_told_again_with_later_usage():
    """The source of usage after the end tells only what was set aside since."""
    core, run, store = make_core(), run_info(set_aside={"late": 2}), MemoryRunStore()
    core.begin(run, 100.0)
    core.settled(run, new(call(5)), 100.0)
    run.status = "success"
    core.end(run, Ending(NOON + 5, "success", None), 100.0)
    write_all(core, store, 100.2)
    core.settled(run, new(call(7)), 103.0)
    run.set_aside = {"late": 3}
    core.update(run, 103.0)
    write_all(core, store, 103.2)
    assert store.run("r")["set_aside"] == {"late": 3}
    assert store.verify() == []


def test_a_run_id_opened_again_is_another_source():
    """The same id in the same process, one after the other or at once, adds up."""
    core, store = make_core(), MemoryRunStore()
    now = 100.0
    for _ in range(3):
        first, second = run_info(), run_info()
        for run in (first, second):
            core.begin(run, now)
            core.settled(run, new(call(1)), now)
        for run in (first, second):
            core.end(run, Ending(NOON, "success", None), now + 1)
        write_all(core, store, now + 2)
        now += 10
    assert store.thread_usage("t")["total_tokens"] == 12
    assert store.verify() == []


def test_a_call_is_taken_back_at_the_price_it_got():
    """A repeat recognised late leaves neither tokens nor money behind."""
    totals = RunTotals(run_info(), "s", True)

    def price(one):
        return one.usage._replace(cost_nanousd=one.usage.input_tokens * 3)

    kept, repeat = call(10), call(7, model="other-name")
    totals.apply(new(kept, repeat), price)
    totals.apply([Change(repeat, None)], price)
    assert sum((usage.cost_nanousd for usage in totals.snapshot().usage_by.values()), 0) == 30


def test_taking_back_may_overtake_the_call():
    """Threads may deliver the repeat's taking back first; the sum is right and no snapshot shows less than nothing."""
    totals = RunTotals(run_info(), "s", True)
    totals.apply([Change(call(7), None)], unpriced)
    assert min(min(usage) for usage in totals.snapshot().usage_by.values()) == 0
    totals.apply(new(call(7)), unpriced)
    assert not any(totals.snapshot().usage_by.values())


def test_a_run_has_a_bounded_number_of_cells_and_loses_nothing():
    """Beyond 64 cells usage goes to `other`, by kind of caller, and sums stay exact."""
    totals = RunTotals(run_info(), "s", True)
    callers = ("lead_agent", "subagent:a", "middleware:b", "subagent:c")
    day = 86_400 * 10**9
    calls = [
        call(1, model=f"m{number}", caller=callers[number % 4], at=NOON + number % 3 * day) for number in range(500)
    ]
    overflowed = totals.apply(new(*calls), unpriced)
    usage_by = totals.snapshot().usage_by
    assert len(usage_by) == CELLS
    assert sum(usage.total_tokens for usage in usage_by.values()) == 1000
    assert {key.caller for key in usage_by if key.model == "other"} == {
        "lead_agent",
        "subagent:other",
        "middleware:other",
    }
    assert overflowed == 500 - (CELLS - 3)
    totals.apply([Change(one, None) for one in calls], unpriced)
    assert not any(totals.snapshot().usage_by.values())


@given(st.integers(-(2**70), 2**70))
def test_any_moment_has_a_day(moment):
    """Hostile times fall on some day; sane ones on their own."""
    day = day_of(moment)
    assert len(day) == 10
    if 0 <= moment < 4_000_000_000 * 10**9:
        assert day == datetime.fromtimestamp(moment // 10**9, UTC).date().isoformat()


def test_no_negative_durations_when_the_wall_clock_jumps_back():
    """A run that seems to end before it began ends when it began."""
    core, run = make_core(), run_info()
    core.begin(run, 100.0)
    core.end(run, Ending(NOON - 86_400 * 10**9, "success", None), 101.0)
    [final] = core.take(102.0)
    assert final.ended_at == final.started_at
    assert final.updated_at >= final.started_at


def test_memory_is_bounded_by_dropping_the_oldest_ended_run_and_counting_it():
    """Beyond the limit the oldest ended and unwritten run goes; active ones stay; what does not fit is counted."""
    core = make_core(max_runs=3)
    active = run_info("active")
    core.settled(active, new(call(1)), 100.0)
    for number in range(4):
        run = run_info(f"r{number}")
        core.settled(run, new(call(1)), 100.0)
        core.end(run, Ending(NOON, "success", None), 100.0)
    assert len(core) == 3
    assert sorted(snapshot.run_id for snapshot in core.take(101.0)) == ["active", "r2", "r3"]
    core.wrote(101.0)
    for number in range(3):
        core.begin(run_info(f"a{number}"), 102.0)
    core.settled(run_info("too many"), new(call(1), call(1)), 102.0)
    [beat] = core.heartbeat(103.0)
    assert beat.counts == {("snapshots_dropped", "memory"): 2, ("spans_rejected", "runs_over_limit"): 2}


def test_heartbeats_come_at_once_then_every_ten_seconds_with_absolute_counts():
    """The first sign of life makes the source known; counts are totals; an idle process is silent."""
    core, run, store = make_core(), run_info(), MemoryRunStore()
    core.begin(run, 100.0)
    core.lost("malformed", 2, 100.0)
    [first] = core.heartbeat(100.0)
    core.told(100.0, [first])
    assert first.counts == {("spans_rejected", "malformed"): 2}
    write_all(core, store, 100.0)
    assert core.heartbeat(109.9) == []
    assert core.next_due() == 110.0
    core.lost("malformed", 1, 109.0)
    [second] = core.heartbeat(110.0)
    core.told(110.0, [second])
    assert second.beat > first.beat
    assert second.counts == {("spans_rejected", "malformed"): 3}
    core.end(run, Ending(NOON, "success", None), 111.0)
    write_all(core, store, 112.0)
    assert core.next_due() is None
    assert core.heartbeat(500.0) == []


def test_runs_opened_again_are_kept_alive_too():
    """The source of a run id opened again has a heartbeat of its own while the run lives."""
    core = make_core()
    first, again = run_info(), run_info()
    core.begin(first, 100.0)
    core.begin(again, 100.0)
    assert [beat.source for beat in core.heartbeat(100.0)] == ["s", "s+1"]


def test_a_run_that_cannot_be_read_does_not_stop_the_others():
    """A field of the wrong type drops that run, counted, and no other."""
    core = make_core()
    core.settled(run_info("bad", trace_id="not a number"), new(call(1)), 100.0)
    core.settled(run_info("good"), new(call(1)), 100.0)
    assert [snapshot.run_id for snapshot in core.take(101.0)] == ["good"]
    assert core.heartbeat(101.0)[0].counts == {("snapshots_dropped", "unreadable"): 1}


def test_a_parents_run_is_not_ended_by_its_fork():
    """In a forked child an unknown run that still runs is the parent's: usage adds, its end says nothing."""
    core, run = make_core(forked=True), run_info()
    core.end(run, Ending(NOON, "success", None), 100.0)
    assert core.take(101.0) == []
    core.settled(run, new(call(1)), 102.0)
    [snapshot] = core.take(103.0)
    assert not snapshot.owns


def test_leaving_ends_what_still_runs():
    """At exit an active run is interrupted with what is known of it; a joined one only says that it is done."""
    core, mine, joined = make_core(), run_info("mine"), run_info("joined", owns=False)
    core.settled(mine, new(call(1)), 100.0)
    core.settled(joined, new(call(1)), 100.0)
    core.leave(NOON + 7, 100.1)
    finals = {snapshot.run_id: snapshot for snapshot in core.take(100.1, everything=True)}
    assert finals["mine"].final
    assert (finals["mine"].status, finals["mine"].stop_reason) == ("interrupted", "exit")
    assert finals["joined"].final
    assert not finals["joined"].owns


def test_smaller_batches_after_a_failure():
    """A store too slow for a large batch is asked for less, and for more again when it copes."""
    core = make_core(throttle=0.0)
    for number in range(5000):
        core.settled(run_info(f"r{number}"), new(call(1)), 100.0)
    sizes = []
    for attempt in range(3):
        sizes.append(len(core.take(101.0 + attempt)))
        core.failed(101.0 + attempt, 101.5 + attempt)
    assert sizes == [4096, 2048, 1024]
    written = 0
    while batch := core.take(200.0):
        written += len(batch)
        core.wrote(200.0)
    assert written == 5000


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 3), st.integers(0, 50)),
        st.tuples(st.just("repeat"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("write"), st.sampled_from(["ok", "lost", "repeated", "lost answer", "delayed"]), st.just(0)),
        st.tuples(st.just("time"), st.integers(1, 30), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_any_fate_of_writes_ends_in_the_same_totals(steps):
    """However writes are lost, repeated, delayed or unanswered, the store ends with the plain sum (rules 3, 4, 6)."""
    core, store = make_core(), MemoryRunStore()
    runs = [run_info(f"r{number}") for number in range(4)]
    counted: list[list] = [[] for _ in runs]
    expected, now, delayed = 0, 100.0, []
    settled_before = 0
    for step, which, tokens in steps:
        if step == "call":
            one = call(tokens)
            core.settled(runs[which], new(one), now)
            expected += 2 * tokens
            if runs[which].status == "running":
                counted[which].append(one)
        elif step == "repeat" and counted[which] and runs[which].status == "running":
            one = counted[which].pop()
            core.settled(runs[which], [Change(one, None)], now)
            expected -= one.usage.total_tokens
        elif step == "end" and runs[which].status == "running":
            runs[which].status = "success"
            core.end(runs[which], Ending(NOON + 5, "success", None), now)
        elif step == "time":
            now += which / 10
        elif step == "write":
            batch = core.take(now)
            if not batch:
                continue
            if which in ("ok", "repeated", "lost answer"):
                store.write(batch)
            if which == "repeated":
                store.write(batch)
            if which == "delayed":
                delayed.append(batch)
            if which in ("ok", "repeated"):
                core.wrote(now)
            else:
                core.failed(now, now + 0.2)
        settled = store.usage()["total_tokens"]
        assert settled >= settled_before, "totals never go backwards"
        settled_before = settled
    now += 10
    for run in runs:
        if run.status == "running":
            core.end(run, Ending(NOON + 9, "success", None), now)
    while batch := core.take(now, everything=True):
        store.write(batch)
        core.wrote(now)
    for batch in delayed:
        store.write(batch)
    assert store.usage()["total_tokens"] == expected
    assert store.verify() == []
    assert len(core) == 0


# The thread


@pytest.fixture
def store():
    return FlakyStore()


@pytest.fixture
def recorder(store):
    recorder = Recorder(store.open, throttle=0.2, price=unpriced)
    yield recorder
    store.gate.set()
    store.away = None
    recorder.shutdown()


def test_the_agent_never_waits_for_a_store_that_does_not_open(store, recorder):
    """Calls return while opening the store hangs; when it opens, everything is there."""
    store.gate.clear()
    run = run_info()
    recorder.begin(run)
    for _ in range(100):
        recorder.settled(run, new(call(1)))
    assert not recorder.flush(0.05)
    store.gate.set()
    assert recorder.flush(10)
    assert store.tokens() == 200


def test_flush_writes_what_is_not_due_yet(store):
    """A flush does not wait for the throttle."""
    recorder = Recorder(store.open, throttle=60.0, price=unpriced)
    run = run_info()
    recorder.settled(run, new(call(1)))
    store.wait_until(lambda: store.writes)
    recorder.settled(run, new(call(1)))
    assert recorder.flush(10)
    assert store.tokens() == 4
    recorder.shutdown()


def test_the_trailing_write_comes_without_another_call(store, recorder):
    """After a burst the writer wakes by itself."""
    run = run_info()
    for _ in range(10):
        recorder.settled(run, new(call(1)))
    store.wait_until(lambda: store.tokens() == 20)


def test_an_ended_run_is_settled_and_leaves_nothing_behind(store, recorder):
    """The final snapshot settles the run, and memory forgets it."""
    run = run_info()
    recorder.settled(run, new(call(3)))
    run.status = "success"
    recorder.end(run, NOON + 5)
    assert recorder.flush(10)
    assert store.tokens(active=False) == 6
    assert len(recorder._writer.core) == 0
    assert not recorder._writer._hot


def test_an_outage_costs_the_agent_nothing_and_is_said_twice(store, recorder, caplog):
    """One warning when it starts, one line when it ends; totals are complete after it."""
    run = run_info()
    with caplog.at_level(logging.INFO, logger="runmeter"):
        store.go_away()
        for _ in range(50):
            recorder.settled(run, new(call(1)))
        store.wait_until(lambda: store.attempts >= 3)
        assert recorder.flush(0.01) is False
        store.away = None
        store.wait_until(lambda: store.tokens() == 100)
        assert recorder.flush(10)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2, said
    assert "cannot write to the store: the database is away" in said[0]
    assert "answers again" in said[1]


def test_a_schema_of_another_version_is_an_outage_like_any_other(store, recorder, caplog):
    """An upgrade of the database later makes everything good."""
    store.go_away(SchemaMismatch("schema 7, expected 1"))
    recorder.settled(run_info(), new(call(1)))
    store.wait_until(lambda: store.attempts >= 2)
    store.away = None
    store.wait_until(lambda: store.tokens() == 2)


def test_shutdown_is_idempotent_and_ends_what_still_runs(store):
    """The second call does nothing; an active run is interrupted; later calls are ignored without harm."""
    recorder = Recorder(store.open, throttle=0.2, price=unpriced)
    run = run_info()
    recorder.begin(run)
    recorder.settled(run, new(call(2)))
    assert recorder.shutdown()
    assert recorder.shutdown()
    assert store.inner.run("r")["status"] == "interrupted"
    assert store.tokens(active=False) == 4
    assert store.disposed == 1
    recorder.settled(run, new(call(2)))
    recorder.lost("anything")
    assert recorder.flush(1)


def test_shutdown_without_anything_to_say_starts_nothing(store):
    """An instrumented process without a run has no thread and never opens the store."""
    before = threading.active_count()
    recorder = Recorder(store.open, throttle=0.2, price=unpriced)
    assert recorder.flush(1)
    assert recorder.shutdown()
    assert threading.active_count() == before
    assert store.attempts == 0


def test_what_cannot_be_written_at_the_end_is_said_in_one_line(store, capsys):
    """Leaving waits as long as it was told to and says how much is missing, and why."""
    store.go_away()
    recorder = Recorder(store.open, throttle=0.2, price=unpriced, url_for_humans="postgresql://u:***@db/x")
    run = run_info()
    recorder.settled(run, new(call(1000), call(1000)))
    assert recorder.shutdown(0.3) is False
    assert capsys.readouterr().err == (
        "runmeter: could not write the last of 1 run (2 calls, 4,000 tokens in all) to postgresql://u:***@db/x "
        "within 0.3 s: the database is away\n"
    )


def test_a_frozen_store_does_not_hold_up_the_exit(store, capsys):
    """A call to the database that never returns is left behind after the timeout."""
    recorder = Recorder(store.open, throttle=0.2, price=unpriced)
    store.gate.clear()
    recorder.settled(run_info(), new(call(1)))
    assert recorder.shutdown(0.2) is False
    assert "could not write the last of 1 run (1 calls, 2 tokens in all)" in capsys.readouterr().err
    store.gate.set()


def test_without_a_throttle_a_call_is_stored_before_it_returns(store):
    """`throttle=0`: when `settled` is back the store has the call, and when `end` is back the run is closed."""
    recorder = Recorder(store.open, throttle=0.0, price=unpriced)
    run = run_info()
    recorder.begin(run)
    for number in range(1, 6):
        recorder.settled(run, new(call(1)))
        assert store.tokens() == 2 * number
    run.status = "success"
    recorder.end(run, NOON + 1)
    assert store.tokens(active=False) == 10
    recorder.shutdown()


def test_without_a_throttle_an_outage_still_does_not_block(store):
    """Once the store is known to be away calls return at once, and are written when it is back."""
    recorder = Recorder(store.open, throttle=0.0, price=unpriced)
    run = run_info()
    store.go_away()
    for _ in range(200):
        recorder.settled(run, new(call(1)))
    assert store.attempts < 200
    store.away = None
    assert recorder.flush(10)
    assert store.tokens() == 400
    recorder.shutdown()


def test_many_threads_and_a_slow_store_lose_nothing(store, recorder, monkeypatch):
    """Calls from eight threads while the store stands still are added up within bounds, by the agent's own threads."""
    monkeypatch.setattr(writer_module, "INBOX", 100)
    run = run_info()
    recorder.settled(run, new(call(1)))
    store.wait_until(lambda: store.writes)
    store.gate.clear()
    recorder.settled(run, new(call(1)))
    store.wait_until(lambda: store.attempts >= 3)

    def work():
        for _ in range(1000):
            recorder.settled(run, new(call(1)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(recorder._writer._inbox) < 200
    store.gate.set()
    assert recorder.flush(10)
    assert store.tokens() == 2 * 8002


def test_the_connection_is_let_go_when_idle(store, monkeypatch):
    """Some time after the last write the store is told to release."""
    monkeypatch.setattr(link_module, "RELEASE_AFTER", 0.05)
    recorder = Recorder(store.open, throttle=0.01, price=unpriced)
    recorder.settled(run_info(), new(call(1)))
    store.wait_until(lambda: store.released >= 1)
    recorder.settled(run_info("again"), new(call(1)))
    store.wait_until(lambda: store.tokens() == 4)
    recorder.shutdown()


def test_settling_inside_a_finaliser_or_a_signal_handler_cannot_deadlock(store, recorder):
    """A call that settles in the middle of another's bookkeeping, on the same thread, is counted like any other."""
    run = run_info()
    left = [20]

    class Stream:
        def __del__(self):
            if left[0]:
                left[0] -= 1
                recorder.settled(run, new(call(1)))

    def price(one):
        Stream()
        return unpriced(one)

    recorder._writer.core._price = price
    recorder.settled(run, new(call(1)))
    store.wait_until(lambda: store.tokens() == 42)


def test_a_hostile_change_is_counted_and_harms_nothing(store, recorder, caplog):
    """What is no change at all is an error of ours to report, never the agent's."""
    run = run_info()
    recorder.settled(run, ["not a change"])
    recorder.settled(run, new(call(1)))
    assert recorder.flush(10)
    assert store.tokens() == 2
    store.wait_until(lambda: any(beat.counts.get(("spans_rejected", "error")) == 1 for beat in store.beats))


def test_an_error_of_our_own_is_not_the_end_of_the_writer(store, recorder, caplog, monkeypatch):
    """What the writer holds is all there is: it says what went wrong, waits a little and goes on."""
    core = recorder._writer.core
    work, failed = core.work, threading.Event()

    def broken(now, *, everything=False):
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return work(now, everything=everything)

    monkeypatch.setattr(core, "work", broken)
    recorder.settled(run_info(), new(call(1)))
    assert failed.wait(10)
    assert recorder.flush(10)
    assert store.tokens() == 2
    assert "an error of its own" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_a_new_source_with_empty_totals(tmp_path):
    """Parent and child write the same run through one file; the sum is exact and nobody's totals are repeated."""
    url = f"sqlite:///{tmp_path / 'fork.db'}"
    recorder = open_recorder(url, throttle=0.05, resource={"service.name": "svc"})
    run = run_info()
    recorder.begin(run)
    recorder.settled(run, new(call(100)))
    assert recorder.flush(10)
    source = recorder.source_id
    recorder.settled(run, new(call(10)))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            recorder.settled(run, new(call(1)))
            code = 0 if recorder.source_id != source and recorder.shutdown(10) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    run.status = "success"
    recorder.end(run, NOON + 1)
    assert recorder.shutdown(10)
    from runmeter_exporter.store import open_store

    kept = open_store(url)
    answer = kept.run("r")
    assert answer["status"] == "success"
    assert answer["total_tokens"] == 222
    assert kept.thread_usage("t")["total_tokens"] == 222
    assert kept.verify() == []
    kept.dispose()


def test_memory_of_an_active_run_is_bounded_and_flat_in_calls(store):
    """At most 4 kB per active run however many calls it makes, and nothing after it ended."""
    core = make_core()
    runs = [run_info(f"run-{number}") for number in range(300)]
    for run in runs:
        core.settled(run, new(call(1, model="warm-up")), 100.0)
        core.end(run, Ending(NOON, "success", None), 100.0)
    core.take(101.0)
    core.wrote(101.0)
    gc.collect()
    tracemalloc.start()
    try:
        empty = tracemalloc.get_traced_memory()[0]
        runs = [run_info(f"live-{number}") for number in range(300)]
        for step in range(20):
            for run in runs:
                core.settled(run, new(call(1000, model=f"model-{step % 4}")), 200.0 + step)
            core.take(200.5 + step)
            core.wrote(200.5 + step)
        gc.collect()
        live = tracemalloc.get_traced_memory()[0] - empty
        assert live / 300 <= 4096
        for run in runs:
            core.end(run, Ending(NOON, "success", None), 300.0)
        core.take(301.0)
        core.wrote(301.0)
        del runs, run
        gc.collect()
        assert (tracemalloc.get_traced_memory()[0] - empty) / 300 <= 400, "a hash of its id, no more"
    finally:
        tracemalloc.stop()


# Opening


@pytest.mark.parametrize(
    ("module", "url", "line"),
    [
        ("sqlalchemy", "sqlite:///x.db", 'pip install "runmeter[store]"'),
        ("psycopg", "postgresql://db/x", 'pip install "runmeter[postgres]"'),
    ],
)
def test_a_missing_extra_is_named_with_its_pip_line(monkeypatch, module, url, line):
    """Opening says what to install, at once and not in a thread."""
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else object())
    with pytest.raises(ImportError) as caught:
        open_recorder(url, throttle=1.0, resource={})
    assert line in str(caught.value)


def test_the_store_is_opened_before_there_is_anything_to_write(store):
    """`start` has the writer's thread connect; nothing is written, and leaving finds nothing to do."""
    recorder = Recorder(store.open, throttle=0.1, price=unpriced)
    recorder.start()
    store.wait_until(lambda: store.attempts)
    assert (store.attempts, store.writes, store.beats) == (1, [], [])
    assert recorder.shutdown(0.0)
    assert (store.attempts, store.writes, store.beats) == (1, [], [])


def test_opening_early_a_store_that_is_away(store, caplog):
    """It is said once, nobody waits for it, leaving is quick and says nothing; a run is written once it is back."""
    store.go_away()
    recorder = Recorder(store.open, throttle=0.1, price=unpriced)
    with caplog.at_level(logging.WARNING, "runmeter"):
        recorder.start()
        store.wait_until(lambda: store.attempts)
        recorder.lost("something")
        assert not recorder.flush(0.0)
        store.wait_until(lambda: store.attempts > 1)
    assert caplog.text.count("cannot write to") == 1
    store.away = None
    recorder.settled(run_info(), new(call(5)))
    assert recorder.flush(30)
    assert store.tokens() == 10
    assert recorder.shutdown(30)


def test_the_price_is_exact_from_call_to_store(store):
    """Money goes through as whole nano-dollars."""
    recorder = Recorder(store.open, throttle=0.1, price=lambda one: one.usage._replace(cost_nanousd=7))
    run = run_info()
    recorder.settled(run, new(*[call(1)] * 3))
    assert recorder.flush(10)
    assert store.inner.run("r")["cost_usd"] == Usage(1, cost_nanousd=21).cost_usd
    recorder.shutdown()
