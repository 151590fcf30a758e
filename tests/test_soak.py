"""A short soak; the long one, whose figures say more, is `python tests/benchmarks/soak.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))
from soak import soak

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]


def test_a_thousand_live_runs() -> None:
    """Half a minute with 1,000 live runs through both doors: sums exact, nobody silent is orphaned, nothing leaks."""
    outcome = soak(0.5, live=1000, every=4.0, calls_per_run=4.0, lease="15s", say=lambda line: None)
    assert outcome.stored_calls == outcome.calls > 2000
    assert outcome.runs > 1500
    # A run at door 2 is seen when its first call is exported, up to five seconds later.
    assert outcome.live >= 700
    assert (outcome.orphaned, outcome.differences) == (0, [])
    for name, series in outcome.series.items():
        begin, middle, end = (series.part(*span) for span in ((0.0, 0.2), (0.4, 0.6), (0.8, 1.0)))
        # Caches still fill: what is kept of ended runs is bounded, and SQLite keeps 16 MB of pages a connection.
        allowed = 30.0 if name == "sidecar" else 6.0
        assert end[0] - middle[0] <= allowed, f"{name}: {begin[0]:.1f}, {middle[0]:.1f}, {end[0]:.1f} MB"
        assert end[1] <= begin[1] + 4, f"{name}: {begin[1]:.0f}, {middle[1]:.0f}, {end[1]:.0f} descriptors"
