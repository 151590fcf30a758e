"""Thousands of schedules of everything that may go wrong, against a plain sum; and those that once found a bug."""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
from recording import NOON
from simulation import World

from runmeter.usage import Usage
from runmeter_exporter.reaper import Reaper
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import CellKey, Heartbeat, RunSnapshot

SCHEDULES = int(os.environ.get("RUNMETER_SIMULATION_SCHEDULES", "3000"))
"""More for a night; a failure prints its seed, which `RUNMETER_SIMULATION_SEED` plays alone."""
PARTS = 8


def play(seed: int) -> None:
    """One schedule; every third has calls that are taken back, where totals are bounds rather than sums."""
    world = World(seed, steps=40 + seed % 5 * 20, repeats=seed % 3 == 2)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}\nafter {', '.join(world.log)}") from error


@pytest.mark.parametrize("part", range(PARTS))
def test_totals_stay_exact_whatever_dies_stalls_or_lies(part):
    """Settled totals never fall and never double, nothing acknowledged is lost, every run ends, and it balances."""
    only = os.environ.get("RUNMETER_SIMULATION_SEED")
    seeds = [int(only)] if only else range(part, SCHEDULES, PARTS)
    for seed in seeds:
        play(seed)


def snapshot(source: str, tokens: int, *, started_at: int = NOON, **fields: Any) -> RunSnapshot:
    usage_by = {CellKey("2025-11-22", "p", "m", "lead_agent"): Usage(input_tokens=tokens, calls=1)}
    times = {"started_at": started_at, "updated_at": started_at, "ended_at": started_at}
    return RunSnapshot(
        run_id="r", source=source, revision=1, final=True, status="success", usage_by=usage_by, **times, **fields
    )


def test_a_run_that_only_a_child_wrote_to_ends_though_its_source_was_forgotten():
    """Found here: its owner died before its first write, and the child's heartbeat was pruned before it was judged."""
    store, seconds = MemoryRunStore(clock=lambda: NOON), itertools.count()
    store.heartbeat([Heartbeat("child", 1)])
    store.write([snapshot("child", 5, owns=False)])
    store.prune(NOON + 1)
    reaper = Reaper(store, lease=30, otlp_idle=60, clock=lambda: float(next(seconds)))
    for _ in range(70):
        reaper.tick()
    assert store.run("r")["status"] == "interrupted"
    assert store.usage()["total_tokens"] == 5
    assert store.verify() == []


def test_a_pruned_runs_old_snapshot_is_refused_though_its_id_was_used_again():
    """Found here: it is older than the prune horizon, and its source is not of the run that there is now."""
    store = MemoryRunStore()
    old = snapshot("a", 5)
    store.write([old])
    assert store.prune(NOON + 1) == 1
    store.write([snapshot("b", 7, started_at=NOON + 2)])
    result = store.write([old])
    assert result.refused == {"pruned": 1}
    assert store.usage()["total_tokens"] == 12


def test_a_schedule_is_a_function_of_its_seed():
    """The same seed plays the same schedule, or a printed seed would be worth nothing."""
    first, second = World(7), World(7)
    first.run()
    second.run()
    assert first.log == second.log
    assert first.store.usage() == second.store.usage()
