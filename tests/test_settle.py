"""Rule 2: one call counts once, and until a run closes its totals are a function of the set of its spans."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations, permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from runmeter.counting.lookalikes import Lookalikes
from runmeter.counting.same_call import (
    INNER,
    OUTER,
    SAME,
    alike_from_afar,
    broke_off,
    models_agree,
    nested,
    same_id,
    together,
    twin_keys,
)
from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading, Role
from runmeter.reading.roles import BEGINNING, WHOLE
from runmeter.spans import Change
from runmeter.usage import ZERO, Usage

MS = 1_000_000


def reading(span_id: int, parent_id: int | None = None, role: Role = Role.CALL, **fields: object) -> Reading:
    """A reading of trace 1: a call of scope `a` with 10 + 5 tokens unless said otherwise, later for higher ids."""
    fields.setdefault("usage", Usage(10, 5) if role in (Role.CALL, Role.WEAK) else None)
    fields.setdefault("scope", "a")
    fields.setdefault("started_at", span_id * 100 * MS)
    fields.setdefault("ended_at", int(fields["started_at"]) + 50 * MS)  # type: ignore[call-overload]
    return Reading(fields.pop("trace_id", 1), span_id, parent_id, role=role, **fields)  # type: ignore[arg-type]


def settled(readings: Iterable[Reading], **options: int) -> Settler:
    """A settler that was given these readings, after checking that its changes add up to its totals."""
    settler = Settler(**options)
    total = ZERO
    for one in readings:
        total = _apply(total, settler.add(one))
    assert total == settler.totals
    return settler


def _apply(total: Usage, changes: Sequence[Change]) -> Usage:
    for was, now in changes:
        if was is not None:
            total = Usage(*[mine - theirs for mine, theirs in zip(total, was.usage, strict=True)])
        if now is not None:
            total = total + now.usage
    assert min(total) >= 0
    return total


def state(settler: Settler) -> tuple[object, ...]:
    """Everything a run shows of what was settled."""
    return (
        settler.totals,
        Counter(settler.calls().values()),
        settler.set_aside,
        settler.facts.thread_id,
        settler.facts.agent,
        settler.facts.user_id,
    )


# --- the batch reference: slow, and right by looking at it ----------------------------------------------------------


def reference(readings: Sequence[Reading]) -> Counter[tuple[str, Usage]]:
    """(caller, usage) of every call among a set of readings without loops, all looked at at once."""
    spans = {one.key: one for one in readings}

    def above(one: Reading) -> list[Reading | None]:
        """Ancestors, nearest first; None ends it where one is missing."""
        found: list[Reading | None] = []
        while one.parent_id is not None:
            parent = spans.get((one.trace_id, one.parent_id))
            found.append(parent)
            if parent is None:
                break
            one = parent
        return found

    calls = [one for one in spans.values() if one.role == Role.CALL]
    weak = [one for one in spans.values() if one.role == Role.WEAK]
    aggregates = [one for one in spans.values() if one.role in (Role.AGENT, Role.AGGREGATE) and one.usage]
    shadowed = set()
    group = {one.key: {one.key} for one in calls + weak}

    def join(one: Reading, other: Reading) -> None:
        joined = group[one.key] | group[other.key]
        for key in joined:
            group[key] = joined

    for one, other in combinations(calls + weak, 2):
        if one.response_id is not None and one.response_id == other.response_id and same_id(one, other):
            join(one, other)
    for one in calls:
        for parent in above(one):
            if parent is None:
                break
            if parent.role == Role.PLAIN:
                continue
            relation = nested(one, parent) if parent.role == Role.CALL else 0
            if relation == OUTER:
                shadowed.add(parent.key)
                continue
            if relation == SAME:
                join(one, parent)
            elif relation == INNER:
                shadowed.add(one.key)
            break
    for one in weak:
        if any(parent is not None and parent.role == Role.CALL for parent in above(one)):
            shadowed.add(one.key)
        if any(one in above(other) for other in calls + weak):
            shadowed.add(one.key)

    groups = {frozenset(keys) for keys in group.values()}
    units = {one: {one} for one in groups if not one <= shadowed}
    for *_, one, other in sorted(
        (
            (*apart, *sorted((min(one), min(other))), one, other)
            for one, other in combinations(units, 2)
            if (apart := gap([spans[key] for key in one], [spans[key] for key in other]))
        ),
        key=lambda pair: pair[:4],
    ):
        left, right = units[one], units[other]
        if left is not right and fits(spans, left, right):
            for member in left | right:
                units[member] = left | right

    found: Counter[tuple[str, Usage]] = Counter()
    for unit in {frozenset(frozenset(keys) for keys in unit) for unit in units.values()}:
        members = [spans[key] for keys in unit for key in keys]
        found[count([(one, above(one)) for one in members])] += 1
    counted_below = {one.key for one in aggregates if any(one in above(other) for other in calls + weak)}
    for one in aggregates:
        if one.lone_aggregate and one.key not in counted_below:
            outer = next((parent for parent in above(one) if parent in aggregates), None)
            if outer is None or outer.key in counted_below:
                found[count([(one, above(one))])] += 1
    return found


def gap(one: list[Reading], other: list[Reading]) -> tuple[int, int] | None:
    """Nearness of two groups that may be one call without a link (rule d of the dialects)."""
    if any(member.response_id for member in one) and any(member.response_id for member in other):
        return None
    if {member.scope for member in one} & {member.scope for member in other}:
        return None
    (usage, failed, model, place), (other_usage, other_failed, other_model, other_place) = words(one), words(other)
    if place != other_place:
        return None
    if (usage is None) != (other_usage is None):
        told, client = (one, other) if usage is not None else (other, one)
        return blank_gap([whole(told)], [whole(client)]) or blank_gap(told, client)
    if not models_agree(model, other_model):
        return None
    kind = 1
    if usage is not None and other_usage is not None and usage[:2] != other_usage[:2]:
        if not broke_off(*usage[:2], *other_usage[:2]):
            return None
        kind = 2
    if usage is None and failed != other_failed:
        return None
    times = [
        (min(member.started_at for member in side), max(member.ended_at for member in side)) for side in (one, other)
    ]
    if not together(*times, used=usage is not None, logged=False):
        return None
    return kind, abs(times[0][0] - times[1][0]) + abs(times[0][1] - times[1][1])


def whole(members: list[Reading]) -> Reading:
    """One reading of what the members say together."""
    usage, failed, model, _ = words(members)
    return members[0]._replace(
        usage=usage, failed=failed, model=model,
        response_id=next((m.response_id for m in members if m.response_id), None),
        started_at=min(m.started_at for m in members), ended_at=max(m.ended_at for m in members),
    )  # fmt: skip


def blank_gap(told: list[Reading], client: list[Reading]) -> tuple[int, int] | None:
    """Nearness of what has usage, but no id, and what has no usage: of one model, at one time."""
    return min(
        (
            (4, abs(left.started_at - right.started_at))
            for left in told
            for right in client
            if left.usage is not None and right.usage is None and not right.failed
            and left.response_id is None and left.model and right.model and models_agree(left.model, right.model)
            and together(
                (left.started_at, left.ended_at), (right.started_at, right.ended_at), used=True, logged=False
            )
        ),
        default=None,
    )  # fmt: skip


def words(members: list[Reading]) -> tuple[Usage | None, bool, str | None, str]:
    """What the innermost member says."""
    ranked = sorted(members, key=lambda one: (one.started_at, -one.ended_at, one.trace_id, one.span_id), reverse=True)
    best = next((one for one in ranked if one.usage), ranked[0])
    model = best.model or next((one.model for one in ranked if one.model), None)
    return best.usage, best.failed, model, best.resource_key


def fits(spans: dict[tuple[int, int], Reading], one: set[frozenset[tuple[int, int]]], other: object) -> bool:
    left = [spans[key] for keys in one for key in keys]
    right = [spans[key] for keys in other for key in keys]  # type: ignore[attr-defined]
    if any(member.response_id for member in left) and any(member.response_id for member in right):
        return False
    return not {member.scope for member in left} & {member.scope for member in right}


def count(members: list[tuple[Reading, list[Reading | None]]]) -> tuple[str, Usage]:
    usage, failed, _, _ = words([one for one, _ in members])
    retries = max(one.retries for one, _ in members)
    caller = max((caller_of(one, above) for one, above in members), key=lambda found: found[1])[0]
    if usage is not None:
        return caller, Usage(*usage[:2], calls=1, failures=retries, messages=1)
    if failed:
        return caller, Usage(failures=1 + retries)
    return caller, Usage(calls=1, failures=retries, calls_without_usage=1, messages=1)


def caller_of(one: Reading, above: list[Reading | None]) -> tuple[str, int]:
    agents: list[str | None] = []
    for parent in reversed([one, *[parent for parent in above if parent is not None]]):
        if parent.role == Role.TOOL:
            agents.append(None)
        if parent.role == Role.AGENT and (not agents or agents[-1] != parent.agent):
            agents.append(parent.agent)
    names = [name for name in agents if name is not None]
    return ("lead_agent" if len(names) < 2 else f"subagent:{names[-1]}"), len(names)


# --- properties -----------------------------------------------------------------------------------------------------

USAGES = [None, Usage(10, 5), Usage(10, 6), Usage(10, 1), Usage(20, 5), Usage(30, 7)]


@st.composite
def runs(draw: st.DrawFn, loops: bool = False) -> list[Reading]:
    """A few spans of a run: anything under anything, three instrumentations, repeated ids, missing parents."""
    size = draw(st.integers(1, 9))
    made = []
    for index in range(size):
        role = draw(st.sampled_from([Role.CALL] * 6 + [Role.WEAK, Role.PLAIN, Role.AGENT, Role.TOOL, Role.AGGREGATE]))
        usage = None
        if role in (Role.CALL, Role.AGENT, Role.AGGREGATE):
            usage = draw(st.sampled_from(USAGES))
        elif role == Role.WEAK:
            usage = draw(st.sampled_from(USAGES[1:]))
        start = draw(st.integers(0, 12)) * MS
        parents = st.integers(0, size + 1) if loops else st.integers(index, size + 1)
        is_call = role in (Role.CALL, Role.WEAK)
        made.append(
            Reading(
                draw(st.sampled_from([1, 1, 1, 2])),
                index,
                draw(st.none() | parents.filter(lambda parent, mine=index: loops or parent != mine)),
                role=role,
                scope=draw(st.sampled_from("abc")),
                resource_key=draw(st.sampled_from("rrrs")),
                started_at=start,
                ended_at=start + draw(st.integers(0, 12)) * MS,
                failed=draw(st.booleans()) if usage is None else False,
                usage=usage,
                response_id=draw(st.sampled_from([None, None, "x", "y"])) if is_call else None,
                model=draw(st.sampled_from([None, "m", "m-1", "n"])) if is_call else None,
                agent=draw(st.sampled_from("PQ")) if role == Role.AGENT else None,
                thread_id=draw(st.sampled_from([None, None, "t", "u"])),
                retries=draw(st.sampled_from([0, 0, 1])) if is_call else 0,
            )
        )
    return draw(st.permutations(made))


@settings(max_examples=200, deadline=None)
@given(runs())
def test_incremental_settling_equals_the_batch_reference(readings: list[Reading]) -> None:
    """Spans added one by one count as they do when all are looked at at once."""
    found = Counter((call.caller, call.usage) for call in settled(readings).calls().values())
    assert found == reference(readings)


@settings(max_examples=150, deadline=None)
@given(runs(), st.randoms(use_true_random=False))
def test_order_and_duplication_change_nothing(readings: list[Reading], order: random.Random) -> None:
    """Any order of a run's spans, with any of them twice, gives the same totals, calls and spans set aside."""
    shuffled = readings + [one for one in readings if order.random() < 0.4]
    order.shuffle(shuffled)
    assert state(settled(shuffled)) == state(settled(readings))


@settings(max_examples=150, deadline=None)
@given(runs(), st.data())
def test_a_removed_reading_was_never_there(readings: list[Reading], data: st.DataObject) -> None:
    """Removing spans gives what the others give alone, and the changes say the difference."""
    settler = settled(readings)
    gone = data.draw(st.lists(st.sampled_from(readings), max_size=3))
    total = settler.totals
    for one in gone:
        total = _apply(total, settler.remove(*one.key))
    assert total == settler.totals
    assert state(settler) == state(settled([one for one in readings if one not in gone]))


@settings(max_examples=150, deadline=None)
@given(runs(), runs())
def test_after_closing_nothing_is_taken_back(readings: list[Reading], later: list[Reading]) -> None:
    """Once a run is closed its totals only grow, and a span that was there before adds nothing."""
    settler = settled(readings)
    settler.close()
    for one in later:
        before = settler.totals
        changes = settler.add(one)
        assert all(was is None for was, _ in changes)
        assert all(mine >= theirs for mine, theirs in zip(settler.totals, before, strict=True))
    closed = settler.totals
    for one in readings + later:
        assert settler.add(one) == []
    assert settler.totals == closed


@settings(max_examples=150, deadline=None)
@given(runs(loops=True), st.randoms(use_true_random=False))
def test_loops_of_parents_harm_nothing(readings: list[Reading], order: random.Random) -> None:
    """Cyclic parents and spans that are their own parent end, and count something or nothing, never less."""
    order.shuffle(readings)
    settler = settled(readings)
    assert settler.totals.calls <= len(readings)


# --- synthetic runs whose true calls are known ----------------------------------------------------------------------


class Script:
    """Writes the spans of a run call by call, and remembers the truth."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.spans: list[Reading] = []
        self.truth = ZERO
        self.by_caller: Counter[str] = Counter()
        self._next = 0

    def agent(self, parent: int | None, agents: list[str], depth: int, now: int) -> int:
        """An agent span with chains, calls and tools (and other agents in them) below; returns when it ended."""
        mine = self._id()
        name = f"agent{depth}"
        start, now = now, now + MS
        under = mine
        for _ in range(self.source.randrange(1, 4)):
            if self.source.random() < 0.3:
                under = self._id()
                self._put(under, mine, Role.AGGREGATE, now, now + 500 * MS, scope="framework")
            now = self.call(under, [*agents, name], now)
            if depth < 3 and self.source.random() < 0.5:
                tool = self._id()
                began = now
                now = self.agent(tool, [*agents, name], depth + 1, now + MS)
                self._put(tool, under, Role.TOOL, began, now + MS, scope="framework")
                now += 2 * MS
        usage = Usage(999, 99) if self.source.random() < 0.5 else None
        self._put(mine, parent, Role.AGENT, start, now + MS, agent=name, usage=usage, scope="framework")
        return now + 2 * MS

    def call(self, parent: int, agents: list[str], now: int) -> int:
        """One call as a framework, a client's instrumentation or both see it; some fail first, some report nothing."""
        caller = "lead_agent" if len(agents) < 2 else f"subagent:{agents[-1]}"
        length = 10 * MS
        if self.source.random() < 0.2:
            self._put(self._id(), parent, Role.CALL, now, now + length, failed=True, scope="framework")
            self.truth = self.truth + Usage(failures=1)
            now += 2 * length
        number = len(self.spans)
        usage = Usage(1000 + number, 10 + number) if self.source.random() < 0.9 else None
        response_id = f"response-{number}" if self.source.random() < 0.5 else None
        outer = self._id()
        common = {"usage": usage, "response_id": response_id, "model": "m"}
        self._put(outer, parent, Role.CALL, now, now + length, scope="framework", **common)
        seen = self.source.choice(["once", "below", "through plain", "elsewhere", "same trace, unlinked"])
        inner_start, inner_end = now + MS, now + length - MS
        if seen == "below":
            self._put(self._id(), outer, Role.CALL, inner_start, inner_end, scope="client", **common)
        elif seen == "through plain":
            plain = self._id()
            self._put(plain, outer, Role.PLAIN, inner_start, inner_end, scope="http")
            self._put(self._id(), plain, Role.CALL, inner_start, inner_end, scope="client", **common)
        elif seen != "once":
            trace = self._id() if seen == "elsewhere" else 1
            self._put(self._id(), None, Role.CALL, inner_start, inner_end, scope="client", trace_id=trace, **common)
        if usage is None:
            self.truth = self.truth + Usage(calls=1, calls_without_usage=1, messages=1)
        else:
            self.truth = self.truth + usage + Usage(calls=1, messages=1)
        self.by_caller[caller] += 1
        return now + 2 * length

    def _id(self) -> int:
        self._next += 1
        return self._next

    def _put(self, span_id: int, parent: int | None, role: Role, start: int, end: int, **fields: object) -> None:
        fields.setdefault("usage", None)
        self.spans.append(reading(span_id, parent, role, started_at=start, ended_at=end, **fields))


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 2**32))
def test_totals_are_the_sum_over_the_true_calls(source: random.Random, seed: int) -> None:
    """Agents in tools in agents, repeats by a second instrumentation, failures: in any order, the true calls count."""
    script = Script(source)
    script.agent(None, [], 1, 0)
    for order in range(2):
        random.Random(seed + order).shuffle(script.spans)
        settler = settled(script.spans)
        assert settler.totals == script.truth
        answered = [call for call in settler.calls().values() if call.usage.calls]
        assert Counter(call.caller for call in answered) == script.by_caller


# --- rules one by one -----------------------------------------------------------------------------------------------


def test_a_repeat_is_set_aside_by_reason() -> None:
    """What an outer instrumentation, an agent and a wrapper without usage repeat is counted by reason, not as calls."""
    settler = settled(
        [
            reading(1, None, Role.AGENT, usage=Usage(10, 5), agent="a"),
            reading(2, 1, scope="framework", started_at=0, ended_at=100 * MS),
            reading(3, 2, scope="wrapper", usage=None, started_at=MS, ended_at=90 * MS),
            reading(4, 3, scope="client", started_at=2 * MS, ended_at=80 * MS),
        ]
    )
    assert settler.totals == Usage(10, 5, calls=1, messages=1)
    assert settler.set_aside == {"aggregate": 1, "repeat": 1, "no_usage": 1}


def test_a_failed_attempt_below_a_call_that_succeeded_is_a_failure() -> None:
    """The attempt counts as a failure beside the answered call."""
    settler = settled([reading(1), reading(2, 1, scope="client", usage=None, failed=True)])
    assert settler.totals == Usage(10, 5, calls=1, failures=1, messages=1)


def test_the_outermost_aggregate_stands_for_calls_that_nobody_saw() -> None:
    """Nested agents with usage and no call below count once; where the library adds up turns they never count."""
    outer = reading(1, None, Role.AGENT, usage=Usage(30, 9))
    inner = reading(2, 1, Role.AGENT, usage=Usage(10, 5))
    assert settled([inner, outer]).totals == Usage(30, 9, calls=1, messages=1)
    cumulative = outer._replace(lone_aggregate=False)
    assert settled([cumulative]).totals == ZERO
    assert settled([cumulative]).set_aside == {"aggregate": 1}
    assert settled([outer, inner, reading(3, 1)]).totals == Usage(20, 10, calls=2, messages=2)


def test_a_response_id_drawn_twice_is_two_calls() -> None:
    """Ollama draws ids from a thousand numbers: far apart in time, or with other counts, an id is another call."""
    first = reading(1, response_id="chatcmpl-7")
    assert settled([first, reading(99, response_id="chatcmpl-7")]).totals.calls == 2
    other = reading(2, response_id="chatcmpl-7", started_at=first.started_at, usage=Usage(77, 8), scope="b")
    assert settled([first, other]).totals.calls == 2
    recorded = {"scope": "runmeter", "response_id": "mine"}
    assert settled([reading(1, **recorded), reading(999, **recorded)]).totals.calls == 1


def test_two_ids_under_one_span_are_two_calls() -> None:
    """Attributes of the last of several equal calls on the span around them repeat that one only."""
    around = reading(1, response_id="r2", started_at=0, ended_at=10**12)
    inside_it = [reading(index, 1, scope="client", response_id=f"r{index}") for index in (2, 3)]
    assert settled([*inside_it, around]).totals.calls == 2


def twins(index: Lookalikes, run_id: str, call: Reading) -> list[tuple[str, Reading]]:
    """(run, reading) of what another run has of this call."""
    found = index.find(run_id, call)
    return [] if found is None else [(known.run_id, known.reading) for known in found[1]]


def test_a_stream_is_settled_by_its_log() -> None:
    """A call span that ended without usage and the log-type span of its stream are one call, also in two traces."""
    call = reading(1, usage=None, started_at=0, ended_at=3 * MS)
    log = reading(2, trace_id=2, stream_log=True, started_at=4 * MS, ended_at=170 * MS)
    assert settled([call, log]).totals == Usage(10, 5, calls=1, messages=1)
    assert settled([log, call]).totals == Usage(10, 5, calls=1, messages=1)
    index = Lookalikes()
    index.add("run", call)
    assert twins(index, "other", log) == [("run", call)]
    assert twins(index, "run", log) == []


def test_a_call_reported_after_the_fact_takes_its_clients_blank_span() -> None:
    """A client's span without usage and id, inside the time of LiteLLM's span of a stream, is the same call."""
    told = reading(1, scope="litellm", started_at=0, ended_at=100 * MS)
    client = reading(2, trace_id=2, usage=None, started_at=10 * MS, ended_at=90 * MS)
    assert settled([client, told]).totals == Usage(10, 5, calls=1, messages=1)
    index = Lookalikes()
    index.add("run", client)
    assert twins(index, "other", told) == [("run", client)]


def test_equal_calls_at_once_keep_one_twin_each() -> None:
    """Two calls with equal numbers at the same time, each seen twice without a link, are two calls."""
    spans = [
        reading(index, scope=scope, started_at=start, ended_at=start + 20 * MS)
        for index, (scope, start) in enumerate([("a", 0), ("b", MS), ("a", 2 * MS), ("b", 3 * MS)], 1)
    ]
    assert settled(spans).totals.calls == 2
    assert settled(spans[::-1]).totals.calls == 2
    index = Lookalikes()
    index.add("one", spans[0])
    index.add("one", spans[1])
    assert twins(index, "two", spans[3]) == [], "the call of run one has its twin of this instrumentation"


def test_a_streams_log_is_the_call_that_the_sdk_saw_end_earlier() -> None:
    """A stream's log is written when its reader is done: later than the SDK's own span of the call by more than clocks
    differ, in one run and across runs."""
    sdk = reading(1, scope="sdk", response_id="r", started_at=0, ended_at=100 * MS)
    log = reading(2, trace_id=2, stream_log=True, started_at=90 * MS, ended_at=130 * MS)
    assert settled([sdk, log]).totals.calls == 1
    index = Lookalikes()
    index.add("run", reading(3, usage=None, started_at=85 * MS, ended_at=88 * MS))
    index.add("other run", sdk)
    assert twins(index, "log", log) == [("other run", sdk)], "equal usage says more than a call that has none"


def test_handlers_called_one_after_the_other_tell_of_one_call() -> None:
    """Two spans with equal usage that share most of their time are one call though neither lies inside the other; with
    no usage, or a little time in common, they are two."""
    one = reading(1, started_at=0, ended_at=30 * MS)
    other = reading(2, trace_id=2, scope="b", started_at=10 * MS, ended_at=40 * MS)
    assert settled([one, other]).totals.calls == 1
    assert settled([one._replace(usage=None), other._replace(usage=None)]).totals.calls == 2
    assert settled([one, other._replace(started_at=20 * MS, ended_at=50 * MS)]).totals.calls == 2


def test_a_stream_that_broke_off_is_one_call() -> None:
    """Where a stream stopped after its beginning, one instrumentation has a token of output and the other has none."""
    one = reading(1, usage=Usage(10, 0), started_at=0, ended_at=50 * MS)
    other = reading(2, trace_id=2, scope="b", usage=Usage(10, 1), started_at=10 * MS, ended_at=40 * MS)
    assert settled([one, other]).totals == Usage(10, 1, calls=1, messages=1)
    assert settled([one._replace(usage=Usage(10, 4)), other._replace(usage=Usage(10, 3))]).totals.calls == 2


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.builds(
            reading,
            st.just(1),
            scope=st.sampled_from(["a", "b", "litellm", "runmeter"]),
            usage=st.sampled_from([None, Usage(10, 0), Usage(10, 5)]),
            response_id=st.sampled_from([None, None, "r"]),
            started_at=st.sampled_from([0, MS, 2 * MS, 5 * MS, 40 * MS, 200 * MS, 300 * MS]),
            ended_at=st.sampled_from([300 * MS, 303 * MS, 320 * MS, 560 * MS]),
            stream_log=st.booleans(),
            tells=st.sampled_from([WHOLE, WHOLE, BEGINNING]),
        ),
        min_size=2,
        max_size=8,
    ),
    st.integers(0, 6),
)
def test_whatever_is_alike_is_looked_at(calls: list[Reading], forgotten: int) -> None:
    """The look into the index is as wide as two spans of one call may lie apart, and no forgotten call is found."""
    calls = [call._replace(trace_id=number, span_id=number) for number, call in enumerate(calls)]
    index = Lookalikes(limit=max(1, len(calls) - 1 - forgotten))
    for number, call in enumerate(calls[:-1]):
        index.add(f"run {number}", call)
    asked = calls[-1]
    known = [(number, call) for number, call in enumerate(calls[:-1])][-max(1, len(calls) - 1 - forgotten) :]
    shared = {
        f"run {number}"
        for number, call in known
        if alike_from_afar(asked, call) is not None and set(twin_keys(asked)) & set(twin_keys(call))
    }
    same_kind = {f"run {number}" for number, call in known if call.scope == asked.scope}
    found = index.runs(asked)
    assert shared - same_kind <= found <= shared


def test_all_spans_of_a_call_move_together() -> None:
    """A third span of a call finds both that the other run has; what has its twin at home looks for none elsewhere."""
    outer = reading(1, scope="a", response_id="r", started_at=0, ended_at=50 * MS)
    inner = reading(2, 1, scope="b", response_id="r", started_at=MS, ended_at=49 * MS)
    third = reading(3, trace_id=2, scope="c", response_id="r", started_at=-MS, ended_at=51 * MS)
    index = Lookalikes()
    index.add("one", outer)
    index.add("one", inner)
    assert {(of, known.key) for of, known in twins(index, "two", third)} == {("one", outer.key), ("one", inner.key)}
    mute = reading(4, trace_id=3, scope="c", started_at=2 * MS, ended_at=48 * MS)
    index.add("three", reading(5, 4, scope="b", trace_id=3, started_at=3 * MS, ended_at=47 * MS))
    assert twins(index, "three", mute) == []


def test_callers_are_read_from_the_agents_around() -> None:
    """The outermost agent leads; one inside is a subagent; the same agent seen twice is one; what is explicit wins."""
    lead = reading(1, None, Role.AGENT, agent="lead")
    again = reading(2, 1, Role.AGENT, agent="lead", scope="b")
    tool = reading(3, 2, Role.TOOL)
    expert = reading(4, 3, Role.AGENT, agent="expert")

    def caller(*spans: Reading) -> str:
        return next(iter(settled(spans).calls().values())).caller

    assert caller(reading(9)) == "lead_agent"
    assert caller(reading(9, 2), again, lead) == "lead_agent"
    assert caller(reading(9, 4), expert, tool, again, lead) == "subagent:expert"
    assert caller(reading(9, 4), expert._replace(agent="lead"), tool, again, lead) == "subagent:lead"
    assert caller(reading(9, 4, caller="middleware:m"), expert, tool, again, lead) == "middleware:m"
    run = reading(8, None, Role.PLAIN, agent="lead", is_run_root=True)
    assert caller(reading(9, 7), reading(7, 8, Role.AGENT, agent="only"), run) == "lead_agent"


def test_what_is_open_names_the_callers_below() -> None:
    """An agent that has only begun is known to the calls that end before it; its own end changes nothing."""
    settler = Settler()
    settler.open(reading(1, None, Role.AGENT, agent="lead"))
    settler.open(reading(2, 1, Role.AGENT, agent="expert"))
    ((was, now),) = settler.add(reading(3, 2))
    assert was is None
    assert now is not None
    assert now.caller == "subagent:expert"
    assert settler.facts.agent == "lead"
    assert settler.add(reading(2, 1, Role.AGENT, agent="expert")) == []
    assert settler.add(reading(1, None, Role.AGENT, agent="lead")) == []


def test_the_outermost_thread_is_the_runs() -> None:
    """A subagent's own conversation never becomes the run's thread."""
    inner = reading(5, 1, thread_id="inner")
    outer = reading(1, None, Role.AGENT, thread_id="outer", agent="a", ended_at=10**12)
    assert settled([inner]).facts.thread_id == "inner"
    assert settled([inner, outer]).facts.thread_id == "outer"


def test_late_spans_are_set_aside_and_late_calls_add() -> None:
    """After closing, a repeat and an agent around counted calls are late; another call still adds."""
    settler = settled([reading(2, 1)])
    settler.close()
    assert settler.add(reading(1, None, Role.AGENT, usage=Usage(10, 5))) == []
    assert settler.add(reading(3, 2, scope="client")) == []
    assert settler.set_aside == {"late": 2}
    assert len(settler.add(reading(4, 1))) == 1
    assert settler.totals.calls == 2


def test_an_excluded_call_counts_elsewhere() -> None:
    """What another source counts is set aside with its group, and an agent above it still repeats it."""
    settler = settled([reading(2, 1), reading(1, None, Role.AGENT, usage=Usage(10, 5))])
    ((was, now),) = settler.exclude(1, 2, "recorded")
    assert was is not None
    assert now is None
    assert settler.totals == ZERO
    assert settler.set_aside == {"recorded": 1, "aggregate": 1}


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_an_id_that_litellm_made_on_the_applications_span_is_the_call_below() -> None:
    """LiteLLM writes usage and, for Anthropic, an id of its own onto the span around; the wire's view is below it."""
    around = reading(1, scope="app", response_id="chatcmpl-of-its-own", started_at=0, ended_at=100 * MS)
    wire = reading(2, 1, scope="litellm.raw", response_id="msg_1", started_at=10 * MS, ended_at=90 * MS)
    another = reading(3, 1, scope="litellm.raw", response_id="msg_2", started_at=10 * MS, ended_at=90 * MS,
                      usage=Usage(7, 2))
    for order in permutations([around, wire, another]):
        assert settled(order).totals[:2] == (17, 7)


def test_a_long_run_is_bounded_and_counts_everything() -> None:
    """20,000 calls under one agent keep a thousand spans at most; totals, calls and the late agent are still right."""
    settler = Settler(limit=1000)
    for index in range(2, 20_002):
        settler.add(reading(index, 1, response_id=f"r{index}"))
        assert len(settler) <= 1000
    assert settler.add(reading(1, None, Role.AGENT, usage=Usage(200_000, 100_000))) == []
    assert settler.totals == Usage(200_000, 100_000, calls=20_000, messages=20_000)
    assert sum(call.usage.calls for call in settler.calls().values()) == 20_000
    assert settler.frozen_spans >= 19_000
    assert settler.add(reading(19_000, 1)) == []


def test_a_chain_of_ten_thousand_ends() -> None:
    """A chain 10,000 deep, parent first, child first or mixed, counts its one call and recurses nowhere."""
    chain = [reading(index, index - 1 or None, Role.AGGREGATE) for index in range(1, 10_000)]
    chain.append(reading(10_000, 9_999))
    mixed = list(chain)
    random.Random(1).shuffle(mixed)
    for order in (chain, chain[::-1], mixed):
        assert settled(order, limit=20_000).totals.calls == 1
    assert settled(chain).totals.calls == 1


def test_a_stream_that_several_callbacks_tell_of_is_one_call() -> None:
    """LiteLLM tells its callbacks of a stream when it is over, often after the run: its own writes a span of the call
    that says nothing, a hook the same times with the usage. One call, in either order, before or after closing."""
    silent = reading(7, started_at=1_000, ended_at=9_000_000, scope="litellm.raw", usage=None)
    told = silent._replace(span_id=8, scope="runmeter", response_id="r", usage=Usage(10, 5))
    other = told._replace(span_id=9, response_id="s", ended_at=9_500_000)
    for closing in (0, 1, 2, 3):
        for order in ((silent, told, other), (told, silent, other), (other, silent, told)):
            settler = Settler()
            for number, one in enumerate(order):
                if number == closing:
                    settler.close()
                settler.add(one)
            assert settler.totals[:2] == (20, 10)
            assert settler.totals.calls == 2


def test_a_summary_of_a_program_does_not_count_beside_the_programs_own_calls() -> None:
    """OpenInference's span of a turn of the Claude Agent SDK stands beside Claude Code's own spans, in any order; where
    the program tells nothing it is all there is."""
    scope = "openinference.instrumentation.claude_agent_sdk"
    turns = [
        Reading(1, index, 9, role=Role.AGENT, scope=scope, started_at=index * MS, ended_at=(index + 1) * MS,
                usage=Usage(10, 1))
        for index in (2, 3)
    ]  # fmt: skip
    own = [
        Reading(1, index, 8, role=Role.CALL, scope="com.anthropic.claude_code.tracing", started_at=index * MS,
                ended_at=(index + 1) * MS, usage=Usage(10, 5))
        for index in (4, 5, 6)
    ]  # fmt: skip
    assert settled(turns).totals.calls == 2
    for order in ([*turns, *own], [*own, *turns], [turns[0], own[0], turns[1], *own[1:]], [*own[:1], *turns, *own[1:]]):
        assert settled(order).totals == settled(own).totals
    elsewhere = [one._replace(scope="a") for one in own]
    assert settled([*turns, *elsewhere]).totals.calls == 5
