"""Groups of spans that are one call, and units of groups that are one call though nothing links them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from runmeter.counting.calls import innermost
from runmeter.counting.lookalikes import ByTime
from runmeter.counting.same_call import BLANK, BY_LOG, Likeness, alike, settles, told_again, twin_keys
from runmeter.counting.tree import Key, Node
from runmeter.spans import Call

CROWD: Final = 24
"""Groups that may be each other's twin at the same moment. Of more, only those met first are matched."""


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
        "said",
        "scopes",
        "started_at",
        "uid",
    )

    def __init__(self, node: Node, uid: int) -> None:
        self.uid = uid
        self.members = [node]
        self.key = node.key
        """The lowest member's: which of several groups is which does not depend on who came first."""
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

    def look(self) -> tuple[str, ...]:
        """Take in what the members say together; returns the keys under which twins of this group are found."""
        self.readings = [node.reading for node in self.members if node.reading is not None]
        if len(self.readings) == 1:
            (said,) = self.readings
            self.scopes = {said.scope}
        else:
            self.readings.sort(key=innermost, reverse=True)
            best = next((reading for reading in self.readings if reading.usage is not None), self.readings[0])
            said = best._replace(
                started_at=min(reading.started_at for reading in self.readings),
                ended_at=max(reading.ended_at for reading in self.readings),
                model=best.model or next((reading.model for reading in self.readings if reading.model), None),
                response_id=next((one.response_id for one in (best, *self.readings) if one.response_id), None),
                stream_log=any(reading.stream_log for reading in self.readings),
            )
            self.scopes = {reading.scope for reading in self.readings}
        self.said = said
        self.started_at = said.started_at
        self.ended_at = said.ended_at
        self.has_id = said.response_id is not None
        self.logged = said.stream_log
        keys = {key: None for reading in (said, *self.readings) for key in twin_keys(reading)}
        for reading in self.readings:
            if (key := told_again(reading)) is not None:
                keys[key] = None
        return tuple(keys)


Couple = tuple[tuple[int, int, Key, Key], Group, Group]


class Pairs:
    """Groups by what they say, in the order of time: finds those that may be one call though nothing links them."""

    def __init__(self) -> None:
        self._by_time: ByTime[Group] = ByTime()

    def put(self, group: Group) -> None:
        """Index the group as it is now, or take it out where it no longer counts."""
        if group.index_keys:
            self.drop(group)
        keys = group.look()
        if all(node.shadowed for node in group.members):
            return
        group.index_keys = keys
        for key in keys:
            self._by_time.put(key, group.uid, group)

    def drop(self, group: Group) -> None:
        """Forget the group."""
        for key in group.index_keys:
            self._by_time.drop(key, group.uid, group.started_at)
        group.index_keys = ()

    def near(self, group: Group) -> Iterator[tuple[Group, Likeness]]:
        """Groups that may be the same call as this one."""
        for key in group.index_keys:
            for other in self._by_time.near(key, group.started_at, group.ended_at):
                if other is not group:
                    likeness = distance(group, other)
                    if likeness is not None:
                        yield other, likeness

    def units(self, seeds: dict[Group, None]) -> list[list[Group]]:
        """The seeds and everything that may be one call with any of them, divided into units: nearest pairs first."""
        crowd = dict(seeds)
        waiting = list(seeds)
        couples: dict[tuple[int, int], Couple] = {}
        while waiting:
            group = waiting.pop()
            for other, likeness in self.near(group):
                couple = (group.uid, other.uid) if group.uid < other.uid else (other.uid, group.uid)
                if couple not in couples:
                    low, high = (group.key, other.key) if group.key < other.key else (other.key, group.key)
                    couples[couple] = ((*likeness, low, high), group, other)
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


def distance(one: Group, other: Group) -> Likeness | None:
    """How near two groups come to being one call; None where they are two."""
    if one.scopes.isdisjoint(other.scopes):
        likeness = alike(one.said, other.said)
        if likeness is not None or (len(one.readings) == 1 and len(other.readings) == 1):
            return likeness
        if (one.said.usage is None) == (other.said.usage is None):
            return None
    elif not (one.logged or other.logged):
        return None
    likenesses = (alike(left, right) for left in one.readings for right in other.readings)
    return min((found for found in likenesses if found is not None and found[0] in (BY_LOG, BLANK)), default=None)
