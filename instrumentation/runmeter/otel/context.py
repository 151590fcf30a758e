"""`run()`, `start_run()` and `caller()`: what belongs to which run, over OpenTelemetry's context.

The context follows asyncio tasks, `gather`, `asyncio.to_thread`, `os.fork` and every explicitly passed context. A bare
`threading.Thread` or an executor starts without it, in Python itself: give it
`contextvars.copy_context().run`, or enter `run.activate()` there. Another process gets it by W3C propagation; the
baggage carries the run id and nothing else.

Nothing here raises into the host (rule 8). A wrong argument is left out and said once in the log.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace
from opentelemetry.context import Context, attach, get_current, set_value
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.trace import Status, StatusCode

from runmeter import guard
from runmeter.guard import harmless, once, unless_the_hosts
from runmeter.otel.in_force import IN_FORCE, InForce, detach, in_force, now_in_force
from runmeter.otel.processor import PROCESSOR, Processor
from runmeter.reading import semconv
from runmeter.runs.known import RunState
from runmeter.sink import STATUSES, TERMINAL, RunInfo
from runmeter.usage import Usage


class Run:
    """A run of this process: its id, what it has used so far, and its life cycle."""

    def __init__(self, processor: Processor, state: RunState, context: Context | None, span: trace.Span | None) -> None:
        self._processor = processor
        self._state = state
        self._context = context
        self._span = span
        self._begun_here = span is not None or context is not None

    def __repr__(self) -> str:
        return f"Run({self.run_id!r}, {self.status!r}, {self.usage!r})"

    @property
    def run_id(self) -> str:
        """The run's id, as the store and REST know it."""
        return self._state.info.run_id

    @property
    def status(self) -> str:
        """`pending`, `running`, `success`, `error`, `timeout` or `interrupted`."""
        return self._state.info.status

    @property
    def usage(self) -> Usage:
        """What this process has settled for the run so far. Tokens and calls are there at once; their cost follows
        within the throttle's interval, or with `handle.flush()`, and until then, or where nothing is stored, they are
        unpriced: `cost_usd` is None while no price is known."""
        totals = self._state.settler.totals
        priced = self._state.info.priced
        waiting = max(0, totals.total_tokens - priced.tokens)
        return totals._replace(
            cost_nanousd=max(0, priced.cost_nanousd),
            unpriced_tokens=min(totals.total_tokens, max(0, priced.unpriced_tokens) + waiting),
        )

    @property
    def otel_context(self) -> Context | None:
        """The OpenTelemetry context of the run, to be passed or injected; None where nothing counts."""
        return self._context

    @harmless(None)
    def running(self) -> None:
        """A pending run has begun to work."""
        info = self._state.info
        if info.status == "pending":
            info.status = "running"
            self._processor.updated(self._state)

    @harmless(None)
    def end(self, status: str = "success", stop_reason: str | None = None) -> None:
        """End the run, once: `success`, `error`, `timeout` or `interrupted`, and why in a word or two.

        What its streams report later is still added. Ending it again, or a run that somebody else began, does nothing.
        """
        if not self._begun_here:
            return
        self._begun_here = False
        if not isinstance(status, str) or status not in TERMINAL:
            shown = (guard.text(status) or '')[:40]
            once(
                f"status {shown}",
                "runmeter: a run cannot end as %r, only as one of %s; it ended as error",
                shown,
                TERMINAL,
            )
            status = "error"
        reason = guard.text(stop_reason)
        ended_at = self._processor.clock()
        span = self._span
        # A forked child falls out of its parent's block too; the parent's span is not the child's to end.
        if span is not None and self._state.generation == self._processor.generation:
            span.set_attribute(semconv.RUN_STATUS, status)
            if reason is not None:
                span.set_attribute(semconv.RUN_STOP_REASON, reason)
            if status in ("error", "timeout"):
                span.set_status(Status(StatusCode.ERROR, reason))
            span.end()
            if isinstance(span, SdkSpan) and span.end_time is not None:
                ended_at = span.end_time
        self._processor.end(self._state, status, reason, ended_at)

    @contextmanager
    def activate(self) -> Iterator[Run]:
        """Inside this block spans and records belong to the run, on any thread or task; leaving it ends nothing."""
        token = None if self._context is None else attach(self._context)
        try:
            yield self
        finally:
            detach(token)


def start_run(
    *,
    thread_id: str | None = None,
    run_id: str | None = None,
    agent: str | None = None,
    user_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    status: str = "running",
) -> Run:
    """Begin a run whose life cycle is the caller's own: `running()`, `activate()`, `end(status)`.

    `status` is `pending` or `running`. A `run_id` that is open in this process already joins that run, and then
    `end` does nothing; left out, an id is made. Prefer `with run(...)` where there is a block to speak of.
    """
    return _start(PROCESSOR, thread_id, run_id, agent, user_id, tags, status)


class run:
    """`with runmeter.run(thread_id="t") as run:` (also `async with`): everything below belongs to the run.

    Leaving ends it: `success`, also for `SystemExit(0)`; `timeout` for `TimeoutError`; `error` for any other
    `Exception`; `interrupted` for what is none: KeyboardInterrupt, SystemExit, GeneratorExit and the cancellations of
    asyncio, trio and gevent. The exception's class is the stop reason; it goes on unchanged. Inside another run the
    innermost has the calls.
    """

    def __init__(
        self,
        *,
        thread_id: str | None = None,
        run_id: str | None = None,
        agent: str | None = None,
        user_id: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._arguments = (thread_id, run_id, agent, user_id, tags)
        self._entered: list[tuple[Run, Any]] = []

    def __enter__(self) -> Run:
        entered = _start(PROCESSOR, *self._arguments, "running")
        token = None if entered._context is None else attach(entered._context)
        self._entered.append((entered, token))
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if not self._entered:
            return
        entered, token = self._entered.pop()
        detach(token)
        entered.end(*outcome(error))

    async def __aenter__(self) -> Run:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, where)


class caller:
    """`with runmeter.caller("subagent:researcher"):` (also `async with`): says who makes the calls inside, and wins
    over what the spans around them say. `lead_agent`, `subagent:<name>` or `middleware:<name>`."""

    def __init__(self, name: str) -> None:
        self._name = guard.text(name)
        self._tokens: list[Any] = []

    def __enter__(self) -> Self:
        token = None
        if PROCESSOR.enabled and self._name is not None:
            scope = now_in_force()
            run = None if scope is None else scope.run
            token = attach(set_value(IN_FORCE, InForce(run, self._name)))
        self._tokens.append(token)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._tokens:
            detach(self._tokens.pop())

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, where)


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    """The status and stop reason of a run left by this exception."""
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "success", None
    reason = type(error).__name__
    if isinstance(error, BaseExceptionGroup):
        # A task group's: it ended as the worst of what is in it.
        statuses = {outcome(one)[0] for one in error.exceptions}
        for status in ("error", "timeout", "interrupted"):
            if status in statuses:
                return status, reason
    if isinstance(error, TimeoutError):
        return "timeout", reason
    # What is no Exception says that somebody wants this to end, not that it failed: Ctrl-C and SystemExit, a closed
    # generator, and the cancellations of asyncio, trio and gevent, none of which need be imported to be known.
    return ("error" if isinstance(error, Exception) else "interrupted"), reason


def _start(
    processor: Processor, thread_id: object, run_id: object, agent: object, user_id: object, tags: object, status: str
) -> Run:
    name = guard.text(agent)
    if not isinstance(status, str) or status not in STATUSES[:2]:
        shown = (guard.text(status) or '')[:40]
        once(f"start {shown}", "runmeter: a run cannot start as %r, only as pending or running; it is running", shown)
        status = "running"
    info = RunInfo(
        guard.identifier(run_id) or uuid.uuid4().hex,
        processor.clock(),
        thread_id=guard.identifier(thread_id),
        service=processor.service,
        agent=name,
        user_id=guard.identifier(user_id),
        tags=guard.tags(tags),
        status=status,
    )
    try:
        if not processor.enabled:
            once("idle", "runmeter: a run began while nothing counts: call runmeter.instrument() first", level=20)
            return Run(processor, processor.state(info), None, None)
        return _begin(processor, info)
    except Exception as error:
        unless_the_hosts(error)
        once("begin", "runmeter: a run could not begin and is not counted")
        guard.logger.debug("runmeter: a run could not begin", exc_info=True)
        return Run(processor, processor.state(info), None, None)


def _begin(processor: Processor, info: RunInfo) -> Run:
    found = processor.find(info.run_id)
    if found is not None and found.open:
        joined = Run(processor, found, in_force(found, get_current()), None)
        joined._begun_here = False
        return joined
    state = processor.state(info)
    context = in_force(state, get_current())
    span = None
    if processor.tracer is not None:
        attributes: dict[str, Any] = {semconv.RUN_ROOT: True}
        if info.agent is not None:
            attributes[semconv.AGENT] = info.agent
        if info.user_id is not None:
            attributes[semconv.USER_ID] = info.user_id
        for key, value in info.tags.items():
            attributes[semconv.TAG_PREFIX + key] = value
        span = processor.tracer.start_span(f"run {info.agent}" if info.agent else "run", context, attributes=attributes)
        identity = span.get_span_context()
        if identity.is_valid:
            context = trace.set_span_in_context(span, context)
            info.trace_id, info.root_span_id = identity.trace_id, identity.span_id
        if isinstance(span, SdkSpan):
            info.started_at = span.start_time or info.started_at
        elif processor.warns_unsampled:
            once(
                "unsampled",
                "runmeter: the host's sampler dropped a run's span, so its calls are not seen. "
                "instrument(count_unsampled=True) counts them without exporting them",
            )
    state.context = context
    processor.begin(state)
    return Run(processor, state, context, span)
