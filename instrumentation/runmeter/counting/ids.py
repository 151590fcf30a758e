"""Calls by the response id that the provider gave them."""

from __future__ import annotations

from bisect import bisect_left, insort

from runmeter.counting.same_call import SLACK, same_id
from runmeter.counting.tree import Key, Node
from runmeter.reading import semconv
from runmeter.reading.read import Reading
from runmeter.reading.roles import REREAD


class Ids:
    """Nodes by response id. Most ids are one call's, but a stand-in for a provider may give one to thousands."""

    __slots__ = ("_known", "_longest", "_rereads")

    def __init__(self) -> None:
        self._known: dict[str, list[tuple[int, Key, Node]]] = {}
        self._rereads: dict[str, list[Node]] = {}
        """Those that read an answer again, whenever."""
        self._longest = 0
        """Nanoseconds of the longest call with an id."""

    def __contains__(self, response_id: object) -> bool:
        return response_id in self._known

    def add(self, node: Node, reading: Reading) -> None:
        """Know the node by its id, if it has one."""
        if reading.response_id is None:
            return
        entry = (reading.started_at, node.key, node)
        known = self._known.get(reading.response_id)
        if known is None:
            self._known[reading.response_id] = [entry]
        else:
            insort(known, entry)
        if reading.tells == REREAD:
            self._rereads.setdefault(reading.response_id, []).append(node)
        lasted = reading.ended_at - reading.started_at
        if lasted > self._longest:
            self._longest = lasted

    def drop(self, node: Node) -> None:
        """Forget the node."""
        reading = node.reading
        if reading is None or reading.response_id is None:
            return
        known = self._known.get(reading.response_id)
        entry = (reading.started_at, node.key, node)
        if known is not None and entry in known:
            known.remove(entry)
            rereads = self._rereads.get(reading.response_id)
            if rereads is not None and node in rereads:
                rereads.remove(node)
                if not rereads:
                    del self._rereads[reading.response_id]
            if not known:
                del self._known[reading.response_id]

    def same(self, reading: Reading) -> list[Node]:
        """Nodes that are the same call by their response id."""
        known = self._known.get(reading.response_id or "")
        if known is None:
            return []
        rereads = reading.tells == REREAD
        if rereads or reading.scope == semconv.SCOPE:
            near = known
        else:
            near = known[bisect_left(known, (reading.started_at - self._longest - SLACK,)) :]
        found = []
        for started_at, _, other in near:
            if started_at > reading.ended_at + SLACK and not rereads and reading.scope != semconv.SCOPE:
                break
            if other.reading is not None and same_id(reading, other.reading):
                found.append(other)
                if reading.scope == semconv.SCOPE:
                    break
        if not rereads and self._rereads:
            again = self._rereads.get(reading.response_id or "", ())
            found += [
                other
                for other in again
                if other not in found and other.reading is not None and same_id(reading, other.reading)
            ]
        return found
