"""Rule 5 as properties of the throttle: leading, trailing, together, bounded."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runmeter_exporter.recorder.throttle import Throttle

EPSILON = 1e-6
KEYS = st.sampled_from("abcde")
STEPS = st.lists(
    st.tuples(KEYS, st.floats(0, 3), st.sampled_from(["call", "final", "announce", "nothing"])), min_size=1, max_size=60
)


def drive(throttle: Throttle[str], steps, horizon: float = 10.0):
    """A writer that wakes exactly when something is due; what was touched when, and what each write took."""
    now = 100.0
    writes: list[tuple[float, list[str]]] = []
    touched: list[tuple[float, str, str]] = []

    def write_until(moment: float) -> None:
        while (due := throttle.next_due()) is not None and due <= moment:
            at = max(due, touched[-1][0] if touched else due)
            keys = throttle.due(at)
            assert keys, "next_due promised something"
            throttle.wrote(at)
            writes.append((at, keys))

    for key, wait, what in steps:
        now += wait
        write_until(now)
        if what != "nothing":
            throttle.touch(key, now, urgent=what == "final", paced=what != "announce")
            touched.append((now, key, what))
            write_until(now)
    write_until(now + horizon)
    return touched, writes


def test_the_first_call_of_a_quiet_run_is_due_at_once():
    """A leading write waits for nothing when the writer was idle."""
    throttle = Throttle[str](1.0)
    throttle.touch("a", 7.123)
    assert throttle.next_due() == 7.123
    assert throttle.due(7.123) == ["a"]


def test_calls_inside_the_interval_become_one_trailing_write():
    """A burst after a leading write is due once, at the end of the interval and not later than a grid step after it."""
    throttle = Throttle[str](1.0)
    throttle.touch("a", 5.03)
    throttle.due(5.03)
    throttle.wrote(5.04)
    for moment in (5.05, 5.2, 5.9):
        throttle.touch("a", moment)
    assert throttle.due(6.02) == []
    assert throttle.next_due() == pytest.approx(6.1)
    assert throttle.due(6.1 + EPSILON) == ["a"]
    assert throttle.next_due() is None


def test_an_announcement_does_not_delay_the_first_call():
    """A run announced a moment ago still gets a leading write for its first call."""
    throttle = Throttle[str](60.0)
    throttle.touch("a", 100.0, paced=False)
    assert throttle.due(100.0) == ["a"]
    throttle.wrote(100.0)
    throttle.touch("a", 107.0)
    assert throttle.next_due() == 107.0


def test_a_final_does_not_wait_for_the_interval_and_replaces_the_trailing_write():
    """A final pulls the pending trailing write forward to the next grid step; nothing is due after it."""
    throttle = Throttle[str](10.0)
    throttle.touch("a", 100.0)
    throttle.due(100.0)
    throttle.wrote(100.0)
    throttle.touch("a", 100.5)
    throttle.touch("a", 100.6, urgent=True)
    assert throttle.next_due() == pytest.approx(101.0)
    assert throttle.due(101.0 + EPSILON) == ["a"]
    assert throttle.next_due() is None


def test_all_runs_due_in_a_step_go_out_together():
    """Keys touched at different moments of one grid step share one due time."""
    throttle = Throttle[int](1.0)
    throttle.touch(-1, 50.0)
    throttle.due(50.0)
    throttle.wrote(50.0)
    for key in range(1000):
        throttle.touch(key, 50.01 + key / 20_000)
    due = throttle.next_due()
    assert due is not None
    assert due == pytest.approx(50.1)
    assert sorted(throttle.due(due)) == list(range(1000))


def test_a_failed_write_is_due_again_when_the_backoff_is_over_and_nothing_before():
    """After a failure nothing at all is due until the given time, then all of it."""
    throttle = Throttle[str](1.0)
    throttle.touch("a", 5.0)
    assert throttle.due(5.0) == ["a"]
    throttle.touch("a", 5.01)
    throttle.failed(["a"], 5.1, until=8.0)
    throttle.touch("b", 5.2)
    assert throttle.next_due() == 8.0
    assert throttle.due(7.99) == []
    assert sorted(throttle.due(8.1)) == ["a", "b"]


def test_what_is_touched_while_it_is_written_is_written_again():
    """A touch between taking a key and its write's end is not swallowed by that write."""
    throttle = Throttle[str](1.0)
    throttle.touch("a", 5.0)
    assert throttle.due(5.0) == ["a"]
    throttle.touch("a", 5.05)
    throttle.wrote(5.1)
    assert throttle.due(6.1 + EPSILON) == ["a"]


def test_a_limit_takes_the_longest_due_first_and_leaves_the_rest():
    """A batch limit delays keys, it does not lose them."""
    throttle = Throttle[int](0.0)
    for key in range(5):
        throttle.touch(key, float(key))
    assert throttle.due(10.0, limit=3) == [0, 1, 2]
    assert throttle.due(10.0, limit=3) == [3, 4]
    assert throttle.everything(10.0) == []


def test_forgetting_leaves_nothing():
    """A forgotten key is neither due nor remembered."""
    throttle = Throttle[str](1.0)
    throttle.touch("a", 5.0)
    throttle.due(5.0)
    throttle.wrote(5.0)
    throttle.touch("a", 5.1)
    throttle.forget("a")
    assert len(throttle) == 0
    assert throttle.next_due() is None
    throttle.touch("a", 5.2)
    due = throttle.next_due()
    assert due is not None
    assert due <= 5.3 + EPSILON, "a forgotten key is a quiet one"


def test_an_interval_of_nothing_makes_everything_due_at_once():
    """With 0 there is neither pacing nor a grid."""
    throttle = Throttle[str](0.0)
    for moment in (1.0, 1.001, 1.002):
        throttle.touch("a", moment)
        assert throttle.due(moment) == ["a"]
        throttle.wrote(moment)


@pytest.mark.parametrize("interval", [-1.0, math.nan, math.inf])
def test_an_interval_that_is_none_is_refused(interval):
    """The error names the value."""
    with pytest.raises(ValueError, match="expected seconds"):
        Throttle(interval)


@given(STEPS, st.sampled_from([0.5, 1.0, 2.5]))
def test_every_touch_is_written_within_an_interval_and_a_step(steps, interval):
    """Whatever happens, what a touch stands for is written not later than interval + grid after it."""
    throttle = Throttle[str](interval)
    touched, writes = drive(throttle, steps)
    for moment, key, what in touched:
        wait = throttle.grid if what != "call" else interval + throttle.grid
        assert any(moment <= at <= moment + wait + EPSILON and key in keys for at, keys in writes)


@given(STEPS, st.sampled_from([0.5, 1.0, 2.5]))
@example([("a", 0.0, "call"), ("a", 0.0, "final"), ("a", 0.0, "final")], 0.5)  # all at one moment, on the grid
def test_writes_follow_the_grid_not_the_calls_nor_the_runs(steps, interval):
    """Any two writes but neighbours are at least a grid step apart, and neighbours are unless one led."""
    throttle = Throttle[str](interval)
    _, writes = drive(throttle, steps)
    moments = [at for at, _ in writes]
    for first, third in zip(moments, moments[2:], strict=False):
        assert third - first >= throttle.grid - EPSILON


@given(st.lists(st.tuples(KEYS, st.floats(0, 3)), min_size=1, max_size=60), st.sampled_from([0.5, 1.0, 2.5]))
def test_progress_of_one_run_is_written_at_most_once_an_interval(calls, interval):
    """Two writes of one key are an interval apart when only calls touch it."""
    throttle = Throttle[str](interval)
    _, writes = drive(throttle, [(key, wait, "call") for key, wait in calls])
    for key in "abcde":
        moments = [at for at, keys in writes if key in keys]
        for first, second in itertools.pairwise(moments):
            assert second - first >= interval - EPSILON


@given(STEPS)
def test_nothing_is_written_that_was_not_touched(steps):
    """Each write of a key has a touch since the key's write before."""
    touched, writes = drive(Throttle[str](1.0), steps)
    for key in "abcde":
        before = -math.inf
        for at, keys in writes:
            if key in keys:
                assert any(name == key and before <= moment <= at for moment, name, _ in touched)
                before = at
