"""Spans of one call as a group, groups of one call without any link as a unit, and the `Call` that a unit is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Final

from runmeter.ancestry import Node, caller_of
from runmeter.call import Reading
from runmeter.spans import Call
from runmeter.twins import STREAM_SLACK, inside, models_agree, settles, twin_keys
from runmeter.usage import Usage

UNKNOWN: Final = "unknown"
CROWD: Final = 48
"""Groups that may be each other's twin at the same moment. More are not matched all against all; each takes the best
partner that is still alone when it comes."""


class Group:
    """Spans linked to each other as one call."""

    __slots__ = (
        "counted",
        "ended_at",
        "has_id",
        "index_keys",
        "key",
        "mates",
        "members",
        "scopes",
        "started_at",
        "uid",
    )

    def __init__(self, node: Node, uid: int) -> None:
        reading = node.reading
        assert reading is not None
        self.uid = uid
        self.members = [node]
        self.key = node.key
        """The lowest member's: which of several groups is which does not depend on who came first."""
        self.started_at = reading.started_at
        self.ended_at = reading.ended_at
        self.scopes = frozenset((reading.scope,))
        self.has_id = reading.response_id is not None
        self.mates: tuple[Group, ...] = ()
        """The other groups of its unit."""
        self.counted: Call | None = None
        self.index_keys: tuple[str, ...] = ()

    def absorb(self, other: Group) -> None:
        """Take the other's members."""
        self.members += other.members
        for node in other.members:
            node.group = self
        self.key = min(self.key, other.key)
        self.started_at = min(self.started_at, other.started_at)
        self.ended_at = max(self.ended_at, other.ended_at)
        self.scopes |= other.scopes
        self.has_id |= other.has_id

    @property
    def live(self) -> bool:
        """Some member counts by itself."""
        return any(node.shadowed is None for node in self.members)

    def readings(self) -> Iterator[Reading]:
        for node in self.members:
            if node.reading is not None:
                yield node.reading


def innermost(reading: Reading) -> tuple[int, int, int, int]:
    """Orders spans of one call from the outermost to the innermost: who starts last was called last."""
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id


def call_of(nodes: Sequence[Node]) -> Call:
    """The call that these spans speak of: usage of the innermost that has one, what it lacks from the others."""
    if len(nodes) == 1:
        reading = nodes[0].reading
        assert reading is not None
        return _call(reading, reading.usage, reading.provider, reading.model, caller_of(nodes[0])[0], reading)
    ranked = sorted((node for node in nodes if node.reading is not None), key=_rank, reverse=True)
    readings = [node.reading for node in ranked if node.reading is not None]
    best = next((reading for reading in readings if reading.usage is not None), readings[0])
    usage = best.usage
    if usage is not None:
        tokens_in, tokens_out, cached, written, thought = usage[:5]
        for other in readings:
            if other.usage is not None:
                cached = cached or min(other.usage[2], tokens_in - written)
                written = written or min(other.usage[3], tokens_in - cached)
                thought = thought or min(other.usage[4], tokens_out)
        usage = Usage(tokens_in, tokens_out, cached, written, thought)
    provider = best.provider or next((reading.provider for reading in readings if reading.provider), None)
    model = best.model or next((reading.model for reading in readings if reading.model), None)
    caller = max((caller_of(node) for node in ranked), key=_depth)[0]
    cost = next((reading.cost_nanousd for reading in readings if reading.cost_nanousd is not None), None)
    messages = next((reading.messages for reading in readings if reading.messages is not None), None)
    merged = best._replace(
        cost_nanousd=cost, messages=messages, retries=max(reading.retries for reading in readings), failed=best.failed
    )
    return _call(merged, usage, provider, model, caller, merged)


def best_of(nodes: Sequence[Node]) -> Node:
    """The span whose usage counts."""
    return max(nodes, key=lambda node: (node.reading is not None and node.reading.usage is not None, _rank(node)))


def _rank(node: Node) -> tuple[int, int, int, int]:
    assert node.reading is not None
    return innermost(node.reading)


def _depth(found: tuple[str, int]) -> int:
    return found[1]


def _call(
    best: Reading, usage: Usage | None, provider: str | None, model: str | None, caller: str, rest: Reading
) -> Call:
    retries = rest.retries
    if usage is not None:
        messages = 1 if rest.messages is None else rest.messages
        counts = Usage(usage[0], usage[1], usage[2], usage[3], usage[4], 1, retries, 0, messages)
    elif best.failed:
        counts = Usage(failures=1 + retries)
    else:
        messages = 1 if rest.messages is None else rest.messages
        counts = Usage(calls=1, failures=retries, calls_without_usage=1, messages=messages)
    return Call(provider or UNKNOWN, model or UNKNOWN, caller, counts, rest.cost_nanousd, best.ended_at)


# --- pairs without a link -------------------------------------------------------------------------------------------


class Pairs:
    """Groups by what they say, in the order of time: finds those that may be one call though nothing links them."""

    def __init__(self) -> None:
        self._by_key: dict[str, list[tuple[int, int, Group]]] = {}
        self._longest: dict[str, int] = {}

    def put(self, group: Group) -> None:
        """Index the group as it is now, or take it out where it no longer counts."""
        self.drop(group)
        if not group.live:
            return
        keys = {key for reading in group.readings() for key in twin_keys(reading) if "=" not in key}
        usage = [key for key in keys if not key.endswith(":-")]
        if usage and not any(reading.stream_log for reading in group.readings()):
            keys = set(usage)  # a member without usage does not make the call one without
        group.index_keys = tuple(keys)
        entry = (group.started_at, group.uid, group)
        for key in keys:
            insort(self._by_key.setdefault(key, []), entry)
            self._longest[key] = max(self._longest.get(key, 0), group.ended_at - group.started_at)

    def drop(self, group: Group) -> None:
        """Forget the group."""
        for key in group.index_keys:
            entries = self._by_key[key]
            for position in range(bisect_left(entries, (-(2**64),)), len(entries)):
                if entries[position][2] is group:
                    del entries[position]
                    break
            if not entries:
                del self._by_key[key]
                del self._longest[key]
        group.index_keys = ()

    def near(self, group: Group) -> Iterator[Group]:
        """Groups that may be the same call as this one."""
        for key in group.index_keys:
            entries = self._by_key[key]
            reach = group.started_at - STREAM_SLACK - self._longest[key]
            for position in range(bisect_left(entries, (reach,)), len(entries)):
                started_at, _, other = entries[position]
                if started_at > group.ended_at + STREAM_SLACK:
                    break
                if other is not group and distance(group, other) is not None:
                    yield other

    def units(self, seeds: Sequence[Group]) -> list[list[Group]]:
        """The seeds and everything that may be one call with any of them, divided into units: nearest pairs first."""
        crowd: dict[Group, None] = dict.fromkeys(seeds)
        waiting = list(seeds)
        pairs: dict[tuple[int, int], tuple[tuple[int, int, tuple[int, int], tuple[int, int]], Group, Group]] = {}
        while waiting:
            group = waiting.pop()
            for other in self.near(group):
                couple = (group.uid, other.uid) if group.uid < other.uid else (other.uid, group.uid)
                if couple not in pairs:
                    apart = distance(group, other)
                    assert apart is not None
                    low, high = sorted((group.key, other.key))
                    pairs[couple] = ((apart[0], apart[1], low, high), group, other)
                if other not in crowd and len(crowd) < CROWD:
                    crowd[other] = None
                    waiting.append(other)
                    waiting += [mate for mate in other.mates if mate not in crowd]
                    crowd.update(dict.fromkeys(other.mates))
        unit = {group: [group] for group in crowd}
        for _, one, other in sorted(pairs.values(), key=_nearness):
            if one in unit and other in unit and unit[one] is not unit[other] and _fit(unit[one], unit[other]):
                joined = unit[one] + unit[other]
                for group in joined:
                    unit[group] = joined
        return list({id(groups): groups for groups in unit.values()}.values())


def _nearness(pair: tuple[tuple[int, int, tuple[int, int], tuple[int, int]], Group, Group]) -> tuple[object, ...]:
    return pair[0]


def _fit(one: list[Group], other: list[Group]) -> bool:
    """One span per instrumentation in a unit (a stream's log beside its call), and one response id."""
    if any(group.has_id for group in one) and any(group.has_id for group in other):
        return False
    for left in one:
        for right in other:
            if not left.scopes.isdisjoint(right.scopes) and not _streams(left, right):
                return False
    return True


def _streams(one: Group, other: Group) -> bool:
    return any(settles(left, right) or settles(right, left) for left in one.readings() for right in other.readings())


def distance(one: Group, other: Group) -> tuple[int, int] | None:
    """How far apart two groups that may be one call lie in time, a stream's log first; None where they cannot be."""
    if one.has_id and other.has_id:
        return None
    if one.scopes.isdisjoint(other.scopes):
        if not inside(one.started_at, one.ended_at, other.started_at, other.ended_at):
            return None
        if not _same_words(one, other):
            return None
        return 1, abs(one.started_at - other.started_at) + abs(one.ended_at - other.ended_at)
    for left in one.readings():
        for right in other.readings():
            if models_agree(left.model, right.model):
                if settles(left, right):
                    return 0, abs(left.started_at - right.ended_at)
                if settles(right, left):
                    return 0, abs(right.started_at - left.ended_at)
    return None


def _same_words(one: Group, other: Group) -> bool:
    left, right = call_words(one), call_words(other)
    return left[0] == right[0] and left[1] == right[1] and models_agree(left[2], right[2])


def call_words(group: Group) -> tuple[tuple[int, int] | None, bool, str | None]:
    """(input and output, failed without usage, model) of a group, as its innermost member with usage says."""
    readings = sorted(group.readings(), key=innermost, reverse=True)
    best = next((reading for reading in readings if reading.usage is not None), readings[0])
    model = best.model or next((reading.model for reading in readings if reading.model), None)
    if best.usage is None:
        return None, best.failed, model
    return (best.usage[0], best.usage[1]), False, model
