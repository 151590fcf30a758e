"""Helpers for tests of the recorder: runs, calls, and a store that fails when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.store import StoreUnavailable, Transaction, WriteResult
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import Heartbeat, RunSnapshot

NOON = 1_763_812_800 * 10**9
"""2025-11-22T12:00:00Z in nanoseconds."""


def run_info(run_id: str = "r", **fields: Any) -> RunInfo:
    """A run that began at noon."""
    return RunInfo(**{"run_id": run_id, "started_at": NOON, "thread_id": "t", **fields})


def call(tokens: int = 10, *, model: str = "m", caller: str = "lead_agent", at: int = NOON, **fields: Any) -> Call:
    """An answered call with as many input as output tokens."""
    usage = Usage(input_tokens=tokens, output_tokens=tokens, calls=1, messages=1)
    return Call(fields.get("provider", "p"), model, caller, usage, fields.get("cost"), at)


def new(*calls: Call) -> list[Change]:
    """Calls that settled."""
    return [Change(None, one) for one in calls]


def unpriced(one: Call) -> Usage:
    """A price book that knows nothing."""
    return one.usage._replace(unpriced_tokens=one.usage.total_tokens)


class FlakyStore:
    """A MemoryRunStore that remembers what it was asked, and can be away, closed to entry, or slow to open."""

    url_for_humans = "flaky://"

    def __init__(self) -> None:
        self.inner = MemoryRunStore()
        self.writes: list[list[RunSnapshot]] = []
        self.beats: list[Heartbeat] = []
        self.attempts = 0
        self.away: Exception | None = None
        self.changed = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()
        self.released = 0
        self.disposed = 0

    def open(self) -> FlakyStore:
        """As `open_store` would be called by a recorder."""
        self.gate.wait(30)
        return self

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        """Remember and keep."""
        self._enter()
        result = self.inner.write(snapshots)
        with self.changed:
            self.writes.append(list(snapshots))
            self.changed.notify_all()
        return result

    def heartbeat(self, beats: Sequence[Heartbeat]) -> None:
        """Remember and keep."""
        self._enter()
        self.inner.heartbeat(beats)
        with self.changed:
            self.beats.extend(beats)
            self.changed.notify_all()

    def transaction(self, run_ids: Sequence[str] = ()) -> AbstractContextManager[Transaction]:
        """The other's."""
        self._enter()
        return self.inner.transaction(run_ids)

    def _enter(self) -> None:
        with self.changed:
            self.attempts += 1
            self.changed.notify_all()
        self.gate.wait(30)
        if self.away is not None:
            raise self.away

    def release(self) -> None:
        """Count."""
        with self.changed:
            self.released += 1
            self.changed.notify_all()

    def dispose(self) -> None:
        """Count."""
        with self.changed:
            self.disposed += 1
            self.changed.notify_all()

    def go_away(self, error: Exception | None = None) -> None:
        """From now on every call fails."""
        self.away = error or StoreUnavailable("the database is away")

    def wait_until(self, what: Callable[[], object], timeout: float = 20.0) -> None:
        """Wait until something that a call to this store changes is true."""
        with self.changed:
            assert self.changed.wait_for(what, timeout), "it never came true"

    def tokens(self, thread_id: str = "t", *, active: bool = True) -> int:
        """Tokens of a thread."""
        return int(self.inner.thread_usage(thread_id, include_active=active)["total_tokens"])
