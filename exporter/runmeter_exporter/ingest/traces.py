"""Which run a span belongs to: its own run id, else its parent's run, else what its trace is by default."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from sys import getsizeof
from typing import Final, NamedTuple

from runmeter.reading.read import Reading
from runmeter_exporter.store.ledger_row import INHERITED, STAMPED, Row, begins, default_run

_TRACE: Final = 450
"""Bytes of a trace in the cache, without its spans …"""
_SPAN: Final = 160
"""… of a span …"""
_KIDS: Final = 104
"""… and of the list of a span's children."""


class Move(NamedTuple):
    """A span taken earlier belongs to another run, now that a span above it is known."""

    key: tuple[int, int]
    was: str
    now: str


class _Member:
    __slots__ = ("parent_id", "run_id", "why")

    def __init__(self, parent_id: int | None, run_id: str | None, why: int) -> None:
        self.parent_id = parent_id
        self.run_id = run_id
        self.why = why


class Trace:
    """The known spans of one trace. A parent may be unknown yet; cycles are survived."""

    __slots__ = ("_done", "_kids", "_named", "_spans", "begun", "crowded", "trace_id")

    def __init__(self, trace_id: int, rows: Iterable[Row] = ()) -> None:
        self.trace_id = trace_id
        self.crowded = False
        """Another sidecar takes spans of it as well."""
        self._spans: dict[int, _Member] = {}
        self._kids: dict[int, list[int]] = {}
        self._done: list[tuple[int, str | None, int] | int] = []
        """Spans that were added, and what others were before they moved, since `begin`."""
        self._named = 0
        """Bytes of the names of runs that spans brought."""
        self.begun: set[str] = set()
        """Runs that a span of this trace began, or once seemed to begin: the others are none yet."""
        self.extend(rows)

    def begin(self) -> None:
        """All so far is stored."""
        self._done.clear()

    def undo(self) -> None:
        """Spans that were taken or moved since `begin` were not; what was stored by others is."""
        for done in reversed(self._done):
            if isinstance(done, int):
                member = self._spans.pop(done)
                parent_id = member.parent_id
                if member.why == STAMPED:
                    self._named -= getsizeof(member.run_id)
                if parent_id is not None:
                    kids = self._kids[parent_id]
                    if kids[-1] == done:
                        kids.pop()
                    else:
                        kids.remove(done)
            else:
                member = self._spans[done[0]]
                member.run_id, member.why = done[1:]
        self._done.clear()

    def extend(self, rows: Iterable[Row]) -> None:
        """Spans that are in the ledger and not known yet."""
        for row in rows:
            self._add(row.span_id, row.parent_id, row.run_id, row.why)
            if row.ended_at is not None:
                self.begun.add(row.run_id)

    def __len__(self) -> int:
        return len(self._spans)

    def __contains__(self, span_id: object) -> bool:
        return span_id in self._spans

    def size(self) -> int:
        """Bytes that it takes, at most."""
        tables = getsizeof(self._spans) + getsizeof(self._kids) + getsizeof(self.begun)
        return _TRACE + tables + _SPAN * len(self._spans) + _KIDS * len(self._kids) + self._named

    def run_of(self, span_id: int) -> str:
        """The run of a known span."""
        run_id = self._spans[span_id].run_id
        assert run_id is not None
        return run_id

    def take(self, readings: Sequence[Reading], default: Callable[[Reading], str]) -> list[Move]:
        """New spans take their places (`run_of`); returns which of the spans known before change their run.

        `default` says the run of a span above which nothing is known.
        """
        new = {reading.span_id: reading for reading in readings}
        for reading in readings:
            why = INHERITED if reading.run_id is None else STAMPED
            self._add(reading.span_id, reading.parent_id, reading.run_id, why)
            self._done.append(reading.span_id)
        for span_id in new:
            self._place(span_id, new, default)
        moves: dict[int, Move] = {}
        for span_id in new:
            self._pull(span_id, new, moves)
        self.begun.update(self.run_of(reading.span_id) for reading in readings if begins(reading))
        self.begun.update(move.now for move in moves.values())
        return [move for move in moves.values() if move.was != move.now]

    def review(self, default: Callable[[int, int | None], str]) -> list[Move]:
        """Place every span anew, by all that is known by now: what several sidecars took apart comes together.

        `default` says the run of a span whose parent is unknown, given the ids of both.
        """
        moves: dict[int, Move] = {}
        for span_id, member in self._spans.items():
            if member.why == INHERITED and (member.parent_id is None or member.parent_id not in self._spans):
                run_id = default(span_id, member.parent_id)
                if member.run_id == default_run(self.trace_id) != run_id:
                    moves[span_id] = Move((self.trace_id, span_id), member.run_id, run_id)
                    member.run_id = run_id
        for span_id in list(self._spans):
            self._pull(span_id, {}, moves)
        return [move for move in moves.values() if move.was != move.now]

    def move(self, span_id: int, run_id: str, why: int) -> None:
        """A known span belongs to this run."""
        member = self._spans[span_id]
        self._done.append((span_id, member.run_id, member.why))
        member.run_id, member.why = run_id, why

    def _add(self, span_id: int, parent_id: int | None, run_id: str | None, why: int) -> None:
        self._spans[span_id] = _Member(parent_id, run_id, why)
        if run_id is not None:
            self._named += getsizeof(run_id)
        if parent_id is not None:
            self._kids.setdefault(parent_id, []).append(span_id)

    def _place(self, span_id: int, new: dict[int, Reading], default: Callable[[Reading], str]) -> None:
        """Climb to the nearest span whose run is known, and bring it down to all on the way."""
        path: dict[int, _Member] = {}
        member = self._spans[span_id]
        while member.run_id is None:
            path[span_id] = member
            above = member.parent_id
            found = None if above is None or above in path else self._spans.get(above)
            if found is None:
                member.run_id = default(new[span_id])
                break
            assert above is not None
            span_id, member = above, found
        for below in path.values():
            below.run_id = member.run_id

    def _pull(self, span_id: int, new: dict[int, Reading], moves: dict[int, Move]) -> None:
        """Spans below this one that were taken before it, and those below them, are in its run unless they say else."""
        above = [span_id]
        while above:
            span_id = above.pop()
            run_id = self.run_of(span_id)
            for kid in self._kids.get(span_id, ()):
                member = self._spans[kid]
                if member.why == INHERITED and member.run_id != run_id:
                    if kid not in new:
                        was = moves[kid].was if kid in moves else member.run_id or run_id
                        moves[kid] = Move((self.trace_id, kid), was, run_id)
                        self._done.append((kid, member.run_id, member.why))
                    member.run_id = run_id
                    above.append(kid)
