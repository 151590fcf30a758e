"""The runs this process knows: those open, and a short memory of those that ended, for streams that outlive them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence

from opentelemetry.context import Context

from runmeter.counting.settler import LIMIT, Settler
from runmeter.reading.scopes import NEWS_LIMIT, OTHER, SEEN
from runmeter.runs.shares import Shares
from runmeter.sink import UNINSTRUMENTED, RunInfo, Sink
from runmeter.spans import Call, Change

OPEN_LIMIT = 10_000
"""Runs open at once in one process; more means that somebody never ends theirs, and the oldest is let go."""
ENDED_LIMIT = 256
"""Ended runs still known by id. A stream that is still open keeps its own run known however long that takes."""


REMEMBERED = 32_768
"""Spans remembered over all open runs, some 1.3 kB each, so that a thousand runs at once take tens of megabytes and
not a gigabyte: few runs remember as many as a settler may, many share."""
FEWEST = 64
"""What a run remembers however many there are: a repeat follows its call closely."""
ENDED_FEWEST = 128
"""What an ended run remembers, for the same repeats of streams that outlive it."""


_FACTS = ("thread_id", "agent", "user_id")
"""What a run may be said to be for, by whoever began it or by its spans."""


class RunState:
    """A run as this process keeps it: what sinks see of it, its settler and its totals so far."""

    __slots__ = (
        "announced",
        "asked",
        "context",
        "ended_at",
        "ending",
        "explicit",
        "generation",
        "given",
        "info",
        "open",
        "roots",
        "settler",
        "shares",
    )

    def __init__(self, info: RunInfo, *, explicit: bool, generation: int) -> None:
        self.info = info
        self.settler = Settler()
        self.explicit = explicit
        """Begun by id: by `run()`, or joined by the id in a baggage. The others are traces."""
        self.given = tuple(name for name in _FACTS if getattr(info, name) is not None)
        """Facts that whoever began the run stated; the others are what its spans say."""
        self.generation = generation
        """Which side of a fork made it: a child's first look at its parent's run makes a state of its own."""
        self.context: Context | None = None
        """With the run's own span and id in force: what is recorded for the run by its id belongs there."""
        self.roots = 0
        """Spans open here that have nothing above them here; a joined or implicit run ends with the last of them."""
        self.announced = False
        """Sinks know it."""
        self.open = False
        self.asked = 0
        """Model calls that a client made in it which nothing instruments (`tapping.py`)."""
        self.ended_at: int | None = None
        """When it ended, also while it is open once more."""
        self.ending: tuple[str, str | None, int] | None = None
        """How it ended before sinks knew it."""
        self.shares: Shares | None = None
        """Of other conversations in its trace, once there are any."""


class Runs:
    """Begins and ends runs and tells the sinks."""

    def __init__(self, *, remembered: int = REMEMBERED) -> None:
        self.sinks: tuple[Sink, ...] = ()
        self._remembered = remembered
        self._share = LIMIT
        self.seen: dict[str, int] = {}
        """Scope → spans that sinks have not been told of."""
        self._open: OrderedDict[str, RunState] = OrderedDict()
        self._ended: OrderedDict[str, RunState] = OrderedDict()

    def find(self, run_id: str) -> RunState | None:
        """The run of that id, open or recently ended; the open one where both exist."""
        return self._open.get(run_id) or self._ended.get(run_id)

    def open_runs(self) -> list[RunState]:
        return list(self._open.values())

    def begin(self, state: RunState) -> None:
        """Sinks hear of it."""
        if len(self._open) >= OPEN_LIMIT:
            oldest = next(iter(self._open.values()))
            self.lost("run_evicted")
            self.end(oldest, "interrupted", "evicted", oldest.info.started_at)
        self._fill(state)
        self._open[state.info.run_id] = state
        self._divide()
        state.open = state.announced = True
        for sink in self.sinks:
            sink.begin(state.info)

    def reopen(self, state: RunState) -> None:
        """Spans of an ended run open again (a trace's next request, a joined run's next job): it ends once more."""
        run_id = state.info.run_id
        if self._ended.get(run_id) is state:
            del self._ended[run_id]
        self._open[run_id] = state
        self._divide()
        state.open = True

    def update(self, state: RunState) -> None:
        for sink in self.sinks:
            sink.update(state.info)

    def settled(self, state: RunState, changes: Sequence[Change]) -> None:
        """Its settler moved by `changes`, or set something aside where there are none."""
        if not state.announced:
            return
        if state.open and state.settler.limit != self._share:
            state.settler.keep(self._share)
        if changes:
            self.tell(state, changes)
        else:
            self._fill(state)
            self._divide_anew(state)
            self._set_aside(state)
            if not state.open:
                self.tell_fates(state)

    def add(self, state: RunState, call: Call) -> None:
        """Count what no span stands for."""
        state.settler.add_call(call)
        self.tell(state, [Change(None, call)])

    def tell(self, state: RunState, changes: Sequence[Change]) -> None:
        """Pass on what moved. After the run's end it is a later final, which adds (rule 4)."""
        if state.settler.facts.learned:
            self._fill(state)
        told = self._divided(state, changes)
        for info, some in told:
            for sink in self.sinks:
                sink.settled(info, some)
        if not state.open and state.ended_at is not None:
            self._set_aside(state)
            self.tell_fates(state)
            for info, _ in told:
                for sink in self.sinks:
                    sink.end(info, state.ended_at)

    def end(self, state: RunState, status: str, stop_reason: str | None, ended_at: int) -> None:
        """End it once; what comes later only adds. A run reopened keeps the status of its first end."""
        run_id = state.info.run_id
        if self._open.get(run_id) is state:
            del self._open[run_id]
            self._ended[run_id] = state
            if len(self._ended) > ENDED_LIMIT:
                self._ended.popitem(last=False)
            self._divide()
        state.open = False
        info = state.info
        self._fill(state)
        self._divide_anew(state)
        self._set_aside(state)
        if state.ended_at is None:
            info.status = status
            info.stop_reason = stop_reason
        state.ended_at = ended_at = max(ended_at, info.started_at, state.ended_at or 0)
        state.settler.close()
        state.settler.keep(min(self._share, ENDED_FEWEST))
        self.tell_fates(state)
        shares = [] if state.shares is None else list(state.shares.infos.values())
        for share in shares:
            share.status, share.stop_reason = info.status, info.stop_reason
        for each in (info, *shares):
            for sink in self.sinks:
                sink.end(each, ended_at)

    def saw(self, scope: str) -> None:
        """A span of this instrumentation scope ended that speaks of model calls, or should."""
        seen = self.seen
        if len(seen) >= NEWS_LIMIT and scope not in seen:
            scope = OTHER
        seen[scope] = seen.get(scope, 0) + 1

    def tell_fates(self, state: RunState | None = None) -> None:
        """Sinks hear what became of spans: those seen since, and those of a run that was closed."""
        fates = Counter({(SEEN, scope): spans for scope, spans in self.seen.items()})
        self.seen = {}
        if state is not None:
            for (fate, scope, _), spans in state.settler.take_fates().items():
                fates[fate, scope] += spans
        if fates:
            for sink in self.sinks:
                sink.spans(fates)

    def lost(self, reason: str, count: int = 1) -> None:
        for sink in self.sinks:
            sink.lost(reason, count)

    def forget(self) -> None:
        """No run is known any more; sinks are not told."""
        self._open = OrderedDict()
        self._ended = OrderedDict()
        self.seen = {}
        self._divide()

    def _divide(self) -> None:
        """What each open run may remember; it learns of it with its next span."""
        self._share = max(FEWEST, min(LIMIT, self._remembered // max(1, len(self._open))))

    def _divided(self, state: RunState, changes: Sequence[Change]) -> Sequence[tuple[RunInfo, Sequence[Change]]]:
        """What of it is the run's own, and what is of other conversations in its trace."""
        if state.shares is None:
            if state.explicit or not state.settler.facts.several_threads:
                return [(state.info, changes)]
            state.shares = Shares(state.info, self._begin_share)
        return state.shares.divide(changes, state.settler.remembered)

    def _divide_anew(self, state: RunState) -> None:
        """The run may be of another conversation than it seemed."""
        if state.shares is not None or state.settler.facts.several_threads:
            for info, some in self._divided(state, []):
                for sink in self.sinks:
                    if some:
                        sink.settled(info, some)

    def _begin_share(self, share: RunInfo) -> None:
        for sink in self.sinks:
            sink.begin(share)

    def _fill(self, state: RunState) -> None:
        """Facts that only the spans know, whichever of them came first; when the run has ended they stay."""
        info, facts = state.info, state.settler.facts
        facts.learned = False
        news = False
        for name in _FACTS:
            said = getattr(facts, name)
            if said is None or name in state.given or said == getattr(info, name):
                continue
            if state.ended_at is None or getattr(info, name) is None:
                setattr(info, name, said)
                news = True
        if news and state.open:
            self.update(state)

    def _set_aside(self, state: RunState) -> None:
        """What sinks may show of spans not counted; a mapping of its own, since they keep the reference."""
        settler = state.settler
        aside: Mapping[str, int] = settler.set_aside
        if state.asked and not (settler.totals.calls or settler.totals.failures):
            aside = {**aside, UNINSTRUMENTED: state.asked}
        if aside and aside != state.info.set_aside:
            state.info.set_aside = aside
