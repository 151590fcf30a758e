"""After a run has closed: what belongs to something counted is late, any other call adds."""

from __future__ import annotations

from runmeter.counting.pairs import Group
from runmeter.counting.same_call import nested, told_again
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
    return bool(units.twins(node, reading))


def answered_late(node: Node, reading: Reading, units: Units) -> list[Node]:
    """The spans, decided already, of a call that counted without usage and whose usage this one has: a response in the
    background, which is asked for again until it is there, often when its run is long over; a stream of LiteLLM's,
    which several callbacks tell of when it is over. Its usage is added; calls and messages are what they were."""
    if reading.usage is None:
        return []
    if reading.tells == REREAD:
        known = [group for same in units.ids.same(reading) if (group := units.group_of(same)) is not None]
    else:
        key = told_again(reading)
        twins = units.twins(node, reading) if key is not None else []
        known = [group for group in twins if any(told_again(one) == key for one in group.readings)]
    counted = [group.counted for group in known if group.counted is not None]
    if not counted or not all(call.usage.calls_without_usage for call in counted):
        return []
    return [member for group in known for one in (group, *group.mates) for member in one.members]
