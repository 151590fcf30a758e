"""Runs that sinks have not heard of yet, since their one call may be another run's, and the open spans they wait for.

A trace that is a lone call may be a twin of a call that is still open in another trace. Who has no open children may be
that call; such leaves are known by scope in the order in which they became leaves, so that one look says whether any of
those that a run waits for is left, however many are open.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from runmeter.runs.known import RunState
from runmeter.runs.open_spans import OpenSpan

HELD_LIMIT = 256
"""Runs that wait at once; beyond, the oldest waits no longer."""
STREAM_WAIT = 60 * 10**9
"""Nanoseconds after which a stream's call is taken to have no usage, when the next call comes."""


class Leaves:
    """Open spans of scopes that make calls or agents, and have no open children."""

    __slots__ = ("_by_scope", "_count")

    def __init__(self) -> None:
        self._by_scope: dict[str, dict[OpenSpan, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return sum(map(len, self._by_scope.values()))

    @property
    def now(self) -> int:
        """Every leaf from now on has a higher number."""
        return self._count

    def add(self, span: OpenSpan) -> None:
        """It is open, and nothing below it is."""
        self._count += 1
        self._by_scope.setdefault(span.scope, {})[span] = self._count

    def discard(self, span: OpenSpan) -> None:
        """It has ended, or something below it has begun."""
        leaves = self._by_scope.get(span.scope)
        if leaves is not None and leaves.pop(span, None) is not None and not leaves:
            del self._by_scope[span.scope]

    def oldest(self, but: str) -> int:
        """The lowest number of a leaf of another scope than this one; beyond all of them where there is none."""
        found = self._count + 1
        for scope, leaves in self._by_scope.items():
            if scope != but:
                found = min(found, next(iter(leaves.values())))
        return found


class Waiting:
    """The runs that wait, the oldest first."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._by_scope: dict[str, deque[tuple[int, RunState]]] = {}
        self._for_logs: deque[RunState] = deque()

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, run: RunState) -> bool:
        return self._runs.get(run.info.run_id) is run

    def __iter__(self) -> Iterator[RunState]:
        return iter(list(self._runs.values()))

    def find(self, run_id: str) -> RunState | None:
        """The run of that id, if it waits."""
        return self._runs.get(run_id)

    def for_leaves(self, run: RunState, scope: str, mark: int) -> RunState | None:
        """It waits for all leaves of other scopes up to this number; returns one that waits no longer for it."""
        self._by_scope.setdefault(scope, deque()).append((mark, run))
        return self._hold(run)

    def for_its_log(self, run: RunState) -> RunState | None:
        """It waits for the usage that the log of its stream brings; returns one that waits no longer for it."""
        self._for_logs.append(run)
        return self._hold(run)

    def drop(self, run: RunState) -> None:
        """It waits no longer."""
        if run in self:
            del self._runs[run.info.run_id]

    def released(self, leaves: Leaves) -> list[RunState]:
        """Those that have nothing left to wait for."""
        found: list[RunState] = []
        for scope in list(self._by_scope):
            queue = self._by_scope[scope]
            oldest = leaves.oldest(scope)
            while queue and (queue[0][0] < oldest or queue[0][1] not in self):
                _, run = queue.popleft()
                if run in self:
                    found.append(run)
            if not queue:
                del self._by_scope[scope]
        return found

    def overdue(self, now: int) -> list[RunState]:
        """Those that waited for their log until `now`, nanoseconds since the epoch, and long enough."""
        found: list[RunState] = []
        while self._for_logs:
            run = self._for_logs[0]
            waits = run in self and (run.ending is None or now - run.ending[2] <= STREAM_WAIT)
            if waits:
                break
            self._for_logs.popleft()
            if run in self:
                found.append(run)
        return found

    def _hold(self, run: RunState) -> RunState | None:
        self._runs[run.info.run_id] = run
        return next(iter(self._runs.values())) if len(self._runs) > HELD_LIMIT else None
