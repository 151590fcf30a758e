"""What stands between the span processor and those who keep or show its numbers: runs, and the `Sink` protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from runmeter.spans import Change

TERMINAL = ("success", "error", "timeout", "interrupted")
STATUSES = ("pending", "running", *TERMINAL)
UNINSTRUMENTED = "uninstrumented_client"
"""Set aside under this: calls that were made and that nobody reported, in a run of which nothing at all was seen."""


class Priced(NamedTuple):
    """Usage with its price looked up."""

    cost_nanousd: int = 0
    unpriced_tokens: int = 0
    """Those of `tokens` that nobody has a price for."""
    tokens: int = 0
    """Tokens that were looked at."""


UNPRICED = Priced()


@dataclass(slots=True, eq=False)
class RunInfo:
    """What is known of a run in this process; shared by the processor and every sink, identified by identity.

    Fields that are None may be filled once, later. A sink keys its state by the object, not by `run_id`: the same
    run id may be opened again in one process after it ended.
    """

    run_id: str
    started_at: int
    """Nanoseconds since the epoch."""
    owns: bool = True
    """This process began the run and will end it; False where it only joined (a child that received the context)."""
    thread_id: str | None = None
    service: str | None = None
    agent: str | None = None
    user_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    trace_id: int | None = None
    root_span_id: int | None = None
    status: str = "running"
    stop_reason: str | None = None
    set_aside: Mapping[str, int] = field(default_factory=dict)
    """Spans not counted, by reason (absolute); replaced whole by the processor, so a sink may keep the reference."""
    priced: Priced = UNPRICED
    """What a sink that knows prices has made of its usage so far; replaced whole by that sink, on a thread of its."""


class Sink(Protocol):
    """Where settled calls go. Methods run on the agent's own threads: O(1), no I/O, no exception, no long lock."""

    def begin(self, run: RunInfo) -> None:
        """A run began here, or this process joined it."""

    def update(self, run: RunInfo) -> None:
        """A field of the run changed: pending became running, or a thread, agent or user became known."""

    def settled(self, run: RunInfo, changes: Sequence[Change]) -> None:
        """The run's totals moved. May come after `end` for a stream that outlived its run; it is then added."""

    def end(self, run: RunInfo, ended_at: int) -> None:
        """The run ended here with `run.status` and `run.stop_reason`. Called once, unless usage really comes later."""

    def lost(self, reason: str, count: int = 1) -> None:
        """Something could not be counted (rule 9)."""

    def spans(self, fates: Mapping[tuple[str, str], int]) -> None:
        """(fate, instrumentation scope) → spans since the last time: seen, or decided when their run ended
        (`scopes.py`). The sink may keep the mapping."""

    def flush(self, timeout: float) -> bool:
        """Write what is due and pending; True when all of it was written within `timeout` seconds."""

    def shutdown(self, timeout: float) -> bool:
        """Flush, then stop. True when everything was written; idempotent."""

    def after_fork(self) -> None:
        """In a forked child: forget the parent's runs and totals and become a new source."""
