"""Ended spans into runs: which run a call belongs to, when a trace is a run, and when that run ends.

Not locked and not aware of threads: the processor calls it one thing at a time.
"""

from __future__ import annotations

from collections import deque

from runmeter.counting.lookalikes import Lookalikes
from runmeter.counting.same_call import RunFacts, keeper, may_repeat, may_share
from runmeter.reading.libraries import STREAM_LOGS
from runmeter.reading.read import Reading
from runmeter.reading.roles import AGENT, AGGREGATE, PLAIN, TOOL
from runmeter.reading.scopes import is_genai
from runmeter.runs.known import Runs, RunState
from runmeter.runs.open_spans import OpenSpan, OpenTrace
from runmeter.runs.waiting import Leaves, Waiting
from runmeter.sink import RunInfo
from runmeter.spans import Change

RECENT = 256
"""Calls remembered for the day that a second instrumentation shows up."""
_FOREVER = 2**63


class Fold:
    """The run side of the processor."""

    def __init__(self) -> None:
        self.runs = Runs()
        self.traces: dict[int, OpenTrace] = {}
        self.service: str | None = None
        self.generation = 0
        self.ambient: RunInfo | None = None
        """The run that everything in this process belongs to where the context does not say (`runmeter exec`)."""
        self._lookalikes = Lookalikes()
        self._scopes: set[str] = set()
        self._recent: deque[tuple[str, Reading]] = deque(maxlen=RECENT)
        self.leaves = Leaves()
        """Open spans that a call in another trace may prove to be."""
        self._waiting = Waiting()

    def forget(self) -> None:
        """Everything about runs and spans: in a forked child they are the parent's, after a stop nobody's."""
        self.runs.forget()
        self.traces = {}
        self._lookalikes = Lookalikes()
        self._recent.clear()
        self.leaves = Leaves()
        self._waiting = Waiting()

    # What happens.

    def agent_began(self, trace: OpenTrace, reading: Reading) -> None:
        """An agent span makes its trace a run at once, so that a run is seen before its first call has settled."""
        if trace.run is None:
            self._implicit(trace, reading)
        if trace.run is not None:
            self.announce(trace.run)

    def count(self, reading: Reading, entry: OpenSpan | None) -> None:
        """A span ended that says something."""
        if reading.rejected:
            self.runs.lost("rejected_value", len(reading.rejected))
        if reading.role or is_genai(reading.scope):
            self.runs.saw(reading.scope)
        if entry is None:
            # Begun before we were there: its trace is a run for as long as this span is all we know of it.
            entry = OpenSpan(OpenTrace(reading.trace_id))
        self._count(reading, entry)
        run = entry.trace.run
        if run is not None and entry.trace.roots <= 0 and run.ended_at is None and run.ending is None:
            # Its first call outlived all of its roots: nothing else is left to end it.
            self._ended(run, "error" if reading.failed else "success", reading.ended_at)
        if entry.may_be_call:
            self.call_ended(entry)

    def root_began(self, trace: OpenTrace, run: RunState | None) -> None:
        """A span with nothing above it here began."""
        trace.roots += 1
        if run is not None:
            run.roots += 1
            if not run.open and not run.info.owns:
                self.runs.reopen(run)
        elif trace.run is None:
            again = self.runs.find(format(trace.trace_id, "032x"))
            if again is not None and not again.explicit:
                trace.run = again
                if not again.open:
                    self.runs.reopen(again)

    def root_ended(self, entry: OpenSpan, ended_at: int, failed: bool) -> None:
        """The last of them ends an implicit run, and this process's part of a joined one."""
        trace, run = entry.trace, entry.run
        trace.roots -= 1
        status = "error" if failed else "success"
        if trace.roots <= 0:
            self.traces.pop(trace.trace_id, None)
            if trace.run is not None:
                self._ended(trace.run, status, ended_at)
        if run is not None:
            run.roots -= 1
            lasting = self.ambient is not None and self.ambient.run_id == run.info.run_id
            if run.roots <= 0 and not run.info.owns and not lasting:
                self.runs.end(run, status, None, ended_at)
        if self.runs.seen:
            self.runs.tell_fates()

    def call_began(self, entry: OpenSpan) -> None:
        """A span began whose scope makes calls or agents: a call in another trace may prove to be its call."""
        entry.may_be_call = True
        self.leaves.add(entry)

    def child_began(self, above: OpenSpan) -> None:
        """A span began below such a span."""
        above.kids += 1
        if above.kids == 1:
            self.leaves.discard(above)
            self._let_go()

    def child_ended(self, above: OpenSpan) -> None:
        """The last one below it may have ended."""
        above.kids -= 1
        if above.kids == 0 and above.may_be_call:
            self.leaves.add(above)

    def call_ended(self, entry: OpenSpan) -> None:
        """Such a span ended, or was given up: who waited for it waits for one less."""
        entry.may_be_call = False
        self.leaves.discard(entry)
        self._let_go()

    def _let_go(self) -> None:
        if not self._waiting:
            return
        for run in self._waiting.released(self.leaves):
            self.announce(run)

    def end_all(self, now: int) -> None:
        """The process stops counting: what was not ended is interrupted."""
        for run in self._waiting:
            self.announce(run)
        for state in self.runs.open_runs():
            if state.info.owns:
                self.runs.end(state, "interrupted", "exit", now)
            else:
                self.runs.end(state, "success", None, now)
        self.runs.tell_fates()

    # How.

    def _implicit(self, trace: OpenTrace, reading: Reading) -> RunState:
        info = RunInfo(
            format(trace.trace_id, "032x"),
            reading.started_at,
            service=self.service,
            trace_id=trace.trace_id,
            root_span_id=trace.root_span_id,
        )
        run = trace.run = RunState(info, explicit=False, generation=self.generation)
        return run

    def _count(self, reading: Reading, entry: OpenSpan) -> None:
        role = reading.role
        run = entry.run or entry.trace.run
        if run is None:
            # Only something to count makes a trace a run: its calls and agents, and whatever else has usage.
            if role in (PLAIN, TOOL) or (role == AGGREGATE and reading.usage is None):
                return
            run = self._implicit(entry.trace, reading)
        if role != PLAIN:
            above = entry.above
            if above is not None and not above.fed:
                self._feed_above(run, above)
            if role != TOOL:
                home = self._home(run, reading)
                if home is not run:
                    self._add(home, reading)
                    if reading.stream_log and home in self._waiting:
                        self.announce(home)
                    return
        self._add(run, reading)
        if not run.announced and run not in self._waiting and (role == AGENT or any(run.settler.totals)):
            self._hold_or_announce(run, reading)

    def _add(self, run: RunState, reading: Reading) -> None:
        self.runs.settled(run, run.settler.add(reading))

    def _feed_above(self, run: RunState, above: OpenSpan | None) -> None:
        """What encloses a span, as far as it is still open here: joins, aggregates and callers are read from it."""
        while above is not None and not above.fed and (above.run or above.trace.run) is run:
            above.fed = True
            reading = above.read()
            if reading is not None:
                if reading.matters:
                    run.settler.open(reading)
                else:
                    run.settler.ancestor(reading.trace_id, reading.span_id, reading.parent_id)
            above = above.above

    # A call that two instrumentations see in two traces.

    def _home(self, run: RunState, reading: Reading) -> RunState:
        """The run that keeps this call: its own, or that of its twin; a twin may come over from its run."""
        run_id = run.info.run_id
        if len(self._scopes) < 2:
            # With one instrumentation there are few twins: logs, answers read again. Remember, and look nowhere.
            self._scopes.add(reading.scope)
            if len(self._scopes) < 2 and not may_repeat(reading):
                self._recent.append((run_id, reading))
                return run
            self._scopes.update((reading.scope, ""))
            while self._recent:
                self._lookalikes.add(*self._recent.popleft())
        found = self._lookalikes.find(run_id, reading)
        home = run
        if found:
            kind, twins = found
            other = self._of(twins[0].run_id)
            if other is not None and other is not run and may_share(_facts(run), _facts(other), kind):
                if other.settler.closed or keeper(_facts(run), _facts(other)).run_id != run_id:
                    home = other
                elif not run.settler.closed:
                    for twin in twins:
                        self.runs.settled(other, other.settler.remove(*twin.reading.key))
                        self._add(run, twin.reading)
                        self._lookalikes.add(run_id, twin.reading)
        self._lookalikes.add(home.info.run_id, reading)
        return home

    def _of(self, run_id: str) -> RunState | None:
        return self._waiting.find(run_id) or self.runs.find(run_id)

    def _hold_or_announce(self, run: RunState, reading: Reading) -> None:
        """A trace that is a lone call may be a twin of one in a trace that is still open: sinks hear of it when that is
        decided, since a run they have heard of cannot be taken back."""
        for overdue in self._waiting.overdue(reading.ended_at):
            self.announce(overdue)
        if reading.usage is None and not reading.failed and reading.scope in STREAM_LOGS and reading.parent_id is None:
            # The call of a stream that is still to be read, and its usage comes in a trace of its own.
            crowded_out = self._waiting.for_its_log(run)
        elif reading.role == AGENT or self.leaves.oldest(reading.scope) > self.leaves.now:
            self.announce(run)
            return
        else:
            crowded_out = self._waiting.for_leaves(run, reading.scope, self.leaves.now)
        if crowded_out is not None:
            self.announce(crowded_out)

    def announce(self, run: RunState) -> None:
        """Sinks hear of a run, with what it has by now; one whose calls all moved to their twins is never heard of."""
        self._waiting.drop(run)
        if run.open or run.announced:
            return
        calls = run.settler.calls()
        ending = run.ending
        if ending is not None and not calls:
            return
        self.runs.begin(run)
        if calls:
            self.runs.tell(run, [Change(None, call) for call in calls.values()])
        if ending is not None:
            self.runs.end(run, *ending)

    def _ended(self, run: RunState, status: str, ended_at: int) -> None:
        if run in self._waiting:
            run.ending = (status, None, ended_at)
        elif run.announced:
            self.runs.end(run, status, None, ended_at)


def _facts(run: RunState) -> RunFacts:
    info, settler = run.info, run.settler
    return RunFacts(
        info.run_id,
        run.explicit,
        info.thread_id or settler.facts.thread_id,
        info.agent or settler.facts.agent,
        info.started_at,
        _FOREVER if run.ended_at is None else run.ended_at,
    )
