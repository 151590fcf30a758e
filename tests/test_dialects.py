"""How the spans of one library belong together: rules of counting that hold for some instrumentations only."""

from __future__ import annotations

import random
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st
from test_settle import MS, reading, runs, settled, state

from runmeter.counting.lookalikes import Lookalikes
from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading, Role
from runmeter.reading.roles import BEGINNING, REREAD
from runmeter.usage import Usage

LLAMA_INDEX = "openinference.instrumentation.llama_index"
DSPY = "openinference.instrumentation.dspy"
OPENAI = "openinference.instrumentation.openai"
OPENLLMETRY = "opentelemetry.instrumentation.openai.v1"


def totals(*readings: Reading) -> Usage:
    """What these come to, in whatever order they arrive."""
    found = {settled(order).totals for order in permutations(readings)}
    (total,) = found
    return total


def test_methods_of_a_model_that_call_each_other_are_one_call() -> None:
    """LlamaIndex's `predict` is around its `chat`, and that around the client's call; two chats in one are two."""
    predict = reading(1, scope=LLAMA_INDEX, usage=None)
    chat = reading(2, 1, scope=LLAMA_INDEX)
    client = reading(3, 2, scope=OPENAI)
    assert totals(predict, chat) == totals(predict, chat, client) == Usage(10, 5, calls=1, messages=1)
    assert totals(predict, chat, reading(4, 1, scope=LLAMA_INDEX, usage=Usage(20, 5))).calls == 2
    outer = reading(1, scope=LLAMA_INDEX)
    assert totals(outer, chat) == Usage(10, 5, calls=1, messages=1)
    assert totals(predict, reading(2, 1, scope=LLAMA_INDEX, usage=None)).calls_without_usage == 1
    # Nowhere else: Google ADK 1 has an expert's call below the boss's.
    assert totals(reading(1, scope="gcp.vertex.agent"), reading(2, 1, scope="gcp.vertex.agent")).calls == 2
    tool = reading(5, 1, Role.TOOL, scope=LLAMA_INDEX)
    assert totals(outer, tool, reading(6, 5, scope=LLAMA_INDEX)).calls == 2


def test_a_span_that_ends_when_its_stream_begins_is_the_call_that_begins_then() -> None:
    """LlamaIndex's stream spans end before the client sends anything: siblings, or in a trace of their own."""
    stream = reading(1, scope=LLAMA_INDEX, usage=None, tells=BEGINNING, started_at=0, ended_at=MS)
    client = reading(2, scope=OPENAI, started_at=9 * MS, ended_at=90 * MS)
    for usage in (None, Usage(10, 5)):
        begun, here = stream._replace(usage=usage), client._replace(usage=usage)
        assert totals(begun, here).calls == 1
        assert totals(begun, here._replace(started_at=1000 * MS, ended_at=1090 * MS)).calls == 2
    assert totals(stream._replace(usage=Usage(20, 5)), client).calls == 2
    pairs = [
        one._replace(span_id=one.span_id + 2 * at, started_at=one.started_at + at * MS, ended_at=one.ended_at + at * MS)
        for at in range(2)
        for one in (stream, client._replace(usage=None))
    ]
    assert totals(*pairs).calls == 2


def test_an_answer_that_is_read_again_is_the_call_that_gave_it() -> None:
    """OpenAI's background responses are asked for until they are there, and again: one call, whenever that was."""
    asked = reading(1, scope=OPENAI, usage=None, response_id="resp_1")
    polls = [reading(span_id, scope=OPENAI, response_id="resp_1", tells=REREAD) for span_id in (900, 9000)]
    assert totals(asked, *polls) == Usage(10, 5, calls=1, messages=1)
    assert totals(*polls) == Usage(10, 5, calls=1, messages=1)
    assert totals(asked, polls[0]._replace(response_id="resp_2")).calls == 2
    # Two calls that a stand-in for a provider gave one id are two.
    assert totals(reading(1, scope=OPENAI, response_id="x"), reading(2, scope=OPENAI, response_id="x")).calls == 2


def test_an_answer_that_is_read_when_the_run_is_over_adds_its_usage_once() -> None:
    """Nothing that was counted is taken back, but that the call had no usage."""
    settler = settled([reading(1, scope=OPENAI, usage=None, response_id="resp_1")])
    settler.close()
    poll = reading(900, scope=OPENAI, response_id="resp_1", tells=REREAD)
    ((was, now),) = settler.add(poll)
    assert was is not None
    assert now is not None
    assert settler.totals == now.usage == Usage(10, 5, calls=1, messages=1)
    assert settler.add(poll._replace(span_id=901)) == []
    # Both polls came late; what was said of the first span when the run closed stands.
    assert settler.set_aside == {"late": 2}


def test_two_spans_of_one_id_that_begin_together_are_one_response() -> None:
    """OpenLLMetry makes one when a background response is created and one when it is read, of the same beginning."""
    one = reading(1, scope=OPENLLMETRY, usage=None, response_id="resp_1", started_at=0, ended_at=100 * MS)
    other = one._replace(trace_id=2, span_id=2, ended_at=200 * MS)
    assert totals(one, other).calls == 1
    assert totals(one, other._replace(started_at=1)).calls == 2


def test_an_answer_from_a_cache_is_no_call() -> None:
    """DSPy's spans are around its cache: where the client's calls are told too, those without one made none."""
    asked = reading(1, scope=DSPY, usage=None)
    client = reading(2, 1, scope=OPENAI)
    cached = reading(3, scope=DSPY, usage=None)
    assert totals(asked, client, cached) == Usage(10, 5, calls=1, messages=1)
    assert totals(asked, cached).calls_without_usage == 2
    settler = settled([asked, client])
    settler.close()
    assert settler.add(cached) == []


def test_what_nobody_knows_never_counts_beside_a_call() -> None:
    """An operation of tomorrow that has tokens is weak: below a call, above one, through tools and agents."""
    call = reading(5, 4)
    for between in (Role.PLAIN, Role.TOOL, Role.AGENT):
        link = reading(4, 3, between)
        assert totals(reading(3, role=Role.WEAK), link, call) == Usage(10, 5, calls=1, messages=1)
        assert totals(reading(3, role=Role.CALL), link, reading(5, 4, Role.WEAK)) == Usage(10, 5, calls=1, messages=1)


SCOPES = ["a", "b", LLAMA_INDEX, DSPY, OPENAI]


@st.composite
def strange_runs(draw: st.DrawFn) -> list[Reading]:
    """Runs of the instrumentations above, and every way to tell of a call."""
    scopes = {letter: draw(st.sampled_from(SCOPES)) for letter in "abc"}
    found = []
    for one in draw(runs()):
        tells = 0
        if one.role == Role.CALL:
            tells = draw(st.sampled_from([0, 0, BEGINNING, REREAD if one.response_id and one.usage else 0]))
        found.append(one._replace(scope=scopes[one.scope], tells=tells))
    return found


@settings(max_examples=400, deadline=None)
@given(strange_runs(), st.randoms(use_true_random=False))
def test_order_changes_nothing(readings: list[Reading], order: random.Random) -> None:
    """Whatever the dialect, a run is a function of the set of its spans."""
    again = [*readings, *order.sample(readings, k=len(readings))]
    order.shuffle(again)
    assert state(settled(readings)) == state(settled(again))


@settings(max_examples=300, deadline=None)
@given(strange_runs(), st.data())
def test_a_reading_that_moved_was_never_there(readings: list[Reading], data: st.DataObject) -> None:
    """Taking one back leaves what the others say."""
    gone = data.draw(st.sampled_from(readings))
    settler = Settler()
    for one in readings:
        settler.add(one)
    settler.remove(*gone.key)
    assert state(settler) == state(settled([one for one in readings if one.key != gone.key]))


def test_an_answer_read_again_finds_its_call_in_another_run() -> None:
    """However long ago that was asked for, and it takes every other time along that the answer was read."""
    index = Lookalikes()
    asked = reading(1, scope=OPENAI, usage=None, response_id="resp_1", resource_key="r")
    polls = [
        reading(number, scope=OPENAI, response_id="resp_1", tells=REREAD, resource_key="r", trace_id=number)
        for number in (900, 9000)
    ]
    index.add("asked", asked)
    for poll in polls:
        found = index.find("read", poll)
        assert found is not None
        assert [known.reading for known in found[1]][:1] == [asked]
    together = Lookalikes()
    for number, poll in enumerate(polls):
        together.add("read", poll._replace(started_at=asked.ended_at + number, ended_at=asked.ended_at + number))
    found = together.find("asked", asked)
    assert found is not None
    assert len(found[1]) == 2


def test_the_model_of_a_turn_is_its_calls_even_where_it_is_known_at_the_end() -> None:
    """Codex names the model on the turn around its calls, which is still open when they end."""
    turn = reading(1, role=Role.PLAIN, scope="codex_exec", model="gpt-5-mini")
    answered = reading(2, 1, Role.WEAK, scope="codex_exec")
    settler = Settler()
    settler.open(turn._replace(model=None))
    settler.add(answered)
    settler.add(turn)
    assert [call.model for call in settler.calls().values()] == ["gpt-5-mini"]
    assert state(settler) == state(settled([turn, answered]))


def test_a_call_in_a_method_in_a_method_is_one_call() -> None:
    """Where only the outermost of three says usage, in whatever order they come."""
    outer = reading(1, scope=LLAMA_INDEX)
    middle, inner = (reading(number, number - 1, scope=LLAMA_INDEX, usage=None) for number in (2, 3))
    assert totals(outer, middle, inner) == Usage(10, 5, calls=1, messages=1)
    assert totals(outer, middle._replace(scope="b"), inner._replace(scope="c")) == Usage(10, 5, calls=1, messages=1)
