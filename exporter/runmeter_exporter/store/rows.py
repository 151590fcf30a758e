"""`Rows`: what a database must be able to do for a store, inside one transaction. All deciding is done above it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runmeter.usage import Usage
from runmeter_exporter.store import OpenRun
from runmeter_exporter.totals.rollup import DailyKey, Grants, Held, Part, Place
from runmeter_exporter.totals.run import StoredRun

if TYPE_CHECKING:
    from runmeter_exporter.store.ledger_row import Ledger


class SourceRow(NamedTuple):
    """The last heartbeat of a source."""

    source: str
    service: str | None
    beat: int
    counts: Mapping[str, int]
    """Packed (family, label) → count."""
    updated_at: int


class RunFilter(NamedTuple):
    """Which runs a listing shows; None does not filter."""

    statuses: tuple[str, ...] | None = None
    thread_id: str | None = None
    service: str | None = None
    user_id: str | None = None
    agent: str | None = None
    model: str | None = None
    """One that the run has used."""
    tags: tuple[tuple[str, str], ...] = ()
    """All of them."""
    start: int | None = None
    """Listed then or later; nanoseconds since the epoch, as is the next."""
    end: int | None = None
    """Listed before."""

    @property
    def columns(self) -> dict[str, str]:
        """The fields of a run that must be equal to something."""
        found = zip(("thread_id", "service", "user_id", "agent"), self[1:5], strict=True)
        return {name: value for name, value in found if value is not None}


def position(run: StoredRun, order: str) -> int:
    """Where an order puts a run: when it was listed, or what it has used."""
    if order in ("newest", "oldest"):
        return run.listed_at
    usage = run.reported()
    return usage.total_tokens if order == "tokens" else usage.cost_nanousd


class Rows(Protocol):
    """One transaction's view of the tables."""

    @property
    def ledger(self) -> Ledger:
        """Door 2's spans, in this transaction."""

    @property
    def alone(self) -> bool:
        """No other transaction is under way: a database that locks itself whole, not rows."""

    # Locked in this order: runs (and their cells), sources, thread rollups, grants, rollups of everything, daily usage.
    def lock(self, run_ids: Iterable[str]) -> dict[str, StoredRun]:
        """Lock runs in key order, also those that do not exist yet; those that do exist."""

    def horizon(self) -> int:
        """Runs last heard of before this may have been pruned; nanoseconds since the epoch."""

    def set_horizon(self, horizon: int) -> None:
        """Raise the horizon."""

    def save(self, changes: Sequence[tuple[StoredRun | None, StoredRun]]) -> None:
        """Persist locked runs, each with what it was when it was locked."""

    def discard(self, run_ids: Sequence[str]) -> None:
        """Remove locked runs and their cells."""

    def touch_threads(self, threads: Mapping[str, int]) -> int:
        """Make sure that threads (id → time) have a row of totals; how many were new."""

    def forget_threads(self, older_than: int, limit: int) -> int:
        """Remove the rows of threads without runs that were last touched before; how many threads."""

    def grants(self, wanted: Sequence[tuple[str, str]]) -> Grants:
        """The granted labels, after granting what fits of the wanted (label, value)."""

    def touch(self, places: Iterable[Place]) -> None:
        """Make sure that rollup rows exist, at zero."""

    def add(self, rows: Mapping[Place, Held], daily: Mapping[DailyKey, Usage]) -> None:
        """Add to rollup rows and daily usage."""

    def raise_to(self, rows: Mapping[Place, Usage]) -> None:
        """Raise rollup rows to these usages, field by field where they are lower."""

    def lock_sources(self, sources: Iterable[str]) -> dict[str, SourceRow]:
        """The heartbeats of these sources, locked."""

    def save_sources(self, rows: Iterable[SourceRow]) -> None:
        """Persist heartbeats."""

    def forget_sources(self, wanted: Sequence[str], older_than: int) -> int:
        """Remove those of these sources that have not beaten since; how many."""

    # Reading.
    def run(self, run_id: str) -> StoredRun | None:
        """One run."""

    def page_runs(
        self, which: RunFilter, limit: int, after: tuple[int, str] | None, order: str = "newest"
    ) -> list[StoredRun]:
        """From behind `after`, in an order of `questions.ORDERS`: by (`position` of the order, run_id)."""

    def ids_beginning(self, beginning: str, limit: int) -> list[str]:
        """Ids that begin so, newest first by (listed_at, run_id)."""

    def open_runs(self, thread_ids: Sequence[str] | None = None) -> list[StoredRun]:
        """Runs that are not closed, of these threads or all."""

    def open_count(self) -> tuple[int, int | None]:
        """How many they are, and when the oldest started."""

    def open_headers(self) -> list[OpenRun]:
        """The same without usage, for the reaper."""

    def owned_by(self, source: str) -> list[str]:
        """Ids of active runs that a source owns, or that nobody owns and it writes."""

    def sources(self, wanted: Sequence[str]) -> list[tuple[str, int]]:
        """(source, beat) of those of them that have beaten."""

    def old_sources(self, older_than: int, keep: Sequence[str], limit: int) -> list[str]:
        """So many sources at most that have not beaten since, but none of `keep`."""

    def rollup(self, scope: str) -> dict[Part, Held]:
        """All rows of a scope."""

    def rollups(self, scopes: Sequence[str]) -> dict[str, dict[Part, Held]]:
        """All rows of several scopes; a scope without rows is absent."""

    def totals(self, scopes: Sequence[str]) -> dict[str, Usage]:
        """Only the totals of several scopes."""

    def page_threads(self, limit: int, after: tuple[int, str] | None) -> list[tuple[str, int]]:
        """(thread id, touched at), latest first, from behind `after`."""

    def daily(self, start: str | None, end: str | None, columns: Sequence[str]) -> list[tuple[tuple[str, ...], Usage]]:
        """Daily usage summed by these columns of `DailyKey`."""

    # Keeping.
    def prunable(self, older_than: int, limit: int) -> list[str]:
        """Ids of closed runs last heard of before."""

    def count_prunable(self, older_than: int) -> int:
        """How many they are."""

    def count_runs(self) -> int:
        """How many runs are stored."""

    def odd(self) -> tuple[list[str], list[str]]:
        """(values that cannot be added up, rows that contradict each other), each in one sentence."""

    def unreadable(self) -> list[str]:
        """Rows that cannot be read, each in one sentence."""

    def every_run(self) -> Iterator[StoredRun]:
        """All runs."""

    def every_rollup(self) -> Iterator[tuple[Place, Held]]:
        """All rollup rows."""

    def every_daily(self) -> Iterator[tuple[DailyKey, Usage]]:
        """All rows of daily usage."""
