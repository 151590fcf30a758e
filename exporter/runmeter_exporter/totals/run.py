"""The snapshots that writers send, and a run as the store keeps it; `merge.py` puts one into the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runmeter.usage import ZERO, Usage


class CellKey(NamedTuple):
    """What one line of a run's usage is about; with the source in front it is the cell's key in the store."""

    day: str
    """UTC day of the call's end, `YYYY-MM-DD`."""
    provider: str
    model: str
    caller: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSnapshot:
    """The absolute totals of one source for one run (rule 3). A later revision replaces an earlier one."""

    run_id: str
    source: str
    """The writer: a process and its fork generation at door 1, `otlp` at door 2."""
    revision: int
    """Grows with every snapshot of this (run, source); an equal or older one is ignored."""
    owns: bool = True
    """This source began the run and may set its status and end it."""
    final: bool = False
    """This source has nothing more to say of the run. From the owner it carries a terminal status and ends the run."""
    status: str = "running"
    stop_reason: str | None = None
    thread_id: str | None = None
    service: str | None = None
    agent: str | None = None
    user_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    trace_id: str | None = None
    """32 hexadecimal digits, with `root_span_id` (16) of the run's own span: door 2 finds the run by them."""
    root_span_id: str | None = None
    started_at: int
    """Nanoseconds since the epoch, UTC, as are the next two."""
    updated_at: int
    ended_at: int | None = None
    usage_by: Mapping[CellKey, Usage] | None = None
    """Complete for this source, or None for "unchanged"."""
    set_aside: Mapping[str, int] | None = None
    """Spans of this source not counted, by reason (absolute), or None for "unchanged"."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of one source, with everything it has lost so far."""

    source: str
    beat: int
    """Grows with every heartbeat."""
    service: str | None = None
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(family, label) → count since the source began. Families: `snapshots_dropped`, `spans_rejected`, …"""


class Cell(NamedTuple):
    """One cell of a stored run: what its source last said, and what of it the settled totals hold already (rule 6)."""

    usage: Usage
    settled: Usage


class SourceState(NamedTuple):
    """What a run remembers of one of its sources."""

    revision: int
    final: bool


class Aside(NamedTuple):
    """Spans of one source and reason that were not counted, and how many of them the settled totals hold already."""

    spans: int
    settled: int


@dataclass(slots=True, eq=True)
class StoredRun:
    """A run as the store keeps it. Treated as a value: `merge` and its like copy before they change.

    Times are nanoseconds since the epoch, UTC.
    """

    run_id: str
    thread_id: str | None = None
    service: str | None = None
    agent: str | None = None
    user_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    status: str = "running"
    usage_state: str = "active"
    """`active`, `closing`, `settled` or `lower_bound`."""
    owner: str | None = None
    """The source that began the run and will end it; None while only children have written."""
    ended_by: str | None = None
    """Who ended it: `owner`, `supervisor`, `orphan` (its writer vanished) or `idle`."""
    trace_id: str | None = None
    root_span_id: str | None = None
    started_at: int = 0
    updated_at: int = 0
    ended_at: int | None = None
    stop_reason: str | None = None
    first_status: str | None = None
    """The status at its first closing; None while the settled totals hold nothing of this run."""
    counted_status: str | None = None
    """The status under which the settled totals hold it now."""
    orphanings: int = 0
    overflow: int = 0
    """What was cut, as bits of `bounds.OVERFLOWS`."""
    version: int = 0
    """Grows with every change."""
    listed_at: int = 0
    """Where lists put it: its start as first known. `started_at` may still turn out earlier; this never changes, so
    that pages are stable."""
    sources: Mapping[str, SourceState] = field(default_factory=dict)
    set_aside: Mapping[tuple[str, str], Aside] = field(default_factory=dict)
    """(source, reason) → spans not counted."""
    cells: Mapping[tuple[str, CellKey], Cell] = field(default_factory=dict)
    """(source, key) → usage."""

    def copy(self) -> StoredRun:
        """A shallow copy; spelt out because `dataclasses.replace` costs four times as much on the write path."""
        return StoredRun(
            self.run_id, self.thread_id, self.service, self.agent, self.user_id, self.tags, self.status,
            self.usage_state, self.owner, self.ended_by, self.trace_id, self.root_span_id, self.started_at,
            self.updated_at, self.ended_at, self.stop_reason, self.first_status, self.counted_status, self.orphanings,
            self.overflow, self.version, self.listed_at, self.sources, self.set_aside, self.cells,
        )  # fmt: skip

    @property
    def ended(self) -> bool:
        """Its status is terminal."""
        return self.ended_by is not None

    @property
    def closed(self) -> bool:
        """All of its usage is in the settled totals."""
        return self.usage_state in CLOSED_STATES

    def watched(self) -> tuple[str, int, str, str | None, bool, bool, bool, tuple[str, ...]]:
        """The fields of `OpenRun`."""
        otlp = [state for source, state in self.sources.items() if is_otlp(source)]
        root_ended = any(state.final for state in otlp)
        writers = tuple(source for source in self.sources if not is_otlp(source)) if self.owner is None else ()
        return self.run_id, self.version, self.usage_state, self.owner, bool(otlp), root_ended, self.ended, writers

    def reported(self) -> Usage:
        """The run's usage as answers show it: never below what the settled totals hold."""
        total = ZERO
        for cell in self.cells.values():
            total += cell.usage.at_least(cell.settled) if cell.settled is not ZERO else cell.usage
        return total

    def active(self) -> Usage:
        """What of its usage the settled totals do not hold yet."""
        total = ZERO
        for cell in self.cells.values():
            total += cell.usage.exceeding(cell.settled)
        return total


OPEN_STATES = ("active", "closing")
CLOSED_STATES = ("settled", "lower_bound")


def is_otlp(source: str) -> bool:
    """The source is door 2: `otlp`, or `otlp:X` for the spans that a door 1 source X stamped as its own."""
    return source == "otlp" or source.startswith("otlp:")


def caller_kind(caller: str) -> str:
    """`lead_agent`, `subagent` or `middleware`: the part before the colon."""
    return caller.partition(":")[0]
