"""How LangChain's messages are counted: as deer-flow counts them, whose thread API we follow.

A run's messages are its first human message, each message that a model answered with, and each tool's result. A call
carries what came since the call before it; what comes after a run's last call is added when the outermost chain ends.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context

from runmeter.hooks.report import field
from runmeter.otel.in_force import now_in_force
from runmeter.otel.processor import PROCESSOR
from runmeter.spans import Call
from runmeter.usage import Usage

Key = str | int | None
"""A run's id, or the id of the trace that is the run."""
RUNS = 4096
"""Runs whose messages are remembered at once; the oldest goes first."""


def run_key(context: Context, run_id: str | None) -> Key:
    """What a message belongs to: the run named, the run in force, the trace; None where each call is its own run."""
    scope = now_in_force(context)
    if run_id is not None:
        return run_id
    if scope is not None and scope.run is not None:
        return scope.run.info.run_id
    return trace.get_current_span(context).get_span_context().trace_id or None


def has_human(batches: Any) -> bool:
    """Somebody asked in this prompt; the summary that a middleware puts in his place is no question."""
    return any(
        field(message, "type") == "human" and field(message, "name") != "summary"
        for batch in batches or ()
        for message in (batch if isinstance(batch, (list, tuple)) else ())
    )


def tool_messages(output: Any) -> int:
    """The messages that a tool answered with: itself one, or those of the command that it gives its graph."""
    if field(output, "type") == "tool":
        return 1
    update = field(output, "update")
    messages = field(update, "messages") if isinstance(update, dict) else None
    if not isinstance(messages, (list, tuple)):
        return 0
    return sum(isinstance(field(message, "type"), str) and not isinstance(message, dict) for message in messages)


def answers(generations: Iterable[Any]) -> int | None:
    """The messages that a model answered with; None where it answered with bare text."""
    return sum(field(one, "message") is not None for many in generations for one in many) or None


class Seen(NamedTuple):
    """What is remembered of a run: messages that no call has carried yet, and who answered last."""

    waiting: int = 0
    asked: bool = False
    """Its human message was counted."""
    provider: str | None = None
    model: str | None = None
    caller: str | None = None


class Unanswered:
    """Messages, by run, that no call has carried yet; bounded, safe from any thread."""

    def __init__(self, limit: int = RUNS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._runs: OrderedDict[str | int, Seen] = OrderedDict()

    def asked(self, key: Key) -> None:
        """A prompt holds a human message, which counts in a run's first such prompt."""
        if key is not None:
            with self._lock:
                seen = self._runs.get(key, Seen())
                if not seen.asked:
                    self._keep(key, seen._replace(waiting=seen.waiting + 1, asked=True))

    def add(self, key: Key, number: int) -> None:
        """Messages came that the next call carries."""
        if key is not None and number:
            with self._lock:
                seen = self._runs.get(key, Seen())
                self._keep(key, seen._replace(waiting=seen.waiting + number))

    def carry(self, key: Key, provider: str | None, model: str | None, caller: str | None) -> int:
        """A call takes what waits. The run stays known, so that its human message counts once."""
        if key is None:
            return 0
        with self._lock:
            seen = self._runs.get(key, Seen())
            self._keep(key, Seen(0, seen.asked, provider, model, caller))
            return seen.waiting

    def left(self, key: Key) -> Seen:
        """What no call will carry any more."""
        if key is None:
            return Seen()
        with self._lock:
            seen = self._runs.get(key, Seen())
            if seen.waiting:
                self._runs[key] = seen._replace(waiting=0)
            return seen

    def _keep(self, key: str | int, seen: Seen) -> None:
        self._runs[key] = seen
        self._runs.move_to_end(key)
        if len(self._runs) > self._limit:
            self._runs.popitem(last=False)


def add_to_run(key: Key, left: Seen) -> None:
    """Add messages to a run beside its calls, under who answered last."""
    if key is None or not left.waiting:
        return
    state = PROCESSOR.find(key if isinstance(key, str) else format(key, "032x"))
    if state is not None:
        usage = Usage(messages=left.waiting)
        call = Call(
            left.provider or "unknown", left.model or "unknown", left.caller or "lead_agent", usage, None,
            PROCESSOR.clock(),
        )  # fmt: skip
        PROCESSOR.add(state, call)
