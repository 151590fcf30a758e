"""The span processor: every span's run is decided when it starts, every call is counted when it ends.

Runs on the agent's own threads: it never raises, never blocks on anything but its own short lock and never does I/O.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry import baggage
from opentelemetry.context import Context, get_current
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.trace import StatusCode, Tracer

from runmeter import guard
from runmeter.otel.in_force import IN_FORCE, InForce
from runmeter.otel.serial import Serial
from runmeter.reading import semconv
from runmeter.reading.libraries import LIBRARIES
from runmeter.reading.plan import role_said
from runmeter.reading.read import is_plain, read
from runmeter.reading.roles import AGENT, CALL, WEAK
from runmeter.reading.scopes import is_genai
from runmeter.runs.known import RunState
from runmeter.runs.open_spans import READ, OpenSpan, OpenTrace, attributes_of, ended_span, scope_name, stamp
from runmeter.runs.placing import Fold
from runmeter.sink import RunInfo, Sink
from runmeter.spans import Call, EndedSpan

logger = logging.getLogger("runmeter")

SPAN_LIMIT = 65_536
"""Spans open at once; beyond, the oldest is taken for one that nobody will end."""
SCOPE_LIMIT = 1024
"""Instrumentation scopes told apart."""
MODEL_SCOPES = (
    "openinference.",
    "opentelemetry.instrumentation.genai",
    "opentelemetry.instrumentation.langchain",
    "opentelemetry.instrumentation.openai",
    "openlit.",
    "langsmith",
)
"""How the scopes begin of instrumentations that may see a call which another one sees in a trace of its own."""
_MAY_BE_CALLS = (None, CALL, WEAK)
"""What a span may have said that it is when it begins, and be a call after all."""
GENAI, CALLISH = 1, 2
"""A scope should make calls or agents, or has made some (or is of `MODEL_SCOPES`)."""


class Processor(SpanProcessor):
    """Folds spans into runs and passes what settles to the sinks. One in a process (`PROCESSOR`).

    `clock` gives wall time in nanoseconds and is asked only for runs whose own span is not recorded.
    """

    def __init__(self, *, clock: Callable[[], int] = time.time_ns, span_limit: int = SPAN_LIMIT) -> None:
        self.clock = clock
        self.fold = Fold()
        self.tracer: Tracer | None = None
        """Makes the spans of runs and of recorded usage."""
        self.source_id: str | None = None
        self.warns_unsampled = False
        self.generation = 0
        self.enabled = False
        self._span_limit = span_limit
        self._spans: dict[int, OpenSpan] = {}
        self._inherited: frozenset[int] = frozenset()
        self._scopes: dict[str, int] = dict.fromkeys(LIBRARIES, CALLISH)
        """Instrumentation scopes, and whether they make calls or agents: 0, GENAI or CALLISH."""
        self._warned: set[str] = set()
        self._serial = Serial(self._failed)
        self._do = self._serial.do

    @property
    def service(self) -> str | None:
        """`service.name` of the host, if it has one."""
        return self.fold.service

    # The two that every span of the host passes through.

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if not self.enabled:
            return
        try:
            context = get_current() if parent_context is None else parent_context
            scope: InForce | None = context.get(IN_FORCE)  # type: ignore[assignment]
            trace_id, span_id = span.context[:2]
            parent = span.parent
            # Trace and span id in one integer: the span id is random, the trace id keeps apart what is not.
            above = None if parent is None else self._spans.get(trace_id ^ parent.span_id)
            if scope is not None and scope.run is not None:
                run: RunState | None = self.mine(scope.run)
            elif above is not None:
                run = above.run
            else:
                run = self._joined(context)
            start: dict[str, Any] | None = None
            attributes = attributes_of(span)
            instrumentation = scope_name(span)
            if attributes and not is_plain(instrumentation, attributes):
                start = {key: value for key, value in attributes.items() if key in READ}
            if above is None:
                trace = self._trace(trace_id, span_id)
                self._do(self.fold.root_began, trace, run)
            else:
                trace = above.trace
                if above.may_be_call:
                    self._do(self.fold.child_began, above)
            entry = self._spans[trace_id ^ span_id] = OpenSpan(trace, instrumentation, span, above, run, start)
            callish = self._scopes.get(instrumentation)
            if callish is None:
                callish = self._meet(instrumentation)
            if callish:
                entry.callish = callish
                if callish == CALLISH and (start is None or role_said(start) in _MAY_BE_CALLS):
                    self._do(self.fold.call_began, entry)
            self._stamp(span, attributes, run, None if scope is None else scope.caller)
            if start is not None and run is None and (trace.run is None or not trace.run.announced):
                reading = entry.read()
                if reading is not None and reading.role == AGENT:
                    self._do(self.fold.agent_began, trace, reading)
            if len(self._spans) > self._span_limit:
                self._do(self._evict)
        except guard.FAULTS as fault:
            guard.unless_the_hosts(fault)
            self._failed("on_start")

    def on_end(self, span: ReadableSpan) -> None:
        if not self.enabled:
            return
        counted = False
        try:
            trace_id, span_id = span.context[:2]
            key = trace_id ^ span_id
            entry = self._spans.pop(key, None)
            attributes = attributes_of(span)
            if entry is None:
                if key in self._inherited:
                    return  # Begun before the fork: it is the parent's to count.
                scope = scope_name(span)
                if not is_plain(scope, attributes):
                    self._do(self.fold.count, read(ended_span(span, attributes, scope)), None)
                return
            plain = is_plain(entry.scope, attributes, below_a_run=entry.run is not None)
            if not plain:
                if entry.start is not None and span.dropped_attributes:
                    attributes = {**entry.start, **attributes}
                reading = read(ended_span(span, attributes, entry.scope))
                if reading.role and self._scopes.get(entry.scope) != CALLISH:
                    self._scopes[entry.scope] = CALLISH
                self._do(self.fold.count, reading, entry)
            counted = True
            if entry.may_be_call:
                self._do(self.fold.call_ended, entry)
            if plain and entry.callish and is_genai(entry.scope):
                self._do(self.fold.runs.saw, entry.scope)
            above = entry.above
            if above is None:
                failed = span.status.status_code is StatusCode.ERROR
                self._do(self.fold.root_ended, entry, span.end_time or self.clock(), failed)
            elif above.may_be_call:
                self._do(self.fold.child_ended, above)
        except guard.FAULTS as fault:
            guard.unless_the_hosts(fault, None if counted else self._interrupted)
            self._failed("on_end")
        except BaseException:
            # What the host's signal handlers and other threads raise in here is the host's.
            if not counted:
                self._interrupted()
            raise

    # What context.py asks for.

    def find(self, run_id: str) -> RunState | None:
        """The run of that id as this side of a fork knows it, open or recently ended."""
        found = self.fold.runs.find(run_id)
        return found if found is not None and found.generation == self.generation else None

    def state(self, info: RunInfo) -> RunState:
        """An explicit run that has not begun."""
        return RunState(info, explicit=True, generation=self.generation)

    def begin(self, state: RunState) -> None:
        """The run begins here: from now on sinks know it."""
        self._do(self.fold.runs.begin, state)

    def announce(self, state: RunState) -> None:
        """The same for a run that began quietly: sinks know it from now on, with what it has by now."""
        self._do(self.fold.announce, state)

    def adopt(self, trace_id: int, span_id: int, state: RunState, of: tuple[str, ...]) -> None:
        """Open spans from this one up belong to a run that began inside of them, as far as they are of no run and of
        instrumentations whose names hold one of these words."""
        entry = self._spans.get(trace_id ^ span_id)
        while entry is not None and entry.run is None and any(word in entry.scope for word in of):
            entry.run = state
            entry = entry.above

    def joined(self, run_id: str, like: RunInfo | None = None) -> RunState:
        """The run of that id as this process has it; one that another process owns is joined."""
        found = self.find(run_id)
        if found is not None:
            return found
        known = like or RunInfo(run_id, 0)
        state = self.state(
            RunInfo(
                run_id, self.clock(), owns=False, thread_id=known.thread_id, service=self.service, agent=known.agent,
                user_id=known.user_id, tags=known.tags, trace_id=known.trace_id, root_span_id=known.root_span_id,
            )
        )  # fmt: skip
        self.begin(state)
        return state

    def mine(self, state: RunState) -> RunState:
        """The run as this side of a fork has it."""
        return state if state.generation == self.generation else self.joined(state.info.run_id, state.info)

    def updated(self, state: RunState) -> None:
        self._do(self.fold.runs.update, state)

    def end(self, state: RunState, status: str, stop_reason: str | None, ended_at: int) -> None:
        self._do(self.fold.runs.end, self.mine(state), status, stop_reason, ended_at)

    def feed(self, span: EndedSpan, run: RunState | None) -> None:
        """Count a span that the SDK does not record; `run` None makes its trace a run of its own."""
        reading = read(span)
        if run is None:
            self._do(self.fold.count, reading, None)
            return
        mine = self.mine(run)
        self._do(self.fold.count, reading, OpenSpan(OpenTrace(span.trace_id), run=mine))
        if not mine.info.owns and mine.roots <= 0:
            self._do(self.fold.runs.end, mine, "success", None, span.ended_at)

    def add(self, state: RunState, call: Call) -> None:
        """Count what no span stands for."""
        self._do(self.fold.runs.add, self.mine(state), call)

    def lost(self, reason: str, count: int = 1) -> None:
        self._do(self.fold.runs.lost, reason, count)

    def join_all(self, info: RunInfo) -> None:
        """Everything in this process belongs to this run of another one, where the context does not say."""
        self.fold.ambient = info

    # Life: sinks come and go with instrument(); the processor stays on the provider, which cannot take it back.

    def start(self, sinks: tuple[Sink, ...], *, source_id: str | None = None, service: str | None = None) -> None:
        """Count from now on."""
        self.fold.runs.sinks = sinks
        self.fold.service = service
        self.source_id = source_id
        self.enabled = True

    def stop(self) -> None:
        """End every run still open as interrupted, and count nothing from now on."""
        for entry in list(self._spans.values()):
            if entry.span is not None and entry.span.end_time is not None:
                self._interrupted()  # it ended, and a signal handler raised before we came to look at it
        self._do(self.fold.end_all, self.clock())
        self.enabled = False
        self.fold.ambient = None
        self._forget()

    def shutdown(self) -> None:
        """The provider is shut down: what is known is written. Counting stops with `Handle.shutdown`, not with it,
        since there may be other providers, and runs end after theirs."""
        self.flush(2.0)

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self.flush(timeout_millis / 1000)

    def flush(self, timeout: float) -> bool:
        """Have the sinks write what is pending; True when all of it was written in `timeout` seconds."""
        return self._each(timeout, lambda sink, left: sink.flush(left))

    def shutdown_sinks(self, timeout: float) -> bool:
        """The same, for good."""
        done = self._each(timeout, lambda sink, left: sink.shutdown(left))
        self.fold.runs.sinks = ()
        return done

    def after_fork(self) -> None:
        """In a forked child: a new source, no runs, no memory of the parent's spans but not to count them."""
        self._serial.after_fork()
        self._inherited = frozenset(self._spans)
        self.generation += 1
        self.fold.generation = self.generation
        self._forget()
        for sink in self.fold.runs.sinks:
            try:
                sink.after_fork()
                self.source_id = getattr(sink, "source_id", self.source_id)
            except Exception as error:
                guard.unless_the_hosts(error)
                self._failed("after_fork")

    # How.

    def _meet(self, scope: str) -> int:
        """A scope is seen for the first time; what it makes is guessed until it has made a call."""
        if len(self._scopes) >= SCOPE_LIMIT:
            return 0
        guess = CALLISH if scope.startswith(MODEL_SCOPES) else GENAI if is_genai(scope) else 0
        return self._scopes.setdefault(scope, guess)

    def _joined(self, context: Context) -> RunState | None:
        run_id = guard.identifier(baggage.get_baggage(semconv.RUN_ID, context))
        if run_id is not None:
            return self.joined(run_id)
        ambient = self.fold.ambient
        return None if ambient is None else self.joined(ambient.run_id, ambient)

    def _trace(self, trace_id: int, span_id: int) -> OpenTrace:
        return self.fold.traces.get(trace_id) or self.fold.traces.setdefault(trace_id, OpenTrace(trace_id, span_id))

    def _stamp(self, span: Span, attributes: Mapping[str, Any], run: RunState | None, caller: str | None) -> None:
        marks: dict[str, str] = {}
        if self.source_id is not None:
            marks[semconv.SOURCE_ID] = self.source_id
        if run is not None:
            info = run.info
            marks[semconv.RUN_ID] = info.run_id
            if info.thread_id is not None and semconv.CONVERSATION_ID not in attributes:
                marks[semconv.CONVERSATION_ID] = info.thread_id
        if caller is not None and semconv.CALLER not in attributes:
            marks[semconv.CALLER] = caller
        if marks:
            stamp(span, marks)

    def _evict(self) -> None:
        oldest = next(iter(self._spans), None)
        entry = None if oldest is None else self._spans.pop(oldest, None)
        if oldest is None or entry is None:
            return
        self.fold.runs.lost("span_evicted")
        self.fold.call_ended(entry)
        if entry.above is None:
            self.fold.root_ended(entry, self.clock(), False)
        elif entry.above.may_be_call:
            self.fold.child_ended(entry.above)

    def _forget(self) -> None:
        self._spans = {}
        self.fold.forget()

    def _each(self, timeout: float, ask: Callable[[Sink, float], bool]) -> bool:
        deadline = time.monotonic() + timeout
        done = True
        for sink in self.fold.runs.sinks:
            try:
                done = ask(sink, max(0.0, deadline - time.monotonic())) and done
            except Exception as error:
                guard.unless_the_hosts(error)
                self._failed("flush")
                done = False
        return done

    def _interrupted(self) -> None:
        """The host took the thread away from a span that was being counted: it may not be, and that is said."""
        self._do(self.fold.runs.lost, "interrupted")

    def _failed(self, where: str) -> None:
        """A fault of our own is said once for each place, counted each time, and never the host's (rule 8)."""
        if where not in self._warned:
            self._warned.add(where)
            logger.warning("runmeter: %s failed; what it was about is not counted", where, exc_info=True)
        for sink in self.fold.runs.sinks:
            try:
                sink.lost("error")
            except Exception as error:
                guard.unless_the_hosts(error)
                logger.debug("runmeter: a sink could not count a loss", exc_info=True)


PROCESSOR = Processor()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESSOR.after_fork)
