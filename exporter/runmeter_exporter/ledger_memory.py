"""The ledger over a dict, for the store in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from runmeter_exporter.ledger_row import Row

_Name = TypeVar("_Name")


class MemoryLedger:
    """The ledger of a store in memory. `begin` and `undo` are its transaction: all of it, or nothing."""

    def __init__(self) -> None:
        self._rows: dict[tuple[int, int], Row] = {}
        self._traces: dict[int, set[tuple[int, int]]] = {}
        self._runs: dict[str, set[tuple[int, int]]] = {}
        self._alike: dict[tuple[str, bytes], set[tuple[int, int]]] = {}
        self._before: dict[tuple[int, int], Row | None] = {}

    def begin(self) -> None:
        """Forget how to undo what was done so far."""
        self._before.clear()

    def undo(self) -> None:
        """Everything as it was at the last `begin`."""
        for key, row in self._before.items():
            self._put(key, row)
        self._before.clear()

    def traces(self, trace_ids: Sequence[int]) -> list[Row]:
        """See Ledger."""
        return [self._rows[key] for trace_id in trace_ids for key in self._traces.get(trace_id, ())]

    def runs(self, run_ids: Sequence[str]) -> list[Row]:
        """See Ledger."""
        return [self._rows[key] for run_id in run_ids for key in self._runs.get(run_id, ())]

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

    def twins(self, responses: Sequence[bytes], twins: Sequence[bytes]) -> list[Row]:
        """See Ledger."""
        wanted = [("response", value) for value in responses] + [("twin", value) for value in twins]
        return [self._rows[key] for key in {key for name in wanted for key in self._alike.get(name, ())}]

    def older(self, hour: int, after: tuple[int, str], limit: int) -> list[tuple[int, str]]:
        """See Ledger."""
        pairs = {(row.trace_id, row.run_id) for row in self._rows.values() if row.seen < hour}
        return sorted(pair for pair in pairs if pair > after)[:limit]

    def last_seen(self, run_id: str) -> int:
        """See Ledger."""
        return max((self._rows[key].seen for key in self._runs.get(run_id, ())), default=0)

    def forget(self, run_ids: Sequence[str]) -> int:
        """See Ledger."""
        keys = [key for run_id in run_ids for key in self._runs.get(run_id, ())]
        for key in keys:
            self._change(key, None)
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


def _alike(row: Row) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in (("response", row.response), ("twin", row.twin)) if value is not None]
