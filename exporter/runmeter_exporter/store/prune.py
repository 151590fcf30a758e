"""Letting old runs go: in small transactions, totals unchanged, what they held kept where `verify` finds it."""

from __future__ import annotations

from collections.abc import Callable

from runmeter_exporter.store.batch import held
from runmeter_exporter.store.rows import Rows
from runmeter_exporter.totals.bounds import TIME_LIMIT
from runmeter_exporter.totals.rollup import Totals


def prune(write: Callable[[Callable[[Rows], int]], int], older_than: int, batch: int, forget_threads: bool) -> int:
    """Remove closed runs last heard of before `older_than`; how many."""
    if batch < 1:
        raise ValueError(f"a batch of {batch} runs removes nothing; give 1 or more")
    older_than = max(0, min(older_than, TIME_LIMIT))

    def raise_horizon(rows: Rows) -> int:
        rows.set_horizon(older_than)
        return 0

    # First, and in a transaction of its own: a writer that finds its run gone then also finds the horizon.
    write(raise_horizon)
    removed = 0
    while True:
        count = write(lambda rows: _prune_some(rows, older_than, batch))
        removed += count
        if count < batch:
            break
    if forget_threads:
        while write(lambda rows: _forget_some(rows, older_than, batch)) == batch:
            pass
    return removed


def _prune_some(rows: Rows, older_than: int, batch: int) -> int:
    ids = rows.prunable(older_than, batch)
    if not ids:
        return 0
    # Locked and looked at again: somebody may have written meanwhile. What is not old any more is met again never,
    # since `prunable` does not name it; so the count is of those named, not of those removed.
    found = rows.lock(ids)
    runs = [run for run in found.values() if run.closed and run.updated_at < older_than]
    totals = Totals(rows.grants(()))
    for run in runs:
        totals.prune(run)
    rows.add(held(totals), {})
    # With those that another sidecar pruned first: locking has made rows of their names.
    rows.discard(sorted({run.run_id for run in runs} | (set(ids) - found.keys())))
    return len(ids)


def _forget_some(rows: Rows, older_than: int, batch: int) -> int:
    count = rows.forget_threads(older_than, batch)
    if count:
        totals = Totals(rows.grants(()))
        totals.add("threads", (), -count)
        rows.add(held(totals), {})
    return count
