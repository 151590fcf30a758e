"""A span takes its place in its run's tree, and what is one call is joined."""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any, Final

from runmeter import semconv
from runmeter.ancestry import (
    COUNTS,
    HAS_AGGREGATE,
    HAS_CALL,
    Key,
    Node,
    ancestors,
    beneath,
    calls_directly_below,
    is_aggregate,
)
from runmeter.call import Reading
from runmeter.counting import NO_USAGE, Counting
from runmeter.dialects import CALL, PLAIN, WEAK
from runmeter.groups import Group, call_of_one
from runmeter.same_call import INNER, OUTER, SAME, SLACK, nested, same_id
from runmeter.spans import Change

_new: Final[Any] = tuple.__new__


class Joining(Counting):
    """The tree of a run, and its groups."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes: dict[Key, Node] = {}
        self._ids: dict[str, list[tuple[int, Key, Node]]] = {}
        self._longest = 0
        """Nanoseconds of the longest call with an id."""
        self._uid = 0
        self._retracted: list[Change] = []
        self._tree = 0
        """Grows with every change to a span that others may stand below."""
        self._gone: dict[int, None] = {}
        """Hashes of the keys of spans that were forgotten; the oldest are forgotten in turn."""

    def __len__(self) -> int:
        """Spans remembered now, those only named as a parent included."""
        return len(self._nodes)

    def __contains__(self, key: object) -> bool:
        """(trace id, span id) was added and is remembered."""
        node = self._nodes.get(key)  # type: ignore[call-overload]
        return node is not None and node.seen

    def _node(self, key: Key) -> Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key)
        return node

    def _link(self, node: Node, trace_id: int, parent_id: int | None) -> None:
        if parent_id is None or parent_id == node.key[1] or node.parent is not None:
            return
        key = (trace_id, parent_id)
        parent = self._nodes.get(key)
        if parent is None:
            if self._gone and hash(key) in self._gone:
                return
            parent = self._nodes[key] = Node(key)
        node.parent = parent
        if parent.kids is None:
            parent.kids = {node}
        else:
            parent.kids.add(node)

    def _arrived(self, node: Node, opened: Reading | None = None) -> list[Change]:
        """A span took its place: join it, and look again at everything that it tells something new about."""
        touched: dict[Group, None] = {}
        role = node.role
        bits = node.bits
        if role in (CALL, WEAK) or bits == HAS_AGGREGATE:
            self._uid += 1
            group = Group(node, self._uid)
            node.group = group
            self._groups[group.uid] = group
            touched[group] = None
            if role in (CALL, WEAK):
                reading = node.reading
                assert reading is not None
                self._scopes.add(reading.scope)
                if reading.response_id is not None:
                    self._join_by_id(node, reading, touched)
        bits |= node.below
        if bits:
            self._mark(node, bits, touched)
        if role == CALL:
            self._climb(node, touched)
        if node.below:
            if node.below & HAS_CALL and role in (CALL, PLAIN):
                for call in calls_directly_below(node):
                    self._climb(call, touched)
            if not (opened and _same_news(opened, node.reading)):
                for other in beneath(node, COUNTS | HAS_AGGREGATE):
                    self._touch(other, touched)
        changes, self._retracted = self._retracted, []
        return changes + self._settle(touched)

    def _alone(self, node: Node, reading: Reading) -> bool:
        """Nothing known can have to do with this call: the common case, kept short."""
        if reading.stream_log or (reading.response_id is not None and reading.response_id in self._ids):
            return False
        if reading.scope not in self._scopes and self._scopes:
            return False
        above = node.parent
        while above is not None:
            if not above.below & HAS_CALL or above.role == CALL:
                return False
            if above.role != PLAIN or not above.seen:
                return True
            above = above.parent
        return True

    def _ordinary(self, key: Key, reading: Reading) -> list[Change] | None:
        """One more call like the last one below the same span, by the same instrumentation, which is what most are;
        None where it is any other."""
        above = None if reading.parent_id is None else self._nodes.get((reading.trace_id, reading.parent_id))
        if (
            above is None
            or above.ordinary is None
            or above.ordinary[0] != self._tree
            or self._paired
            or above.kids is None
            or reading.scope not in self._scopes
            or reading.response_id in self._ids
            or reading.model is None
            or reading.caller is not None
            or reading.agent is not None
            or reading.stream_log
        ):
            return None
        node = self._nodes[key] = Node(key)
        node.seen = True
        node.role = CALL
        node.reading = reading
        node.parent = above
        above.kids.add(node)
        self._learn(reading)
        return self._first(node, reading, above.ordinary[1])

    def _first(self, node: Node, reading: Reading, caller: str | None = None) -> list[Change]:
        """A call that nothing known has to do with; its caller is looked for where it is not given."""
        self._uid += 1
        group = node.group = Group(node, self._uid)
        self._groups[group.uid] = group
        self._scopes.add(reading.scope)
        if reading.response_id is not None:
            self._know_id(node, reading)
        call = group.counted = call_of_one(node, caller)
        above = node.parent
        if caller is None and above is not None and reading.caller is None and reading.agent is None:
            above.ordinary = (self._tree, call.caller)
        self._totals = self._totals + call.usage
        change: Change = _new(Change, (None, call))
        return [change]

    def _mark(self, node: Node, bits: int, touched: dict[Group, None]) -> None:
        """Tell those above what is below them; they were told before where an ancestor knows it already."""
        above = node.parent
        while above is not None:
            news = bits & ~above.below
            if not news:
                return
            above.below |= news
            if above.role == WEAK or is_aggregate(above):
                self._touch(above, touched)
                if above.below & HAS_AGGREGATE and news & COUNTS:
                    for other in beneath(above, HAS_AGGREGATE):
                        self._touch(other, touched)
            above = above.parent

    def _touch(self, node: Node, touched: dict[Group, None]) -> None:
        if isinstance(node.group, Group):
            touched[node.group] = None

    def _join_by_id(self, node: Node, reading: Reading, touched: dict[Group, None]) -> None:
        for other in self._of_same_id(reading):
            if other is not node:
                self._union(node, other, touched)
        self._know_id(node, reading)

    def _know_id(self, node: Node, reading: Reading) -> None:
        if reading.response_id is not None:
            entry = (reading.started_at, node.key, node)
            known = self._ids.get(reading.response_id)
            if known is None:
                self._ids[reading.response_id] = [entry]
            else:
                insort(known, entry)
            lasted = reading.ended_at - reading.started_at
            if lasted > self._longest:
                self._longest = lasted

    def _of_same_id(self, reading: Reading) -> list[Node]:
        """Spans that are the same call by their response id."""
        known = self._ids.get(reading.response_id or "")
        if known is None:
            return []
        if reading.scope == semconv.SCOPE:
            near = known
        else:
            near = known[bisect_left(known, (reading.started_at - self._longest - SLACK,)) :]
        found = []
        for started_at, _, other in near:
            if started_at > reading.ended_at + SLACK and reading.scope != semconv.SCOPE:
                break
            if other.reading is not None and same_id(reading, other.reading):
                found.append(other)
                if reading.scope == semconv.SCOPE:
                    break
        return found

    def _union(self, one: Node, other: Node, touched: dict[Group, None]) -> None:
        left, right = one.group, other.group
        assert isinstance(left, Group)
        assert isinstance(right, Group)
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
            self._count(right, None, self._retracted)
        del self._groups[right.uid]

    def _climb(self, call: Node, touched: dict[Group, None]) -> None:
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

    def _shadow(self, node: Node, touched: dict[Group, None]) -> None:
        if node.shadowed is None:
            node.shadowed = NO_USAGE
            self._touch(node, touched)


def _same_news(opened: Reading, ended: Reading | None) -> bool:
    """What a span tells those below it, it told when it began."""
    return (
        ended is not None
        and ended.role == opened.role
        and ended.role not in (CALL, WEAK)
        and ended.agent == opened.agent
        and ended.caller == opened.caller
        and ended.usage is None
    )
