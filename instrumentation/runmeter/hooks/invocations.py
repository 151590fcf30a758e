"""LangChain's invocations: the outermost is a run where no other is in force, and what is inside knows its caller.
LlamaIndex's spans are taken for the same.

Every callback names the invocation it is of and the one around it, so that who belongs to whom is known on any thread.
Of OpenTelemetry's context only the run is set, for the instrumentations of clients and frameworks below, and what was
set holds no run any more once the run has ended: LangChain ends an asynchronous invocation in another task than it
began in, where nothing can be taken back.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from opentelemetry import baggage, trace
from opentelemetry.context import Context, attach, get_current, set_value

from runmeter import guard
from runmeter.hooks.report import Memory, field, first
from runmeter.otel.context import Run, outcome
from runmeter.otel.in_force import IN_FORCE, InForce, detach, now_in_force
from runmeter.otel.processor import PROCESSOR
from runmeter.reading import semconv
from runmeter.runs.known import RunState
from runmeter.sink import RunInfo

THREAD_KEYS = ("thread_id", "session_id", "conversation_id")
"""Where metadata names the thread; LangGraph puts what is `configurable` there."""
OF_FRAMEWORK = ("langchain", "langgraph", "llama_index", "llamaindex")
"""In the names of the scopes of those who instrument them: a span of theirs around the outermost invocation is its."""
_STEPS = (".before_agent", ".before_model", ".after_model", ".after_agent")
"""How the nodes of an agent's middleware end."""


class Lent(InForce):
    """What a run puts into the context of its invocation. Unlike any other scope it changes, once: when the run ends,
    wherever it may have been left behind."""


class Outermost:
    """An invocation with none around it that we know."""

    def __init__(self, run_id: Any, context: Context) -> None:
        self.run_id = run_id
        self.context = context
        """What was in force when it began."""
        self.state: RunState | None = None
        """Its run; None where it belongs to another."""
        self.for_run: str | None = None
        """The run that a handler among the callbacks names."""
        self.agent: str | None = None
        self.scope: Lent | None = None
        self._attached: Context | None = None
        self._token: Any = None
        self._run: Run | None = None

    def begin(self, info: RunInfo) -> None:
        """A run that nobody hears of before its first call: most invocations of a prompt or a tool make none."""
        around = now_in_force(self.context)
        self.state = PROCESSOR.state(info)
        self.scope = Lent(self.state, None if around is None else around.caller)
        self._attached = set_value(IN_FORCE, self.scope, self.context)
        self._token = attach(self._attached)
        around_it = trace.get_current_span(self.context).get_span_context()
        PROCESSOR.adopt(around_it.trace_id, around_it.span_id, self.state, OF_FRAMEWORK)

    def give_up(self, run_id: str) -> None:
        """A handler names the run."""
        self.for_run = run_id
        if self.scope is not None and self._run is None:
            self.scope.run = self.state = None

    def open(self) -> None:
        """It calls a model: from now on the run is seen."""
        state, scope, tracer = self.state, self.scope, PROCESSOR.tracer
        if state is None or scope is None or self._run is not None:
            return
        info = state.info
        info.agent = info.agent or self.agent
        context = set_value(IN_FORCE, InForce(state, scope.caller), self.context)
        span = None
        if tracer is not None:
            attributes: dict[str, Any] = {semconv.RUN_ROOT: True}
            if info.agent is not None:
                attributes[semconv.AGENT] = info.agent
            if info.user_id is not None:
                attributes[semconv.USER_ID] = info.user_id
            name = f"run {info.agent}" if info.agent else "run"
            span = tracer.start_span(name, context, attributes=attributes, start_time=info.started_at)
            identity = span.get_span_context()
            if identity.is_valid:
                context = trace.set_span_in_context(span, context)
                info.trace_id, info.root_span_id = identity.trace_id, identity.span_id
        state.context = context
        self._run = Run(PROCESSOR, state, context, span)
        PROCESSOR.announce(state)

    def end(self, error: BaseException | None) -> None:
        """It is over, as what it raised says."""
        state, scope = self.state, self.scope
        if scope is None:
            return
        if state is not None:
            status, reason = outcome(error)
            if self._run is None and state.announced:
                # The instrumentation of a client below saw its calls.
                self._run = Run(PROCESSOR, state, self.context, None)
            if self._run is not None:
                self._run.end(status, reason)
            else:
                # Whoever tells of it later tells of a run that has ended; without a call nobody hears of it.
                state.ending = (status, reason, PROCESSOR.clock())
                if any(state.settler.totals):
                    PROCESSOR.announce(state)
        scope.run = None
        if get_current() is self._attached:
            detach(self._token)

    def around(self, context: Context) -> Context:
        """`context` for a call of this invocation: with its run, whatever became of the context on the way, unless a
        run of the host's own lies between."""
        state, scope = self.state, now_in_force(context)
        if state is None or (scope is not None and scope.run not in (None, state) and not isinstance(scope, Lent)):
            return context
        if scope is None or scope.run is not state or isinstance(scope, Lent):
            context = set_value(IN_FORCE, InForce(state, None if scope is None else scope.caller), context)
        if state.context is not None and not trace.get_current_span(context).is_recording():
            context = trace.set_span_in_context(trace.get_current_span(state.context), context)
        return context


class Invocation(NamedTuple):
    """One under way: an agent, a chain, a tool, a model."""

    outermost: Outermost
    agent: str | None
    """The agent it is part of, and how many are around each other there."""
    depth: int
    in_tool: bool
    """A tool of that agent's is around it."""


class Invocations:
    """Those of the process that are under way."""

    def __init__(self) -> None:
        self._under_way = Memory()

    def begin(
        self, run_id: Any, parent: Any, metadata: Any, *, name: Any = None, tool: bool = False,
        for_run: str | None = None,
    ) -> Invocation:  # fmt: skip
        """It began, with `parent` around it; heard of twice it is the same."""
        known: Invocation | None = self._under_way.peek(run_id)
        if known is None:
            known = self._enter(run_id, parent, metadata, name, tool, for_run)
            self._under_way.begin(run_id, known)
        if for_run is not None and known.outermost.for_run is None:
            known.outermost.give_up(for_run)
        return known

    def find(self, run_id: Any) -> Invocation | None:
        """One that is under way."""
        found: Invocation | None = self._under_way.peek(run_id)
        return found

    def end(self, run_id: Any, error: BaseException | None = None) -> None:
        """It is over; with it, if it is the outermost, its run."""
        known: Invocation | None = self._under_way.take(run_id)
        if known is not None and known.outermost.run_id == run_id:
            known.outermost.end(error)

    def _enter(
        self, run_id: Any, parent: Any, metadata: Any, name: Any, tool: bool, for_run: str | None
    ) -> Invocation:  # fmt: skip
        above = (None if parent is None else self.find(parent)) or self._surrounding()
        context = get_current()
        agent = guard.text(field(metadata, "lc_agent_name"))
        if above is None:
            outermost = Outermost(run_id, context)
            if for_run is None and PROCESSOR.enabled and not in_force(context):
                outermost.begin(_info(run_id, metadata, agent))
            outermost.agent = agent
            return Invocation(outermost, agent, 0 if agent is None else 1, tool)
        outermost = above.outermost
        outermost.agent = outermost.agent or agent
        state = outermost.state
        if state is not None:
            scope = now_in_force(context)
            if scope is None or (isinstance(scope, Lent) and scope is not outermost.scope):
                attach(set_value(IN_FORCE, outermost.scope, context))
            if state.info.thread_id is None and not state.announced:
                state.info.thread_id = thread_of(metadata)
        if agent is not None and not tool and (agent != above.agent or (above.in_tool and name == agent)):
            return Invocation(outermost, agent, above.depth + 1, False)
        return Invocation(outermost, above.agent, above.depth, tool or above.in_tool)

    def _surrounding(self) -> Invocation | None:
        """What this runs inside of where callbacks of its own hide that from LangChain's callbacks."""
        config = field(sys.modules.get("langchain_core.runnables.config"), "var_child_runnable_config")
        parent = None if config is None else field(config.get(), "callbacks", "parent_run_id")
        return None if parent is None else self.find(parent)


def thread_of(metadata: Any) -> str | None:
    """The thread that an invocation's metadata names."""
    if not isinstance(metadata, Mapping):
        return None
    named = first(*(metadata.get(key) for key in THREAD_KEYS))
    return None if named is None or named == "" else guard.identifier(str(named))


def caller_of(invocation: Invocation | None, metadata: Any) -> str | None:
    """Who calls, as LangChain's own words have it: a middleware by the step that it makes of its agent's graph, an
    agent that another's tool invoked. None is the agent in front, or whoever the spans around the call know."""
    node, agent = field(metadata, "langgraph_node"), field(metadata, "lc_agent_name")
    if agent is not None and isinstance(node, str) and node.endswith(_STEPS):
        return f"middleware:{node.rpartition('.')[0]}"
    if invocation is not None and invocation.depth > 1 and invocation.agent is not None:
        return f"subagent:{invocation.agent}"
    return None


def in_force(context: Context) -> bool:
    """A run of the host's own, of the process above, or of a trace that is one."""
    scope = now_in_force(context)
    if scope is not None and scope.run is not None and not isinstance(scope, Lent):
        return True
    if baggage.get_baggage(semconv.RUN_ID, context) is not None or PROCESSOR.fold.ambient is not None:
        return True
    span = trace.get_current_span(context)
    # One that has ended was left behind by an instrumentation.
    around = PROCESSOR.fold.traces.get(span.get_span_context().trace_id) if span.is_recording() else None
    return around is not None and around.run is not None


def _info(run_id: Any, metadata: Any, agent: str | None) -> RunInfo:
    own = guard.identifier(str(run_id))
    if own is None or PROCESSOR.find(own) is not None:
        own = f"{own}-{PROCESSOR.clock():x}"
    return RunInfo(
        own, PROCESSOR.clock(), thread_id=thread_of(metadata), service=PROCESSOR.service, agent=agent,
        user_id=guard.identifier(field(metadata, "user_id")),
    )  # fmt: skip
