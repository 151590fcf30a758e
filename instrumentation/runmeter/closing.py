"""After a run has closed: what belongs to something counted is late, any other call adds."""

from __future__ import annotations

from runmeter.ancestry import (
    COUNTS,
    HAS_AGGREGATE,
    HAS_WEAK,
    Node,
    ancestors,
    beneath,
    calls_directly_below,
    is_aggregate,
)
from runmeter.counting import LATE, overshadowed
from runmeter.dialects import CALL, PLAIN, WEAK
from runmeter.groups import Group, call_of
from runmeter.joining import Joining
from runmeter.same_call import nested
from runmeter.spans import Change


class Closing(Joining):
    """What comes late."""

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
            self._know_id(node, reading)
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
        if node.role == WEAK and (overshadowed(node) or node.below & HAS_AGGREGATE):
            return True
        if any(True for _ in beneath(node, HAS_WEAK)):
            return True
        if self._of_same_id(reading):
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
