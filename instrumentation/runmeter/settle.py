"""Rule 2: one call counts once, whatever the instrumentations say. The Settler of one run.

Until `close()` a run's totals are a function of the *set* of its readings: any order, any batching, any duplication,
parent first or child first. Readings are classified where they are read (`call.py`); here they are put into their
tree (`ancestry.py`, `joining.py`), joined into groups and units that are one call each (`groups.py`, `twins.py`), and
counted (`counting.py`) by the leaf rule:

- calls count, each group once;
- a span that has usage and does not say what it is (weak) counts only where no call is above or below it;
- usage on agents, chains and workflows counts only where no call below is known, the outermost of them once.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from runmeter import scopes
from runmeter.ancestry import Key, Node
from runmeter.call import Reading
from runmeter.closing import Closing
from runmeter.dialects import CALL, PLAIN, WEAK
from runmeter.groups import Group
from runmeter.spans import Call, Change
from runmeter.usage import Usage

LIMIT: Final = 1024
"""Spans remembered per run. Beyond it the oldest finished ones are frozen: what they counted stays, repeats of them
that come later are not recognised."""

_DAY: Final = 86_400_000_000_000

FrozenKey = tuple[str, str, str, int]
"""Provider, model, caller and day (since the epoch) of calls whose spans were forgotten."""


class Settler(Closing):
    """The calls of one run. Not thread-safe: the processor, or a run's row, holds the lock."""

    def __init__(self, *, limit: int = LIMIT) -> None:
        super().__init__()
        self._limit = max(8, limit)
        self._closed = False
        self._frozen: dict[FrozenKey, Call] = {}
        self._aside_gone: Counter[str] = Counter()
        self._fates: Counter[tuple[str, str, str | None]] = Counter()
        self.frozen_spans = 0
        """Spans that were forgotten beyond the limit."""

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
        if len(self._nodes) > self._limit:
            self._evict()

    def open(self, reading: Reading) -> None:
        """A span that has begun, as far as its start attributes say: its agent names the callers of calls that end
        before it. Nothing is counted, and its own end still has to be added."""
        node = self._node((reading.trace_id, reading.span_id))
        if node.seen or node.reading is not None:
            return
        self._tree += 1
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
            self._tree += 1
            return
        else:
            self._tree += 1
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
            if reading.role == CALL and not self._closed:
                ordinary = self._ordinary(key, reading)
                if ordinary is not None:
                    if len(self._nodes) > self._limit:
                        self._evict()
                    return ordinary
            node = self._nodes[key] = Node(key)
        elif node.seen and (node.reading is not None or not reading.matters):
            return []
        else:
            self._tree += 1
        node.seen = True
        if node.parent is None:
            self._link(node, reading.trace_id, reading.parent_id)
        opened = node.reading
        node.reading = reading
        role = node.role = reading.role
        self._learn(reading)
        if self._closed:
            changes = self._add_late(node)
            self._decided(node)
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
        group = gone.group
        if gone.kids or not isinstance(group, Group) or group.mates or len(group.members) > 1:
            return self._rebuild(without=key)
        # Nothing here has to do with it but what is above, for which it stays a call that is known.
        changes: list[Change] = []
        self._count(group, None, changes)
        self._put_aside(gone, None)
        if group.index_keys:
            self._pairs.drop(group)
        del self._groups[group.uid]
        self._unlink(gone)
        return changes

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
        if not self._closed:
            self._closed = True
            for node in self._nodes.values():
                self._decided(node)

    def take_fates(self) -> Counter[tuple[str, str, str | None]]:
        """(fate, scope, source id) → spans of which it was decided since this was last asked whether they count: when
        the run closes, or forgets them, and of later ones when they come. See `scopes.py`."""
        fates, self._fates = self._fates, Counter()
        return fates

    def _decided(self, node: Node) -> None:
        reading, group, fate = node.reading, node.group, node.aside
        if reading is None or not node.seen:
            return
        if fate is None:
            if not isinstance(group, Group):
                return
            calls = [one.counted for one in (group, *group.mates) if one.counted is not None]
            if not calls:
                return
            fate = scopes.WITHOUT_USAGE if calls[0].usage.calls_without_usage else scopes.COUNTED
        scope = reading.scope if len(self._fates) < scopes.NEWS_LIMIT else scopes.OTHER
        self._fates[fate, scope, reading.source_id] += 1

    def _evict(self) -> None:
        """Freeze the oldest spans down to three quarters of the limit, the finished ones first."""
        target = self._limit * 3 // 4
        calls: list[Call] = []
        for finished in (True, False):
            for node in list(self._nodes.values()):
                if len(self._nodes) <= target:
                    break
                if node.key in self._nodes and (not finished or (node.seen and not node.kids)):
                    self._freeze(node, calls)
        self._hold(calls)

    def _freeze(self, node: Node, calls: list[Call]) -> None:
        """Forget the spans of one unit; what it counted stays counted."""
        group = node.group
        if not isinstance(group, Group):
            self._forget(node)
            return
        for frozen in (group, *group.mates):
            if frozen.index_keys:
                self._pairs.drop(frozen)
            self._groups.pop(frozen.uid, None)
            if frozen.counted is not None:
                calls.append(frozen.counted)
            for member in frozen.members:
                self._forget(member)

    def add_call(self, call: Call) -> None:
        """Count what no span stands for."""
        self._hold([call])
        self._totals = self._totals + call.usage

    def _hold(self, calls: list[Call]) -> None:
        """Add up what was frozen by provider, model, caller and day."""
        cells: dict[FrozenKey, list[Call]] = {}
        for call in calls:
            cells.setdefault((call[0], call[1], call[2], call[5] // _DAY), []).append(call)
        for key, alike in cells.items():
            held = self._frozen.get(key)
            if held is not None:
                alike.append(held)
            usage = Usage(*map(sum, zip(*[call.usage for call in alike], strict=True)))
            costs = [call.reported_cost_nanousd for call in alike if call.reported_cost_nanousd is not None]
            ended_at = max(call.ended_at for call in alike)
            self._frozen[key] = Call(*key[:3], usage, sum(costs) if costs else None, ended_at)

    def _unlink(self, node: Node) -> None:
        """Out of the tree, and out of the index of response ids."""
        self._tree += 1
        self._nodes.pop(node.key, None)
        if node.parent is not None and node.parent.kids is not None:
            node.parent.kids.discard(node)
        for kid in node.kids or ():
            kid.parent = None
        reading = node.reading
        if reading is not None and reading.response_id is not None:
            known = self._ids.get(reading.response_id)
            entry = (reading.started_at, node.key, node)
            if known is not None and entry in known:
                known.remove(entry)
                if not known:
                    del self._ids[reading.response_id]

    def _forget(self, node: Node) -> None:
        self._unlink(node)
        if not self._closed:
            self._decided(node)
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
        Closing.__init__(self)
        self._aside = self._aside_gone.copy()
        for call in self._frozen.values():
            self._totals = self._totals + call.usage
        if self.frozen_spans:
            self._named, self._tags = named, tags
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
