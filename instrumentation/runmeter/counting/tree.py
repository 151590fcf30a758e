"""The spans of a run as a tree that may have holes: who is above, who is below, and who made the call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from runmeter.reading.read import Reading
from runmeter.reading.roles import AGENT, AGGREGATE, CALL, PLAIN, TOOL, WEAK

if TYPE_CHECKING:
    from runmeter.counting.folded import Folded, Place

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
        "parent",
        "place",
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
        """The group it is a member of; of a call that nothing else has to do with, only what it counts as."""
        self.shadowed: str | None = None
        """Why this call does not count by itself: another span of the same call says it better."""
        self.excluded: str | None = None
        self.aside: str | None = None
        """The reason under which it is set aside now."""
        self.place: Place | None = None
        """Of the folded calls below it, where there are any or may be."""

    @property
    def has_kids(self) -> bool:
        """Spans stand right below it, folded ones too."""
        return bool(self.kids) or (self.place is not None and self.place.held > 0)

    @property
    def bits(self) -> int:
        """What this node is to those above it."""
        if self.role == CALL:
            return HAS_CALL
        if self.role == WEAK:
            return HAS_WEAK
        return HAS_AGGREGATE if is_aggregate(self) else 0


class Tree:
    """The nodes of a run by key, the calls that are folded, and a short memory of those that were forgotten."""

    __slots__ = ("_gone", "_unfold", "folded", "nodes", "version")

    def __init__(self, folded: Folded, unfold: Callable[[], None]) -> None:
        """`unfold` makes nodes of all that are folded."""
        self.folded = folded
        self._unfold = unfold
        self.nodes: dict[Key, Node] = {}
        self.version = 0
        """Grows with every change to a span that others may stand below."""
        self._gone: dict[int, None] = {}
        """Hashes of the keys of spans that were forgotten; the oldest are forgotten in turn."""

    def find(self, key: Key) -> Node | None:
        """The span's node, if it is known; nothing is folded any more where it was."""
        node = self.nodes.get(key)
        if node is None and key[1] in self.folded.calls and key in self.folded:
            self._unfold()
            node = self.nodes.get(key)
        return node

    def node(self, key: Key) -> Node:
        """The span's node; made where there is none yet."""
        node = self.find(key)
        if node is None:
            node = self.nodes[key] = Node(key)
        return node

    def link(self, node: Node, trace_id: int, parent_id: int | None) -> None:
        """Put the node below its parent, known or not; once."""
        if parent_id is None or parent_id == node.key[1] or node.parent is not None:
            return
        key = (trace_id, parent_id)
        parent = self.find(key)
        if parent is None:
            if self._gone and hash(key) in self._gone:
                return
            parent = self.nodes[key] = Node(key)
        node.parent = parent
        if parent.kids is None:
            parent.kids = {node}
        else:
            parent.kids.add(node)

    def unlink(self, node: Node) -> None:
        """Take the node out."""
        self.version += 1
        self.nodes.pop(node.key, None)
        if node.parent is not None and node.parent.kids is not None:
            node.parent.kids.discard(node)
        for kid in node.kids or ():
            kid.parent = None
        if node.place is not None:
            node.place.above = None

    def let_go(self, node: Node) -> None:
        """Take a node out that is folded from now on: what is above it has it below as before."""
        del self.nodes[node.key]
        above = node.parent
        if above is not None and above.kids is not None:
            above.kids.discard(node)
            if not above.kids:
                above.kids = None

    def forgot(self, key: Key) -> bool:
        """A span of this key was forgotten, not long ago."""
        return bool(self._gone) and hash(key) in self._gone

    def forget(self, node: Node, remembered: int) -> None:
        """Take the node out and remember, of the last so many, that it was here."""
        self.unlink(node)
        self.remember(node.key, remembered)

    def remember(self, key: Key, remembered: int) -> None:
        """A span of this key was here; that is known of the last so many."""
        self._gone[hash(key)] = None
        if len(self._gone) > remembered:
            del self._gone[next(iter(self._gone))]

    def anew(self) -> Tree:
        """Empty, with the memory of what was forgotten."""
        tree = Tree(self.folded, self._unfold)
        tree.version = self.version + 1
        tree._gone = self._gone
        return tree

    def readings(self) -> Iterator[Reading]:
        """What the spans here say."""
        for node in self.nodes.values():
            if node.reading is not None:
                yield node.reading
        for _, reading in self.folded.readings():
            yield reading

    def mark(self, node: Node, bits: int) -> list[Node]:
        """Tell those above what is below them; returns the nodes for which that may be news. They were told before
        where an ancestor knows it already."""
        touched: list[Node] = []
        above = node.parent
        while above is not None:
            news = bits & ~above.below
            if not news:
                break
            above.below |= news
            touched += _interested(above, news)
            above = above.parent
        return touched

    def unmark(self, node: Node) -> list[Node]:
        """Take a node without children out and tell those above; returns the nodes for which that may be news."""
        touched: list[Node] = []
        above = node.parent
        self.unlink(node)
        for _ in range(REACH):
            if above is None:
                break
            left = 0
            for kid in above.kids or ():
                left |= kid.bits | kid.below
                if left == above.below:
                    break
            news = above.below & ~left
            if not news:
                break
            above.below = left
            touched += _interested(above, news)
            above = above.parent
        return touched


def _interested(above: Node, news: int) -> list[Node]:
    """For whom it matters that there is, or is no longer, something below `above`."""
    if above.role != WEAK and not is_aggregate(above):
        return []
    return [above, *(beneath(above, HAS_AGGREGATE) if above.below & HAS_AGGREGATE and news & COUNTS else ())]


def call_above(node: Node) -> Node | None:
    """The call that has this node below it with nothing but plain spans between."""
    for above in ancestors(node):
        if above.role != PLAIN:
            return above if above.role == CALL else None
    return None


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


def thread_of(node: Node | None) -> str | None:
    """The conversation that a span is part of: that of the topmost span around it that names one. What is named below
    is a subagent's own."""
    named = None
    for _ in range(REACH):
        if node is None:
            break
        reading = node.reading
        if reading is not None and reading.thread_id is not None:
            named = reading.thread_id
        node = node.parent
    return named


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
