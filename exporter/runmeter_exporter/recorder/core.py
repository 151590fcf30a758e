"""What a recorder knows and decides, without its thread: runs, what is due, what was lost. Pure; time is passed in.

`Recorder` drives it with a thread and a clock, the simulation with neither.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from runmeter.sink import TERMINAL, RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter import scopes
from runmeter_exporter.recorder.throttle import Throttle
from runmeter_exporter.recorder.totals import Ending, RunTotals
from runmeter_exporter.totals.run import Heartbeat, RunSnapshot

MAX_RUNS = 10_000
"""Runs held in memory: active ones, and ended ones whose final snapshot could not be written yet."""
REMEMBERED = 16_384
"""Ended run ids remembered, as hashes, so that one opened again becomes a source of its own."""
HEARTBEAT = 10.0
"""Seconds between signs of life while a run is active; the reaper takes a write of an owner for one too."""
BATCH = 4096
"""Snapshots in one write; halved after a failure, so that a slow store is not asked for the same too much for ever."""
SMALLEST_BATCH = 64

REJECTED = "spans_rejected"
DROPPED = "snapshots_dropped"
LEFT = "exit"
"""Stop reason of runs that had not ended when their process left."""


class Unwritten(NamedTuple):
    """What memory holds that the store does not."""

    runs: int
    calls: int
    tokens: int


class RecorderCore:
    """Totals per run, throttled snapshots, losses; one process, bounded.

    Methods that take `now` expect seconds of one monotonic clock. At most one batch is under way: `take`, then `wrote`
    or `failed`.
    """

    def __init__(
        self,
        source_id: str,
        *,
        throttle: float,
        price: Callable[[Call], Usage],
        service: str | None = None,
        forked: bool = False,
        max_runs: int = MAX_RUNS,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        """`forked`: a process with a parent, so a run whose beginning was not seen here is the parent's to end."""
        self.source_id = source_id
        self.throttle: Throttle[RunInfo] = Throttle(throttle)
        self._price = price
        self._service = service
        self._forked = forked
        self._max_runs = max_runs
        self._heartbeat = heartbeat
        self._runs: dict[RunInfo, RunTotals] = {}
        self._ended: dict[RunInfo, None] = {}  # of those, the ended ones, oldest first
        self._open: Counter[str] = Counter()
        self._closed: dict[int, None] = {}  # hashes of run ids written and forgotten, oldest first
        self._reopened = 0
        self._taken: dict[RunInfo, None] = {}
        self._batch = BATCH
        self._counts: Counter[tuple[str, str]] = Counter()
        self._labels = scopes.Labels()
        self._untold = False
        self._beat = 0
        self._told_at: float | None = None

    # What happens

    def begin(self, run: RunInfo, now: float) -> None:
        """A run began: announced at once, so that it is seen before its first call."""
        if run not in self._runs and self._hold(run, run.owns, now) is not None:
            self.throttle.touch(run, now, paced=False)

    def update(self, run: RunInfo, now: float) -> None:
        """A field of the run changed."""
        if run in self._runs:
            self.throttle.touch(run, now, paced=False)

    def settled(self, run: RunInfo, changes: Sequence[Change], now: float) -> None:
        """The run's totals moved. For a run that has ended and was written, this begins a later final."""
        totals = self._runs.get(run)
        if totals is None:
            totals = self._hold(run, run.owns and not self._forked, now, late=True)
            if totals is None:
                self.lost("runs_over_limit", len(changes), now)
                return
            if run.status in TERMINAL:  # nobody need end it again
                self._finish(run, totals, Ending(run.started_at, run.status, run.stop_reason))
        overflowed = totals.apply(changes, self._price)
        if overflowed:
            self.lost("cells_over_limit", overflowed, now)
        self.throttle.touch(run, now, urgent=totals.end is not None)

    def end(self, run: RunInfo, end: Ending, now: float) -> None:
        """The run ended here; unknown ones (written and forgotten, or a parent's) have nothing more to say."""
        totals = self._runs.get(run)
        if totals is not None:
            self._finish(run, totals, end)
            self.throttle.touch(run, now, urgent=True)

    def leave(self, at: int, now: float) -> None:
        """The process leaves: what has not ended by `at` (nanoseconds since the epoch) is interrupted."""
        for run, totals in self._runs.items():
            if totals.end is None:
                self._finish(run, totals, Ending(max(at, totals.updated_at), "interrupted", LEFT))
                self.throttle.touch(run, now, urgent=True)

    def lost(self, reason: str, count: int, now: float, *, family: str = REJECTED) -> None:
        """Something could not be counted or written (rule 9); told with the next heartbeat."""
        self._counts[family, reason] += count
        self._untold = True

    def spans(self, fates: Mapping[tuple[str, str], int], now: float) -> None:
        """What became of spans, (fate, scope) → how many more; told with the next heartbeat."""
        for (fate, scope), count in fates.items():
            self._counts[scopes.FAMILY, self._labels.label(fate, scope)] += count
        self._untold = True

    # What to write

    def work(self, now: float, *, everything: bool = False) -> tuple[list[Heartbeat], list[RunSnapshot]]:
        """The next call to the store: heartbeats, or snapshots, or neither.

        The first heartbeat goes before the first snapshot: whoever has written is known to the reaper, so that no run
        waits for ever for a source that nobody has heard of.
        """
        beats = self.heartbeat(now)
        snapshots = [] if beats else self.take(now, everything=everything)
        if everything and not beats and not snapshots:
            beats = self.heartbeat(now, everything=True)
        return beats, snapshots

    def take(self, now: float, *, everything: bool = False) -> list[RunSnapshot]:
        """The snapshots of the runs that are due (or of all that are dirty), for one write."""
        keys = self.throttle.everything(now, self._batch) if everything else self.throttle.due(now, self._batch)
        snapshots = []
        for run in keys:
            try:
                snapshots.append(self._runs[run].snapshot())
            except Exception:  # a field that is not of its type: this run cannot be written, the others can
                self._forget(run)
                self.lost("unreadable", 1, now, family=DROPPED)
                continue
            self._taken[run] = None
        return snapshots

    def wrote(self, now: float) -> None:
        """The batch is stored. An ended run of which all is written leaves nothing behind but its hash."""
        self.throttle.wrote(now)
        self._batch = min(BATCH, self._batch * 2)
        taken, self._taken = self._taken, {}
        for run in taken:
            if run in self._ended and run not in self.throttle:
                self._forget(run)

    def failed(self, now: float, until: float) -> None:
        """The batch may not be stored: all of it is due again, nothing before `until`, and fewer at a time."""
        taken, self._taken = self._taken, {}
        for run in taken:
            self._runs[run].unsend()
        self._batch = max(SMALLEST_BATCH, self._batch // 2)
        self.throttle.failed(taken, now, until)

    def heartbeat(self, now: float, *, everything: bool = False) -> list[Heartbeat]:
        """The heartbeats that are due, the first of them at once; `told` confirms them."""
        due = self._heartbeat_due()
        if not (everything and self._untold) and (due is None or now < due or self.throttle.held(now)):
            return []
        self._beat += 1
        counts = dict(self._counts)
        beats = [Heartbeat(self.source_id, self._beat, self._service, counts)]
        beats += [Heartbeat(source, self._beat, self._service) for source in sorted(self._further_sources())]
        return beats

    def told(self, now: float, beats: Sequence[Heartbeat]) -> None:
        """The heartbeats are stored."""
        self._told_at = now
        self._untold = dict(self._counts) != dict(beats[0].counts)

    def next_due(self) -> float | None:
        """When there is something to write, or None when there is nothing."""
        times = [time for time in (self.throttle.next_due(), self._heartbeat_due()) if time is not None]
        return max(min(times), self.throttle.held_until) if times else None

    def unwritten(self) -> Unwritten:
        """What would be lost if the process went now."""
        dirty = [totals for run, totals in self._runs.items() if run in self.throttle or run in self._taken]
        return Unwritten(len(dirty), sum(t.calls for t in dirty), sum(t.tokens for t in dirty))

    def __len__(self) -> int:
        """Runs held in memory."""
        return len(self._runs)

    @property
    def taken(self) -> Collection[RunInfo]:
        """The runs of the batch under way."""
        return self._taken.keys()

    @property
    def idle(self) -> bool:
        """No run is held and nothing waits to be told."""
        return not self._runs and not self._untold

    def _heartbeat_due(self) -> float | None:
        if self._told_at is None:
            return float("-inf") if self._runs or self._untold else None
        if not self._untold and len(self._runs) == len(self._ended):
            return None
        return self._told_at + self._heartbeat

    def _further_sources(self) -> set[str]:
        if not self._reopened:
            return set()
        return {totals.source for totals in self._runs.values()} - {self.source_id}

    def _hold(self, run: RunInfo, owns: bool, now: float, *, late: bool = False) -> RunTotals | None:
        if len(self._runs) >= self._max_runs:
            oldest = next((ended for ended in self._ended if ended not in self._taken), None)
            if oldest is None:
                return None
            self._forget(oldest)
            self.lost("memory", 1, now, family=DROPPED)
        totals = self._runs[run] = RunTotals(run, self._source_of(run.run_id), owns, late=late)
        self._open[run.run_id] += 1
        return totals

    def _source_of(self, run_id: str) -> str:
        """Snapshots are absolute per (run, source): a run id opened again starts from nothing, so as another source."""
        if run_id not in self._open and hash(run_id) not in self._closed:
            return self.source_id
        self._reopened += 1
        self._told_at = None  # a new source: known before it writes
        return f"{self.source_id}+{self._reopened}"

    def _finish(self, run: RunInfo, totals: RunTotals, end: Ending) -> None:
        totals.finish(end)
        self._ended[run] = None

    def _forget(self, run: RunInfo) -> None:
        del self._runs[run]
        self._ended.pop(run, None)
        self.throttle.forget(run)
        self._open[run.run_id] -= 1
        if not self._open[run.run_id]:
            del self._open[run.run_id]
        self._closed.pop(hash(run.run_id), None)
        self._closed[hash(run.run_id)] = None
        if len(self._closed) > REMEMBERED:
            del self._closed[next(iter(self._closed))]
