"""Kill agents, crowd a store, set clocks back, and add up.

Goal: whatever dies, settled usage that was acknowledged is neither lost nor doubled, totals never fall, and what is not
known is called a lower bound. Method: real agent processes that say on a pipe what `record_usage` returned from, real
databases, and `verify` at the end of each test.
"""

from __future__ import annotations

import random
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from chaos_kit import IN, OUT, Nursery, all_runs, reap
from sidecar_process import until

from runmeter_exporter.reaper import Reaper
from runmeter_exporter.store import RunStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("sql_url", "throttle", "kills"),
    [("sqlite", 0, 150), ("postgresql", 0, 150), ("sqlite", 0.05, 50)],
    indirect=["sql_url"],
)
def test_killed_agents_leave_lower_bounds_that_hold_every_acknowledged_call(
    sql_url: str, throttle: float, kills: int, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """SIGKILL at any moment counts nothing twice; with throttle=0 it loses no call that record_usage returned from."""
    dice = random.Random(20261122)
    agents = nursery(sql_url, throttle)
    waiting = [f"run-{number}" for number in range(kills)]
    alive: dict[str, int] = {}
    while waiting or alive:
        while waiting and len(alive) < 6:
            run_id = waiting.pop()
            agents.start(run_id, f"t{dice.randrange(3)}")
            alive[run_id] = dice.randrange(1, 30)
        agents.wait(lambda: any(agents.acks[run_id] >= due for run_id, due in alive.items()))
        for run_id in [run_id for run_id, due in alive.items() if agents.acks[run_id] >= due]:
            agents.signal(run_id, signal.SIGKILL)
            del alive[run_id]
    agents.close()

    store = open_stores(sql_url)
    assert store.usage()["total_tokens"] == 0
    before = store.usage(include_active=True)
    reap(store)
    runs = all_runs(store)
    for run_id, run in runs.items():
        stored, acknowledged = run["llm_call_count"], agents.acks[run_id]
        # One more may have been written whose acknowledgement died with the process.
        assert (acknowledged if throttle == 0 else 0) <= stored <= acknowledged + 1, run_id
        assert (run["total_input_tokens"], run["total_output_tokens"]) == (IN * stored, OUT * stored)
        assert (run["status"], run["stop_reason"], run["usage_state"]) == ("interrupted", "orphaned", "lower_bound")
    assert runs.keys() <= agents.acks.keys()
    assert throttle > 0 or runs.keys() == agents.acks.keys()
    after = store.usage()
    assert after["total_tokens"] == before["total_tokens"] == sum(run["total_tokens"] for run in runs.values())
    assert after["lower_bound_runs"] == len(runs)
    assert store.verify() == []


@pytest.mark.parametrize(("sql_url", "processes"), [("sqlite", 8), ("postgresql", 16)], indirect=["sql_url"])
def test_many_processes_on_one_store(
    sql_url: str, processes: int, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """Processes that share threads and totals rows write without a deadlock or a locked database reaching anybody."""
    agents = nursery(sql_url, 0.02)
    calls, rounds = 200, 4
    for number in range(processes * rounds):
        agents.wait(lambda: number - len(agents.ended) < processes)  # noqa: B023  asked before the next turn
        agents.start(f"run-{number}", f"t{number % 3}", calls)
    agents.wait(lambda: len(agents.ended) == processes * rounds)
    agents.close()
    assert agents.said() == ""
    store = open_stores(sql_url)
    total = store.usage()
    assert total["llm_call_count"] == calls * processes * rounds
    assert total["total_tokens"] == (IN + OUT) * calls * processes * rounds
    assert {run["status"] for run in all_runs(store).values()} == {"success"}
    assert sum(t["total_tokens"] for t in store.thread_usages(["t0", "t1", "t2"])) == total["total_tokens"]
    assert store.verify() == []


def stored_days(url: str) -> set[str]:
    """The days on which the calls ended that are stored, active ones too."""
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        return {day for (day,) in connection.execute("SELECT day FROM run_usage")}


@pytest.mark.parametrize("days", [1, -1])
def test_a_wall_clock_that_jumps_a_day(
    days: int, tmp_path: Path, sqlite_url: str, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """A jump in mid-run loses nothing, makes no negative duration, and expires no lease."""
    faketime = pytest.importorskip("libfaketime", reason="libfaketime is not installed (dev extra)")
    library = next(Path(faketime.__file__).parent.rglob("libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime has no library for this platform")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    agents = nursery(sqlite_url, 0.02, LD_PRELOAD=str(library), FAKETIME_TIMESTAMP_FILE=str(offset),
                     FAKETIME_DONT_FAKE_MONOTONIC="1", FAKETIME_CACHE_DURATION="1")
    agents.start("jumping")
    store = open_stores(sqlite_url)
    begun = until(lambda: store.run("jumping"), "the run is stored")
    (tmp_path / "new").write_text(f"{days:+d}d")
    (tmp_path / "new").rename(offset)
    until(lambda: len(stored_days(sqlite_url)) == 2, "a call of another day is stored")
    now = 0.0
    reaper = Reaper(store, lease=30.0, clock=lambda: now)
    for _ in range(5):
        reaper.tick()
        now += 1.0
    run = store.run("jumping")
    assert run is not None
    assert run["status"] == "running"
    calls = agents.finish()
    run = store.run("jumping")
    assert run is not None
    assert (run["status"], run["usage_state"], run["llm_call_count"]) == ("success", "settled", calls)
    assert run["created_at"] == begun["created_at"] <= run["updated_at"]
    assert run["created_at"] <= run["ended_at"]
    assert store.verify() == []
