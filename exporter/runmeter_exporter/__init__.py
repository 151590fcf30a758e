"""What stores, serves and shows: `open_store(url)` gives Python the answers that REST gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runmeter_exporter.store import RunStore, SchemaMismatch, StoreError, StoreMissing, StoreUnavailable, open_store
    from runmeter_exporter.store.aio import AsyncRunStore, open_async_store

__all__ = [
    "AsyncRunStore",
    "RunStore",
    "SchemaMismatch",
    "StoreError",
    "StoreMissing",
    "StoreUnavailable",
    "open_async_store",
    "open_store",
]


def __getattr__(name: str) -> Any:
    # Lazily: whoever needs only one module of this package does not pay for the others.
    if name in ("AsyncRunStore", "open_async_store"):
        from runmeter_exporter.store import aio

        return getattr(aio, name)
    if name in __all__:
        from runmeter_exporter import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
