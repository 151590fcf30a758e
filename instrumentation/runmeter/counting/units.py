"""Spans into groups and units that are one call each, by the leaf rule:

- calls count, each group once;
- a span that has usage and does not say what it is (weak) counts only where no call is above or below it;
- a call of an instrumentation that never says usage (hollow) counts only where no other one tells of calls;
- usage on agents, chains and workflows counts only where no call below is known, the outermost of them once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Final

from runmeter.counting.calls import best_of, call_of, call_of_one
from runmeter.counting.ids import Ids
from runmeter.counting.pairs import Group, Pairs
from runmeter.counting.same_call import INNER, OUTER, SAME, nested
from runmeter.counting.tree import COUNTS, Key, Node, Tree, ancestors, is_aggregate
from runmeter.counting.verdict import AGGREGATED, NO_USAGE, REPEAT, Verdict
from runmeter.reading.libraries import HOLLOW
from runmeter.reading.plan import plan_of
from runmeter.reading.read import Reading
from runmeter.reading.roles import CALL, PLAIN, WEAK
from runmeter.spans import Call, Change

_new: Final[Any] = tuple.__new__


class Units:
    """The groups of a run. What changes a group is noted in `touched`; `settle` counts what was touched anew."""

    __slots__ = ("_paired", "_pairs", "_retracted", "_tree", "_uid", "_unfold", "groups", "ids", "scopes", "verdict")

    def __init__(self, verdict: Verdict, tree: Tree, unfold: Callable[[], None]) -> None:
        """`unfold` makes nodes of all that are folded."""
        self.verdict = verdict
        self._unfold = unfold
        self._tree = tree
        self.groups: dict[int, Group] = {}
        """All but those of calls that nothing else has to do with yet, which are most; see `group_of`."""
        self.ids = Ids()
        self.scopes: set[str] = set()
        """Instrumentations that made calls here."""
        self._pairs = Pairs()
        self._paired = False
        self._uid = 0
        self._retracted: list[Change] = []

    @property
    def paired(self) -> bool:
        """Groups may be one call though nothing links them: more than one instrumentation made calls here."""
        return self._paired

    @property
    def has_hollow(self) -> bool:
        """Which calls count here depends on the other instrumentations that tell of calls."""
        return not self.scopes.isdisjoint(HOLLOW)

    def is_hollow(self, reading: Reading | None) -> bool:
        """It is around a call, or around none (an answer from a cache): whoever else tells of calls here would say."""
        if reading is None or reading.usage is not None or reading.scope not in HOLLOW:
            return False
        return not self.scopes.issubset(HOLLOW)

    def meet(self, scope: str, touched: dict[Group, None]) -> None:
        """An instrumentation made a call here."""
        hollow = self.has_hollow and self.scopes.issubset(HOLLOW)
        summed_up = scope not in self.scopes and any(map(scope.__eq__, map(_summary_of, self.scopes)))
        self.scopes.add(scope)
        if summed_up or (hollow and scope not in HOLLOW):
            touched.update(dict.fromkeys(self._all()))

    def meet_summary(self, scope: str) -> None:
        """An agent span has usage here: whether it counts may depend on who else tells of calls."""
        if _summary_of(scope) is not None:
            self.scopes.add(scope)

    def begin(self, node: Node) -> Group:
        """A span with something to count is a group of its own."""
        self._uid += 1
        group = Group(node, self._uid)
        node.group = group
        self.groups[group.uid] = group
        return group

    def group_of(self, node: Node) -> Group | None:
        """The group that the span is in, if it has something to count."""
        found = node.group
        if isinstance(found, Call):
            group = self.begin(node)
            group.counted = found
            return group
        return found if isinstance(found, Group) else None

    def counted(self) -> dict[Key, Call]:
        """What is counted, by the lowest span of each group."""
        self._unfold()
        counted: dict[Key, Call] = {}
        for node in self._tree.nodes.values():
            group = node.group
            if isinstance(group, Call):
                counted[node.key] = group
            elif isinstance(group, Group) and group.counted is not None:
                counted[group.key] = group.counted
        return counted

    def touch(self, nodes: Iterable[Node], touched: dict[Group, None]) -> None:
        """These have to be looked at again."""
        for node in nodes:
            group = self.group_of(node)
            if group is not None:
                touched[group] = None

    def alone(self, node: Node, reading: Reading) -> Change:
        """A call that nothing known has to do with."""
        self.scopes.add(reading.scope)
        self.ids.add(node, reading)
        call = call_of_one(node)
        node.group = call
        self.verdict.add(call)
        change: Change = _new(Change, (None, call))
        return change

    def join_by_id(self, node: Node, reading: Reading, touched: dict[Group, None]) -> None:
        """One with every group of the same response id."""
        for other in self.ids.same(reading):
            if other is not node:
                self._union(node, other, touched)
        self.ids.add(node, reading)

    def climb(self, call: Node, touched: dict[Group, None]) -> None:
        """Call directly under call, seen by different instrumentations: the inner one is the call."""
        inner = call.reading
        assert inner is not None
        for above in ancestors(call):
            if above.role == PLAIN:
                if not above.seen and above.reading is None:
                    return
                continue
            outer = above.reading
            if above.role != CALL or outer is None:
                return
            relation = nested(inner, outer)
            if relation == OUTER:
                self._shadow(above, touched)
                continue
            if relation == SAME:
                self._union(call, above, touched)
            elif relation == INNER:
                self._shadow(call, touched)
            return

    def settle(self, groups: Iterable[Group]) -> list[Change]:
        """Count these groups, and those they may be one call with, as what is known now says."""
        changes, self._retracted = self._retracted, []
        calls: list[Group] = []
        for group in groups:
            node = group.members[0]
            if node.role != CALL and node.role != WEAK:
                self.verdict.count(group, _lone_aggregate(node, self.scopes), changes)
                self.verdict.put_aside(node, None if group.counted is not None else node.excluded or AGGREGATED)
                continue
            for member in group.members:
                if member.role == WEAK:
                    member.shadowed = overshadowed(member)
                elif member.shadowed is None and self.is_hollow(member.reading):
                    member.shadowed = NO_USAGE
            calls.append(group)
        if not self._paired and calls:
            self._begin_pairing(calls)
        if not self._paired:
            for group in calls:
                _count_unit([group], changes, self.verdict)
            return changes
        seeds = dict.fromkeys(calls)
        for group in calls:
            seeds.update(dict.fromkeys(group.mates))
            self._pairs.put(group)
        for unit in self._pairs.units(seeds):
            _count_unit(unit, changes, self.verdict)
        return changes

    def index(self, group: Group) -> None:
        """Know a group that came late to those that come later still."""
        if self._paired:
            self._pairs.put(group)

    def count_alone(self, group: Group) -> list[Change]:
        """Count a group as what its span says, whatever else is known."""
        changes: list[Change] = []
        self.verdict.count(group, call_of(group.members), changes)
        return changes

    def twins(self, node: Node, reading: Reading) -> list[Group]:
        """Known groups that may be one call with this span, though nothing links them."""
        if not self._paired and any(scope != reading.scope for scope in self.scopes):
            self._pair()
        if not self._paired:
            return []
        probe = Group(node, 0)
        self._pairs.put(probe)
        found = [group for group, _ in self._pairs.near(probe)]
        self._pairs.drop(probe)
        return found

    def drop(self, group: Group) -> None:
        """Forget the group; what it counted is not touched."""
        if group.index_keys:
            self._pairs.drop(group)
        self.groups.pop(group.uid, None)

    def let_go(self, node: Node) -> None:
        """The call is folded from now on."""
        self.ids.drop(node)
        if isinstance(node.group, Group):
            self.drop(node.group)

    def _all(self) -> list[Group]:
        self._unfold()
        for node in self._tree.nodes.values():
            self.group_of(node)
        return list(self.groups.values())

    def _shadow(self, node: Node, touched: dict[Group, None]) -> None:
        if node.shadowed is None:
            node.shadowed = NO_USAGE
            self.touch([node], touched)

    def _begin_pairing(self, calls: Sequence[Group]) -> None:
        """Twins without a link need two instrumentations, or a stream's log; most runs have neither."""
        if len(self.scopes) > 1 or any(
            node.reading is not None and node.reading.stream_log for group in calls for node in group.members
        ):
            self._pair()

    def _pair(self) -> None:
        self._paired = True
        for group in self._all():
            if group.members[0].role in (CALL, WEAK):
                self._pairs.put(group)

    def _union(self, one: Node, other: Node, touched: dict[Group, None]) -> None:
        left, right = self.group_of(one), self.group_of(other)
        assert left is not None
        assert right is not None
        if left is right:
            return
        if len(left.members) < len(right.members):
            left, right = right, left
        touched.update(dict.fromkeys((left, *left.mates, *right.mates)))
        touched.pop(right, None)
        self._pairs.drop(right)
        for mate in right.mates:
            mate.mates = tuple(other for other in mate.mates if other is not right)
        left.absorb(right)
        if left.counted is None:
            left.counted = right.counted
        elif right.counted is not None:
            self.verdict.count(right, None, self._retracted)
        del self.groups[right.uid]


def overshadowed(node: Node) -> str | None:
    """Why a weak span does not count: calls below it, or a call above."""
    if node.below & COUNTS:
        return AGGREGATED
    return REPEAT if any(above.role == CALL for above in ancestors(node)) else None


def _count_unit(unit: Sequence[Group], changes: list[Change], verdict: Verdict) -> None:
    if len(unit) == 1 and len(unit[0].members) == 1:
        group = unit[0]
        node = group.members[0]
        why_not = node.excluded or node.shadowed
        group.mates = ()
        verdict.count(group, None if why_not else call_of(group.members), changes)
        verdict.put_aside(node, why_not)
        return
    nodes = [node for group in unit for node in group.members]
    excluded = next((node.excluded for node in nodes if node.excluded), None)
    live = excluded is None and any(node.shadowed is None for node in nodes)
    keeper = min(unit, key=_key)
    call = call_of(nodes) if live else None
    for group in unit:
        group.mates = tuple(other for other in unit if other is not group)
        verdict.count(group, call if group is keeper else None, changes)
    spoken = best_of(nodes) if live else None
    for node in nodes:
        reading = node.reading
        if node is spoken:
            verdict.put_aside(node, None)
        else:
            verdict.put_aside(node, excluded or (REPEAT if reading and reading.usage is not None else NO_USAGE))


def _summary_of(scope: str) -> str | None:
    return plan_of(scope).dialect.summary_of


def _lone_aggregate(node: Node, scopes: Container[str]) -> Call | None:
    """The outermost aggregate without a known call below stands for the calls that nobody saw: none of these
    instrumentations, where one of them is the program that it sums up."""
    reading = node.reading
    if node.below & COUNTS or node.excluded or reading is None or not reading.lone_aggregate:
        return None
    if _summary_of(reading.scope) in scopes:
        return None
    for above in ancestors(node):
        if is_aggregate(above):
            return call_of([node]) if above.below & COUNTS else None
    return call_of([node])


def _key(group: Group) -> Key:
    return group.key
