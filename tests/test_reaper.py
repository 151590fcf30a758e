"""The reaper judges by its own clock, over time in which the store answered, and never twice."""

from __future__ import annotations

import itertools
import threading

import pytest
from recording import NOON, call, new, run_info, unpriced

from runmeter.usage import Usage
from runmeter_exporter.reaper import HOUSEKEEPING, RECOVERY, Reaper
from runmeter_exporter.recorder.core import RecorderCore
from runmeter_exporter.recorder.totals import Ending
from runmeter_exporter.store import StoreUnavailable
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import CellKey, Heartbeat, RunSnapshot

CELL = CellKey("2025-11-22", "p", "m", "lead_agent")


class Clock:
    """Seconds, by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    return MemoryRunStore()


def make_reaper(store, clock, **options) -> Reaper:
    return Reaper(store, lease=30, grace=15, otlp_idle=1800, clock=clock, **options)


def pass_time(clock, reaper, seconds: float) -> None:
    for _ in range(round(seconds)):
        clock.now += 1
        reaper.tick()


def snapshot(source: str, revision: int = 1, tokens: int = 5, **fields) -> RunSnapshot:
    given = {"run_id": "r", "started_at": NOON, "updated_at": NOON, "thread_id": "t", **fields}
    return RunSnapshot(source=source, revision=revision, usage_by={CELL: Usage(input_tokens=tokens, calls=1)}, **given)


def test_a_silent_owner_is_orphaned_after_its_lease(store, clock):
    """What was last known of the run is counted, and says that it is a lower bound."""
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    reaper.tick()
    pass_time(clock, reaper, 30)
    assert store.run("r")["status"] == "running"
    pass_time(clock, reaper, 2)
    run = store.run("r")
    assert (run["status"], run["stop_reason"], run["usage_state"]) == ("interrupted", "orphaned", "lower_bound")
    assert store.thread_usage("t")["lower_bound_runs"] == 1
    assert store.thread_usage("t")["total_tokens"] == 5
    assert store.scrape().orphaned == 1


def test_a_heartbeat_renews_the_lease_of_a_long_silent_tool_call(store, clock):
    """A run without a call for minutes lives as long as its process does."""
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    for beat in range(1, 20):
        store.heartbeat([Heartbeat("a", beat)])
        pass_time(clock, reaper, 25)
    assert store.run("r")["status"] == "running"


def test_a_write_of_the_owner_renews_the_lease(store, clock):
    """Any write is a sign of life, also without heartbeats."""
    reaper = make_reaper(store, clock)
    for revision in range(1, 20):
        store.write([snapshot("a", revision, revision)])
        pass_time(clock, reaper, 25)
    assert store.run("r")["status"] == "running"


def test_an_owner_that_returns_continues_under_its_real_status(store, clock):
    """Nothing already counted is counted again, and the lower bound is lifted."""
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    pass_time(clock, reaper, 40)
    assert store.run("r")["usage_state"] == "lower_bound"
    store.write([snapshot("a", 2, 9)])
    assert store.run("r")["status"] == "running"
    store.write([snapshot("a", 3, 12, final=True, status="success", ended_at=NOON + 9)])
    assert store.run("r")["usage_state"] == "settled"
    assert store.thread_usage("t")["total_tokens"] == 12
    assert store.thread_usage("t")["lower_bound_runs"] == 0
    assert store.verify() == []


def test_an_owner_that_vanishes_again_is_orphaned_again(store, clock):
    """Having been orphaned once protects nobody."""
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    pass_time(clock, reaper, 40)
    store.write([snapshot("a", 2, 9)])
    pass_time(clock, reaper, 40)
    assert store.run("r")["usage_state"] == "lower_bound"
    assert store.thread_usage("t")["total_tokens"] == 9


def test_a_child_whose_owner_never_wrote_is_orphaned_when_silent(store, clock):
    """A run that only a child wrote to does not stay active for ever."""
    reaper = make_reaper(store, clock)
    store.heartbeat([Heartbeat("child", 1)])
    store.write([snapshot("child", owns=False)])
    pass_time(clock, reaper, 25)
    store.heartbeat([Heartbeat("child", 2)])
    pass_time(clock, reaper, 25)
    assert store.run("r")["status"] == "running"
    pass_time(clock, reaper, 15)
    assert store.run("r")["usage_state"] == "lower_bound"


class Watched(MemoryRunStore):
    """A store that can be away and remembers who was orphaned."""

    away = False

    def __init__(self) -> None:
        super().__init__()
        self.orphaned: list[str] = []

    def watch(self):
        if self.away:
            raise StoreUnavailable("away")
        return super().watch()

    def orphan(self, source):
        self.orphaned.append(source)
        return super().orphan(source)


def test_nothing_is_judged_while_or_just_after_the_store_was_away(clock, caplog):
    """An outage longer than the lease orphans nobody: its time does not count, and writers may come back first."""
    store = Watched()
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    pass_time(clock, reaper, 29)
    store.away = True
    pass_time(clock, reaper, 3600)
    store.away = False
    pass_time(clock, reaper, RECOVERY)
    assert store.orphaned == []
    pass_time(clock, reaper, 2)
    assert store.orphaned == ["a"]
    said = [record.getMessage() for record in caplog.records]
    assert sum("does not answer" in line for line in said) == 1
    assert sum("answers again" in line for line in said) == 1


def test_what_was_learnt_before_an_outage_stays(clock):
    """A store that is away for a moment every ten minutes keeps no idle run open, and no silent source alive."""
    store = Watched()
    reaper = make_reaper(store, clock)
    store.write([snapshot("otlp"), snapshot("a", run_id="s")])
    for _ in range(4):
        pass_time(clock, reaper, 600)
        store.away = True
        pass_time(clock, reaper, 2)
        store.away = False
    assert store.run("r")["stop_reason"] == "idle"
    assert store.orphaned == ["a"]


def test_a_reaper_that_was_paused_does_not_hold_its_pause_against_others(clock):
    """After an hour of SIGSTOP the sidecar gives every source a fresh chance, not a verdict."""
    store = Watched()
    reaper = make_reaper(store, clock)
    store.write([snapshot("a")])
    pass_time(clock, reaper, 5)
    clock.now += 3600
    reaper.tick()
    assert store.orphaned == []


def test_a_reaper_that_just_started_judges_nobody(store, clock):
    """A restart of the sidecar begins all silences at nothing."""
    store.write([snapshot("a")])
    for _ in range(5):
        reaper = make_reaper(store, clock)
        pass_time(clock, reaper, 20)
    assert store.run("r")["status"] == "running"


def test_silence_is_said_once(clock):
    """A source that stays silent is not orphaned again at every look."""
    store = Watched()
    reaper = make_reaper(store, clock)
    store.heartbeat([Heartbeat("a", 1)])
    store.write([snapshot("a")])
    pass_time(clock, reaper, 200)
    assert store.orphaned == ["a"]


def test_sources_without_active_runs_are_left_alone(clock):
    """Thousands of processes that came and went cost nothing."""
    store = Watched()
    reaper = make_reaper(store, clock)
    for number in range(50):
        store.heartbeat([Heartbeat(f"s{number}", 1)])
        store.write([snapshot(f"s{number}", run_id=f"r{number}", final=True, status="success", ended_at=NOON)])
    pass_time(clock, reaper, 100)
    assert store.orphaned == []


def test_several_reapers_do_what_one_does(store, clock):
    """Two sidecars on one store count an orphan once."""
    reapers = [make_reaper(store, clock) for _ in range(2)]
    store.write([snapshot("a")])
    for _ in range(40):
        clock.now += 1
        for reaper in reapers:
            reaper.tick()
    assert store.scrape().orphaned == 1
    assert store.thread_usage("t")["total_tokens"] == 5
    assert store.verify() == []


def test_an_ended_door_2_run_closes_after_its_grace(store, clock):
    """The clock starts at its last change, so a late span gets its full grace."""
    reaper = make_reaper(store, clock)
    end = {"final": True, "status": "success", "ended_at": NOON}
    store.write([snapshot("otlp", **end)])
    pass_time(clock, reaper, 14)
    store.write([snapshot("otlp", 2, 7, **end)])
    pass_time(clock, reaper, 14)
    assert store.run("r")["usage_state"] == "closing"
    pass_time(clock, reaper, 3)
    assert store.run("r")["usage_state"] == "settled"
    assert store.thread_usage("t")["total_tokens"] == 7


class Refusing(Watched):
    """A store that does not close some runs, and lets nobody's source go that is called so."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.bad: set[str] = set()
        self.error = error
        self.asked: list[list[str]] = []

    def close(self, run_ids):
        self.asked.append(sorted(run_ids))
        if self.bad & set(run_ids):
            raise self.error
        super().close(run_ids)

    def orphan(self, source):
        if source in self.bad:
            raise self.error
        return super().orphan(source)

    def prune(self, older_than_ns, **options):
        raise self.error

    def ended(self, *run_ids: str) -> None:
        """These wait for their grace."""
        self.write([snapshot("otlp", run_id=run_id, status="success", final=True, ended_at=NOON) for run_id in run_ids])


ERRORS = pytest.mark.parametrize(
    "error", [StoreUnavailable("did not answer within 5 s"), ValueError("unreadable")], ids=repr
)


@ERRORS
def test_a_run_that_cannot_be_closed_keeps_no_other_open(clock, caplog, error):
    """Whatever closing it raises, it is set aside, said once; the others close, those that are due later too."""
    store = Refusing(error)
    reaper = make_reaper(store, clock)
    runs = [f"r{number:03}" for number in range(200)]
    store.bad = {"r107"}
    store.ended(*runs)
    reaper.tick()
    pass_time(clock, reaper, 17)
    assert [run.run_id for run in store.watch().runs] == ["r107"]
    assert sum("r107" in some for some in store.asked) == 3  # all, a few, and alone: each may take a deadline
    store.ended("later")
    pass_time(clock, reaper, 17)
    assert store.run("later")["usage_state"] == "settled"
    assert caplog.text.count("run r107 could not be closed") == 1
    assert "does not answer" not in caplog.text


def test_what_is_set_aside_is_tried_less_and_less_often(clock, caplog):
    """After a minute, two, four … up to an hour while others close; and it settles as soon as it can."""
    store = Refusing(StoreUnavailable("too big"))
    reaper = make_reaper(store, clock)
    store.bad = {"bad"}
    store.ended("bad")
    tried = []
    for second in range(7800):
        if second % 30 == 0:
            store.ended(f"r{second}")
        pass_time(clock, reaper, 1)
        tried += [second for some in store.asked if some == ["bad"]]
        store.asked.clear()
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    for gap, minutes in zip(gaps[:7], (1, 2, 4, 8, 16, 32, 60), strict=True):
        assert minutes * 60 <= gap <= minutes * 60 + 20
    assert caplog.text.count("could not be closed") == 1
    store.bad = set()
    pass_time(clock, reaper, 3620)
    assert store.run("bad")["usage_state"] == "settled"


def test_a_store_that_can_only_be_read_is_held_against_no_run(clock, caplog):
    """A full disk for an hour: it is said once, a look asks for few, and all is settled within two minutes after."""
    store = Refusing(StoreUnavailable("disk is full"))
    reaper = make_reaper(store, clock)
    runs = [f"r{number:03}" for number in range(60)]
    store.bad = set(runs)
    store.ended(*runs)
    for _ in range(10):
        store.asked.clear()
        pass_time(clock, reaper, 3)
        assert len(store.asked) <= 3 * 8
    pass_time(clock, reaper, 3600)
    assert caplog.text.count("could not be closed") == 0
    assert caplog.text.count("no run can be closed") == 1
    store.bad = set()
    pass_time(clock, reaper, 120)
    assert store.watch().runs == []


def test_an_outage_in_the_middle_of_a_look_sets_nobody_aside(clock):
    """The runs that were due then close as soon as the store answers again, and has for a moment."""
    store = Refusing(StoreUnavailable("away"))
    reaper = make_reaper(store, clock)
    store.ended("r1", "r2")
    reaper.tick()
    pass_time(clock, reaper, 15)

    def goes_away(run_ids):
        store.away = True
        raise store.error

    reaper._close = goes_away
    pass_time(clock, reaper, 3)
    store.away, reaper._close = False, store.close
    pass_time(clock, reaper, RECOVERY + 1)
    assert store.watch().runs == []


@ERRORS
def test_a_source_that_cannot_be_orphaned_keeps_no_other_alive(clock, caplog, error):
    """Nor does it keep runs of door 2 open; it is said once."""
    store = Refusing(error)
    reaper = make_reaper(store, clock)
    store.bad = {"a"}
    store.ended("ended")
    store.write([snapshot("a", run_id="mine"), snapshot("b", run_id="yours")])
    pass_time(clock, reaper, 200)
    assert store.run("mine")["status"] == "running"
    assert store.run("yours")["usage_state"] == "lower_bound"
    assert store.run("ended")["usage_state"] == "settled"
    assert caplog.text.count("source a could not be closed") == 1


def test_sources_that_were_silent_for_a_month_are_forgotten(clock):
    """Also where nothing is pruned; one that an open run waits for stays, and so does one that came lately."""
    store = MemoryRunStore(clock=lambda: NOON)
    day = 86_400 * 10**9
    reaper = make_reaper(store, clock, wall=lambda: NOON + 31 * day)
    store.heartbeat([Heartbeat(source, 1) for source in ("old", "owner")])
    store.write([snapshot("owner")])
    store._clock = lambda: NOON + 2 * day
    store.heartbeat([Heartbeat("late", 1)])
    reaper.tick()
    with store._reading() as rows:
        assert rows.sources(["old", "owner", "late"]) == [("owner", 1), ("late", 1)]


def test_pruning_that_fails_is_no_outage(clock, caplog):
    """Nothing that was learnt is forgotten for it, expiry happens, and it is said once."""
    expired: list[int] = []
    store = Refusing(ValueError("cannot prune"))
    reaper = make_reaper(store, clock, retain=86_400.0, expire=expired.append, wall=lambda: NOON)
    store.write([snapshot("otlp")])
    pass_time(clock, reaper, 1810)
    assert store.run("r")["stop_reason"] == "idle"
    assert len(expired) == 31
    assert caplog.text.count("cannot prune") == 1


def test_a_door_2_run_whose_root_never_ends_is_idle_in_the_end(store, clock):
    """It is neither an orphan nor open for ever."""
    reaper = make_reaper(store, clock)
    store.write([snapshot("otlp")])
    pass_time(clock, reaper, 1790)
    assert store.run("r")["status"] == "running"
    pass_time(clock, reaper, 15)
    assert (store.run("r")["status"], store.run("r")["stop_reason"]) == ("interrupted", "idle")


def test_a_run_that_door_1_works_on_is_not_closed_by_door_2s_silence(store, clock):
    """Spans of a child process came by OTLP; the owner lives and ends it."""
    closed: list[str] = []
    reaper = make_reaper(store, clock, close_otlp=closed.extend)
    store.write([snapshot("a"), snapshot("otlp", owns=False)])
    for beat in range(1, 100):
        store.heartbeat([Heartbeat("a", beat)])
        pass_time(clock, reaper, 20)
    assert closed == []
    store.write([snapshot("a", 2, final=True, status="success", ended_at=NOON)])
    pass_time(clock, reaper, 17)
    assert "r" in closed


def test_pruning_and_expiry_happen_now_and_then(store, clock):
    """Runs older than `retain` go, their totals stay; expiry is told the wall time; both once a minute."""
    expired: list[int] = []
    day = 86_400 * 10**9
    reaper = make_reaper(store, clock, retain=86_400.0, expire=expired.append, wall=lambda: NOON + 2 * day)
    store.write([snapshot("a", final=True, status="success", ended_at=NOON)])
    pass_time(clock, reaper, HOUSEKEEPING * 2)
    assert store.run("r") is None
    assert store.thread_usage("t")["total_tokens"] == 5
    assert expired == [NOON + 2 * day] * 2
    assert store.verify() == []


def test_a_recorders_core_and_a_reaper_agree_on_what_lives(store, clock):
    """A quiet run of a living process is never orphaned: its heartbeats are more frequent than the lease."""
    reaper = make_reaper(store, clock)
    core, run = RecorderCore("s", throttle=1.0, price=unpriced), run_info()
    core.begin(run, clock.now)
    for second in itertools.count():
        if snapshots := core.take(clock.now):
            store.write(snapshots)
            core.wrote(clock.now)
        if beats := core.heartbeat(clock.now):
            store.heartbeat(beats)
            core.told(clock.now, beats)
        if second == 300:
            break
        pass_time(clock, reaper, 1)
    assert store.run("r")["status"] == "running"
    core.settled(run, new(call(3)), clock.now)
    core.end(run, Ending(NOON + 1, "success", None), clock.now)
    store.write(core.take(clock.now + 1))
    assert store.thread_usage("t")["total_tokens"] == 6


def test_the_thread_looks_until_it_is_stopped(store):
    """`start` ticks by itself; `stop` ends it; both may be called twice."""
    looked = threading.Event()

    class Looked(MemoryRunStore):
        def watch(self):
            looked.set()
            return super().watch()

    reaper = Reaper(Looked(), interval=0.01)
    reaper.start()
    reaper.start()
    assert looked.wait(10)
    reaper.stop()
    reaper.stop()
    assert not any(thread.name == "runmeter-reaper" for thread in threading.enumerate())
