"""What became of spans by instrumentation scope, as counts that sources report with their heartbeats (`doctor`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runmeter.reading.scopes import COUNTED, OTHER, SEEN, WITHOUT_USAGE
from runmeter_exporter.totals.bounds import clean_label

FAMILY = "spans_by_scope"
"""Of `Heartbeat.counts`; the label is "fate scope". Not a metric: scopes are names that senders choose."""
SCOPES = 50
"""Scopes that one source names; spans of further ones are of scope `other`."""
RECORDED = "recorded"
"""The fate of a span that its own process counts at door 1."""
NAME_LIMIT = 96
UNNAMED = "(no scope)"


class Labels:
    """Labels of one source, first come. Not thread-safe."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def label(self, fate: str, scope: str) -> str:
        """Under what to count spans of this fate and scope."""
        name = self._names.get(scope)
        if name is None:
            if len(self._names) >= SCOPES:
                name = OTHER
            else:
                name = self._names[scope] = clean_label(scope).strip()[:NAME_LIMIT] or UNNAMED
        return f"{fate} {name}"


def by_scope(counts: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """A row for each scope, most spans first: `scope`, `spans_seen`, `calls_counted` (with those without usage),
    `calls_without_usage`, and `set_aside` by reason. Spans that are no calls are seen and nothing else; calls are
    counted or set aside when their run has closed."""
    rows: dict[str, dict[str, Any]] = {}
    for (family, label), count in sorted(counts.items()):
        if family != FAMILY or not count:
            continue
        fate, _, scope = label.partition(" ")
        row = rows.setdefault(
            scope, {"scope": scope, "spans_seen": 0, "calls_counted": 0, "calls_without_usage": 0, "set_aside": {}}
        )
        if fate == SEEN:
            row["spans_seen"] += count
        elif fate in (COUNTED, WITHOUT_USAGE):
            row["calls_counted"] += count
            row["calls_without_usage"] += count if fate == WITHOUT_USAGE else 0
        else:
            row["set_aside"][fate] = count
    return sorted(rows.values(), key=lambda row: (-row["spans_seen"], row["scope"]))
