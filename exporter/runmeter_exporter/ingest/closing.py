"""What happens to door 2's runs when their grace is over: what several sidecars took apart comes together, and the run
closes. And, a day later, the ledger forgets it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from runmeter.runs.shares import shared_run
from runmeter_exporter.ingest.fold import RunFold, holds
from runmeter_exporter.ingest.intake import HOUR, Closing, Intake, recorded_for, recorded_runs
from runmeter_exporter.ingest.remembered import Folds, Large
from runmeter_exporter.ingest.sharing import Sharing, calls_in, lock_with_others
from runmeter_exporter.ingest.traces import Move, Trace
from runmeter_exporter.store import StoreUnavailable, Transaction
from runmeter_exporter.store.ledger_row import INHERITED, Key, Row, implied_trace, reading_of
from runmeter_exporter.totals.run import StoredRun, is_otlp

AT_ONCE = 50
"""Runs closed in one transaction, at most."""
BREATH = 0.02
"""Seconds between two pages of what is large. A lock that is let go and taken again at once is nobody's else."""
PIECE = 200
"""Calls of a run that are looked at in one transaction, for others that have them as well."""
AT_LENGTH = 0.25
"""Seconds that such a transaction may take before the next one gets fewer runs: agents may be waiting for the file."""


class Long(Exception):
    """A run with more calls than are looked at in one transaction."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} has more than {PIECE} calls")
        self.run_id = run_id


def close_runs(intake: Intake, run_ids: Sequence[str]) -> Iterator[float]:
    """Close these runs, or let those disappear that only repeated others. Raises StoreError.

    Step by step: after each transaction it gives the seconds for which the others' turn is now, those who wait for the
    intake as well as whoever else writes into the store.
    """
    ids = sorted(set(run_ids))
    start, at_once, tries = 0, AT_ONCE, 0
    looked: dict[str, int] = {}
    while start < len(ids):
        some = ids[start : start + at_once]
        began = time.monotonic()
        try:
            closed = intake.transact(lambda tx, some=some: _close(intake, tx, some, looked))  # type: ignore[misc]
        except Long as long:
            yield from _look(intake, long.run_id, looked)
            continue
        except Large as large:
            tries += 1
            if tries > AT_ONCE:
                raise StoreUnavailable(f"{large} after {AT_ONCE} tries: {', '.join(some)}") from None
            at_once = 1
            yield from (BREATH for _ in intake.remembered.warm_up(large))
            continue
        for fold, rows in closed:
            if rows is None:
                for page in intake.remembered.pages(fold.run_id):
                    fold.fill([row for row in page if not row.order], closed=False)
                    yield BREATH
            elif rows:
                fold.fill(rows, closed=False)
            fold.close()
            intake.decided(fold)
        took = time.monotonic() - began
        start += len(some)
        at_once = max(1, at_once // 2) if took > AT_LENGTH else min(AT_ONCE, 2 * at_once)
        # SQLite's writers look for their turn now and then; whoever asks again at once leaves them none.
        # After the last step too: the reaper may have more, a few at a time.
        yield min(took, 0.1)


def expire(intake: Intake, now: int, retention: float) -> int:
    """Forget the spans of runs closed and silent for `retention` seconds; how many. Raises StoreError."""
    until = (now - int(retention * 10**9)) // HOUR
    forgotten = 0
    # Hour by hour and trace by trace along an index, so that nothing is locked for long.
    hour = intake.transact(lambda tx: (tx.ledger.oldest(), []))
    while hour is not None and hour < until:
        after = 0
        while True:
            count, last = intake.transact(lambda tx, at=(hour, after): (_forget(intake, tx, at, until), []))  # type: ignore[misc]
            forgotten += count
            if last is None:
                break
            after = last
        hour += 1
    return forgotten


def _forget(intake: Intake, tx: Transaction, place: tuple[int, int], until: int) -> tuple[int, int | None]:
    """(rows deleted, the trace to go on behind) of a page of the traces that were taken in an hour, behind a trace."""
    traces = tx.ledger.taken_in(*place, AT_ONCE)
    if not traces:
        return 0, None
    run_ids = tx.ledger.runs_in(traces)
    tx.lock(run_ids)
    over = [run_id for run_id in run_ids if _is_over(tx.runs.get(run_id)) and tx.ledger.last_seen(run_id) < until]
    intake.remembered.forgotten(over, traces)
    return tx.ledger.forget(over), traces[-1]


def _is_over(stored: StoredRun | None) -> bool:
    return stored is None or stored.closed


def _look(intake: Intake, run_id: str, looked: dict[str, int]) -> Iterator[float]:
    """Look at a long run's calls piece by piece; `looked` has the version of the run up to which all was looked at, or
    -1 where somebody wrote to it meanwhile: it is not over then, and closes another time."""
    with intake.store.looking() as now:
        rows, stored = now.ledger.calls(run_id), now.run(run_id)
    keys = [reading.key for reading in calls_in(map(reading_of, rows))]
    looked[run_id] = -1 if stored is None else stored.version
    start = tries = 0
    while start < len(keys) and looked[run_id] >= 0:
        piece = keys[start : start + PIECE]
        version = looked[run_id]
        try:
            looked[run_id] = intake.transact(
                lambda tx, piece=piece, version=version: _look_at(intake, tx, run_id, piece, version)  # type: ignore[misc]
            )
        except Large as large:
            tries += 1
            if tries > AT_ONCE:
                raise StoreUnavailable(f"{large} after {AT_ONCE} tries: {run_id}") from None
            yield from (BREATH for _ in intake.remembered.warm_up(large))
            continue
        start += PIECE
        yield BREATH


def _look_at(
    intake: Intake, tx: Transaction, run_id: str, piece: Sequence[Key], version: int
) -> tuple[int, list[RunFold]]:
    """(the version that the run has after it, folds that are current)"""
    tx.lock([run_id])
    if _version(tx, run_id) != version:
        return -1, []
    touched: Folds = {}
    rows = {row.key: row for row in tx.ledger.at(piece) if row.run_id == run_id}
    _share(intake, tx, touched, rows)
    return _version(tx, run_id), list(touched.values())


def _version(tx: Transaction, run_id: str) -> int:
    stored = tx.runs.get(run_id)
    return -1 if stored is None else stored.version


def _close(
    intake: Intake, tx: Transaction, run_ids: Sequence[str], looked: Mapping[str, int]
) -> tuple[list[Closing], list[RunFold]]:
    """(what closed; folds that are current), in one transaction, so that of two halves of a pair that close at once the
    second finds the first. `looked`: see `_look`. Raises Long, where a run has to be looked at first."""
    run_ids = _with_their_wholes(tx, run_ids)
    run_ids = [run_id for run_id in run_ids if looked.get(run_id) in (None, _version(tx, run_id))]
    touched: Folds = {}
    ours = [run_id for run_id in run_ids if _is_ours(tx.runs.get(run_id))]
    for run_id in ours:
        if _is_ours(tx.runs.get(run_id)):
            _review(intake, tx, touched, run_id)
    if not tx.alone:
        ours_still = [run_id for run_id in ours if run_id not in looked and _is_ours(tx.runs.get(run_id))]
        _share(intake, tx, touched, _calls(tx, ours_still))
    left = [run_id for run_id in ours if run_id in tx.runs]
    found = intake.closing(tx, touched, left)
    tx.close(run_ids)
    tx.ledger.over(run_ids)
    return [found[run_id] for run_id in left if tx.runs[run_id].closed], list(touched.values())


def _with_their_wholes(tx: Transaction, run_ids: Sequence[str]) -> list[str]:
    """These runs, locked, without the shares of runs that are open still and stay so: what is a share's may yet turn
    out to be the run's own."""
    wholes = {run_id: whole for run_id in run_ids if (whole := shared_run(run_id)) is not None}
    tx.lock(sorted({*run_ids, *wholes.values()}))
    closing = set(run_ids)

    def waits(run_id: str) -> bool:
        whole = wholes.get(run_id, run_id)
        stored = tx.runs.get(whole)
        return whole not in closing and stored is not None and not holds(stored)

    return [run_id for run_id in run_ids if not waits(run_id)]


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
        _carry(intake, tx, touched, moves)


def _calls(tx: Transaction, run_ids: Sequence[str]) -> dict[Key, Row]:
    """All of these runs. Long, where one has too many."""
    found: dict[Key, Row] = {}
    for run_id in run_ids:
        rows = tx.ledger.calls(run_id, PIECE + 1)
        if len(rows) > PIECE:
            raise Long(run_id)
        found.update((row.key, row) for row in rows)
    return found


def _share(intake: Intake, tx: Transaction, touched: Folds, rows: Mapping[Key, Row]) -> None:
    """Of calls of locked runs those that another run has as well, where the two halves were taken at the same moment by
    two sidecars."""
    calls = calls_in(map(reading_of, rows.values()))
    if not calls:
        return
    sharing = Sharing(tx, calls, {key: row.run_id for key, row in rows.items()}, rows)
    if not sharing.apart():
        return
    lock_with_others(tx, {row.run_id for row in rows.values()}, sharing)
    run_ids = sharing.apart()
    folds = {run_id: fold for run_id, fold in _current(intake, tx, touched, run_ids).items() if run_id in run_ids}
    moves, lost = sharing.resolve(folds, {})
    if moves:
        intake.write(tx, folds, lost)
        intake.moved(moves)


def _current(intake: Intake, tx: Transaction, touched: Folds, run_ids: set[str]) -> Folds:
    """The folds of these runs: those of this transaction, else as stored."""
    touched.update(intake.remembered.folds(tx, sorted(run_ids - touched.keys())))
    return touched


def _carry(intake: Intake, tx: Transaction, touched: Folds, moves: dict[Key, Move]) -> None:
    run_ids = {run_id for move in moves.values() for run_id in (move.was, move.now)}
    tx.lock(sorted(run_ids))
    _current(intake, tx, touched, run_ids)
    lost = intake.carry(tx, touched, moves, INHERITED)
    intake.write(tx, {run_id: touched[run_id] for run_id in run_ids}, lost)
    intake.moved((move.key, move.now) for move in moves.values())
