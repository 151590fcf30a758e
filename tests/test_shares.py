"""Several conversations in one trace: each gets what it used, once, at both doors, live and settled."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from doors import counted, door1, replay, unpriced
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_requests import usage_of

from runmeter.counting.settler import Settler
from runmeter.reading.read import read
from runmeter.runs.shares import SHARES, share_id, shared_run
from runmeter.spans import EndedSpan
from runmeter.usage import ZERO, Usage
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import open_store
from runmeter_exporter.store.ledger_row import default_run

MS = 1_000_000
START = 1_763_812_800_000 * MS
AGENTS, CLIENT = "openinference.instrumentation.langchain", "opentelemetry.instrumentation.genai.openai"


@dataclass(frozen=True)
class Turn:
    """An agent's turn in a conversation: its calls' tokens, some made by a subagent with a conversation of its own."""

    thread: str
    calls: tuple[int, ...]
    subagents: tuple[int, ...]
    doubled: bool
    """Its calls are told by the client's instrumentation as well."""


@st.composite
def days(draw: st.DrawFn) -> list[Turn]:
    """Turns of up to three conversations, one after the other, in one trace."""
    tokens = st.lists(st.integers(1, 9), max_size=3).map(tuple)
    turn = st.builds(Turn, st.sampled_from(["a", "b", "c"]), tokens, tokens, st.booleans())
    return draw(st.lists(turn, min_size=1, max_size=5))


def span(
    number: int, parent: int | None, scope: str, said: dict[str, object], began: int, ended: int, trace: int = 7
) -> EndedSpan:
    times = START + began * MS, START + ended * MS
    return EndedSpan(trace, number, parent, False, "s", 1, scope, {}, said, *times, False)


def spans_of(turns: list[Turn], trace: int = 7) -> list[EndedSpan]:
    """Below a worker's span that says nothing to us."""
    found = [span(1, None, "my.worker", {}, 0, 1_000_000, trace)]
    number = 1

    def call(above: int, tokens: int, began: int, doubled: bool) -> None:
        nonlocal number
        number += 1
        said = {"openinference.span.kind": "LLM", "llm.token_count.prompt": tokens, "llm.token_count.completion": 1}
        found.append(span(number, above, AGENTS, said, began, began + 8, trace))
        if doubled:
            number += 1
            said = {"gen_ai.operation.name": "chat"}
            said |= {"gen_ai.usage.input_tokens": tokens, "gen_ai.usage.output_tokens": 1}
            found.append(span(number, number - 1, CLIENT, said, began + 1, began + 7, trace))

    for index, turn in enumerate(turns):
        began = 1_000 * (index + 1)
        number += 1
        top = number
        said = {"openinference.span.kind": "AGENT", "session.id": turn.thread}
        found.append(span(top, 1, AGENTS, said, began, began + 900, trace))
        for place, tokens in enumerate(turn.calls):
            call(top, tokens, began + 10 * (place + 1), turn.doubled)
        number += 1
        below = number
        said = {"openinference.span.kind": "AGENT", "session.id": f"inner-{index}"}
        found.append(span(below, top, AGENTS, said, began + 400, began + 800, trace))
        for place, tokens in enumerate(turn.subagents):
            call(below, tokens, began + 400 + 10 * (place + 1), turn.doubled)
    return found


def plain_count(turns: list[Turn]) -> dict[str, tuple[int, int]]:
    """(calls, input tokens) of each conversation."""
    found: Counter[tuple[str, int]] = Counter()
    for turn in turns:
        for tokens in turn.calls + turn.subagents:
            found[turn.thread, 0] += 1
            found[turn.thread, 1] += tokens
    return {turn.thread: (found[turn.thread, 0], found[turn.thread, 1]) for turn in turns}


def brief(usage: Usage) -> tuple[int, int]:
    return usage.calls, usage.input_tokens


def counts_of(ended: list[EndedSpan]) -> tuple[int, int]:
    """What a settler says of these spans alone."""
    settler = Settler()
    for one in ended:
        settler.add(read(one))
    return brief(settler.totals)


@settings(max_examples=100, deadline=None)
@given(turns=days(), seed=st.integers(0, 2**32), restarts=st.booleans())
def test_each_conversation_gets_its_own_in_any_order(turns: list[Turn], seed: int, restarts: bool) -> None:
    """Door 2: any order, any batches, things told twice, restarted or not. The sum is right at every prefix, the shares
    when all has come, and closing changes nothing."""
    draw = random.Random(seed)
    arrivals = spans_of(turns)
    arrivals += draw.sample(arrivals, len(arrivals) // 3)
    draw.shuffle(arrivals)
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)
    taken: list[EndedSpan] = []
    while arrivals:
        batch = [arrivals.pop() for _ in range(min(len(arrivals), draw.randint(1, 6)))]
        ingest.submit([read(one) for one in batch])
        taken += batch
        assert brief(usage_of(store.usage(include_active=True))) == counts_of(taken)
        if restarts:
            assert ingest.stop()
            ingest = Ingest(store, price=unpriced)
    for thread, expected in plain_count(turns).items():
        assert brief(usage_of(store.thread_usage(thread, include_active=True))) == expected
    for index in range(len(turns)):
        assert store.thread_usage(f"inner-{index}", include_active=True)["total_runs"] == 0
    runs = [run.run_id for run in store.watch().runs]
    draw.shuffle(runs)
    for run_id in runs:  # one at a time: shares wait for the run they are of
        ingest.close_runs([run_id])
    ingest.close_runs(runs)
    assert ingest.stop()
    assert not store.watch().runs
    for thread, expected in plain_count(turns).items():
        assert brief(usage_of(store.thread_usage(thread))) == expected
    assert store.verify() == []


@settings(max_examples=60, deadline=None)
@given(turns=days())
def test_door_1_says_the_same_of_the_same_runs(turns: list[Turn]) -> None:
    """Begun and ended in one process: each thread's usage, and run ids that door 2 has as well."""
    spans = spans_of(turns)
    expected = {thread: used for thread, used in plain_count(turns).items() if any(used)}
    assert {thread: brief(usage) for thread, usage in door1(spans).threads.items()} == expected
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)
    ingest.submit([read(one) for one in spans])
    assert ingest.stop()
    sink = replay(spans)
    used = {run.run_id: sum((call.usage for call in sink.calls[id(run)]), ZERO) for run in sink.runs}
    stored = {run.run_id: usage_of(store.run(run.run_id) or {}) for run in store.watch().runs}
    assert {run: brief(usage) for run, usage in used.items() if usage} == {
        run: brief(usage) for run, usage in stored.items() if usage
    }


def test_the_first_conversation_keeps_the_traces_run() -> None:
    """Whoever knows the trace finds a run; the other one is beside it, and says of which it is a share."""
    spans = spans_of([Turn("a", (5,), (), False), Turn("b", (3,), (2,), True)])
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)
    ingest.submit([read(one) for one in reversed(spans)])
    assert ingest.stop()
    trace = default_run(7)
    runs = {run.run_id: store.run(run.run_id) or {} for run in store.watch().runs}
    assert {run_id: (run["thread_id"], run["total_input_tokens"]) for run_id, run in runs.items()} == {
        trace: ("a", 5),
        share_id(trace, "b"): ("b", 5),
    }
    assert shared_run(share_id(trace, "b")) == trace
    assert {run["status"] for run in runs.values()} == {"success"}


@pytest.mark.parametrize("run_id", ["r", "a-b", "-", default_run(7), f"{default_run(7)}-x", f"x-{'0' * 16}"])
def test_other_ids_are_no_shares(run_id: str) -> None:
    """A run that somebody named is not taken for another one's share."""
    assert shared_run(run_id) is None


def test_more_conversations_than_shares_lose_nothing() -> None:
    """A trace with an id on every span has a bounded number of runs, and its sum is right."""
    turns = [Turn(f"t{number}", (number + 1,), (), False) for number in range(2 * SHARES)]
    spans = spans_of(turns)
    random.Random(1).shuffle(spans)
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)
    for start in range(0, len(spans), 50):
        ingest.submit([read(one) for one in spans[start : start + 50]])
    runs = [run.run_id for run in store.watch().runs]
    assert len(runs) == SHARES + 1
    total = sum(range(2 * SHARES + 1))
    assert usage_of(store.usage(include_active=True)).input_tokens == total
    ingest.close_runs(runs)
    assert ingest.stop()
    assert usage_of(store.usage()).input_tokens == total
    assert counted((None, usage_of(store.run(run) or {})) for run in runs).totals.input_tokens == total
