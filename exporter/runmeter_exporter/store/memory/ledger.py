"""The ledger over a dict, for the store in memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from runmeter_exporter.store.ledger_row import ARRIVALS, NO_LIMIT, Arrival, Recorded, Row, TooMany, default_run
from runmeter_exporter.totals.run import StoredRun, is_otlp

_Name = TypeVar("_Name")


class MemoryLedger:
    """The ledger of a store in memory. `begin` and `undo` are its transaction: all of it, or nothing."""

    def __init__(self, stored: Mapping[str, StoredRun] | None = None) -> None:
        """`stored`: the runs of the store that this is the ledger of."""
        self._stored = stored if stored is not None else {}
        self._rows: dict[tuple[int, int], Row] = {}
        self._traces: dict[int, set[tuple[int, int]]] = {}
        self._runs: dict[str, set[tuple[int, int]]] = {}
        self._alike: dict[bytes, set[tuple[int, int]]] = {}
        self._before: dict[tuple[int, int], Row | None] = {}
        self._arrivals: dict[str, list[Arrival]] = {}
        self._arrivals_before: dict[str, list[Arrival]] = {}

    def begin(self) -> None:
        """Forget how to undo what was done so far."""
        self._before.clear()
        self._arrivals_before.clear()

    def undo(self) -> None:
        """Everything as it was at the last `begin`."""
        for key, row in self._before.items():
            self._put(key, row)
        self._arrivals.update(self._arrivals_before)
        self.begin()

    def traces(self, trace_ids: Sequence[int], limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        if many := [trace_id for trace_id in trace_ids if len(self._traces.get(trace_id, ())) > limit]:
            raise TooMany(many)
        return [self._rows[key] for trace_id in trace_ids for key in self._traces.get(trace_id, ())]

    def runs(self, run_ids: Sequence[str], limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        if many := [run_id for run_id in run_ids if len(self._runs.get(run_id, ())) > limit]:
            raise TooMany(many)
        return [self._rows[key] for run_id in run_ids for key in self._runs.get(run_id, ())]

    def at(self, keys: Collection[tuple[int, int]]) -> list[Row]:
        """See Ledger."""
        return [self._rows[key] for key in keys if key in self._rows]

    def page(self, trace_id: int, run_id: str | None, after: int, limit: int) -> list[Row]:
        """See Ledger."""
        rows = (self._rows[key] for key in sorted(self._traces.get(trace_id, ())) if key[1] > after)
        return list(islice((row for row in rows if run_id is None or row.run_id == run_id), limit))

    def traces_of(self, run_id: str) -> list[int]:
        """See Ledger."""
        return sorted({trace_id for trace_id, _ in self._runs.get(run_id, ())})

    def arrive(self, arrived: Sequence[Arrival]) -> None:
        """See Ledger."""
        for arrival in arrived:
            known = self._arrived(arrival.run_id)
            self._arrivals[arrival.run_id] = [one for one in known if one.turn > arrival.turn - ARRIVALS] + [arrival]

    def arrived(self, run_id: str, turn: int) -> list[Arrival]:
        """See Ledger."""
        return [arrival for arrival in self._arrivals.get(run_id, ()) if arrival.turn > turn]

    def over(self, run_ids: Sequence[str]) -> None:
        """See Ledger."""
        for run_id in run_ids:
            self._arrived(run_id)
            self._arrivals.pop(run_id, None)

    def stored(self, run_ids: Sequence[str]) -> list[str]:
        """See Ledger."""
        return [run_id for run_id in run_ids if run_id in self._stored]

    def _arrived(self, run_id: str) -> list[Arrival]:
        known = self._arrivals.get(run_id, [])
        self._arrivals_before.setdefault(run_id, known)
        return known

    def calls(self, run_id: str, limit: int = NO_LIMIT) -> list[Row]:
        """See Ledger."""
        return list(islice((row for row in self.runs([run_id]) if row.twin is not None), limit))

    def mixed(self, trace_ids: Sequence[int]) -> list[int]:
        """See Ledger."""
        rows = self.traces(trace_ids)
        return sorted({row.trace_id for row in rows if row.run_id != default_run(row.trace_id)})

    def insert(self, rows: Sequence[Row]) -> int:
        """See Ledger."""
        new = [row for row in rows if row.key not in self._rows]
        for row in new:
            self._change(row.key, row)
        return len(new)

    def move(self, keys: Sequence[tuple[int, int]], run_id: str, why: int, order: int) -> None:
        """See Ledger."""
        for key in keys:
            self._change(key, self._rows[key]._replace(run_id=run_id, why=why, order=order))

    def price(self, priced: Sequence[tuple[tuple[int, int], bytes]]) -> None:
        """See Ledger."""
        for key, value in priced:
            self._change(key, self._rows[key]._replace(priced=value))

    def twins(self, keys: Sequence[bytes], since: int, until: int, limit: int) -> list[Row] | None:
        """See Ledger."""
        found = [self._rows[key] for key in {key for name in keys for key in self._alike.get(name, ())}]
        found = [row for row in found if row.ended_at is not None and since <= row.ended_at <= until]
        return found if len(found) <= limit else None

    def near(self, key: bytes, moment: int, span: int, limit: int) -> list[Row]:
        """See Ledger."""
        found = [self._rows[known] for known in self._alike.get(key, ())]
        before = [row for row in found if row.ended_at is not None and 0 <= moment - row.ended_at <= span]
        after = [row for row in found if row.ended_at is not None and 0 < row.ended_at - moment <= span]

        def distance(row: Row) -> int:
            return abs((row.ended_at or 0) - moment)

        return sorted(before, key=distance)[:limit] + sorted(after, key=distance)[:limit]

    def recorded(self, trace_ids: Sequence[int]) -> list[Recorded]:
        """See Ledger."""
        wanted = {default_run(trace_id) for trace_id in trace_ids}
        return [
            Recorded(
                run.run_id,
                int(run.trace_id, 16),
                None if run.root_span_id is None else int(run.root_span_id, 16),
                run.started_at,
            )
            for run in self._stored.values()
            if run.trace_id in wanted
            and run.run_id != run.trace_id
            and run.owner is not None
            and not is_otlp(run.owner)
        ]

    def oldest(self) -> int | None:
        """See Ledger."""
        return min((row.seen for row in self._rows.values()), default=None)

    def taken_in(self, hour: int, after: int, limit: int) -> list[int]:
        """See Ledger."""
        found = {row.trace_id for row in self._rows.values() if row.seen == hour and row.trace_id > after}
        return sorted(found)[:limit]

    def runs_in(self, trace_ids: Sequence[int]) -> list[str]:
        """See Ledger."""
        return sorted({row.run_id for row in self.traces(trace_ids)})

    def last_seen(self, run_id: str) -> int:
        """See Ledger."""
        return max((self._rows[key].seen for key in self._runs.get(run_id, ())), default=0)

    def forget(self, run_ids: Sequence[str]) -> int:
        """See Ledger."""
        keys = [key for run_id in run_ids for key in self._runs.get(run_id, ())]
        for key in keys:
            self._change(key, None)
        self.over(run_ids)
        return len(keys)

    def _change(self, key: tuple[int, int], row: Row | None) -> None:
        self._before.setdefault(key, self._rows.get(key))
        self._put(key, row)

    def _put(self, key: tuple[int, int], row: Row | None) -> None:
        if (old := self._rows.pop(key, None)) is not None:
            self._discard(self._traces, old.trace_id, key)
            self._discard(self._runs, old.run_id, key)
            for name in _alike(old):
                self._discard(self._alike, name, key)
        if row is not None:
            self._rows[key] = row
            self._traces.setdefault(row.trace_id, set()).add(key)
            self._runs.setdefault(row.run_id, set()).add(key)
            for name in _alike(row):
                self._alike.setdefault(name, set()).add(key)

    @staticmethod
    def _discard(index: dict[_Name, set[tuple[int, int]]], name: _Name, key: tuple[int, int]) -> None:
        index[name].discard(key)
        if not index[name]:
            del index[name]


def _alike(row: Row) -> list[bytes]:
    return [key for key in {row.twin, row.twin_too} if key is not None]
