"""Calls that two runs have: told by two instrumentations in two traces, they stay with the run that keeps them.

Resolved in the transaction that takes a span, whichever of the two came first, so that running totals are as right as
settled ones. Where another sidecar may take the other half at the same moment (PostgreSQL), neither sees the other's;
there, and only there, closing looks once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from runmeter.counting.lookalikes import Lookalikes
from runmeter.counting.same_call import RunFacts, keeper, may_share
from runmeter.reading.read import Reading
from runmeter_exporter.ingest.fold import RunFold
from runmeter_exporter.store import Transaction
from runmeter_exporter.store.ledger_row import PINNED, Key, Row, reading_of, twin_names
from runmeter_exporter.totals.run import is_otlp

NEAR = 600 * 10**9
"""Nanoseconds around a call in which its twins end: the outer of two may be a stream that is read slowly."""
ROOM, NEAREST = 200, 16
"""Stored spans that may look like some calls for all of them to be compared, beside two for each. Where there are more,
as where thousands of calls report no usage, each is compared with so many that ended just before and after it."""


def alike(tx: Transaction, calls: Sequence[Reading]) -> list[Row]:
    """Stored spans that share a twin key with one of these calls, near in time."""
    times: dict[bytes, list[int]] = {}
    for call in calls:
        for name in twin_names(call):
            times.setdefault(name, []).append(call.ended_at)
    found: dict[Key, Row] = {}
    waiting = [sorted(times)] if times else []
    while waiting:
        names = waiting.pop()
        ended = sorted(at for name in names for at in times[name])
        rows = tx.ledger.twins(names, ended[0] - NEAR, ended[-1] + NEAR, 2 * len(ended) + ROOM)
        if rows is None and len(names) > 1:  # few keys have a crowd behind them, as a rule one
            half = len(names) // 2
            waiting += [names[:half], names[half:]]
            continue
        found.update((row.key, row) for row in (_nearest(tx, names[0], ended) if rows is None else rows))
    return list(found.values())


def _nearest(tx: Transaction, name: bytes, ended: Sequence[int]) -> list[Row]:
    """Of more spans under one key than can be compared those that ended between these times, and some around them."""
    first, last = ended[0], ended[-1]
    around = tx.ledger.near(name, first, NEAR, NEAREST)
    if first == last:
        return around
    between = tx.ledger.twins([name], first, last, 2 * len(ended) + ROOM)
    if between is not None:
        return around + between + tx.ledger.near(name, last, NEAR, NEAREST)
    half = len(ended) // 2
    return _nearest(tx, name, ended[:half]) + _nearest(tx, name, ended[half:])


class Sharing:
    """Finds the runs that keep the calls of one transaction.

    `run_of` says where each call of it was placed; `stored` has the rows of those that are in the ledger already.
    """

    def __init__(
        self, tx: Transaction, calls: Sequence[Reading], run_of: Mapping[Key, str], stored: Mapping[Key, Row] = {}
    ) -> None:
        self._tx = tx
        self._calls = calls
        self._run_of = run_of
        self._stored = stored
        self._rows: dict[Key, Row] = {}
        self._index = Lookalikes()
        self._read()

    def others(self) -> set[str]:
        """Runs that have, or may have, one of these calls as well. Lock them, then ask again: what is found before the
        locks may have changed by the time we have them."""
        found: set[str] = set()
        for call in self._calls:
            found |= self._index.runs(call)
        return found

    def apart(self) -> set[str]:
        """Runs of which two have, or may have, one of these calls."""
        found: set[str] = set()
        for call in self._calls:
            runs = self._index.runs(call) | {self._run_of[call.key]}
            if len(runs) > 1:
                found |= runs
        return found

    def again(self) -> None:
        """Read once more what is stored."""
        self._read()

    def resolve(self, folds: dict[str, RunFold], fresh: dict[Key, Row]) -> tuple[list[tuple[Key, str]], set[str]]:
        """Move calls in `folds` to the runs that keep them: (spans and the runs they moved to, runs that lost some).

        Every call is in the fold of the run it was placed in. `fresh` rows are still to be inserted, and are changed
        here; the others are changed in the ledger. Only runs in `folds` take part.
        """
        moves: list[tuple[Key, str]] = []
        lost: set[str] = set()
        # New calls are looked for in the order in which they ended, each among those before it, as if they had come one
        # by one. Stored ones have found each other once: what has its twin at home has to see it there.
        index = self._without_calls() if fresh else self._index
        run_of = dict(self._run_of)
        for call in self._calls:
            here = run_of[call.key]
            found = index.find(here, call)
            index.add(here, call)
            if found is None or found[1][0].run_id not in folds:
                continue
            kind, twins = found
            there = twins[0].run_id
            mine, theirs = folds[here], folds[there]
            if mine.closed and theirs.closed:
                continue
            facts = self._facts(mine), self._facts(theirs)
            if not may_share(*facts, kind):
                continue
            if mine.closed or theirs.closed:
                kept = mine if mine.closed else theirs
            else:
                kept = folds[keeper(*facts).run_id]
            was = theirs if kept is mine else mine
            for reading in [twin.reading for twin in twins] if kept is mine else [call]:
                self._move(reading, was, kept, fresh)
                index.add(kept.run_id, reading)
                run_of[reading.key] = kept.run_id
                moves.append((reading.key, kept.run_id))
            lost.add(was.run_id)
        return moves, lost

    def _read(self) -> None:
        """What is stored near these calls, and they themselves where they were placed."""
        self._rows = {**self._stored, **{row.key: row for row in alike(self._tx, self._calls)}}
        self._index = self._without_calls()
        for call in self._calls:
            self._index.add(self._run_of[call.key], call)

    def _without_calls(self) -> Lookalikes:
        index = Lookalikes(limit=len(self._rows) + len(self._calls) + 1)
        mine = {call.key for call in self._calls}
        for row in self._rows.values():
            if row.key not in mine:
                index.add(row.run_id, reading_of(row))
        return index

    def _move(self, reading: Reading, was: RunFold, kept: RunFold, fresh: dict[Key, Row]) -> None:
        row = fresh.get(reading.key) or self._rows[reading.key]
        order = kept.order + 1 if kept.closed else 0
        was.remove(reading)
        kept.fix(row.priced)
        priced = kept.add(reading, order)
        prices = (row.priced or b"") + (priced or b"")
        row = row._replace(run_id=kept.run_id, why=PINNED, order=order, priced=prices or None)
        if reading.key in fresh:
            fresh[reading.key] = row
            return
        self._rows[reading.key] = row
        self._tx.ledger.move([row.key], kept.run_id, PINNED, order)
        if priced and row.priced:
            self._tx.ledger.price([(row.key, row.priced)])

    def _facts(self, fold: RunFold) -> RunFacts:
        said = fold.settler.facts
        stored = self._tx.runs.get(fold.run_id)
        if stored is None:
            return RunFacts(fold.run_id, fold.explicit, said.thread_id, said.agent, fold.started_at, fold.updated_at)
        return RunFacts(
            fold.run_id,
            fold.explicit or (stored.owner is not None and not is_otlp(stored.owner)),
            stored.thread_id or said.thread_id,
            stored.agent or said.agent,
            min(stored.started_at, fold.started_at or stored.started_at),
            max(stored.updated_at, fold.updated_at),
        )


def lock_with_others(tx: Transaction, run_ids: set[str], sharing: Sharing) -> None:
    """Lock these runs and those that have calls of theirs, which are added to `run_ids`."""
    run_ids |= sharing.others()
    tx.lock(sorted(run_ids))
    while not tx.alone:
        sharing.again()
        more = sharing.others() - run_ids
        if not more:
            return
        run_ids |= more
        tx.lock(sorted(more))


def calls_in(readings: Iterable[Reading]) -> list[Reading]:
    """Those that another instrumentation may tell of as well, in the order in which they ended."""
    return sorted((reading for reading in readings if twin_names(reading)), key=_ended)


def _ended(reading: Reading) -> tuple[int, int, int]:
    return reading.ended_at, reading.trace_id, reading.span_id
