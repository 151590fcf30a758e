"""Door 2's transactions: readings become ledger rows and snapshots together, or not at all. Single-threaded.

What a run's fold and a trace's ancestry were is remembered between transactions and read again from the ledger only
where somebody else wrote. `Ingest` gives it a thread and a queue, `closing.py` what happens when runs close.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from runmeter.reading.read import Reading
from runmeter.reading.scopes import SEEN, Fates, is_genai, tally
from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.ingest.fold import RunFold
from runmeter_exporter.ingest.remembered import LARGE, Folds, Large, Remembered, Stale
from runmeter_exporter.ingest.sharing import Sharing, calls_in, lock_with_others
from runmeter_exporter.ingest.traces import Move
from runmeter_exporter.memory import BY_DEFAULT, Memory
from runmeter_exporter.store import Again, RunStore, StoreUnavailable, Transaction
from runmeter_exporter.store.ledger_row import (
    INHERITED,
    PINNED,
    Key,
    Recorded,
    Row,
    TooMany,
    begins,
    default_run,
    ends,
    reading_of,
    row_of,
)
from runmeter_exporter.totals.run import StoredRun, is_otlp

TRACE_LIMIT = 100_000
"""Spans of one trace beyond which those that only link others are not remembered any more."""
TRIES = 10
"""How often a transaction begins anew because another sidecar wrote in between."""
HOUR = 3_600 * 10**9

T = TypeVar("T")


class Closing(NamedTuple):
    """A run that closes, and how to know it whole once nobody waits for the transaction."""

    fold: RunFold
    rows: list[Row] | None
    """To fill the fold with; None: too many to be read in the transaction."""


class Intake:
    """Takes readings into one store. Not thread-safe."""

    def __init__(
        self,
        store: RunStore,
        price: Callable[[Call], Usage],
        now: Callable[[], int],
        memory: Memory = BY_DEFAULT,
    ) -> None:
        """`now`: wall time in nanoseconds since the epoch; only expiry goes by it. `memory` bounds what is remembered
        between transactions."""
        self.store = store
        self.now = now
        self._price = price
        self.remembered = Remembered(store, price, memory)
        self.held = 0.0
        """Seconds that the last transaction held its locks."""
        self.fates: Fates = Counter()
        """What became of spans since this was last emptied: seen, or decided when their run closed."""
        self.unlinked = 0
        """Plain spans beyond the limit of their trace: what is below them may not find its agent or its run."""

    def take(self, readings: Sequence[Reading]) -> int:
        """Make these durable; returns how many were new. Raises StoreError, and then nothing of them was stored."""
        fresh = self.transact(lambda tx: self._take(tx, readings))
        for reading in fresh:
            if reading.role or is_genai(reading.scope):
                tally(self.fates, SEEN, reading.scope)
        return len(fresh)

    def transact(self, work: Callable[[Transaction], tuple[T, Iterable[RunFold]]]) -> T:
        """`work` in a transaction, which says the folds that are current once it is committed."""
        for _ in range(TRIES):
            self.remembered.begin()
            try:
                with self.store.transaction() as tx:
                    began = time.monotonic()
                    result, current = work(tx)
                self.held = time.monotonic() - began
            except Stale as stale:
                self.remembered.undone(stale=True, folded=stale.folded)
            except Large as large:
                self.remembered.undone(folded=large.folded)
                raise
            except Again:
                self.remembered.undone()
            except BaseException:
                self.remembered.undone()
                raise
            else:
                current = list(current)
                for fold in current:
                    self.decided(fold)
                self.remembered.committed(current)
                return result
        raise StoreUnavailable(f"{TRIES} times another sidecar took spans of the same runs first; try again")

    def closing(self, tx: Transaction, folds: Folds, run_ids: Sequence[str]) -> dict[str, Closing]:
        """What locked runs that are about to close consist of."""
        found: dict[str, Closing] = {}
        unknown: list[str] = []
        for run_id in run_ids:
            stored = tx.runs.get(run_id)
            fold = folds.get(run_id) or self.remembered.current(tx, run_id)
            if fold is None:
                fold = RunFold(run_id, self._price)
                unknown.append(run_id)
            fold.stored(stored)
            found[run_id] = Closing(fold, [])
        try:
            rows = tx.ledger.runs(unknown, LARGE) if unknown else []
        except TooMany as error:
            found.update((run_id, Closing(found[run_id].fold, None)) for run_id in error.ids)
            rows = tx.ledger.runs([run_id for run_id in unknown if found[run_id].rows is not None])
        for row in rows:
            of_run = found[row.run_id].rows
            assert of_run is not None
            of_run.append(row)
        return found

    def decided(self, fold: RunFold) -> None:
        """Add what became of the fold's spans since, once that is committed."""
        for (fate, scope), spans in fold.take_fates().items():
            tally(self.fates, fate, scope, spans)

    def write(self, tx: Transaction, folds: Folds, lost: Collection[str] = ()) -> list[RunFold]:
        """Put the folds' totals into the store; an implicit run that `lost` all it counted was none."""
        for run_id, fold in folds.items():
            stored = tx.runs.get(run_id)
            if run_id in lost and vanishes(fold, stored) and (stored is None or tx.delete_run(run_id)):
                fold.begun = False
                tx.ledger.over([run_id])
            else:
                tx.apply(fold.snapshots(stored))  # what it refuses, of runs pruned long ago, it counts itself
            self._write_shares(tx, fold)
        arrived = [fold.arrival(tx.runs.get(run_id)) for run_id, fold in folds.items()]
        tx.ledger.arrive([arrival for arrival in arrived if arrival is not None])
        for run_id, fold in folds.items():
            fold.stored(tx.runs.get(run_id))
        return list(folds.values())

    def _write_shares(self, tx: Transaction, fold: RunFold) -> None:
        """All of them, also those that are as they were: a share lives as long as its run."""
        shares = fold.shares()
        if not shares and not fold.shared:
            return
        tx.lock(sorted({*shares, *fold.shared}))
        for run_id in fold.shared.keys() - shares.keys():
            if run_id in tx.runs:
                tx.delete_run(run_id)
        for run_id, thread_id in shares.items():
            tx.apply(fold.share(run_id, thread_id, tx.runs.get(run_id)))
        fold.shared = shares

    def carry(self, tx: Transaction, folds: Folds, moves: Mapping[Key, Move], why: int) -> set[str]:
        """Move spans between locked runs that are not closed, or into closed ones. Returns the runs that lost some."""
        rows = tx.ledger.runs(sorted({move.was for move in moves.values()}))
        leaving = [row for row in rows if row.key in moves]
        if len(leaving) != len(moves):
            raise Stale("moved")
        lost = {row.run_id for row in leaving}
        for run_id in lost:
            # The run as if they had never been in it.
            folds[run_id] = RunFold(run_id, self._price)
            folds[run_id].fill([row for row in rows if row.run_id == run_id and row.key not in moves], closed=False)
            folds[run_id].stored(tx.runs.get(run_id))
            folds[run_id].left()
        for row in leaving:
            self._join(tx, folds[moves[row.key].now], row, why)
        return lost

    def moved(self, shared: Iterable[tuple[Key, str]]) -> None:
        """Calls went to the runs that keep them: so they are in what is remembered of their traces."""
        for (trace_id, span_id), run_id in shared:
            trace = self.remembered.known_trace(trace_id)
            if trace is not None and span_id in trace:
                trace.move(span_id, run_id, PINNED)

    def _join(self, tx: Transaction, fold: RunFold, row: Row, why: int) -> None:
        order = fold.order + 1 if fold.closed else 0
        fold.fix(row.priced)
        priced = fold.add(reading_of(row), order)
        tx.ledger.move([row.key], fold.run_id, why, order)
        if priced:
            tx.ledger.price([(row.key, (row.priced or b"") + priced)])

    def _take(self, tx: Transaction, readings: Sequence[Reading]) -> tuple[list[Reading], list[RunFold]]:
        by_trace: dict[int, dict[int, Reading]] = {}
        for reading in readings:
            by_trace.setdefault(reading.trace_id, {}).setdefault(reading.span_id, reading)
        known = self.remembered.load(tx, by_trace)
        try:
            return self._take_into(tx, by_trace, known)
        except Large as large:
            large.held = frozenset(self._held(by_trace, large.runs) or by_trace)
            large.folded = False
            raise

    def _held(self, by_trace: Mapping[int, Mapping[int, Reading]], run_ids: Collection[str]) -> list[int]:
        """The traces with spans in these runs."""
        found = []
        for trace_id, members in by_trace.items():
            trace = self.remembered.trace(trace_id)
            near = {*members, *(reading.parent_id for reading in members.values())}
            said = {default_run(trace_id), *(reading.run_id for reading in members.values())}
            said.update(trace.run_of(span_id) for span_id in near if span_id is not None and span_id in trace)
            if not said.isdisjoint(run_ids):
                found.append(trace_id)
        return found

    def _take_into(
        self, tx: Transaction, by_trace: Mapping[int, Mapping[int, Reading]], known: Sequence[int]
    ) -> tuple[list[Reading], list[RunFold]]:
        remembered = self.remembered
        self._keep_up(tx, by_trace, known)
        fresh, moves = self._place(tx, by_trace)
        if not fresh:
            return fresh, []
        run_of = {reading.key: remembered.trace(reading.trace_id).run_of(reading.span_id) for reading in fresh}
        # Plain spans alone make no run: most traces are none of ours.
        live = {
            run_id
            for (trace_id, _), run_id in run_of.items()
            if run_id in remembered or run_id in remembered.trace(trace_id).begun
        }
        live.update(run_id for move in moves for run_id in (move.was, move.now))
        sharing = Sharing(tx, calls_in(fresh), run_of)
        lock_with_others(tx, live, sharing)
        folds = remembered.folds(tx, sorted(live))
        if remembered.learnt:
            raise Stale("where these spans belong", folded=False)
        lost = self._move(tx, folds, moves)
        if moves:
            sharing.again()
        hour = self.now() // HOUR
        rows: dict[Key, Row] = {}
        for reading in fresh:
            run_id = run_of[reading.key]
            fold = folds.get(run_id)
            order, priced = 0, None
            if fold is not None:
                order = fold.order + 1 if fold.closed else 0
                priced = fold.add(reading, order)
            rows[reading.key] = row_of(reading, run_id, order, hour, priced)
        shared, lost_more = sharing.resolve(folds, rows)
        if tx.ledger.insert(list(rows.values())) != len(rows):
            raise Stale("spans")
        self.moved(shared)
        return fresh, self.write(tx, folds, lost | lost_more)

    def _keep_up(
        self, tx: Transaction, by_trace: Mapping[int, Mapping[int, Reading]], known: Sequence[int]
    ) -> None:
        """Learn what other sidecars took of these traces, before anything is placed in them."""
        remembered = self.remembered
        implicit = {default_run(trace_id): trace_id for trace_id in known}
        quiet = {run: trace_id for run, trace_id in implicit.items() if run not in remembered.trace(trace_id).begun}
        for run_id in tx.ledger.stored(list(quiet)) if quiet else ():
            # It began elsewhere: also plain spans are of interest from now on.
            remembered.crowd(quiet[run_id])
            remembered.trace(quiet[run_id]).begun.add(run_id)
        crowded = {trace_id: trace for trace_id in known if (trace := remembered.trace(trace_id)).crowded}
        if not crowded:
            return
        runs: set[str] = set()
        keys: set[Key] = set()
        for trace_id, trace in crowded.items():
            members = by_trace[trace_id]
            runs.add(default_run(trace_id))
            for span_id, reading in members.items():
                keys.add((trace_id, span_id))
                parent_id = reading.parent_id
                if reading.run_id is not None:
                    runs.add(reading.run_id)
                elif parent_id is not None and parent_id in trace:
                    runs.add(trace.run_of(parent_id))
                elif parent_id is not None:
                    keys.add((trace_id, parent_id))
        expected = sorted(run_id for run_id in runs if run_id in remembered)
        tx.lock(expected)
        remembered.folds(tx, expected)
        remembered.look_up(tx, (key for key in keys if key[1] not in crowded[key[0]]))

    def _place(
        self, tx: Transaction, by_trace: Mapping[int, Mapping[int, Reading]]
    ) -> tuple[list[Reading], list[Move]]:
        """The readings that are new, in their traces, and the older spans that change their run for them."""
        self.remembered.placed()
        new: dict[int, list[Reading]] = {}
        for trace_id, members in by_trace.items():
            trace = self.remembered.trace(trace_id)
            unseen = [reading for span_id, reading in members.items() if span_id not in trace]
            if len(trace) + len(unseen) > TRACE_LIMIT:
                kept = [reading for reading in unseen if begins(reading) or ends(reading)]
                self.unlinked += len(unseen) - len(kept)
                unseen = kept
            if unseen:
                new[trace_id] = unseen
        recorded = recorded_runs(tx, list(new))
        moves: list[Move] = []
        for trace_id, unseen in new.items():
            runs = recorded.get(trace_id, ())

            def default(reading: Reading, runs: Sequence[Recorded] = runs) -> str:
                return default_of(reading, runs)

            moves += self.remembered.trace(trace_id).take(unseen, default)
        return [reading for unseen in new.values() for reading in unseen], moves

    def _move(self, tx: Transaction, folds: Folds, moves: Sequence[Move]) -> set[str]:
        going = {}
        for move in moves:
            if folds[move.was].closed:
                # The settled totals hold it where it is: there it stays, whatever stands above it.
                trace_id, span_id = move.key
                self.remembered.trace(trace_id).move(span_id, move.was, INHERITED)
            else:
                going[move.key] = move
        return self.carry(tx, folds, going, INHERITED) if going else set()


def vanishes(fold: RunFold, stored: StoredRun | None) -> bool:
    """The run is door 2's alone, named by nobody, and counts nothing any more."""
    return not fold.explicit and not fold.counts and (stored is None or all(map(is_otlp, stored.sources)))


def recorded_runs(tx: Transaction, trace_ids: Sequence[int]) -> dict[int, list[Recorded]]:
    """The runs that door 1 recorded, by trace."""
    found: dict[int, list[Recorded]] = {}
    for run in tx.ledger.recorded(trace_ids) if trace_ids else ():
        found.setdefault(run.trace_id, []).append(run)
    return found


def default_of(reading: Reading, runs: Sequence[Recorded]) -> str:
    """The run of a span above which nothing is known: one that door 1 recorded in its trace, else the trace itself.

    A span of a process that counts for itself and names no run is in none of those it recorded by name.
    """
    if not runs or reading.source_id is not None:
        return default_run(reading.trace_id)
    return recorded_for(reading.parent_id, reading.started_at, runs)


def recorded_for(parent_id: int | None, started_at: int, runs: Sequence[Recorded]) -> str:
    """Of the runs recorded in a trace the one whose own span is the parent, else the last one begun before."""
    for run in runs:
        if run.root_span_id is not None and run.root_span_id == parent_id:
            return run.run_id
    before = [run for run in runs if run.started_at <= started_at]
    if before:
        return max(before, key=lambda run: (run.started_at, run.run_id)).run_id
    return min(runs, key=lambda run: (run.started_at, run.run_id)).run_id
