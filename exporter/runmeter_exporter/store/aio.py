"""The async form of a store: every call in a thread, so that an event loop goes on while the database works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from runmeter_exporter.store import DEADLINE, RunStore, open_store
from runmeter_exporter.totals.answers import Scrape
from runmeter_exporter.totals.shapes import DailyUsage, GrandUsage, Run, RunPage, ThreadPage, ThreadUsage


class AsyncRunStore:
    """The answers of a `RunStore`, awaited. `store` is the store itself, for everything else."""

    def __init__(self, store: RunStore) -> None:
        self.store = store

    @property
    def url_for_humans(self) -> str:
        """See RunStore."""
        return self.store.url_for_humans

    async def run(self, run_id: str) -> Run | None:
        """See RunStore."""
        return await asyncio.to_thread(self.store.run, run_id)

    async def runs(
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
        """See RunStore."""
        return await asyncio.to_thread(
            self.store.runs,
            status=status,
            thread_id=thread_id,
            service=service,
            user_id=user_id,
            agent=agent,
            model=model,
            tags=tags,
            start=start,
            end=end,
            order=order,
            limit=limit,
            cursor=cursor,
        )

    async def thread_usage(self, thread_id: str, include_active: bool = False) -> ThreadUsage:
        """See RunStore."""
        return await asyncio.to_thread(self.store.thread_usage, thread_id, include_active)

    async def thread_usages(self, thread_ids: Sequence[str], include_active: bool = False) -> list[ThreadUsage]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.thread_usages, thread_ids, include_active)

    async def threads(self, *, include_active: bool = False, limit: int = 50, cursor: str | None = None) -> ThreadPage:
        """See RunStore."""
        return await asyncio.to_thread(self.store.threads, include_active=include_active, limit=limit, cursor=cursor)

    async def usage(self, include_active: bool = False) -> GrandUsage:
        """See RunStore."""
        return await asyncio.to_thread(self.store.usage, include_active)

    async def usage_daily(
        self, *, start: str | None = None, end: str | None = None, group_by: Sequence[str] = ("day",)
    ) -> list[DailyUsage]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.usage_daily, start=start, end=end, group_by=group_by)

    async def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        """See RunStore."""
        return await asyncio.to_thread(self.store.scrape, include_active=include_active, largest=largest)

    async def end_run(self, run_id: str, status: str, stop_reason: str | None = None) -> bool:
        """See RunStore."""
        return await asyncio.to_thread(self.store.end_run, run_id, status, stop_reason)

    async def prune(self, older_than_ns: int, *, batch: int = 500, forget_threads: bool = False) -> int:
        """See RunStore."""
        return await asyncio.to_thread(self.store.prune, older_than_ns, batch=batch, forget_threads=forget_threads)

    async def verify(self) -> list[str]:
        """See RunStore."""
        return await asyncio.to_thread(self.store.verify)

    async def dispose(self) -> None:
        """See RunStore."""
        await asyncio.to_thread(self.store.dispose)


def open_async_store(
    url: str | None = None,
    *,
    deadline: float = DEADLINE,
    pool_size: int = 5,
    label_limit: int = 100,
    durable: bool = False,
    create: bool | None = None,
    clock: Callable[[], int] = time.time_ns,
) -> AsyncRunStore:
    """`open_store`, in its async form."""
    return AsyncRunStore(
        open_store(
            url,
            deadline=deadline,
            pool_size=pool_size,
            label_limit=label_limit,
            durable=durable,
            create=create,
            clock=clock,
        )
    )
