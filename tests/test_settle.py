"""Rule 2: one call counts once, and until a run closes its totals are a function of the set of its spans."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runmeter.call import Reading, Role
from runmeter.settle import Settler
from runmeter.spans import Call, Change
from runmeter.twins import INNER, OUTER, SAME, agree, inside, models_agree, nested, same_id
from runmeter.usage import ZERO, Usage

MS = 1_000_000


def reading(span_id: int, parent_id: int | None = None, role: Role = Role.CALL, **fields: object) -> Reading:
    """A reading of trace 1; a call of scope `a` with 10 + 5 tokens unless said otherwise, `span_id` ms after the epoch."""
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
        settler.thread_id,
        settler.agent,
        settler.user_id,
    )


# --- the batch reference: slow, and right by looking at it ---------------------------------------------------------------


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
    if (usage and usage[:2]) != (other_usage and other_usage[:2]) or not models_agree(model, other_model):
        return None
    if usage is None and failed != other_failed:
        return None
    if place != other_place:
        return None
    times = [
        (min(member.started_at for member in side), max(member.ended_at for member in side)) for side in (one, other)
    ]
    if not inside(*times[0], *times[1]):
        return None
    return 1, abs(times[0][0] - times[1][0]) + abs(times[0][1] - times[1][1])


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


# --- properties ----------------------------------------------------------------------------------------------------------

USAGES = [None, Usage(10, 5), Usage(10, 6), Usage(20, 5), Usage(30, 7)]


@st.composite
def runs(draw: st.DrawFn, loops: bool = False) -> list[Reading]:
    """A few spans of a run: anything under anything, three instrumentations, ids that repeat, parents that are missing."""
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


@settings(max_examples=400, deadline=None)
@given(runs())
def test_incremental_settling_equals_the_batch_reference(readings: list[Reading]) -> None:
    """Spans added one by one count as they do when all are looked at at once."""
    found = Counter((call.caller, call.usage) for call in settled(readings).calls().values())
    assert found == reference(readings)


@settings(max_examples=300, deadline=None)
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
