"""Rule 2: one call counts once, whatever the instrumentations say. The Settler of one run.

Until `close()` a run's totals are a function of the *set* of its readings: any order, any batching, any duplication,
parent first or child first. Readings are classified where they are read (`call.py`); here they are put into their
tree (`ancestry.py`), joined into groups and units that are one call each (`groups.py`, `twins.py`), and counted by the
leaf rule:

- calls count, each group once;
- a span that has usage and does not say what it is (weak) counts only where no call is above or below it;
- usage on agents, chains and workflows counts only where no call below is known, the outermost of them once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from operator import sub
from typing import Final

from runmeter.ancestry import (
    COUNTS,
    HAS_AGGREGATE,
    HAS_CALL,
    HAS_WEAK,
    Key,
    Node,
    ancestors,
    beneath,
    calls_directly_below,
    is_aggregate,
)
from runmeter.call import Reading
from runmeter.dialects import AGENT, CALL, PLAIN, WEAK
from runmeter.groups import Group, Pairs, best_of, call_of, call_of_one
from runmeter.spans import Call, Change
from runmeter.twins import INNER, OUTER, SAME, nested, same_id
from runmeter.usage import ZERO, Usage

LIMIT: Final = 1024
"""Spans remembered per run. Beyond it the oldest finished ones are frozen: what they counted stays, repeats of them
that come later are not recognised."""

FrozenKey = tuple[str, str, str, int]
"""Provider, model, caller and day (since the epoch) of calls whose spans were forgotten."""

REPEAT: Final = "repeat"
"""Says again what another span of the same call says."""
NO_USAGE: Final = "no_usage"
"""A further span of a call, without usage of its own."""
AGGREGATED: Final = "aggregate"
"""Usage of calls that are counted themselves."""
LATE: Final = "late"
"""Came after closing and belongs to something counted."""


class Settler:
    """The calls of one run. Not thread-safe: the processor, or a run's row, holds the lock."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._limit = max(8, limit)
        self._closed = False
        self._frozen: dict[FrozenKey, Call] = {}
        self._aside_gone: Counter[str] = Counter()
        self._gone: dict[int, None] = {}
        self._reset()
        self.frozen_spans = 0
        """Spans that were forgotten beyond the limit."""

    def _reset(self) -> None:
        self._nodes: dict[Key, Node] = {}
        self._ids: dict[str, list[Node]] = {}
        self._groups: dict[int, Group] = {}
        self._pairs = Pairs()
        self._scopes: dict[str, int] = {}
        self._paired = False
        self._uid = 0
        self._retracted: list[Change] = []
        self._aside = self._aside_gone.copy()
        self._totals = ZERO
        for call in self._frozen.values():
            self._totals = self._totals + call.usage
        self._named: dict[str, tuple[tuple[int, int, int, int], str]] = {}
        self._tags: tuple[tuple[int, int, int, int], tuple[tuple[str, str], ...]] | None = None

    # --- what the run is --------------------------------------------------------------------------------------------

    @property
    def totals(self) -> Usage:
        """Everything counted so far."""
        return self._totals

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Spans not counted, by reason (absolute)."""
        return {reason: count for reason, count in self._aside.items() if count}

    def calls(self) -> dict[Key | FrozenKey, Call]:
        """The calls counted, by the span they are known by; frozen ones added up by provider, model, caller and day."""
        found: dict[Key | FrozenKey, Call] = {}
        for key, call in self._frozen.items():
            found[key] = call
        for group in self._groups.values():
            if group.counted is not None:
                found[group.key] = group.counted
        return found

    @property
    def thread_id(self) -> str | None:
        """The thread that the outermost span naming one names."""
        return self._name("thread_id")

    @property
    def agent(self) -> str | None:
        """The outermost agent's name."""
        return self._name("agent")

    @property
    def user_id(self) -> str | None:
        """The user that the outermost span naming one names."""
        return self._name("user_id")

    @property
    def service(self) -> str | None:
        """`service.name` of the outermost span that has one."""
        return self._name("service")

    @property
    def tags(self) -> Mapping[str, str]:
        """The outermost tags."""
        return dict(self._tags[1]) if self._tags else {}

    @property
    def closed(self) -> bool:
        """`close()` was called."""
        return self._closed

    def _name(self, field: str) -> str | None:
        found = self._named.get(field)
        return None if found is None else found[1]

    def __len__(self) -> int:
        """Spans remembered now, those only named as a parent included."""
        return len(self._nodes)

    def __contains__(self, key: object) -> bool:
        """(trace id, span id) was added and is remembered."""
        node = self._nodes.get(key)  # type: ignore[call-overload]
        return node is not None and node.seen

    # --- what comes in ----------------------------------------------------------------------------------------------

    def open(self, reading: Reading) -> None:
        """A span that has begun, as far as its start attributes say: its agent names the callers of calls that end
        before it. Nothing is counted, and its own end still has to be added."""
        node = self._node((reading.trace_id, reading.span_id))
        if node.seen or node.reading is not None:
            return
        role = reading.role
        node.reading = reading
        node.role = role if role != CALL and role != WEAK and reading.usage is None else PLAIN
        self._link(node, reading.trace_id, reading.parent_id)
        self._learn(reading)

    def ancestor(self, trace_id: int, span_id: int, parent_id: int | None) -> None:
        """A span that is nothing but a link between its parent and its children (`is_plain`), begun or ended."""
        key = (trace_id, span_id)
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key)
        elif node.parent is not None or node.seen:
            node.seen = True
            return
        node.seen = True
        self._link(node, trace_id, parent_id)
        if node.below and node.parent is not None and not self._closed:
            self._arrived(node)
        if len(self._nodes) > self._limit:
            self._evict()

    def add(self, reading: Reading) -> list[Change]:
        """A span has ended. Returns the steps of the totals; a span added before adds nothing."""
        key = (reading.trace_id, reading.span_id)
        node = self._nodes.get(key)
        if node is None:
            if self._gone and hash(key) in self._gone:
                return []
            node = self._nodes[key] = Node(key)
        elif node.seen and (node.reading is not None or not reading.matters):
            return []
        node.seen = True
        if node.parent is None:
            self._link(node, reading.trace_id, reading.parent_id)
        opened = node.reading
        node.reading = reading
        role = node.role = reading.role
        self._learn(reading)
        if self._closed:
            changes = self._add_late(node)
        elif role == PLAIN and not node.below:
            changes = []
        elif role == CALL and not node.below and not self._paired and self._alone(node, reading):
            changes = self._first(node, reading)
        else:
            changes = self._arrived(node, opened)
        if len(self._nodes) > self._limit:
            self._evict()
        return changes

    def remove(self, trace_id: int, span_id: int) -> list[Change]:
        """A reading that moved to another run: as if it had never been here. Nothing once closed."""
        key = (trace_id, span_id)
        gone = self._nodes.get(key)
        if self._closed or gone is None or not gone.seen:
            return []
        return self._rebuild(without=key)

    def exclude(self, trace_id: int, span_id: int, reason: str) -> list[Change]:
        """A reading that is counted elsewhere stays as an ancestor, set aside under `reason`. Nothing once closed."""
        node = self._nodes.get((trace_id, span_id))
        if self._closed or node is None or not node.seen or node.excluded == reason:
            return []
        node.excluded = reason
        group = node.group
        return self._settle([group]) if isinstance(group, Group) else []

    def close(self) -> None:
        """The run closes: from now on a reading that belongs to something counted is set aside as `late`, any other
        call adds, and nothing counted is ever taken back."""
        self._closed = True

    # --- the tree ---------------------------------------------------------------------------------------------------

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

    def _learn(self, reading: Reading) -> None:
        """The run's own facts: the outermost span that states one wins, and who encloses the others began first."""
        if reading.thread_id is not None:
            self._claim("thread_id", reading, reading.thread_id)
        if reading.agent is not None and (reading.role == AGENT or reading.is_run_root):
            self._claim("agent", reading, reading.agent)
        if reading.user_id is not None:
            self._claim("user_id", reading, reading.user_id)
        if reading.service is not None:
            self._claim("service", reading, reading.service)
        if reading.tags:
            order = _outermost(reading)
            if self._tags is None or order < self._tags[0]:
                self._tags = order, reading.tags

    def _claim(self, field: str, reading: Reading, value: str) -> None:
        held = self._named.get(field)
        if held is None or reading.started_at <= held[0][0]:
            order = _outermost(reading)
            if held is None or order < held[0]:
                self._named[field] = order, value

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
                self._scopes[reading.scope] = self._scopes.get(reading.scope, 0) + 1
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

    def _first(self, node: Node, reading: Reading) -> list[Change]:
        self._uid += 1
        group = node.group = Group(node, self._uid)
        self._groups[group.uid] = group
        self._scopes[reading.scope] = self._scopes.get(reading.scope, 0) + 1
        if reading.response_id is not None:
            self._ids[reading.response_id] = [node]
        call = group.counted = call_of_one(node)
        self._totals = self._totals + call.usage
        return [Change(None, call)]

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

    # --- joins ------------------------------------------------------------------------------------------------------

    def _join_by_id(self, node: Node, reading: Reading, touched: dict[Group, None]) -> None:
        assert reading.response_id is not None
        known = self._ids.setdefault(reading.response_id, [])
        for other in known:
            if other.reading is not None and same_id(reading, other.reading):
                self._union(node, other, touched)
        known.append(node)

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

    # --- counting ---------------------------------------------------------------------------------------------------

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
                    member.shadowed = _overshadowed(member)
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

    # --- after closing ----------------------------------------------------------------------------------------------

    def _add_late(self, node: Node) -> list[Change]:
        bits = node.bits
        counts = bool(bits)
        late = counts and self._belongs(node)
        if bits | node.below:
            self._mark(node, bits | node.below, {})
        if late:
            self._put_aside(node, LATE)
        if late or not counts:
            return []
        reading = node.reading
        assert reading is not None
        self._uid += 1
        group = Group(node, self._uid)
        node.group = group
        self._groups[group.uid] = group
        if node.role == CALL or node.role == WEAK:
            if reading.response_id is not None:
                self._ids.setdefault(reading.response_id, []).append(node)
            if self._paired:
                self._pairs.put(group)
        changes: list[Change] = []
        self._count(group, call_of([node]), changes)
        return changes

    def _belongs(self, node: Node) -> bool:
        """Counting this span would take back or repeat something that is counted."""
        reading = node.reading
        assert reading is not None
        for above in ancestors(node):
            if isinstance(above.group, Group) and above.group.counted and (above.role == WEAK or is_aggregate(above)):
                return True
        if node.role != CALL and node.role != WEAK:
            return not reading.lone_aggregate or bool(node.below & (COUNTS | HAS_AGGREGATE))
        if node.role == WEAK and (_overshadowed(node) or node.below & HAS_AGGREGATE):
            return True
        if any(True for _ in beneath(node, HAS_WEAK)):
            return True
        for other in self._ids.get(reading.response_id or "", ()):
            if other.reading is not None and same_id(reading, other.reading):
                return True
        for above in ancestors(node):
            if above.role == PLAIN and (above.seen or above.reading is not None):
                continue
            if above.role == CALL and above.reading is not None and nested(reading, above.reading):
                return True
            break
        for call in calls_directly_below(node):
            if call.reading is not None and node.role == CALL and nested(call.reading, reading):
                return True
        if not self._paired and any(scope != reading.scope for scope in self._scopes):
            self._pair()
        if not self._paired:
            return False
        probe = Group(node, 0)
        self._pairs.put(probe)
        found = next(self._pairs.near(probe), None)
        self._pairs.drop(probe)
        return found is not None

    # --- bounds -----------------------------------------------------------------------------------------------------

    def _evict(self) -> None:
        target = self._limit * 3 // 4
        for finished in (True, False):
            for node in list(self._nodes.values()):
                if len(self._nodes) <= target:
                    return
                if node.key in self._nodes and (not finished or (node.seen and not node.kids)):
                    self._freeze(node)

    def _freeze(self, node: Node) -> None:
        """Forget the spans of one unit; what it counted stays counted."""
        group = node.group
        if not isinstance(group, Group):
            self._forget(node)
            return
        for frozen in (group, *group.mates):
            self._pairs.drop(frozen)
            self._groups.pop(frozen.uid, None)
            call = frozen.counted
            if call is not None:
                key = (call.provider, call.model, call.caller, _day(call.ended_at))
                held = self._frozen.get(key)
                self._frozen[key] = call if held is None else _add_up(held, call)
            for member in frozen.members:
                self._forget(member)

    def _forget(self, node: Node) -> None:
        self._nodes.pop(node.key, None)
        if node.parent is not None and node.parent.kids is not None:
            node.parent.kids.discard(node)
        for kid in node.kids or ():
            kid.parent = None
        reading = node.reading
        if reading is not None and reading.response_id is not None:
            known = self._ids.get(reading.response_id)
            if known is not None and node in known:
                known.remove(node)
                if not known:
                    del self._ids[reading.response_id]
        if node.aside is not None:
            self._aside_gone[node.aside] += 1
        if node.seen:
            self.frozen_spans += 1
            self._gone[hash(node.key)] = None
            if len(self._gone) > 4 * self._limit:
                del self._gone[next(iter(self._gone))]

    def _rebuild(self, without: Key) -> list[Change]:
        before = {group.key: group.counted for group in self._groups.values() if group.counted is not None}
        nodes = [node for node in self._nodes.values() if node.key != without]
        named, tags, gone = self._named, self._tags, self._gone
        self._reset()
        if self.frozen_spans:
            self._named, self._tags = named, tags
        self._gone = {}
        for node in nodes:
            reading = node.reading
            if reading is not None and node.seen:
                self._add_again(node, reading)
            elif reading is not None:
                self.open(reading)
            elif node.seen:
                parent = node.parent
                self.ancestor(*node.key, None if parent is None else parent.key[1])
        self._gone = gone
        after = {group.key: group.counted for group in self._groups.values() if group.counted is not None}
        return [
            Change(before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)
        ]

    def _add_again(self, node: Node, reading: Reading) -> None:
        limit, self._limit = self._limit, 2**62
        self.add(reading)
        self._limit = limit
        if node.excluded:
            self.exclude(*node.key, node.excluded)


def _key(group: Group) -> Key:
    return group.key


def _overshadowed(node: Node) -> str | None:
    """Why a weak span does not count: calls below it, or a call above."""
    if node.below & COUNTS:
        return AGGREGATED
    return REPEAT if any(above.role == CALL for above in ancestors(node)) else None


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


def _outermost(reading: Reading) -> tuple[int, int, int, int]:
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id


def _add_up(held: Call, call: Call) -> Call:
    known = [cost for cost in (held.reported_cost_nanousd, call.reported_cost_nanousd) if cost is not None]
    cost = sum(known) if known else None
    return Call(
        held.provider, held.model, held.caller, held.usage + call.usage, cost, max(held.ended_at, call.ended_at)
    )


def _day(ended_at: int) -> int:
    return ended_at // 86_400_000_000_000
