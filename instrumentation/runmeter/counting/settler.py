"""Rule 2: one call counts once, whatever the instrumentations say. The Settler of one run.

Until `close()` a run's totals are a function of the *set* of its readings: any order, any batching, any duplication,
parent first or child first. A reading takes its place in a tree (`tree.py`); what is one call is found by the tree, by
response ids (`ids.py`) and by likeness (`same_call.py`, `pairs.py`); groups count as `units.py` says and are held
against each other in one `Verdict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from runmeter.counting.calls import call_around
from runmeter.counting.facts import Facts
from runmeter.counting.folded import Folded, Place, folds
from runmeter.counting.late import answered_late, belongs
from runmeter.counting.pairs import Group
from runmeter.counting.tree import (
    COUNTS,
    HAS_AGGREGATE,
    HAS_CALL,
    REACH,
    Key,
    Node,
    Tree,
    beneath,
    call_above,
    calls_directly_below,
    thread_of,
)
from runmeter.counting.units import Units
from runmeter.counting.verdict import LATE, FrozenKey, Verdict
from runmeter.reading.read import Reading
from runmeter.reading.roles import CALL, PLAIN, WEAK
from runmeter.spans import Call, Change
from runmeter.usage import Usage

LIMIT: Final = 1024
"""Spans remembered per run. Beyond it the oldest finished ones are frozen: what they counted stays, repeats of them
that come later are not recognised."""

_new: Final[Any] = tuple.__new__


class Settler:
    """The calls of one run. Not thread-safe: the processor, or a run's row, holds the lock."""

    __slots__ = ("__weakref__", "_closed", "_folded", "_limit", "_tree", "_units", "_verdict", "facts", "frozen_spans")

    def __init__(self, *, limit: int = LIMIT) -> None:
        self._folded = Folded()
        self._tree = Tree(self._folded, self._unfold)
        self._verdict = Verdict()
        self._units = Units(self._verdict, self._tree, self._unfold)
        self.facts = Facts(self._readings)
        """What the spans say about the run itself."""
        self._limit = max(8, limit)
        self._closed = False
        self.frozen_spans = 0
        """Spans that were forgotten beyond the limit."""

    def __len__(self) -> int:
        """Spans remembered now, those only named as a parent included."""
        return len(self._tree.nodes) + len(self._folded)

    def __contains__(self, key: object) -> bool:
        """(trace id, span id) was added and is remembered."""
        node = self._tree.nodes.get(key)  # type: ignore[call-overload]
        return node.seen if node is not None else key in self._folded  # type: ignore[operator]

    @property
    def totals(self) -> Usage:
        """Everything counted so far."""
        return self._verdict.totals

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Spans not counted, by reason (absolute)."""
        return self._verdict.set_aside

    def calls(self) -> dict[Key | FrozenKey, Call]:
        """The calls counted, by the span they are known by; frozen ones added up by provider, model, caller and day."""
        found: dict[Key | FrozenKey, Call] = dict(self._verdict.frozen.items())
        return found | self._units.counted()

    @property
    def frozen_kinds(self) -> int:
        """How many sums the calls of forgotten spans were added up to."""
        return len(self._verdict.frozen)

    def remembered(self) -> Iterable[Call]:
        """The calls counted whose spans are not frozen."""
        return self._units.counted().values()

    @property
    def closed(self) -> bool:
        """`close()` was called."""
        return self._closed

    @property
    def limit(self) -> int:
        """Spans remembered at most."""
        return self._limit

    def keep(self, limit: int) -> None:
        """Remember so many spans at most from now on; what those forgotten counted stays."""
        self._limit = max(8, limit)
        self._evict()

    def open(self, reading: Reading) -> None:
        """A span that has begun, as far as its start attributes say: its agent names the callers of calls that end
        before it. Nothing is counted, and its own end still has to be added."""
        node = self._tree.node((reading.trace_id, reading.span_id))
        if node.seen or node.reading is not None:
            return
        self._tree.version += 1
        role = reading.role
        node.reading = reading
        node.role = role if role != CALL and role != WEAK and reading.usage is None else PLAIN
        self._tree.link(node, reading.trace_id, reading.parent_id)
        self.facts.learn(reading)

    def ancestor(self, trace_id: int, span_id: int, parent_id: int | None) -> None:
        """A span that is nothing but a link between its parent and its children (`is_plain`), begun or ended."""
        tree = self._tree
        key = (trace_id, span_id)
        node = tree.find(key)
        if node is None:
            node = tree.nodes[key] = Node(key)
        elif node.parent is not None or node.seen:
            node.seen = True
            tree.version += 1
            return
        else:
            tree.version += 1
        node.seen = True
        tree.link(node, trace_id, parent_id)
        if node.below and node.parent is not None and not self._closed:
            self._arrived(node)
        self._evict()

    def add(self, reading: Reading) -> list[Change]:
        """A span has ended. Returns the steps of the totals; a span added before adds nothing."""
        tree = self._tree
        key = (reading.trace_id, reading.span_id)
        node = tree.nodes.get(key)
        if node is None:
            if tree.forgot(key) or (key[1] in self._folded.calls and key in self._folded):
                return []
            if reading.role == CALL and not self._closed:
                folded = self._fold(reading)
                if folded is not None:
                    self._evict()
                    return [folded]
            node = tree.nodes[key] = Node(key)
        elif node.seen and (node.reading is not None or not reading.matters):
            return []
        else:
            tree.version += 1
        node.seen = True
        if node.parent is None:
            tree.link(node, reading.trace_id, reading.parent_id)
        opened = node.reading
        if opened is not None:
            self.facts.unlearn(opened)
        node.reading = reading
        role = node.role = reading.role
        self.facts.learn(reading)
        if self._closed:
            changes = self._add_late(node, reading)
            self._verdict.decided(node)
        elif role == PLAIN and not node.below:
            changes = []
        elif role == CALL and not node.below and not self._units.paired and self._alone(node, reading):
            changes = [self._units.alone(node, reading)]
            self._fold_back(node, reading)
        else:
            changes = self._arrived(node, opened)
            if role == CALL:
                self._fold_back(node, reading)
        self._evict()
        return changes

    def add_call(self, call: Call) -> None:
        """Count what no span stands for."""
        self._verdict.freeze([call])
        self._verdict.add(call)

    def remove(self, trace_id: int, span_id: int) -> list[Change]:
        """A reading that moved to another run: as if it had never been here. Nothing once closed."""
        key = (trace_id, span_id)
        self._unfold()
        self._folded.forget_kinds()
        gone = self._tree.nodes.get(key)
        if self._closed or gone is None or not gone.seen:
            return []
        group, reading = self._units.group_of(gone), gone.reading
        if (
            gone.kids
            or reading is None
            or group is None
            or group.mates
            or self._units.has_hollow
            or len(group.members) > 1
            or call_above(gone)
        ):
            return self._rebuild(without=key)
        # Nothing here has to do with it but what is above and takes it for a call below.
        changes: list[Change] = []
        self._verdict.count(group, None, changes)
        self._verdict.put_aside(gone, None)
        self._units.drop(group)
        self._units.ids.drop(gone)
        touched: dict[Group, None] = {}
        self._units.touch(self._tree.unmark(gone), touched)
        self.facts.unlearn(reading)
        return changes + self._units.settle(touched) if touched else changes

    def exclude(self, trace_id: int, span_id: int, reason: str) -> list[Change]:
        """A reading that is counted elsewhere stays as an ancestor, set aside under `reason`. Nothing once closed."""
        node = self._tree.find((trace_id, span_id))
        if self._closed or node is None or not node.seen or node.excluded == reason:
            return []
        node.excluded = reason
        group = self._units.group_of(node)
        return [] if group is None else self._units.settle([group])

    def close(self) -> None:
        """The run closes: from now on a reading that belongs to something counted is set aside as `late`, any other
        call adds, and nothing counted is ever taken back."""
        if not self._closed:
            self._closed = True
            for node in self._tree.nodes.values():
                self._verdict.decided(node)
            for _, reading in self._folded.readings():
                self._verdict.decided_to_count(reading)

    def take_fates(self) -> Counter[tuple[str, str, str | None]]:
        """(fate, scope, source id) → spans of which it was decided since this was last asked whether they count: when
        the run closes, or forgets them, and of later ones when they come. See `scopes.py`."""
        return self._verdict.take_fates()

    # A span takes its place.

    def _fold(self, reading: Reading) -> Change | None:
        """One more call like the one before it below the same span, by the same instrumentation, which is what most
        are; None where it is any other."""
        above = None if reading.parent_id is None else self._tree.nodes.get((reading.trace_id, reading.parent_id))
        place = None if above is None else above.place
        if place is None or place.version != self._tree.version or self._units.paired:
            return None
        folded, response_id = self._folded, reading.response_id
        if response_id in self._units.ids or folded.knows(response_id):
            return None
        packed = folded.pack(reading)
        if packed is None:
            return None
        kind = folded.kind_of(reading)
        if kind is None:
            if reading.scope not in self._units.scopes or not folds(reading):
                return None
            self.facts.learn(reading)
            kind = folded.learn(reading, self.facts.said_by(reading))
            if kind is None:
                self.facts.unlearn(reading)
                return None
        else:
            self.facts.again(kind.facts, reading)
        folded.take(reading, packed, place, kind)
        call = call_around(reading, place.caller, place.thread_id)
        self._verdict.add(call)
        change: Change = _new(Change, (None, call))
        return change

    def _unfold(self) -> None:
        """Make nodes of all folded calls, for whoever has to look at them."""
        if not self._folded:
            return
        tree = self._tree
        for place, reading in self._folded.oldest(len(self._folded)):
            node = tree.nodes[reading.key] = Node(reading.key)
            node.seen = True
            node.role = CALL
            node.reading = reading
            node.parent = place.above
            if place.above is not None:
                if place.above.kids is None:
                    place.above.kids = set()
                place.above.kids.add(node)
            node.group = call_around(reading, place.caller, place.thread_id)
            self._units.ids.add(node, reading)

    def _fold_back(self, node: Node, reading: Reading) -> None:
        """Fold a call that took its place and has to do with nothing, as the next ones like it will have."""
        above, group = node.parent, node.group
        if above is None or node.kids or node.shadowed or node.excluded or node.aside or not folds(reading):
            return
        call = group
        if isinstance(group, Group):
            call = None if group.mates or len(group.members) > 1 else group.counted
        if not isinstance(call, Call) or self._units.paired or self._units.has_hollow or not _is_apart(node):
            return
        place = above.place
        if place is None or not place.held:
            place = above.place = Place(above, self._tree.version, call.caller, thread_of(above))
        packed = None if self._folded.knows(reading.response_id) else self._folded.pack(reading)
        if packed is None or call != call_around(reading, place.caller, place.thread_id):
            return
        place.version = self._tree.version
        kind = self._folded.kind_of(reading) or self._folded.learn(reading, self.facts.said_by(reading))
        if kind is not None:
            self._folded.take(reading, packed, place, kind)
            self._units.let_go(node)
            self._tree.let_go(node)

    def _alone(self, node: Node, reading: Reading) -> bool:
        """Nothing known can have to do with this call: the common case, kept short."""
        units = self._units
        if reading.stream_log or reading.response_id in units.ids or self._folded.knows(reading.response_id):
            return False
        if reading.scope not in units.scopes and units.scopes:
            return False
        return _is_apart(node)

    def _arrived(self, node: Node, opened: Reading | None = None) -> list[Change]:
        """A span took its place: join it, and look again at everything that it tells something new about."""
        units = self._units
        touched: dict[Group, None] = {}
        role = node.role
        bits = node.bits
        news = not (opened and _same_news(opened, node.reading))
        if self._folded and self._tells_of_others(node, news):
            self._unfold()
        if role in (CALL, WEAK) or bits == HAS_AGGREGATE:
            touched[units.begin(node)] = None
            if role in (CALL, WEAK):
                reading = node.reading
                assert reading is not None
                units.meet(reading.scope, touched)
                if reading.response_id is not None:
                    units.join_by_id(node, reading, touched)
            elif node.reading is not None:
                units.meet_summary(node.reading.scope)
        bits |= node.below
        if bits:
            units.touch(self._tree.mark(node, bits), touched)
        if role == CALL:
            units.climb(node, touched)
        if node.below:
            if node.below & HAS_CALL and role in (CALL, PLAIN):
                for call in _climbers(node):
                    units.climb(call, touched)
            if news:
                units.touch(beneath(node, COUNTS | HAS_AGGREGATE), touched)
        return units.settle(touched)

    def _tells_of_others(self, node: Node, news: bool) -> bool:
        """Folded calls may have to do with this span: those below it, those with its id, and all where it is the first
        of its instrumentation."""
        if node.below and (news or node.role == CALL or (node.role == PLAIN and call_above(node) is not None)):
            return True
        if node.role not in (CALL, WEAK):
            return False
        reading = node.reading
        assert reading is not None
        return (
            node.role == WEAK
            or reading.stream_log
            or reading.scope not in self._units.scopes
            or self._folded.knows(reading.response_id)
        )

    def _add_late(self, node: Node, reading: Reading) -> list[Change]:
        self._unfold()
        bits = node.bits
        late = bool(bits) and belongs(node, self._units)
        if bits | node.below:
            self._tree.mark(node, bits | node.below)
        if late and (answered := answered_late(node, reading, self._units)):
            # The call counted without usage, and here it is. What was decided of spans stays: this one came late.
            asides = [(other, other.aside) for other in answered]
            touched: dict[Group, None] = {self._units.begin(node): None}
            self._units.join_by_id(node, reading, touched)
            changes = self._units.settle(touched)
            for other, aside in asides:
                self._verdict.put_aside(other, aside)
            self._verdict.put_aside(node, LATE)
            return changes
        if late:
            self._verdict.put_aside(node, LATE)
        if late or not bits:
            return []
        group = self._units.begin(node)
        if node.role == CALL or node.role == WEAK:
            self._units.scopes.add(reading.scope)
            self._units.ids.add(node, reading)
            self._units.index(group)
        return self._units.count_alone(group)

    # Spans are forgotten.

    def _evict(self) -> None:
        """Freeze the oldest spans down to three quarters of the limit, the finished ones first, when there are more."""
        nodes, folded = self._tree.nodes, self._folded
        remembered = len(nodes) + len(folded.calls)
        if remembered <= self._limit:
            return
        target = self._limit * 3 // 4
        calls: list[Call] = []
        # As large a part of those folded as of the others.
        self._freeze_folded(-(-(remembered - target) * len(folded) // remembered), calls)
        for finished in (True, False):
            for node in list(nodes.values()):
                if len(nodes) + len(folded) <= target:
                    break
                if node.key in nodes and (not finished or (node.seen and not node.has_kids)):
                    self._freeze(node, calls)
            self._freeze_folded(len(nodes) + len(folded) - target, calls)
        self._verdict.freeze(calls)

    def _freeze_folded(self, number: int, calls: list[Call]) -> None:
        for place, reading in self._folded.oldest(max(0, number)):
            calls.append(call_around(reading, place.caller, place.thread_id))
            if not self._closed:
                self._verdict.decided_to_count(reading)
            self._tree.remember(reading.key, 4 * self._limit)
            self.frozen_spans += 1

    def _freeze(self, node: Node, calls: list[Call]) -> None:
        """Forget the spans of one unit; what it counted stays counted."""
        group = node.group
        if not isinstance(group, Group):
            if isinstance(group, Call):
                calls.append(group)
            self._forget(node)
            return
        for frozen in (group, *group.mates):
            self._units.drop(frozen)
            if frozen.counted is not None:
                calls.append(frozen.counted)
            for member in frozen.members:
                self._forget(member)

    def _forget(self, node: Node) -> None:
        self._units.ids.drop(node)
        if not self._closed:
            self._verdict.decided(node)
        if node.seen:
            self.frozen_spans += 1
            self._tree.forget(node, 4 * self._limit)
        else:
            self._tree.unlink(node)

    def _readings(self) -> Iterable[Reading]:
        return self._tree.readings()

    def _rebuild(self, without: Key) -> list[Change]:
        """Tell everything again but one span."""
        before = self._units.counted()  # unfolds
        told = self._tree
        nodes = [node for node in told.nodes.values() if node.key != without]
        self._verdict = self._verdict.anew(told.nodes.values())
        self._tree = told.anew()
        self._units = Units(self._verdict, self._tree, self._unfold)
        gone = told.nodes[without].reading
        if gone is not None:
            self.facts.unlearn(gone)
        facts, self.facts = self.facts, Facts(self._readings)  # they are what they were; these here are thrown away
        limit, self._limit = self._limit, 2**62
        for node in nodes:
            reading = node.reading
            if reading is not None and node.seen:
                self.add(reading)
                if node.excluded:
                    self.exclude(*node.key, node.excluded)
            elif reading is not None:
                self.open(reading)
            elif node.seen:
                parent = node.parent
                self.ancestor(*node.key, None if parent is None else parent.key[1])
        self._limit = limit
        self.facts = facts
        after = self._units.counted()
        self._folded.forget_kinds()
        return [
            Change(before.get(key), after.get(key)) for key in {**before, **after} if before.get(key) != after.get(key)
        ]


def _is_apart(call: Node) -> bool:
    """What is above a call knows of calls below it, and is none itself."""
    above = call.parent
    while above is not None:
        if not above.below & HAS_CALL or above.role == CALL:
            return False
        if above.role != PLAIN or not above.seen:
            return True
        above = above.parent
    return True


def _climbers(node: Node) -> Iterable[Node]:
    """Calls below that may be one with this one, or with one above it: the nearest, and those below such of them as
    have no usage, which may only repeat what is below them."""
    waiting = [node]
    met = {node}
    while waiting and len(met) <= REACH:
        for call in calls_directly_below(waiting.pop()):
            if call not in met:
                met.add(call)
                yield call
                if call.below & HAS_CALL and call.reading is not None and call.reading.usage is None:
                    waiting.append(call)


def _same_news(opened: Reading, ended: Reading | None) -> bool:
    """What a span tells those below it, it told when it began."""
    return (
        ended is not None
        and ended.role == opened.role
        and ended.role not in (CALL, WEAK)
        and ended.agent == opened.agent
        and ended.model == opened.model
        and ended.caller == opened.caller
        and ended.thread_id == opened.thread_id
        and ended.usage is None
    )
