"""What counts and what does not: the totals of a run, what is set aside by which reason, and what became of spans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import sub
from typing import Final

from runmeter.counting.pairs import Group
from runmeter.counting.tree import Node
from runmeter.reading import scopes
from runmeter.reading.reading import Reading
from runmeter.spans import Call, Change
from runmeter.usage import ZERO, Usage

REPEAT: Final = "repeat"
"""Says again what another span of the same call says."""
NO_USAGE: Final = "no_usage"
"""A further span of a call, without usage of its own."""
AGGREGATED: Final = "aggregate"
"""Usage of calls that are counted themselves."""
LATE: Final = "late"
"""Came after closing and belongs to something counted."""

_DAY: Final = 86_400_000_000_000

FrozenKey = tuple[str, str, str, int, str | None]
"""Provider, model, caller, day (since the epoch) and thread of calls whose spans were forgotten."""


class Verdict:
    """Counts groups and sets spans aside; both may be taken back until the run closes."""

    __slots__ = ("_aside", "_fates", "frozen", "totals")

    def __init__(self) -> None:
        self.totals = ZERO
        """Everything counted so far."""
        self.frozen: dict[FrozenKey, Call] = {}
        """Calls whose spans were forgotten, added up."""
        self._aside: Counter[str] = Counter()
        self._fates: Counter[tuple[str, str, str | None]] = Counter()

    @property
    def set_aside(self) -> Mapping[str, int]:
        """Spans not counted, by reason (absolute)."""
        return {reason: count for reason, count in self._aside.items() if count}

    def add(self, call: Call) -> None:
        """A call that nothing was counted for before."""
        self.totals = self.totals + call.usage

    def count(self, group: Group, now: Call | None, changes: list[Change]) -> None:
        """From now on the group counts as this call, or not at all."""
        was = group.counted
        if was == now:
            return
        group.counted = now
        if now is not None:
            self.totals = self.totals + now.usage
        if was is not None:
            self.totals = Usage(*map(sub, self.totals, was.usage))
        changes.append(Change(was, now))

    def put_aside(self, node: Node, reason: str | None) -> None:
        """From now on the span is set aside for this reason, or not."""
        was = node.aside
        if was != reason:
            node.aside = reason
            if was is not None:
                self._aside[was] -= 1
            if reason is not None:
                self._aside[reason] += 1

    def decided(self, node: Node) -> None:
        """Whether this span counts does not change any more."""
        reading, group, fate = node.reading, node.group, node.aside
        if reading is None or not node.seen:
            return
        if fate is None:
            if isinstance(group, Group):
                calls = [one.counted for one in (group, *group.mates) if one.counted is not None]
            else:
                calls = [group] if isinstance(group, Call) else []
            if not calls:
                return
            fate = scopes.WITHOUT_USAGE if calls[0].usage.calls_without_usage else scopes.COUNTED
        self._decide(fate, reading)

    def decided_to_count(self, reading: Reading) -> None:
        """The same of a folded call."""
        self._decide(scopes.COUNTED, reading)

    def _decide(self, fate: str, reading: Reading) -> None:
        scope = reading.scope if len(self._fates) < scopes.NEWS_LIMIT else scopes.OTHER
        self._fates[fate, scope, reading.source_id] += 1

    def take_fates(self) -> Counter[tuple[str, str, str | None]]:
        """(fate, scope, source id) → spans of which it was decided since this was last asked."""
        fates, self._fates = self._fates, Counter()
        return fates

    def freeze(self, calls: Iterable[Call]) -> None:
        """Add up calls whose spans are forgotten by `FrozenKey`."""
        cells: dict[FrozenKey, list[Call]] = {}
        for call in calls:
            cells.setdefault((call[0], call[1], call[2], call[5] // _DAY, call.thread_id), []).append(call)
        for key, alike in cells.items():
            held = self.frozen.get(key)
            if held is not None:
                alike.append(held)
            usage = Usage(*map(sum, zip(*[call.usage for call in alike], strict=True)))
            costs = [call.reported_cost_nanousd for call in alike if call.reported_cost_nanousd is not None]
            ended_at = max(call.ended_at for call in alike)
            self.frozen[key] = Call(
                *key[:3], usage, sum(costs) if costs else None, ended_at, thread_id=key[4]
            )

    def anew(self, remembered: Iterable[Node]) -> Verdict:
        """Of the same run, when all that is remembered is told again: what was frozen, and set aside with it, stays."""
        verdict = Verdict()
        verdict.frozen = self.frozen
        verdict._fates = self._fates
        verdict._aside = self._aside.copy()
        for node in remembered:
            if node.aside is not None:
                verdict._aside[node.aside] -= 1
        for call in self.frozen.values():
            verdict.add(call)
        return verdict
