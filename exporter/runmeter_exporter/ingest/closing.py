"""What happens to door 2's runs when their grace is over: what several sidecars took apart comes together, calls that
two runs have are kept by one of them (rule 2, "two spans of one call may even stand in different traces"), and the run
closes. And, a day later, the ledger forgets it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from runmeter.call import Reading
from runmeter.twins import RunFacts, alike, keeper
from runmeter_exporter.ingest.fold import RunFold, holds
from runmeter_exporter.ingest.intake import HOUR, Folds, Intake, Key, recorded_for, recorded_runs
from runmeter_exporter.ingest.traces import Move, Trace
from runmeter_exporter.run import StoredRun, is_otlp
from runmeter_exporter.store import Transaction
from runmeter_exporter.store.ledger_row import INHERITED, PINNED, Row, implied_trace, reading_of

AT_ONCE = 50
"""Runs closed in one transaction, at most."""
AT_LENGTH = 0.25
"""Seconds that such a transaction may take before the next one gets fewer runs: agents may be waiting for the file."""
NEAR = 600 * 10**9
"""Nanoseconds around a run's calls in which their twins end: the outer of two may be a stream that is read slowly."""
ROOM, NEAREST = 200, 16
"""Spans that may look like a run's calls for all of them to be compared, beside the run's own. Where there are more, as
where thousands of calls report no usage, each call is compared with so many that ended just before and after it."""


def close_runs(intake: Intake, run_ids: Sequence[str]) -> None:
    """Close these runs, or let those disappear that only repeated others. Raises StoreError."""
    ids = sorted(set(run_ids))
    start, at_once = 0, AT_ONCE
    while start < len(ids):
        some = ids[start : start + at_once]
        began = time.monotonic()
        closed = intake.transact(lambda tx, some=some: _close(intake, tx, some))  # type: ignore[misc]
        for fold, rows in closed:
            if rows:
                fold.fill(rows, closed=False)
            fold.close()
            intake.decided(fold)
        took = time.monotonic() - began
        start += len(some)
        at_once = max(1, at_once // 2) if took > AT_LENGTH else min(AT_ONCE, 2 * at_once)
        if start < len(ids):
            # SQLite's writers look for their turn now and then; whoever asks again at once leaves them none.
            time.sleep(min(took, 0.1))


def expire(intake: Intake, now: int, retention: float) -> int:
    """Forget the spans of runs closed and silent for `retention` seconds; how many. Raises StoreError."""
    until = (now - int(retention * 10**9)) // HOUR
    forgotten = 0
    # Hour by hour and trace by trace along an index, so that nothing is locked for long.
    hour = intake.transact(lambda tx: (tx.ledger.oldest(), []))
    while hour is not None and hour < until:
        after = 0
        while True:
            count, last = intake.transact(lambda tx, hour=hour, after=after: (_forget(tx, hour, after, until), []))  # type: ignore[misc]
            if count:
                forgotten += count
                intake.forget()
            if last is None:
                break
            after = last
        hour += 1
    return forgotten


def _forget(tx: Transaction, hour: int, after: int, until: int) -> tuple[int, int | None]:
    """(rows deleted, the trace to go on behind) of a page of the traces that were taken in this hour."""
    traces = tx.ledger.taken_in(hour, after, AT_ONCE)
    if not traces:
        return 0, None
    run_ids = tx.ledger.runs_in(traces)
    tx.lock(run_ids)
    over = [run_id for run_id in run_ids if _is_over(tx.runs.get(run_id))]
    return tx.ledger.forget([run_id for run_id in over if tx.ledger.last_seen(run_id) < until]), traces[-1]


def _is_over(stored: StoredRun | None) -> bool:
    return stored is None or stored.closed


def _close(
    intake: Intake, tx: Transaction, run_ids: Sequence[str]
) -> tuple[list[tuple[RunFold, list[Row]]], list[RunFold]]:
    """(what closed, see `Intake.closing`; folds that are current), in one transaction, so that of two halves of a pair
    that close at once the second finds the first."""
    tx.lock(run_ids)
    touched: Folds = {}
    ours = [run_id for run_id in run_ids if _is_ours(tx.runs.get(run_id))]
    for run_id in ours:
        if _is_ours(tx.runs.get(run_id)):
            _review(intake, tx, touched, run_id)
            _twins(intake, tx, touched, run_id)
    left = [run_id for run_id in ours if run_id in tx.runs]
    found = intake.closing(tx, touched, left)
    tx.close(run_ids)
    return [found[run_id] for run_id in left if tx.runs[run_id].closed], list(touched.values())


def _is_ours(stored: StoredRun | None) -> bool:
    """Spans that came through door 2 are in it, and the settled totals do not hold them yet."""
    return stored is not None and any(map(is_otlp, stored.sources)) and not holds(stored)


def _review(intake: Intake, tx: Transaction, touched: Folds, run_id: str) -> None:
    """Spans that an implicit run took because nobody knew better yet, and that now belong to another."""
    trace_id = implied_trace(run_id)
    if trace_id is None:
        return
    recorded = recorded_runs(tx, [trace_id]).get(trace_id, [])
    if not recorded and not tx.ledger.mixed([trace_id]):
        return
    rows = tx.ledger.traces([trace_id])
    ended = {row.span_id: row.ended_at or 0 for row in rows}
    # Spans stamped by a process that counts for itself were in the trace's own run there too.
    own = {row.key for row in tx.ledger.runs([run_id]) if reading_of(row).source_id is not None}

    def default(span_id: int, parent_id: int | None) -> str:
        if not recorded or (trace_id, span_id) in own:
            return run_id
        return recorded_for(parent_id, ended[span_id], recorded)

    moves = {move.key: move for move in Trace(trace_id, rows).review(default) if move.was == run_id}
    if moves:
        _carry(intake, tx, touched, moves, INHERITED)


def _twins(intake: Intake, tx: Transaction, touched: Folds, run_id: str) -> None:
    """Calls that another run has as well stay with the one of the two that keeps them."""
    moves: dict[Key, Move] = {}
    locked = {run_id}
    while True:
        pairs = _pairs(tx, run_id)
        others = {row.run_id for _, row in pairs}
        if others <= locked:
            break
        # What is found before the locks may have changed by the time we have them: look again.
        tx.lock(sorted(others - locked))
        locked |= others
    folds = _current(intake, tx, touched, {run_id, *others}) if pairs else {}
    for mine, other in pairs:
        here, there = folds[run_id], folds[other.run_id]
        if there.closed and here.closed:
            continue
        if there.closed or here.closed:
            kept = there if there.closed else here
        else:
            kept = folds[keeper(_facts(tx, here), _facts(tx, there)).run_id]
        row, was = (mine, here) if kept is there else (other, there)
        if not was.closed:
            moves[row.key] = Move(row.key, row.run_id, kept.run_id)
    if moves:
        _carry(intake, tx, touched, moves, PINNED)


def _pairs(tx: Transaction, run_id: str) -> list[tuple[Row, Row]]:
    """Each call of the run with the nearest span of another run that is the same call, one to one by scope."""
    mine = tx.ledger.calls(run_id)
    if not mine:
        return []
    found = [row for row in _alike(tx, mine) if row.run_id != run_id]
    if not found:
        return []
    by_key: dict[bytes, list[tuple[Row, Reading]]] = {}
    for row in found:
        reading = reading_of(row)
        for key in (row.twin, row.twin_too):
            if key is not None:
                by_key.setdefault(key, []).append((row, reading))
    for lookalikes in by_key.values():
        lookalikes.sort(key=_ended)
    near: list[tuple[tuple[int, int], Key, Key, str, Row, Row]] = []
    for row in mine:
        reading = reading_of(row)
        for key in (row.twin, row.twin_too):
            for other_row, other in _near(by_key.get(key, []), row) if key is not None else ():
                distance = alike(reading, other)
                if distance is not None:
                    near.append((distance, row.key, other_row.key, other.scope, row, other_row))
    near.sort(key=lambda pair: pair[:3])
    pairs: list[tuple[Row, Row]] = []
    taken: set[tuple[Key, str] | Key] = set()
    for _, one, other_key, scope, row, other_row in near:
        if (one, scope) not in taken and other_key not in taken:
            taken |= {(one, scope), other_key}
            pairs.append((row, other_row))
    return pairs


def _alike(tx: Transaction, mine: Sequence[Row]) -> Iterable[Row]:
    """Spans that share a twin key with one of these calls, near in time."""
    keys = sorted({key for row in mine for key in (row.twin, row.twin_too) if key is not None})
    times = [row.ended_at or 0 for row in mine]
    found = tx.ledger.twins(keys, min(times) - NEAR, max(times) + NEAR, 2 * len(mine) + ROOM)
    if found is not None:
        return found
    nearest: dict[Key, Row] = {}
    for row in mine:
        for key in (row.twin, row.twin_too):
            if key is not None:
                nearest.update((near.key, near) for near in tx.ledger.near(key, row.ended_at or 0, NEAR, NEAREST))
    return nearest.values()


def _ended(entry: tuple[Row, Reading]) -> int:
    return entry[0].ended_at or 0


def _near(lookalikes: list[tuple[Row, Reading]], row: Row) -> list[tuple[Row, Reading]]:
    """Of those in the order in which they ended the nearest, where there are very many."""
    if len(lookalikes) <= ROOM:
        return lookalikes
    at = bisect_right(lookalikes, row.ended_at or 0, key=_ended)
    return lookalikes[max(0, at - NEAREST) : at + NEAREST]


def _facts(tx: Transaction, fold: RunFold) -> RunFacts:
    stored = tx.runs.get(fold.run_id)
    if stored is None:
        return RunFacts(fold.run_id, fold.explicit, False, fold.started_at, fold.updated_at)
    explicit = fold.explicit or (stored.owner is not None and not is_otlp(stored.owner))
    named = stored.thread_id is not None or stored.agent is not None
    return RunFacts(fold.run_id, explicit, named, stored.started_at, stored.updated_at)


def _current(intake: Intake, tx: Transaction, touched: Folds, run_ids: set[str]) -> Folds:
    """The folds of these runs: those of this transaction, else as stored."""
    touched.update(intake.folds(tx, sorted(run_ids - touched.keys())))
    return touched


def _carry(intake: Intake, tx: Transaction, touched: Folds, moves: dict[Key, Move], why: int) -> None:
    run_ids = {run_id for move in moves.values() for run_id in (move.was, move.now)}
    tx.lock(sorted(run_ids))
    _current(intake, tx, touched, run_ids)
    lost = intake.carry(tx, touched, moves, why)
    intake.write(tx, {run_id: touched[run_id] for run_id in run_ids}, lost)
    intake.moved(moves.values(), why)
