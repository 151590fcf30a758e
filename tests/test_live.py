"""Running totals are as right as settled ones: after whatever has arrived, each call seen so far counts once."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from doors import door1, unpriced
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_requests import usage_of

from runmeter.reading.read import read
from runmeter.spans import EndedSpan
from runmeter.usage import ZERO, Usage
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import RunStore, open_store

MS = 1_000_000
START = 1_763_812_800_000 * MS
SCOPES = ("openinference.instrumentation.langchain", "opentelemetry.instrumentation.genai.openai", "com.vendor.sdk")
"""From the outermost to the innermost view of a call."""


@dataclass(frozen=True)
class Told:
    """One model call, and which instrumentations tell of it."""

    number: int
    usage: tuple[int, int]
    seen_by: tuple[int, ...]
    apart: bool
    """Each view in a trace of its own, as where a context does not reach; else one below the other."""
    took: int
    """Milliseconds."""


@st.composite
def histories(draw: st.DrawFn) -> list[Told]:
    """Calls one after the other, often with equal numbers, each seen by one to three instrumentations."""
    return [
        Told(
            number,
            draw(st.sampled_from([(10, 5), (10, 6), (20, 5)])),
            tuple(sorted(draw(st.sets(st.integers(0, 2), min_size=1)))),
            draw(st.booleans()),
            draw(st.integers(20, 4000)),
        )
        for number in range(draw(st.integers(1, 6)))
    ]


def spans_of(history: list[Told], *, one_agent: bool) -> dict[int, list[EndedSpan]]:
    """The spans of each call; with `one_agent` the outermost views stand below one agent, whose span is call -1's."""
    found: dict[int, list[EndedSpan]] = {}
    agent_id, trace = 1, 1
    for told in history:
        began = START + told.number * 10_000 * MS
        parent: tuple[int, int] | None = (trace, agent_id) if one_agent else None
        spans = found.setdefault(told.number, [])
        for depth in told.seen_by:
            span_id = 10 + 10 * told.number + depth
            trace_id = parent[0] if parent is not None else 1000 + span_id
            said = {
                "gen_ai.operation.name": "chat",
                "openinference.span.kind": "LLM",
                "gen_ai.request.model": "m",
                "gen_ai.usage.input_tokens": told.usage[0],
                "gen_ai.usage.output_tokens": told.usage[1],
            }
            times = began + depth * MS, began + (told.took - depth) * MS
            parent_id = None if parent is None else parent[1]
            spans.append(
                EndedSpan(trace_id, span_id, parent_id, False, "call", 3, SCOPES[depth], {}, said, *times, False)
            )
            parent = None if told.apart else (trace_id, span_id)
    if one_agent:
        said = {"openinference.span.kind": "AGENT", "session.id": "t"}
        times = START - MS, START + len(history) * 10_000 * MS
        found[-1] = [EndedSpan(trace, agent_id, None, False, "agent", 1, SCOPES[0], {}, said, *times, False)]
    return found


def plain_count(history: list[Told], numbers: set[int]) -> tuple[int, int, int]:
    """(calls, input, output) of the calls that were seen."""
    seen = [told for told in history if told.number in numbers]
    return len(seen), sum(told.usage[0] for told in seen), sum(told.usage[1] for told in seen)


def counts(usage: Usage) -> tuple[int, int, int]:
    return usage.calls, usage.input_tokens, usage.output_tokens


def live(store: RunStore) -> Usage:
    return usage_of(store.usage(include_active=True))


@settings(max_examples=120, deadline=None)
@given(
    history=histories(),
    one_agent=st.booleans(),
    seed=st.integers(0, 2**32),
    restarts=st.booleans(),
    sidecars=st.integers(1, 3),
)
def test_every_prefix_counts_the_calls_seen_so_far(
    history: list[Told], one_agent: bool, seed: int, restarts: bool, sidecars: int
) -> None:
    """Door 2, any order, any batches, restarted in between or not, whichever sidecar gets them: live totals are the
    plain count at every moment, and closing finds nothing out."""
    draw = random.Random(seed)
    arrivals = [(number, span) for number, spans in spans_of(history, one_agent=one_agent).items() for span in spans]
    draw.shuffle(arrivals)
    store = open_store("memory://")
    ingests = [Ingest(store, price=unpriced) for _ in range(sidecars)]
    seen: set[int] = set()
    while arrivals:
        batch = [arrivals.pop() for _ in range(min(len(arrivals), draw.randint(1, 5)))]
        number = draw.randrange(sidecars)
        ingests[number].submit([read(span) for _, span in batch])
        seen.update(number for number, _ in batch)
        assert counts(live(store)) == plain_count(history, seen)
        if restarts:
            assert ingests[number].stop()
            ingests[number] = Ingest(store, price=unpriced)
    before = live(store)
    ingests[-1].close_runs([run.run_id for run in store.watch().runs])
    assert all(ingest.stop() for ingest in ingests)
    assert usage_of(store.usage()) == before
    assert store.verify() == []


@settings(max_examples=80, deadline=None)
@given(history=histories(), one_agent=st.booleans())
def test_door_1_counts_the_same(history: list[Told], one_agent: bool) -> None:
    """The same spans, begun and ended in one process, come to the plain count."""
    spans = [span for spans in spans_of(history, one_agent=one_agent).values() for span in spans]
    assert counts(door1(spans).totals) == plain_count(history, {told.number for told in history})


def test_a_subagents_thread_is_not_the_runs_whichever_comes_first() -> None:
    """A subagent whose span comes first does not name the run's thread: the outermost does, as soon as it has come."""
    said = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 1, "gen_ai.usage.output_tokens": 1}
    inner = EndedSpan(
        1, 3, 2, False, "chat", 3, "x", {}, {**said, "gen_ai.conversation.id": "inner"},
        START + MS, START + 2 * MS, False,
    )  # fmt: skip
    outer = EndedSpan(
        1, 2, 1, False, "invoke_agent a", 1, "x", {},
        {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "a", "gen_ai.conversation.id": "outer"},
        START, START + 3 * MS, False,
    )  # fmt: skip
    for spans in ((inner, outer), (outer, inner)):
        store = open_store("memory://")
        ingest = Ingest(store, price=unpriced)
        for span in spans:
            ingest.submit([read(span)])
        assert ingest.stop()
        assert [run["thread_id"] for run in store.runs()["runs"]] == ["outer"]
        assert store.thread_usage("inner", include_active=True)["total_tokens"] == 0
        assert store.thread_usage("outer", include_active=True)["total_tokens"] == 2


def test_nothing_is_counted_of_nothing() -> None:
    """The helper above means what it says."""
    assert plain_count([], set()) == counts(ZERO)


@pytest.mark.parametrize(("step", "lead"), [(50, 0), (50, 150), (300, 0)])
def test_calls_side_by_side_that_are_equal_in_everything_count_once(step: int, lead: int) -> None:
    """Five at a time, each told by two instrumentations in two traces, in turns or one of them ahead: each finds its
    own twin, though its neighbours' would do as well."""

    def spans(trace_id: int, scope: str, inner: int) -> list[EndedSpan]:
        said = {
            "gen_ai.operation.name": "chat",
            "openinference.span.kind": "LLM",
            "gen_ai.request.model": "m",
            "gen_ai.usage.input_tokens": 9,
            "gen_ai.usage.output_tokens": 1,
        }
        return [
            EndedSpan(
                trace_id, 2 + number, 1, False, "call", 3, scope, {}, said,
                START + number * MS + inner, START + (number + 5) * MS - inner, False,
            )
            for number in range(300)
        ]  # fmt: skip

    outer, client = spans(1, SCOPES[0], 0), spans(2, SCOPES[1], MS // 10)
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)
    for at in range(0, 300 + lead, step):
        ingest.submit([read(span) for span in outer[at : at + step]])
        ingest.submit([read(span) for span in client[max(0, at - lead) : max(0, at - lead + step)]])
    assert ingest.stop()
    assert counts(live(store)) == (300, 2_700, 300)
