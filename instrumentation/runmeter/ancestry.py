"""The spans of a run as a tree that may have holes: who is above, who is below, and who made the call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from runmeter.call import Reading
from runmeter.dialects import AGENT, AGGREGATE, CALL, PLAIN, TOOL, WEAK

REACH: Final = 256
"""How many ancestors are looked at for a caller, and how many levels down news travel: deeper is a loop, not agents."""

HAS_AGGREGATE: Final = 1
HAS_WEAK: Final = 2
HAS_CALL: Final = 4
COUNTS: Final = HAS_WEAK | HAS_CALL

LEAD: Final = "lead_agent"

Key = tuple[int, int]


class Node:
    """A span's place. It exists before its span does, as soon as a child names it as parent."""

    __slots__ = (
        "aside",
        "below",
        "excluded",
        "group",
        "key",
        "kids",
        "ordinary",
        "parent",
        "reading",
        "role",
        "seen",
        "shadowed",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.seen = False
        """Its span has ended and was added."""
        self.reading: Reading | None = None
        self.role: int = PLAIN
        self.parent: Node | None = None
        self.kids: set[Node] | None = None
        self.below = 0
        """What is known in the subtree under it, as `HAS_…` bits."""
        self.group: object | None = None
        self.shadowed: str | None = None
        """Why this call does not count by itself: another span of the same call says it better."""
        self.excluded: str | None = None
        self.aside: str | None = None
        """The reason under which it is set aside now."""
        self.ordinary: tuple[int, str] | None = None
        """(state of the tree, caller) where a call right below it had to do with nothing else: so has the next one."""

    @property
    def bits(self) -> int:
        """What this node is to those above it."""
        if self.role == CALL:
            return HAS_CALL
        if self.role == WEAK:
            return HAS_WEAK
        return HAS_AGGREGATE if is_aggregate(self) else 0


def is_aggregate(node: Node) -> bool:
    """An agent, chain or workflow span with usage on it."""
    reading = node.reading
    return (node.role == AGENT or node.role == AGGREGATE) and reading is not None and reading.usage is not None


def ancestors(node: Node) -> Iterator[Node]:
    """The nearest `REACH` ancestors; a loop ends there too."""
    above = node.parent
    for _ in range(REACH):
        if above is None:
            return
        yield above
        above = above.parent


def beneath(node: Node, bits: int) -> Iterator[Node]:
    """Descendants with any of `bits`, as far down as `REACH`, whatever lies between."""
    level = [node]
    met = {node}
    for _ in range(REACH):
        following: list[Node] = []
        for parent in level:
            for kid in parent.kids or ():
                if kid not in met:
                    met.add(kid)
                    mine = kid.bits
                    if mine & bits:
                        yield kid
                    if kid.below & bits:
                        following.append(kid)
        if not following:
            return
        level = following


def calls_directly_below(node: Node) -> Iterator[Node]:
    """The nearest calls under `node`, with nothing but plain spans between."""
    level = [node]
    met = {node}
    for _ in range(REACH):
        following: list[Node] = []
        for parent in level:
            for kid in parent.kids or ():
                if kid in met:
                    continue
                met.add(kid)
                if kid.role == CALL:
                    yield kid
                elif kid.role == PLAIN and kid.below & HAS_CALL:
                    following.append(kid)
        if not following:
            return
        level = following


def caller_of(node: Node) -> tuple[str, int]:
    """(caller, number of agents around it). An explicit caller counts as more agents than any nesting.

    Agents are the agent spans above, and agents named by any other span on the way (pydantic-ai and LangChain name the
    agent in force on the spans inside). The same name again is the same agent, seen by two instrumentations, unless a
    tool lies between: then it called itself.
    """
    names: list[tuple[str, bool] | None] = []
    at: Node | None = node
    for _ in range(REACH):
        if at is None:
            break
        reading = at.reading
        if reading is not None:
            if reading.caller is not None:
                return reading.caller, REACH
            role = at.role
            if role == TOOL:
                names.append(None)
            if not reading.is_run_root:
                if role == AGENT:
                    names.append((reading.agent or "agent", True))
                elif reading.agent is not None:
                    names.append((reading.agent, False))
        at = at.parent
    if len(names) < 2:  # the ordinary case: no agent around the call, or one
        return LEAD, 1 if names and names[0] is not None else 0
    depth = 0
    current = None
    tool = False
    for entry in reversed(names):
        if entry is None:
            tool = True
        elif entry[0] != current or (tool and entry[1]):
            current = entry[0]
            depth += 1
            tool = False
    return (LEAD, depth) if depth < 2 else (f"subagent:{current}", depth)
