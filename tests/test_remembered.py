"""What door 1 remembers of spans: as much as a settler may where runs are few, shared where they are many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_sink import Meter

import runmeter
from runmeter.counting.settler import LIMIT
from runmeter.otel.processor import PROCESSOR
from runmeter.runs.known import ENDED_FEWEST, FEWEST, REMEMBERED

RUNS, CALLS = 10, 200


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Meter]:
    """A processor that remembers as little as if there were a thousand times as many runs."""
    monkeypatch.setattr(PROCESSOR.fold.runs, "_remembered", FEWEST)
    found = Meter()
    yield found
    found.close()


def test_many_runs_share(meter: Meter) -> None:
    """Runs at once remember their latest spans alone, and every call of theirs still counts."""
    runs = [runmeter.start_run() for _ in range(RUNS)]
    for _ in range(CALLS):
        for run in runs:
            with run.activate(), meter.agent("boss"):
                meter.call(10, 5)
    assert [run.usage.total_tokens for run in runs] == [CALLS * 15] * RUNS
    assert all(len(run._state.settler) <= FEWEST for run in runs)
    for run in runs:
        run.end()
    assert all(meter.sink.usage(run.run_id).total_tokens == CALLS * 15 for run in runs)


def test_a_repeat_of_forgotten_calls(meter: Meter) -> None:
    """An agent's span that ends with the sum of calls that were forgotten meanwhile adds nothing."""
    with runmeter.run() as run, meter.agent("boss") as boss:
        for _ in range(CALLS):
            meter.call(10, 5)
        boss.set_attribute("gen_ai.usage.input_tokens", CALLS * 10)
        boss.set_attribute("gen_ai.usage.output_tokens", CALLS * 5)
    assert meter.sink.usage(run.run_id).total_tokens == CALLS * 15


def test_few_runs_remember_all_that_they_may(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share grows again when other runs have ended, and what an ended run remembers shrinks."""
    monkeypatch.setattr(PROCESSOR.fold.runs, "_remembered", LIMIT)
    first = runmeter.start_run()
    others = [runmeter.start_run() for _ in range(REMEMBERED // LIMIT)]
    with first.activate():
        meter.call()
    assert first._state.settler.limit == FEWEST
    for run in others:
        run.end()
    with first.activate():
        for _ in range(CALLS):
            meter.call()
    assert first._state.settler.limit == LIMIT
    assert len(first._state.settler) > CALLS
    first.end()
    assert len(first._state.settler) <= ENDED_FEWEST
    assert meter.sink.usage(first.run_id).calls == CALLS + 1
