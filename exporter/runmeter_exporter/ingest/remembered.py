"""What door 2 remembers of runs and traces between transactions, and how it keeps up with what others wrote.

A run that another sidecar wrote to is not read again: each transaction notes which rows joined a run (`Arrival`), and
who is behind reads those. What is too large to be read while others wait is read page by page beforehand (`warm_up`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.ingest.cache import Cache
from runmeter_exporter.ingest.fold import RunFold, holds, turn_of
from runmeter_exporter.ingest.traces import Trace
from runmeter_exporter.memory import Memory
from runmeter_exporter.store import RunStore, Transaction
from runmeter_exporter.store.ledger_row import Key, Row, TooMany, unpack_keys
from runmeter_exporter.totals.run import StoredRun

LARGE = 10_000
"""Rows of a trace or a run beyond which it is read before the transaction: folding as many takes half a second."""
PAGE = 1_000
"""Rows read and folded between two turns of the others."""
CROWDED = 10_000
"""Traces of which it is remembered that another sidecar takes spans of them, too."""

Folds = dict[str, RunFold]


class Stale(Exception):
    """What was remembered is not what is stored: begin anew."""

    def __init__(self, what: object, *, folded: bool = True) -> None:
        """Not `folded`: only where new spans belong is in question; what is stored is known by now."""
        super().__init__(f"{what} changed meanwhile")
        self.folded = folded


class Large(Exception):
    """Runs or traces that have to be read before the transaction (`Remembered.warm_up`)."""

    def __init__(self, *, traces: Sequence[int] = (), runs: Sequence[str] = ()) -> None:
        super().__init__(f"{len(traces)} traces and {len(runs)} runs are not read yet")
        self.traces = traces
        self.runs = runs
        self.held: frozenset[int] = frozenset()
        """The traces of the readings that wait for it."""
        self.folded = True
        """Something was folded before, and not stored."""


class Remembered:
    """Folds and traces as they are stored, as far as we know. Not thread-safe."""

    def __init__(self, store: RunStore, price: Callable[[Call], Usage], memory: Memory) -> None:
        self._store = store
        self._price = price
        self._runs: Cache[str, RunFold] = Cache(memory.folds, RunFold.size)
        self._traces: Cache[int, Trace] = Cache(memory.traces, Trace.size)
        self._touched_runs: set[str] = set()
        self._touched_traces: set[int] = set()
        self._crowded: set[int] = set()
        self._learnt = False

    # Around a transaction.

    def begin(self) -> None:
        """A transaction begins: what it touches is not what is stored, unless it is committed."""
        self._touched_runs.clear()
        self._touched_traces.clear()
        self._learnt = False

    def undone(self, *, stale: bool = False, folded: bool = True) -> None:
        """It was not committed. `folded`: into folds as well, which are forgotten; what happened to traces is undone.
        `stale`: another sidecar did something to what it touched, and nothing of that is known for sure."""
        for trace_id in self._touched_traces:
            trace = self._traces.get(trace_id)
            if stale:
                self._crowd(trace_id)
            if trace is not None and stale and folded:
                self._traces.drop(trace_id)
            elif trace is not None:
                trace.crowded |= trace_id in self._crowded
                trace.undo()
        if folded:
            for run_id in self._touched_runs:
                self._runs.drop(run_id)
        self._trim()

    def committed(self, folds: Iterable[RunFold]) -> None:
        """These are what is stored now."""
        for trace_id in self._touched_traces:
            trace = self._traces.get(trace_id)
            if trace is not None:
                trace.begin()
        for fold in folds:
            self._runs.put(fold.run_id, fold)
        self._trim()

    def _trim(self) -> None:
        """Whatever became of the transaction: what was read in it is remembered."""
        self._traces.trim()
        self._runs.trim()

    def forgotten(self, run_ids: Iterable[str], trace_ids: Iterable[int]) -> None:
        """The ledger no longer has these."""
        for run_id in run_ids:
            self._runs.drop(run_id)
        for trace_id in trace_ids:
            self._traces.drop(trace_id)

    # Traces.

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def trace(self, trace_id: int) -> Trace:
        """A trace that `load` was asked for."""
        return self._traces[trace_id]

    def known_trace(self, trace_id: int) -> Trace | None:
        """The trace, if it is remembered."""
        trace = self._traces.get(trace_id)
        if trace is not None:
            self._touched_traces.add(trace_id)
        return trace

    def load(self, tx: Transaction, trace_ids: Iterable[int]) -> list[int]:
        """Have these traces; which of them were remembered."""
        ids = list(trace_ids)
        unknown = [trace_id for trace_id in ids if self._traces.get(trace_id) is None]
        self._touched_traces.update(ids)
        if unknown:
            rows: dict[int, list[Row]] = {trace_id: [] for trace_id in unknown}
            try:
                for row in tx.ledger.traces(unknown, LARGE):
                    rows[row.trace_id].append(row)
            except TooMany as error:
                large = Large(traces=error.ids)
                large.held, large.folded = frozenset(error.ids), False
                raise large from None
            for trace_id in unknown:
                self._put(Trace(trace_id, rows[trace_id]))
        known = set(ids).difference(unknown)
        return [trace_id for trace_id in ids if trace_id in known]

    def crowd(self, trace_id: int) -> None:
        """Another sidecar takes spans of this trace as well."""
        self._crowd(trace_id)
        self._traces[trace_id].crowded = True

    def _crowd(self, trace_id: int) -> None:
        if len(self._crowded) >= CROWDED:
            self._crowded.clear()
        self._crowded.add(trace_id)

    def look_up(self, tx: Transaction, keys: Iterable[Key]) -> None:
        """Learn of these spans, where they are stored, and of those above them."""
        missing = set(keys)
        while missing:
            rows = tx.ledger.at(missing)
            self._learn(rows)
            missing = {
                (row.trace_id, row.parent_id)
                for row in rows
                if row.parent_id is not None and row.parent_id not in self._traces[row.trace_id]
            }

    def placed(self) -> None:
        """From now on what is learnt of traces comes too late for what was placed."""
        self._learnt = False

    @property
    def learnt(self) -> bool:
        """Spans that another sidecar took became known since, and what was placed may belong elsewhere."""
        return self._learnt

    def _learn(self, rows: Iterable[Row]) -> None:
        for row in rows:
            trace = self._traces.get(row.trace_id)
            if trace is not None and row.span_id not in trace:
                trace.extend([row])
                self._learnt = True
                self._touched_traces.add(row.trace_id)
                self.crowd(row.trace_id)

    def _put(self, trace: Trace) -> None:
        # What is there already may be ours, from before a restart; it may as well be another's.
        trace.crowded = len(trace) > 0 or trace.trace_id in self._crowded
        self._traces.put(trace.trace_id, trace)

    # Runs.

    def folds(self, tx: Transaction, run_ids: Iterable[str]) -> Folds:
        """The folds of locked runs, as they are stored. Stale, where rows left one that was remembered: they are in
        other runs by now than what is remembered of their traces says."""
        found: Folds = {}
        unknown: list[str] = []
        for run_id in run_ids:
            known = run_id in self._runs
            fold = self.current(tx, run_id)
            if fold is None and known:
                raise Stale(run_id)
            if fold is None:
                unknown.append(run_id)
                fold = RunFold(run_id, self._price)
            elif holds(tx.runs.get(run_id)) and not fold.closed:
                fold.close()
                fold.take_fates()  # another sidecar closed it, and has told them
            found[run_id] = fold
        if unknown:
            rows: dict[str, list[Row]] = {run_id: [] for run_id in unknown}
            try:
                for row in tx.ledger.runs(unknown, LARGE):
                    rows[row.run_id].append(row)
            except TooMany as error:
                raise Large(runs=error.ids) from None
            for run_id in unknown:
                stored = tx.runs.get(run_id)
                found[run_id].fill(rows[run_id], closed=holds(stored))
                found[run_id].stored(stored)
                self._learn(rows[run_id])
                self._runs.put(run_id, found[run_id])
        return found

    def current(self, tx: Transaction, run_id: str) -> RunFold | None:
        """The fold of a locked run, if it is remembered and as stored, or could be brought there."""
        self._touched_runs.add(run_id)
        fold, stored = self._runs.get(run_id), tx.runs.get(run_id)
        if fold is None:
            return None
        if not fold.current(stored) and not self._catch_up(tx, fold, stored):
            self._runs.drop(run_id)
            return None
        fold.read = ()
        return fold

    def _catch_up(self, tx: Transaction, fold: RunFold, stored: StoredRun | None) -> bool:
        """Fold the rows that joined the run since; False where that is not all that happened to it."""
        at, turn = fold.turn, turn_of(stored)
        if turn <= at:
            return False
        keys: list[Key] = []
        for arrival in tx.ledger.arrived(fold.run_id, at):
            if arrival.since != at or arrival.keys is None:
                return False
            at = arrival.turn
            keys += unpack_keys(arrival.keys)
        if at != turn:
            return False
        rows = [row for row in tx.ledger.at(keys) if row.run_id == fold.run_id and row.key not in fold.read]
        fold.fill(rows, closed=holds(stored))
        fold.stored(stored)
        self._learn(rows)
        return True

    # What is large.

    def warm_up(self, large: Large) -> Iterator[None]:
        """Read it page by page, each in a transaction that holds nobody up; between two it is the others' turn."""
        for trace_id in large.traces:
            trace = Trace(trace_id)
            for rows in self._pages(trace_id, None):
                trace.extend(rows)
                yield
            self._put(trace)
        for run_id in large.runs:
            yield from self._warm_up_run(run_id)

    def pages(self, run_id: str) -> Iterator[list[Row]]:
        """The run's rows, each page in a transaction of its own."""
        with self._store.looking() as now:
            trace_ids = now.ledger.traces_of(run_id)
        for trace_id in trace_ids:
            yield from self._pages(trace_id, run_id)

    def _warm_up_run(self, run_id: str) -> Iterator[None]:
        with self._store.looking() as now:
            stored = now.run(run_id)
        fold = RunFold(run_id, self._price)
        fold.stored(stored)
        late: list[Row] = []  # what came after closing is a sequence, and comes last
        read: set[Key] = set()
        for rows in self.pages(run_id):
            fold.fill([row for row in rows if not row.order], closed=False)
            late += [row for row in rows if row.order]
            read.update(row.key for row in rows)
            yield
        fold.fill(late, closed=holds(stored))
        fold.read = read
        self._runs.put(run_id, fold)

    def _pages(self, trace_id: int, run_id: str | None) -> Iterator[list[Row]]:
        after, full = 0, True
        while full:
            with self._store.looking() as now:
                rows = now.ledger.page(trace_id, run_id, after, PAGE)
            full = len(rows) == PAGE
            if rows:
                after = rows[-1].span_id
                yield rows
