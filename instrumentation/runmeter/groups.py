"""Spans of one call as a group, groups of one call without any link as a unit, and the `Call` that a unit is."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any, Final

from runmeter.ancestry import Key, Node, ancestors, caller_of
from runmeter.call import Reading
from runmeter.dialects import AFTER_THE_FACT
from runmeter.spans import Call
from runmeter.twins import STREAM_SLACK, blank, broke_off, models_agree, settles, together
from runmeter.usage import Usage

UNKNOWN: Final = "unknown"
NEIGHBOURS: Final = 12
"""Groups with equal words that are looked at before and after one in the order of time. Twins begin together."""
CROWD: Final = 24
"""Groups that may be each other's twin at the same moment. Of more, only those met first are matched."""

IndexKey = tuple[str, int]
_NO_USAGE: Final = -1
_new: Final[Any] = tuple.__new__


class Group:
    """Spans linked to each other as one call."""

    __slots__ = (
        "counted",
        "ended_at",
        "has_id",
        "index_keys",
        "key",
        "logged",
        "mates",
        "members",
        "readings",
        "scopes",
        "started_at",
        "uid",
        "words",
    )

    def __init__(self, node: Node, uid: int) -> None:
        self.uid = uid
        self.members = [node]
        self.key = node.key
        """The lowest member's: which of several groups is which does not depend on who came first."""
        self.mates: tuple[Group, ...] = ()
        """The other groups of its unit."""
        self.counted: Call | None = None
        self.index_keys: tuple[IndexKey, ...] = ()

    def absorb(self, other: Group) -> None:
        """Take the other's members."""
        self.members += other.members
        for node in other.members:
            node.group = self
        self.key = min(self.key, other.key)

    def look(self) -> tuple[IndexKey, ...]:
        """Take in what the members say together; returns the keys under which twins of this group are found."""
        self.readings = [node.reading for node in self.members if node.reading is not None]
        if len(self.readings) > 1:
            self.readings.sort(key=innermost, reverse=True)
        best = next((reading for reading in self.readings if reading.usage is not None), self.readings[0])
        model = best.model or next((reading.model for reading in self.readings if reading.model), None)
        self.started_at = min(reading.started_at for reading in self.readings)
        self.ended_at = max(reading.ended_at for reading in self.readings)
        self.scopes = {reading.scope for reading in self.readings}
        self.has_id = any(reading.response_id is not None for reading in self.readings)
        self.logged = any(reading.stream_log for reading in self.readings)
        usage = best.usage
        if usage is None:
            self.words = (_NO_USAGE, _NO_USAGE, best.failed, model)
            return ((best.resource_key, _NO_USAGE),)
        self.words = (usage[0], usage[1], False, model)
        if best.stream_log or not self.scopes.isdisjoint(AFTER_THE_FACT):
            return (best.resource_key, usage[0]), (best.resource_key, _NO_USAGE)
        return ((best.resource_key, usage[0]),)


def innermost(reading: Reading) -> tuple[int, int, int, int]:
    """Orders spans of one call from the outermost to the innermost: who starts last was called last."""
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id


def call_of_one(node: Node, caller: str | None = None) -> Call:
    """The call that one span speaks of; its caller is looked for where it is not given."""
    reading = node.reading
    assert reading is not None
    return _call(
        reading.usage,
        reading.failed,
        reading.provider,
        reading.model or _model_above(node),
        caller or caller_of(node)[0],
        reading.cost_nanousd,
        reading.messages,
        reading.retries,
        reading.ended_at,
    )


def call_of(nodes: Sequence[Node]) -> Call:
    """The call that these spans speak of: usage of the innermost that has one, what it lacks from the others."""
    if len(nodes) == 1:
        return call_of_one(nodes[0])
    ranked = sorted(nodes, key=_rank, reverse=True)
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
    model = best.model or next((reading.model for reading in readings if reading.model), None)
    if model is None:
        model = next((above for above in map(_model_above, ranked) if above), None)
    return _call(
        usage,
        best.failed,
        best.provider or next((reading.provider for reading in readings if reading.provider), None),
        model,
        max((caller_of(node) for node in ranked), key=_depth)[0],
        next((reading.cost_nanousd for reading in readings if reading.cost_nanousd is not None), None),
        next((reading.messages for reading in readings if reading.messages is not None), None),
        max(reading.retries for reading in readings),
        best.ended_at,
    )


def best_of(nodes: Sequence[Node]) -> Node:
    """The span whose usage counts."""
    return max(nodes, key=lambda node: (node.reading is not None and node.reading.usage is not None, _rank(node)))


def _model_above(node: Node) -> str | None:
    """Codex names the model on the turn around its calls."""
    for above in ancestors(node):
        if above.reading is not None and above.reading.model is not None:
            return above.reading.model
    return None


def _rank(node: Node) -> tuple[int, int, int, int]:
    assert node.reading is not None
    return innermost(node.reading)


def _depth(found: tuple[str, int]) -> int:
    return found[1]


def _call(
    usage: Usage | None,
    failed: bool,
    provider: str | None,
    model: str | None,
    caller: str,
    cost: int | None,
    messages: int | None,
    retries: int,
    ended_at: int,
) -> Call:
    if messages is None:
        messages = 1
    counts: Usage
    if usage is not None:
        counts = _new(Usage, (*usage[:5], 1, retries, 0, messages, 0, 0))
    elif failed:
        counts = Usage(failures=1 + retries)
    else:
        counts = Usage(calls=1, failures=retries, calls_without_usage=1, messages=messages)
    call: Call = _new(Call, (provider or UNKNOWN, model or UNKNOWN, caller, counts, cost, ended_at))
    return call


# --- pairs without a link ---------------------------------------------------------------------------------------------

Couple = tuple[tuple[int, int, Key, Key], Group, Group]


class Pairs:
    """Groups by what they say, in the order of time: finds those that may be one call though nothing links them."""

    def __init__(self) -> None:
        self._by_key: dict[IndexKey, list[tuple[int, int, Group]]] = {}
        self._longest: dict[IndexKey, int] = {}

    def put(self, group: Group) -> None:
        """Index the group as it is now, or take it out where it no longer counts."""
        if group.index_keys:
            self.drop(group)
        keys = group.look()
        if all(node.shadowed for node in group.members):
            return
        group.index_keys = keys
        entry = (group.started_at, group.uid, group)
        lasted = group.ended_at - group.started_at
        for key in keys:
            entries = self._by_key.get(key)
            if entries is None:
                self._by_key[key] = [entry]
                self._longest[key] = lasted
            else:
                insort(entries, entry)
                if lasted > self._longest[key]:
                    self._longest[key] = lasted

    def drop(self, group: Group) -> None:
        """Forget the group."""
        for key in group.index_keys:
            entries = self._by_key[key]
            position = bisect_left(entries, (group.started_at, group.uid))
            del entries[position]
            if not entries:
                del self._by_key[key]
                del self._longest[key]
        group.index_keys = ()

    def near(self, group: Group) -> Iterator[tuple[Group, int, int]]:
        """Groups that may be the same call as this one, with `distance`."""
        for key in group.index_keys:
            entries = self._by_key[key]
            if len(entries) < 2:
                continue
            reach = group.started_at - STREAM_SLACK - self._longest[key]
            latest = group.ended_at + STREAM_SLACK
            mine = bisect_left(entries, (group.started_at, group.uid))
            before = entries[max(0, mine - NEIGHBOURS) : mine]
            for started_at, _, other in before + entries[mine : mine + NEIGHBOURS + 1]:
                if other is not group and reach <= started_at <= latest:
                    apart = distance(group, other)
                    if apart is not None:
                        yield other, apart[0], apart[1]

    def units(self, seeds: dict[Group, None]) -> list[list[Group]]:
        """The seeds and everything that may be one call with any of them, divided into units: nearest pairs first."""
        crowd = dict(seeds)
        waiting = list(seeds)
        couples: dict[tuple[int, int], Couple] = {}
        while waiting:
            group = waiting.pop()
            for other, kind, apart in self.near(group):
                couple = (group.uid, other.uid) if group.uid < other.uid else (other.uid, group.uid)
                if couple not in couples:
                    low, high = (group.key, other.key) if group.key < other.key else (other.key, group.key)
                    couples[couple] = ((kind, apart, low, high), group, other)
                if other not in crowd and len(crowd) < CROWD:
                    for newcomer in (other, *other.mates):
                        if newcomer not in crowd:
                            crowd[newcomer] = None
                            waiting.append(newcomer)
        if not couples:
            return [[group] for group in crowd]
        unit = {group: [group] for group in crowd}
        for _, one, other in sorted(couples.values(), key=_nearness):
            if one in unit and other in unit and unit[one] is not unit[other] and _fit(unit[one], unit[other]):
                joined = unit[one] + unit[other]
                for group in joined:
                    unit[group] = joined
        return list({id(groups): groups for groups in unit.values()}.values())


def _nearness(couple: Couple) -> tuple[int, int, Key, Key]:
    return couple[0]


def _fit(one: list[Group], other: list[Group]) -> bool:
    """One span per instrumentation in a unit (a stream's log beside its call), and one response id."""
    if any(group.has_id for group in one) and any(group.has_id for group in other):
        return False
    return all(left.scopes.isdisjoint(right.scopes) or _streamed(left, right) for left in one for right in other)


def _streamed(one: Group, other: Group) -> bool:
    return any(settles(left, right) or settles(right, left) for left in one.readings for right in other.readings)


def distance(one: Group, other: Group) -> tuple[int, int] | None:
    """(kind, nanoseconds) between two groups that may be one call, a stream's log first; None where they cannot be."""
    if one.has_id and other.has_id:
        return None
    if one.scopes.isdisjoint(other.scopes):
        mine, theirs = one.words, other.words
        if mine[0] == theirs[0] and mine[2] == theirs[2]:
            kind = 1 if mine[1] == theirs[1] else 2
            if kind == 2 and not broke_off(mine[0], mine[1], theirs[0], theirs[1]):
                return None
            spans = (one.started_at, one.ended_at), (other.started_at, other.ended_at)
            logged = one.logged or other.logged
            if models_agree(mine[3], theirs[3]) and together(*spans, used=mine[0] != _NO_USAGE, logged=logged):
                return kind, abs(one.started_at - other.started_at) + abs(one.ended_at - other.ended_at)
            return None
        if (mine[0] == _NO_USAGE) != (theirs[0] == _NO_USAGE):
            for left in one.readings:
                for right in other.readings:
                    if (blank(left, right) or blank(right, left)) and models_agree(left.model, right.model):
                        return 3, abs(left.started_at - right.started_at)
        return None
    for left in one.readings:
        for right in other.readings:
            if (left.stream_log or right.stream_log) and models_agree(left.model, right.model):
                if settles(left, right):
                    return 0, abs(left.started_at - right.ended_at)
                if settles(right, left):
                    return 0, abs(right.started_at - left.ended_at)
    return None
