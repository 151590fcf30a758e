"""The async form of a store: every call in a thread, so that an event loop goes on while the database works."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from runmeter_exporter.answers import Scrape
from runmeter_exporter.store import RunStore, open_store


class AsyncRunStore:
    """The answers of a `RunStore`, awaited. `store` is the store itself, for everything else."""

    def __init__(self, store: RunStore) -> None:
        self.store = store

    @property
    def url_for_humans(self) -> str:
        """See RunStore."""
        return self.store.url_for_humans

    async def run(self, run_id: str) -> dict[str, Any] | None:
        """See RunStore."""
        return await asyncio.to_thread(self.store.run, run_id)

    async def runs(self, **which: Any) -> dict[str, Any]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.runs, **which)

    async def thread_usage(self, thread_id: str, include_active: bool = False) -> dict[str, Any]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.thread_usage, thread_id, include_active)

    async def thread_usages(self, thread_ids: Sequence[str], include_active: bool = False) -> list[dict[str, Any]]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.thread_usages, thread_ids, include_active)

    async def threads(self, *, limit: int = 50, cursor: str | None = None) -> dict[str, Any]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.threads, limit=limit, cursor=cursor)

    async def usage(self, include_active: bool = False) -> dict[str, Any]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.usage, include_active)

    async def usage_daily(
        self, *, start: str | None = None, end: str | None = None, group_by: Sequence[str] = ("day",)
    ) -> list[dict[str, Any]]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.usage_daily, start=start, end=end, group_by=group_by)

    async def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        """See RunStore."""
        return await asyncio.to_thread(self.store.scrape, include_active=include_active, largest=largest)

    async def end_run(self, run_id: str, status: str, stop_reason: str | None = None) -> bool:
        """See RunStore."""
        return await asyncio.to_thread(self.store.end_run, run_id, status, stop_reason)

    async def verify(self) -> list[str]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.verify)

    async def dispose(self) -> None:
        """See RunStore."""
        await asyncio.to_thread(self.store.dispose)


def open_async_store(url: str | None = None, **options: Any) -> AsyncRunStore:
    """`open_store`, in its async form."""
    return AsyncRunStore(open_store(url, **options))
