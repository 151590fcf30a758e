"""Calls that are like others are kept folded, and a run says the same of itself as if they were not."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from test_settle import MS, reading, state

from runmeter.counting import settler as settler_module
from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading, Role
from runmeter.usage import Usage


@st.composite
def alike_calls(draw: st.DrawFn) -> list[Reading]:
    """Many calls of few kinds below few agents, as runs have them, and now and then something else."""
    made = [
        reading(agent, draw(st.sampled_from([None, 1])), Role.AGENT, agent=f"agent {agent}", thread_id=thread)
        for agent, thread in ((1, None), (2, None), (3, draw(st.sampled_from([None, "t"]))))
    ]
    for index in range(10, 10 + draw(st.integers(5, 30))):
        odd = draw(st.integers(0, 9)) == 0
        made.append(
            reading(
                index,
                draw(st.sampled_from([1, 1, 2, 2, 3, None, 10])) if odd else draw(st.sampled_from([1, 2, 3])),
                trace_id=draw(st.sampled_from([1, 2])) if odd else 1,
                model=draw(st.sampled_from(["m", "n", None])) if odd else draw(st.sampled_from(["m", "n"])),
                scope=draw(st.sampled_from("ab")) if odd else "a",
                failed=odd and draw(st.booleans()),
                usage=draw(st.sampled_from([None, Usage(10, 5), Usage(2**40, 3)])) if odd else Usage(index, 5),
                response_id=draw(st.sampled_from([None, "r10", "r11"])) if odd else f"r{index}",
                started_at=(draw(st.sampled_from([index, 10, 11])) if odd else index) * 100 * MS,
                first_chunk=draw(st.sampled_from([None, 0.25])),
                user_id=draw(st.sampled_from([None, "u", "v"])) if odd else None,
            )
        )
    return made


def told(settler: Settler, readings: Iterable[Reading], source: random.Random, at: int) -> list[object]:
    """What a run says of itself when it is told these, some of them twice and agents when they begin, and is closed
    after `at` of them."""
    said: list[object] = []
    for number, one in enumerate(readings):
        if number == at:
            settler.close()
        if one.role == Role.AGENT and source.random() < 0.5:
            settler.open(one._replace(agent=None) if source.random() < 0.5 else one)
        changes = settler.add(one)
        said += [Counter(changes), settler.totals, settler.set_aside, len(settler), one.key in settler]
        if source.random() < 0.1:
            said.append(settler.add(one))
        if source.random() < 0.03:
            said += [Counter(settler.remove(*one.key)), settler.facts.user_id]
        if source.random() < 0.03:
            said.append(Counter(settler.exclude(*one.key, "elsewhere")))
        if source.random() < 0.05:
            said.append(state(settler))
    return [*said, settler.facts.thread_id, settler.facts.user_id, settler.take_fates(), state(settler)]


@settings(max_examples=300, deadline=None)
@given(alike_calls(), st.randoms(use_true_random=False), st.integers(0, 2**16), st.integers(0, 60))
def test_what_is_folded_is_as_if_it_were_not(made: list[Reading], order: random.Random, seed: int, closed: int) -> None:
    """A run says the same at every moment, whether or not it folds calls that are like others."""
    made.sort(key=lambda one: (order.randint(0, 3) if one.role == Role.AGENT else order.randint(1, 2), one.span_id))
    with patch.object(settler_module, "folds", lambda reading: False):
        plainly = told(Settler(), made, random.Random(seed), closed)
    assert told(Settler(), made, random.Random(seed), closed) == plainly


def test_calls_that_are_like_others_are_folded() -> None:
    """What a run keeps of such a call is some hundred bytes; the oldest are frozen with the others."""
    settler = Settler(limit=64)
    settler.open(reading(1, None, Role.AGENT, agent="lead"))
    for index in range(2, 60):
        settler.add(reading(index, 1, model="m", response_id=f"r{index}"))
    assert (len(settler), len(settler._tree.nodes), settler.frozen_spans) == (59, 1, 0)
    for index in range(60, 70):
        settler.add(reading(index, 1, model="m", response_id=f"r{index}"))
    assert len(settler._tree.nodes) == 1
    assert settler.totals == Usage(680, 340, calls=68, messages=68)
    assert (len(settler) - 1) + settler.frozen_spans == 68
    assert settler.add(reading(2, 1, model="m", response_id="r2")) == []
    settler.add(reading(100, 69, Role.PLAIN))
    assert len(settler._tree.nodes) > 40, "something is below one of them: all are looked at"
    assert sum(call.usage.calls for call in settler.calls().values()) == 68
