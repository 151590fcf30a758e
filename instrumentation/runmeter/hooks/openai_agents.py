"""OpenAI Agents: usage from the SDK's own traces, which its OpenTelemetry instrumentation leaves out.

A trace is a run where no run is in force; its group id is the thread. An agent used as a tool of another is a
subagent; one that a conversation was handed to is not inside the other, and is the lead.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

from opentelemetry.trace import get_current_span

from runmeter.guard import harmless
from runmeter.hooks.report import Begun, Memory, Told, field, first, missing, now, number, report
from runmeter.otel.context import start_run
from runmeter.otel.in_force import IN_FORCE

PIP = "pip install openai-agents"
_DEPTH = 64
_installed = False


def usage_from(data: Any) -> Told:
    """What a `generation` or `response` span's data says of its call; counts are inclusive, as OpenAI's are."""
    response = field(data, "response")
    usage = first(field(response, "usage"), field(data, "usage"))
    model = first(field(response, "model"), field(data, "model"))
    told = Told(
        provider="openai", model=model if isinstance(model, str) else None,
        call_id=first(field(response, "id"), field(data, "_response_id")),
    )  # fmt: skip
    given = first(field(usage, "input_tokens"), field(usage, "prompt_tokens"))
    answered = first(field(usage, "output_tokens"), field(usage, "completion_tokens"))
    # The SDK writes zeros where the provider reported nothing; no answer costs no token at all.
    if not number(given) and not number(answered):
        return told
    return told._replace(
        input_tokens=number(given), output_tokens=number(answered),
        cache_read_tokens=number(field(usage, "input_tokens_details", "cached_tokens")),
        cache_write_tokens=number(field(usage, "input_tokens_details", "cache_write_tokens")),
        reasoning_tokens=number(field(usage, "output_tokens_details", "reasoning_tokens")),
    )  # fmt: skip


def _nanoseconds(text: Any) -> int | None:
    try:
        return int(datetime.fromisoformat(text).timestamp() * 1e9)
    except (TypeError, ValueError):
        return None


class Traces:
    """What is known of traces and spans under way; independent of the SDK's classes."""

    def __init__(self) -> None:
        self._runs, self._threads, self._agents, self._calls = Memory(), Memory(), Memory(), Memory()

    @harmless(None)
    def trace_begins(self, trace: Any) -> None:
        """Begin a run, unless one is in force or an instrumentation's trace will be one."""
        thread = field(trace, "group_id")
        if thread is not None:
            self._threads.begin(trace.trace_id, str(thread))
        scope = now().context.get(IN_FORCE)
        if field(scope, "run") is None and not get_current_span().is_recording():
            self._runs.begin(trace.trace_id, start_run(thread_id=None if thread is None else str(thread)))

    @harmless(None)
    def trace_ends(self, trace: Any) -> None:
        self._threads.take(trace.trace_id)
        run = self._runs.take(trace.trace_id)
        if run is not None:
            run.end("success")

    @harmless(None)
    def span_begins(self, span: Any) -> None:
        kind = field(span, "span_data", "type")
        if kind in ("generation", "response"):
            self._calls.begin(span.span_id, now())
        # Tools and turns, too: the way up to the agent above leads through them.
        name = field(span, "span_data", "name") if kind == "agent" else None
        self._agents.begin(span.span_id, (name, field(span, "parent_id")))

    @harmless(None)
    def span_ends(self, span: Any) -> None:
        self._agents.take(span.span_id)
        begun: Begun | None = self._calls.take(span.span_id)
        if begun is None or not self._calls.first_time(span.span_id):
            return
        run = self._runs.peek(span.trace_id)
        if run is not None:
            with run.activate():
                begun = Begun(now().context, begun.started_at)
        started_at = _nanoseconds(field(span, "started_at")) or begun.started_at
        report(
            usage_from(span.span_data), begun._replace(started_at=started_at),
            ended_at=_nanoseconds(field(span, "ended_at")), caller=self._caller(field(span, "parent_id")),
            thread_id=self._threads.peek(span.trace_id), failed=field(span, "error") is not None,
        )  # fmt: skip

    def _caller(self, above: Any) -> str | None:
        names: list[str] = []
        for _ in range(_DEPTH):
            known = self._agents.peek(above)
            if known is None:
                break
            name, above = known
            if name is not None:
                names.append(str(name))
        return None if not names else "lead_agent" if len(names) == 1 else f"subagent:{names[0]}"


@cache
def _processor() -> Any:
    from agents.tracing import TracingProcessor

    class RunmeterProcessor(TracingProcessor):  # type: ignore[misc,unused-ignore]
        """Among the SDK's trace processors."""

        def __init__(self) -> None:
            self._traces = Traces()

        def on_trace_start(self, trace: Any) -> None:
            if _installed:
                self._traces.trace_begins(trace)

        def on_trace_end(self, trace: Any) -> None:
            self._traces.trace_ends(trace)

        def on_span_start(self, span: Any) -> None:
            if _installed:
                self._traces.span_begins(span)

        def on_span_end(self, span: Any) -> None:
            if _installed:
                self._traces.span_ends(span)

        def shutdown(self) -> None:
            """Nothing of ours to end."""

        def force_flush(self) -> None:
            """Nothing waits."""

    return RunmeterProcessor()


@cache
def _register() -> None:
    from agents import add_trace_processor

    add_trace_processor(_processor())


def install() -> bool:
    """Hear of every trace in this process. False, with the `pip install` line in the log, without the SDK."""
    global _installed
    try:
        _register()
    except ImportError:
        return missing("the OpenAI Agents SDK", PIP)
    _installed = True
    return True


def uninstall() -> None:
    """Hear of nothing further. The SDK cannot remove one processor, so ours stays and does nothing."""
    global _installed
    _installed = False
