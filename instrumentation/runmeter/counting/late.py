"""After a run has closed: what belongs to something counted is late, any other call adds."""

from __future__ import annotations

from runmeter.counting.pairs import Group
from runmeter.counting.same_call import nested
from runmeter.counting.tree import (
    COUNTS,
    HAS_AGGREGATE,
    HAS_WEAK,
    Node,
    ancestors,
    beneath,
    calls_directly_below,
    is_aggregate,
)
from runmeter.counting.units import Units, overshadowed
from runmeter.reading.read import Reading
from runmeter.reading.roles import CALL, PLAIN, REREAD, WEAK


def belongs(node: Node, units: Units) -> bool:
    """Counting this span would take back or repeat something that is counted."""
    reading = node.reading
    assert reading is not None
    if units.is_hollow(reading):
        return True
    for above in ancestors(node):
        if isinstance(above.group, Group) and above.group.counted and (above.role == WEAK or is_aggregate(above)):
            return True
    if node.role != CALL and node.role != WEAK:
        return not reading.lone_aggregate or bool(node.below & (COUNTS | HAS_AGGREGATE))
    if node.role == WEAK and (overshadowed(node) or node.below & HAS_AGGREGATE):
        return True
    if any(True for _ in beneath(node, HAS_WEAK)):
        return True
    if units.ids.same(reading):
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
    return units.has_twin(node, reading)


def answers_late(reading: Reading, units: Units) -> bool:
    """It reads the answer to a call that counted without usage: a response in the background, which is asked for again
    until it is there, often when its run is long over. Its usage is added; calls and messages are what they were."""
    if reading.tells != REREAD or reading.usage is None:
        return False
    groups = [node.group for node in units.ids.same(reading)]
    counted = [group.counted for group in groups if isinstance(group, Group) and group.counted is not None]
    return bool(counted) and all(call.usage.calls_without_usage for call in counted)
