"""Groups of spans into calls, and what is set aside beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import sub
from typing import Final

from runmeter.ancestry import COUNTS, Key, Node, ancestors, is_aggregate
from runmeter.dialects import CALL, WEAK
from runmeter.facts import Facts
from runmeter.groups import Group, Pairs, best_of, call_of
from runmeter.spans import Call, Change
from runmeter.usage import ZERO, Usage

REPEAT: Final = "repeat"
"""Says again what another span of the same call says."""
NO_USAGE: Final = "no_usage"
"""A further span of a call, without usage of its own."""
AGGREGATED: Final = "aggregate"
"""Usage of calls that are counted themselves."""
LATE: Final = "late"
"""Came after closing and belongs to something counted."""


class Counting(Facts):
    """The totals of a run, from its groups."""

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[int, Group] = {}
        self._pairs = Pairs()
        self._paired = False
        self._scopes: set[str] = set()
        """Instrumentations that made calls here."""
        self._aside: Counter[str] = Counter()
        self._totals = ZERO

    @property
    def totals(self) -> Usage:
        """Everything counted so far."""
        return self._totals

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Spans not counted, by reason (absolute)."""
        return {reason: count for reason, count in self._aside.items() if count}

    def _settle(self, groups: Iterable[Group]) -> list[Change]:
        """Count these groups, and those they may be one call with, as what is known now says."""
        changes: list[Change] = []
        calls: list[Group] = []
        for group in groups:
            node = group.members[0]
            if node.role != CALL and node.role != WEAK:
                self._count(group, self._lone_aggregate(node), changes)
                self._put_aside(node, None if group.counted is not None else node.excluded or AGGREGATED)
                continue
            for member in group.members:
                if member.role == WEAK:
                    member.shadowed = overshadowed(member)
            calls.append(group)
        if not self._paired and calls:
            self._begin_pairing(calls)
        if not self._paired:
            for group in calls:
                self._count_unit([group], changes)
            return changes
        seeds = dict.fromkeys(calls)
        for group in calls:
            seeds.update(dict.fromkeys(group.mates))
            self._pairs.put(group)
        for unit in self._pairs.units(seeds):
            self._count_unit(unit, changes)
        return changes

    def _begin_pairing(self, calls: Sequence[Group]) -> None:
        """Twins without a link need two instrumentations, or a stream's log; most runs have neither."""
        if len(self._scopes) > 1 or any(
            node.reading is not None and node.reading.stream_log for group in calls for node in group.members
        ):
            self._pair()

    def _pair(self) -> None:
        self._paired = True
        for group in self._groups.values():
            if group.members[0].role in (CALL, WEAK):
                self._pairs.put(group)

    def _count_unit(self, unit: Sequence[Group], changes: list[Change]) -> None:
        if len(unit) == 1 and len(unit[0].members) == 1:
            group = unit[0]
            node = group.members[0]
            why_not = node.excluded or node.shadowed
            group.mates = ()
            self._count(group, None if why_not else call_of(group.members), changes)
            self._put_aside(node, why_not)
            return
        nodes = [node for group in unit for node in group.members]
        excluded = next((node.excluded for node in nodes if node.excluded), None)
        live = excluded is None and any(node.shadowed is None for node in nodes)
        keeper = min(unit, key=_key)
        call = call_of(nodes) if live else None
        for group in unit:
            group.mates = tuple(other for other in unit if other is not group)
            self._count(group, call if group is keeper else None, changes)
        spoken = best_of(nodes) if live else None
        for node in nodes:
            reading = node.reading
            if node is spoken:
                self._put_aside(node, None)
            else:
                self._put_aside(node, excluded or (REPEAT if reading and reading.usage is not None else NO_USAGE))

    def _lone_aggregate(self, node: Node) -> Call | None:
        """The outermost aggregate without a known call below stands for the calls that nobody saw."""
        reading = node.reading
        if node.below & COUNTS or node.excluded or reading is None or not reading.lone_aggregate:
            return None
        for above in ancestors(node):
            if is_aggregate(above):
                return call_of([node]) if above.below & COUNTS else None
        return call_of([node])

    def _count(self, group: Group, now: Call | None, changes: list[Change]) -> None:
        was = group.counted
        if was == now:
            return
        group.counted = now
        if now is not None:
            self._totals = self._totals + now.usage
        if was is not None:
            self._totals = Usage(*map(sub, self._totals, was.usage))
        changes.append(Change(was, now))

    def _put_aside(self, node: Node, reason: str | None) -> None:
        was = node.aside
        if was != reason:
            node.aside = reason
            if was is not None:
                self._aside[was] -= 1
            if reason is not None:
                self._aside[reason] += 1


def _key(group: Group) -> Key:
    return group.key


def overshadowed(node: Node) -> str | None:
    """Why a weak span does not count: calls below it, or a call above."""
    if node.below & COUNTS:
        return AGGREGATED
    return REPEAT if any(above.role == CALL for above in ancestors(node)) else None
