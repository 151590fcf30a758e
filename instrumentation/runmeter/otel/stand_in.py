"""The provider of a process that has none yet, and that makes way for the host's where the host sets one later.

`runmeter exec` starts before the program does, and hosts call `instrument()` before their own set-up too. OpenTelemetry
lets a process set its provider once; ours would have the host's refused, and its exporters see nothing. So ours is
set as if it were not: the host may still set one, once, and what was instrumented before goes over to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.util.types import Attributes

from runmeter.guard import logger, once, unless_the_hosts


class StandIn(TracerProvider):
    """An SDK provider whose tracers, given out or not, make their spans at `host` once there is one."""

    host: trace.TracerProvider | None = None
    taken = False
    """The host has put processors of its own on this one, and so has made it its provider."""

    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Attributes = None,
    ) -> trace.Tracer:
        arguments = (instrumenting_module_name, instrumenting_library_version, schema_url, attributes)
        if self.host is not None:
            return self.host.get_tracer(*arguments)
        return StandInTracer(self, super().get_tracer(*arguments), arguments)

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        super().add_span_processor(span_processor)
        self.taken = True

    def offer(self, came: Callable[[Any], None]) -> None:
        """Become the provider of the process until the host sets another; `came(theirs)` is then called, before
        anybody sees a span of it. What was added to this one so far is not the host's."""
        trace.set_tracer_provider(self)
        if trace.get_tracer_provider() is not self:
            return
        # A private name, and nothing public does it: without it the host's provider is refused, as OpenTelemetry
        # refuses every second one.
        if not callable(getattr(getattr(trace, "_TRACER_PROVIDER_SET_ONCE", None), "do_once", None)):
            once(
                "stand-in",
                "runmeter: this version of OpenTelemetry keeps the first TracerProvider for good: a program that sets "
                "one of its own has to do so before runmeter.instrument()",
            )
            return
        self.taken = False
        trace._TRACER_PROVIDER_SET_ONCE = _NotYet(self, came)  # type: ignore[assignment]


class StandInTracer(trace.Tracer):
    """A tracer of the provider in force: ours, or the host's as soon as it has one."""

    def __init__(self, provider: StandIn, ours: trace.Tracer, arguments: tuple[Any, ...]) -> None:
        self._provider = provider
        self._ours = ours
        self._theirs: trace.Tracer | None = None
        self._arguments = arguments

    def _in_force(self) -> trace.Tracer:
        if self._provider.host is None:
            return self._ours
        if self._theirs is None:
            self._theirs = self._provider.host.get_tracer(*self._arguments)
        return self._theirs

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        return self._in_force().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._in_force().start_as_current_span(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Whatever else its users know of the SDK's tracers."""
        if name.startswith("__") or "_provider" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self._in_force(), name)


class _NotYet:
    """In place of what remembers in the API that a provider was set: not yet, though ours is."""

    def __init__(self, stand_in: StandIn, came: Callable[[Any], None]) -> None:
        self._lock = threading.Lock()
        self._done = False
        self._stand_in = stand_in
        self._came = came

    def do_once(self, func: Callable[[], None]) -> bool:
        """Let the host's provider be set, once; False where it came too late."""
        with self._lock:
            if self._done or self._stand_in.taken:
                return False
            self._make_way(func)
            self._done = True
            return True

    def _make_way(self, set_theirs: Callable[[], None]) -> None:
        set_theirs()
        theirs = trace.get_tracer_provider()
        if theirs is self._stand_in:
            return
        try:
            self._came(theirs)
        except Exception as error:
            unless_the_hosts(error)
            once("host", "runmeter: the host's TracerProvider could not be joined; its spans are not counted")
            logger.debug("runmeter: the host's TracerProvider could not be joined", exc_info=True)
        self._stand_in.host = theirs
