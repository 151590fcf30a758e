"""`RunStore`, the contract of everything that keeps runs, and `open_store`, which finds the right one for a URL."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from runmeter_exporter.totals.answers import Scrape
from runmeter_exporter.totals.run import Heartbeat, RunSnapshot, StoredRun, is_otlp
from runmeter_exporter.totals.shapes import DailyUsage, GrandUsage, Run, RunPage, ThreadPage, ThreadUsage

if TYPE_CHECKING:
    from runmeter_exporter.store.ledger_row import Ledger

__all__ = [
    "DEADLINE",
    "Again",
    "Heartbeat",
    "Looking",
    "OpenRun",
    "RefusedValue",
    "RunStore",
    "SchemaMismatch",
    "Scrape",
    "StoreError",
    "StoreMissing",
    "StoreUnavailable",
    "Transaction",
    "Watch",
    "WriteResult",
    "default_url",
    "open_store",
]

DEADLINE = 5.0
"""Seconds a call to the database may take by default, seen from our side."""


class StoreError(Exception):
    """The store could not do what was asked; the message says why and what to do."""


class SchemaMismatch(StoreError):
    """The database holds tables of another version of runmeter's schema."""


class StoreUnavailable(StoreError):
    """The database did not answer, in time or at all. Nothing is wrong with what was asked: worth a retry."""


class Again(StoreUnavailable):
    """Several met in the database, and it asked this one to try once more; nothing of it was stored."""

    def __init__(self, message: str, *, wait: bool) -> None:
        """`wait`: not at once, or they meet again."""
        super().__init__(message)
        self.wait = wait


class StoreMissing(StoreUnavailable):
    """There is no store at this place: nothing was written there yet, or the place is mistyped. Readers make none."""


class RefusedValue(StoreError):
    """The database took offence at a value: one of the rows is to blame."""


@dataclass(frozen=True, slots=True)
class WriteResult:
    """What became of a batch of snapshots."""

    applied: int = 0
    stale: int = 0
    """An equal or newer revision was there already, or the source had ended the run: nothing to do, nothing lost."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """By reason: `pruned` (of a run older than the prune horizon), `malformed`, `rejected` (by the database)."""


class OpenRun(NamedTuple):
    """What the reaper needs to know of a run that is not closed."""

    run_id: str
    version: int
    usage_state: str
    """`active` or `closing`."""
    owner: str | None
    has_otlp: bool
    """Door 2 has written to it."""
    otlp_root_ended: bool
    """Door 2 has seen its local root end."""
    ended: bool
    """Its status is terminal."""
    writers: tuple[str, ...] = ()
    """Of a run that nobody owns: who writes to it at door 1."""


class Watch(NamedTuple):
    """All that may need a decision of the reaper."""

    sources: Sequence[tuple[str, int]]
    """(source, beat) of those that have beaten and that an open run waits for (`waited_for`)."""
    runs: Sequence[OpenRun]


def waited_for(runs: Iterable[OpenRun]) -> list[str]:
    """The sources whose silence matters to these runs: who owns one that has not ended, or else who writes to it."""
    found: set[str] = set()
    for run in runs:
        if not run.ended:
            found.update(run.writers if run.owner is None else () if is_otlp(run.owner) else (run.owner,))
    return sorted(found)


class Transaction(Protocol):
    """Several steps on locked runs that become durable together, or not at all when the block raises."""

    @property
    def runs(self) -> dict[str, StoredRun]:
        """The locked runs that exist, by id, as they are now."""

    @property
    def ledger(self) -> Ledger:
        """Door 2's memory of recent spans, in the same transaction."""

    @property
    def alone(self) -> bool:
        """No other transaction is under way: what this one reads is all that there is."""

    def lock(self, run_ids: Sequence[str]) -> None:
        """Lock more runs, whether they exist or not. Locks are taken in key order, so call it once where possible."""

    def apply(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """Merge the snapshots; runs not locked yet are locked first."""

    def close(self, run_ids: Sequence[str]) -> None:
        """Settle locked runs, as `RunStore.close` does."""

    def delete_run(self, run_id: str) -> bool:
        """Remove a run of which the settled totals hold nothing; False, and nothing happens, when they do."""


class Looking(Protocol):
    """One moment of the store, in which nothing is changed."""

    @property
    def ledger(self) -> Ledger:
        """Door 2's memory of recent spans."""

    def run(self, run_id: str) -> StoredRun | None:
        """One run."""


class RunStore(Protocol):
    """Where runs live. Any method may raise `StoreError`; answers are the JSON of the REST routes."""

    @property
    def url_for_humans(self) -> str:
        """Where it is, without a password."""

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """Merge all of them in one transaction. What the database refuses is found by halving, dropped and counted."""

    def heartbeat(self, beats: Sequence[Heartbeat]) -> None:
        """Keep the latest beat of each source; what its counts grew by is added to the totals."""

    def end_run(self, run_id: str, status: str, stop_reason: str | None = None) -> bool:
        """A supervisor ends an active run. False if there is none; ValueError if `status` is not terminal."""

    def run(self, run_id: str) -> Run | None:
        """One run with its cells, or None."""

    def runs(
        self,
        *,
        status: str | Sequence[str] | None = None,
        thread_id: str | None = None,
        service: str | None = None,
        user_id: str | None = None,
        agent: str | None = None,
        model: str | None = None,
        tags: Mapping[str, str] | None = None,
        start: str | None = None,
        end: str | None = None,
        order: str = "newest",
        limit: int = 50,
        cursor: str | None = None,
    ) -> RunPage:
        """`{runs, next_cursor}`: those that are all of what is given. `status`: one or several. `model`: one that the
        run has used. `tags`: all of them. `start`, `end`: when it began, a UTC day (both included) or an RFC 3339 time
        (then or later, and before). `order`: `newest`, `oldest`, `tokens` or `cost` (most first; a run that grows
        between two pages may be missed). A cursor is good for its order.

        Thread, service, user, status and time are found by index; agent, model and tags are looked for run by run, and
        `tokens` and `cost` add up every run that the rest leaves: ask for a status or a time with them where many runs
        are stored. ValueError for a bad cursor, status, time, order or limit (1 to 500).
        """

    def runs_beginning(self, beginning: str, limit: int = 10) -> list[str]:
        """Ids of runs that begin so, newest first; at most `limit`, and none for an empty beginning."""

    def thread_usage(self, thread_id: str, include_active: bool = False) -> ThreadUsage:
        """A thread's totals; zeros for one never seen."""

    def thread_usages(self, thread_ids: Sequence[str], include_active: bool = False) -> list[ThreadUsage]:
        """The same for several, in the order asked."""

    def threads(self, *, include_active: bool = False, limit: int = 50, cursor: str | None = None) -> ThreadPage:
        """`{threads, next_cursor}`: their totals, by latest beginning or closing of a run."""

    def usage(self, include_active: bool = False) -> GrandUsage:
        """Grand totals over everything ever stored, pruned runs included."""

    def usage_daily(
        self, *, start: str | None = None, end: str | None = None, group_by: Sequence[str] = ("day",)
    ) -> list[DailyUsage]:
        """Settled usage by `day`, `month`, `service`, `user_id`, `agent`, `provider`, `model`, `caller`, `tag.<key>`.

        `start` and `end` are days (`YYYY-MM-DD`, UTC), both included. ValueError on an unknown group or a bad day.
        """

    def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        """Everything `/metrics` needs; with `include_active` the observed high-water marks are raised and kept."""

    def watch(self) -> Watch:
        """Sources and open runs, for the reaper."""

    def orphan(self, source: str) -> int:
        """End the active runs of a source that fell silent, as lower bounds; how many."""

    def close(self, run_ids: Sequence[str]) -> None:
        """Door 2's grace is over: settle these runs. Those that never ended end as `interrupted`, reason `idle`.

        A run that an owner at door 1 is still working on is left alone.
        """

    def forget_sources(self, older_than_ns: int, *, batch: int = 500) -> int:
        """Remove the heartbeats of sources silent since before then that no open run waits for; how many."""

    def prune(self, older_than_ns: int, *, batch: int = 500, forget_threads: bool = False) -> int:
        """Remove closed runs last heard of before `older_than_ns`, in small transactions; how many. Totals stay."""

    def prunable(self, older_than_ns: int) -> tuple[int, int]:
        """How many runs `prune` would remove now, and how many are stored in all."""

    def verify(self) -> list[str]:
        """Recompute the totals from the runs and name every difference; an empty list means that it balances."""

    def pending(self) -> list[str]:
        """What this release adds to its store and this one has not yet, since an older release made it: a line each.
        Everything works without, and older releases go on with it."""

    def migrate(self) -> list[str]:
        """Add that while others go on writing; what it was. StoreUnavailable where tables are in use for too long: what
        is done stays, and the next time the rest is."""

    def transaction(self, run_ids: Sequence[str] = ()) -> AbstractContextManager[Transaction]:
        """Several steps at once, on locked runs."""

    def looking(self) -> AbstractContextManager[Looking]:
        """What is stored now, without holding anybody up."""

    def release(self) -> None:
        """Let go of idle connections; the next call opens one again."""

    def dispose(self) -> None:
        """Let go of everything."""


def default_url() -> str:
    """A SQLite file in the user's state directory: where agents and sidecar of a host meet without configuration.

    Raises StoreError for a user who has none, as in containers that run under any number.
    """
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Application Support"
        else:
            base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    except RuntimeError:
        who = f"user {os.getuid()}" if hasattr(os, "getuid") else "this user"
        raise StoreError(
            f"{who} has no home directory for a store (no entry among the system's users, and HOME is not "
            "set); set RUNMETER_DATABASE_URL, as to sqlite:////var/lib/runmeter/runmeter.db, or HOME or XDG_STATE_HOME"
        ) from None
    from runmeter_exporter.store.urls import sqlite_url  # it needs this module's errors

    return sqlite_url(base / "runmeter" / "runmeter.db")


def open_store(
    url: str | None = None,
    *,
    deadline: float = DEADLINE,
    pool_size: int = 5,
    label_limit: int = 100,
    durable: bool = False,
    create: bool | None = None,
    clock: Callable[[], int] = time.time_ns,
) -> RunStore:
    """The store at a database URL, at `RUNMETER_DATABASE_URL`, or in the user's state directory.

    `sqlite:///FILE`, `postgresql://…` or `memory://`. Nothing is opened before the first call, so an absent database
    is no error here. `deadline`: seconds for one call. `pool_size`: connections held at most. `label_limit`: values a
    Prometheus label may take (fixed when the schema is created). `durable`: SQLite survives a power loss, not only a
    killed process, for slower writes. `create`: who makes the file and the tables where there are none: the first
    write (None), any first call (True), nobody (False); a read that finds none raises StoreMissing. `clock`:
    nanoseconds since the epoch, for ends that a supervisor decides.

    Raises ImportError naming the `pip install` line where the `store` or `postgres` extra is missing, and StoreError
    for a URL of another kind.
    """
    url = url or os.environ.get("RUNMETER_DATABASE_URL") or default_url()
    if url.startswith("memory:"):
        from runmeter_exporter.store.memory.store import MemoryRunStore

        return MemoryRunStore(label_limit=label_limit, clock=clock)
    try:
        import sqlalchemy  # noqa: F401
    except ImportError as missing:
        raise ImportError('a run store needs SQLAlchemy: pip install "runmeter[store]"') from missing
    from runmeter_exporter.store.sql.store import SqlRunStore

    return SqlRunStore(
        url, deadline=deadline, pool_size=pool_size, label_limit=label_limit, durable=durable, create=create,
        clock=clock,
    )  # fmt: skip
