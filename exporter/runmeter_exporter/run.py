"""A run in the store, the snapshots that writers send, and the pure merge of one into the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from runmeter.usage import Usage


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
