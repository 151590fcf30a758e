"""`instrument()`: finding the host's OpenTelemetry or making it, joining it, and what it gives back."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import ref

from opentelemetry.sdk.trace import TracerProvider

from runmeter.guard import logger, once, unless_the_hosts
from runmeter.otel.processor import PROCESSOR, Processor
from runmeter.reading import semconv
from runmeter.sink import Sink

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

    from runmeter.otel.clients import Coverage
    from runmeter.otel.counters import Counters
    from runmeter.otel.prometheus import ScrapePort
    from runmeter.otel.watching import Watcher

PIP_STORE = "pip install 'runmeter[store]'"

_lock = threading.RLock()
_active: Handle | None = None
_leaves = False
_attached: list[ref[Any]] = []
"""Providers that have our processor: not all can be asked for theirs, nor hashed (Logfire's)."""


class Handle:
    """What `instrument()` did, and the way to flush and to leave."""

    def __init__(
        self,
        processor: Processor | None,
        store: str | None = None,
        covered: tuple[Coverage, ...] = (),
        scrape: ScrapePort | None = None,
    ) -> None:
        self._processor = processor
        self.store = store
        """The store that is written, without its password; None where only counters are kept."""
        self.coverage = covered
        """The client libraries that were found, and what instruments each."""
        self._scrape = scrape
        self._watcher: Watcher | None = None

    def __repr__(self) -> str:
        return f"Handle({self.describe()!r})"

    def __str__(self) -> str:
        return self.describe()

    @property
    def prometheus(self) -> str | None:
        """Where Prometheus finds this process's counters; None where that was not asked for, or could not be had."""
        return None if self._scrape is None else self._scrape.url

    def describe(self) -> str:
        """One line: the store that is written, the libraries whose calls are counted, where the counters are."""
        if not self.active:
            return "runmeter: nothing is counted"
        enabled = [f"{one.client.name} ({one.instrumentation})" for one in self.coverage if one.enabled]
        said = (
            f"runmeter: writing to {self.store or 'no store, OpenTelemetry counters only'}; counting calls of "
            + (", ".join(enabled) or "nothing that is installed, so only what is recorded or instrumented elsewhere")
        )  # fmt: skip
        return said if self.prometheus is None else f"{said}; counters at {self.prometheus}"

    @property
    def active(self) -> bool:
        """Whether calls are counted through it; False after `shutdown` and with OTEL_SDK_DISABLED."""
        return self._processor is not None

    def flush(self, timeout: float = 2.0) -> bool:
        """Write what has settled. True when all of it was written within `timeout` seconds."""
        try:
            return True if self._processor is None else self._processor.flush(_seconds(timeout))
        except Exception as error:
            unless_the_hosts(error)
            logger.debug("runmeter: flush failed", exc_info=True)
            return False

    def shutdown(self, timeout: float = 2.0) -> bool:
        """End the runs still open as interrupted, write everything, stop counting. True when all of it was written
        within `timeout` seconds. Idempotent; `instrument()` begins anew."""
        global _active
        try:
            with _lock:
                processor, self._processor = self._processor, None
                if _active is self:
                    _active = None
            if processor is None:
                return True
            processor.stop()
            if self._watcher is not None:
                self._watcher.stop()
            if self._scrape is not None:
                self._scrape.stop()
            return processor.shutdown_sinks(_seconds(timeout))
        except Exception as error:
            unless_the_hosts(error)
            logger.debug("runmeter: shutdown failed", exc_info=True)
            return False


def instrument(
    database_url: str | None = None,
    throttle: float = 1.0,
    otel_metrics: bool = True,
    *,
    count_unsampled: bool = False,
    instrumentations: bool = True,
    prometheus: str | int | bool | None = None,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Handle:
    """Count this process's model calls from now on. Call it once, before or after the host sets up its own
    OpenTelemetry, if it has one; a second call gives the same handle. Never raises.

    Args:
        database_url: SQLAlchemy URL of the store; left out, RUNMETER_DATABASE_URL or the SQLite file of this user,
            which `runmeter serve` reads too.
        throttle: Least number of seconds between two progress writes; 0 writes every call before anything else.
        otel_metrics: Feed OpenTelemetry counters; False where an instrumentation emits the same ones.
        count_unsampled: Also count what the host's own sampler drops, by recording it without exporting it.
            Where no provider exists yet this is always so.
        instrumentations: Switch on the installed OpenTelemetry instrumentations of model clients.
        prometheus: Show this process's counters to Prometheus at this HOST:PORT (`"127.0.0.1:9464"`, which True stands
            for; a number is a port of loopback's), as RUNMETER_PROMETHEUS_LISTEN does. Works beside any MeterProvider.
        tracer_provider: Instead of the global one.
        meter_provider: Instead of the global one.
    """
    global _active
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        once("disabled", "runmeter: OTEL_SDK_DISABLED is set, nothing is counted", level=20)
        return Handle(None)
    try:
        with _lock:
            if _active is None:
                _active = _instrument(
                    database_url, _seconds(throttle, 1.0), otel_metrics, count_unsampled, instrumentations,
                    prometheus, tracer_provider, meter_provider,
                )  # fmt: skip
            elif database_url is not None:
                once("again", "runmeter: instrument() was called before; it goes on with the store %s", _active.store)
            return _active
    except Exception as error:
        unless_the_hosts(error)
        once("instrument", "runmeter: could not instrument, nothing is counted: %r", error)
        logger.debug("runmeter: could not instrument", exc_info=True)
        return Handle(None)


def _instrument(
    database_url: str | None,
    throttle: float,
    otel_metrics: bool,
    unsampled: bool,
    instrumentations: bool,
    prometheus: str | int | bool | None,
    tracer_provider: TracerProvider | None,
    meter_provider: MeterProvider | None,
) -> Handle:
    # Here and not above, since `import runmeter` must not cost what only this needs.
    from opentelemetry.metrics import NoOpMeterProvider

    from runmeter.otel.clients import CLIENTS, coverage
    from runmeter.otel.counters import Counters, counters_for
    from runmeter.otel.providers import find_tracer_provider, make_meter_provider, make_tracer_provider, service_name
    from runmeter.otel.watching import Watcher

    global _leaves
    if not _leaves:
        _leaves = True
        atexit.register(_leave)
    provider: Any = tracer_provider or find_tracer_provider()
    made = provider is None
    if made:
        provider = make_tracer_provider(PROCESSOR, partial(_host_came, unsampled=unsampled))
        _attached.append(ref(provider))
    resource: Mapping[str, Any] = getattr(getattr(provider, "resource", None), "attributes", {})
    sinks: list[Sink] = []
    recorder = _recorder(database_url, throttle, resource)
    scrape = None
    if otel_metrics:
        scrape = make_meter_provider()
        counters = counters_for(meter_provider)
        sinks.append(counters)
        scrape = _scrape(prometheus, counters) or scrape
    elif prometheus is not None and prometheus is not False:
        counters = Counters(NoOpMeterProvider())  # for the scrape alone
        sinks.append(counters)
        scrape = _scrape(prometheus, counters)
    if recorder is not None:
        sinks.append(recorder)
    source_id = getattr(recorder, "source_id", None)
    PROCESSOR.warns_unsampled = not made and not unsampled
    if _attach(provider):
        PROCESSOR.tracer = provider.get_tracer(semconv.SCOPE)
        _see_all(provider, unsampled)
    PROCESSOR.start(tuple(sinks), source_id=source_id, service=service_name(resource))
    covered = coverage(enable=instrumentations, tracer_provider=provider)
    for one in covered:
        _see_calls(one)
    store = getattr(recorder, "url_for_humans", None)
    handle = Handle(PROCESSOR, store, tuple(covered), scrape)
    # Whatever `_cover` imports by switching on is here by now; what comes later is looked at then.
    handle._watcher = Watcher(
        (one.module for one in CLIENTS), partial(_client_came, handle, instrumentations, ref(provider))
    )
    handle._watcher.start()
    logger.info("%s", handle)
    return handle


def current() -> Handle | None:
    """The handle of this process, between `instrument()` and its `shutdown`."""
    return _active


def _host_came(provider: Any, unsampled: bool) -> None:
    """The host has set a provider of its own after us: what it makes from now on is counted there."""
    from runmeter.otel.providers import service_name

    if _attach(provider):
        PROCESSOR.warns_unsampled = not unsampled
        _see_all(provider, unsampled)
        resource: Mapping[str, Any] = getattr(getattr(provider, "resource", None), "attributes", {})
        PROCESSOR.fold.service = service_name(resource) or PROCESSOR.service
        logger.debug("runmeter: joined the TracerProvider that the host has set")


def _see_calls(row: Coverage) -> None:
    """Of a client that nothing instruments that is said, and its calls are noted, so that their runs can say it."""
    from runmeter.otel.clients import warn_uncovered
    from runmeter.otel.tapping import tap

    if row.imported and not row.enabled:
        tap(row.client.module)
        warn_uncovered([row])


def _client_came(handle: Handle, enable: bool, provider: Any, module: str) -> None:
    """A client library was imported after `instrument()`."""
    from runmeter.otel.clients import late

    row = late(module, enable=enable, tracer_provider=provider())
    if row is not None and handle.active:
        others = [one for one in handle.coverage if one.client is not row.client]
        handle.coverage = (*others, row)
        _see_calls(row)


def _leave() -> None:
    handle = _active
    if handle is not None:
        handle.shutdown()
    _keep_exit_code()


def _keep_exit_code() -> None:
    """A process that a KeyboardInterrupt ended dies of SIGINT, and goes on to.

    CPython remembers it in a flag that any code run from text resets, as importing does for named tuples and
    dataclasses; writing the last snapshots may import. Raising it once more, to nobody, sets the flag again.
    """
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
        try:
            exec("raise KeyboardInterrupt")
        except KeyboardInterrupt:
            return


def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _attach(provider: Any) -> bool:
    """Put the processor on the provider, once."""
    if not isinstance(provider, TracerProvider) and not hasattr(provider, "add_span_processor"):
        once(
            "foreign",
            "runmeter: the host's TracerProvider (%s) takes no span processors, so only recorded usage is counted",
            type(provider).__qualname__,
        )
        return False
    if not any(one() is provider for one in _attached):
        _attached.append(ref(provider))
        provider.add_span_processor(PROCESSOR)
    return True


def _see_all(provider: Any, unsampled: bool) -> None:
    from runmeter.otel.sampling import CountUnsampled, count_unsampled, drops

    sampler = getattr(provider, "sampler", None)
    if sampler is None or isinstance(sampler, CountUnsampled):
        return
    if unsampled:
        count_unsampled(provider)
    elif drops(sampler):
        once(
            "sampler",
            "runmeter: the host's sampler (%s) drops spans, and calls in them are not counted. "
            "instrument(count_unsampled=True) counts them without exporting them",
            sampler.get_description(),
        )


def _scrape(asked: str | int | bool | None, counters: Counters) -> ScrapePort | None:
    if asked is None and not os.environ.get("RUNMETER_PROMETHEUS_LISTEN"):
        return None
    from runmeter.otel.prometheus import start

    return start(asked, counters)


def _recorder(database_url: str | None, throttle: float, resource: Mapping[str, Any]) -> Any:
    """The sink that writes the store, or None where it is not installed or cannot be had."""
    from importlib.metadata import entry_points

    for point in entry_points(group="runmeter_recorder"):
        try:
            return point.load()(database_url, throttle=throttle, resource=resource)
        except ImportError as error:
            logger.debug("runmeter: no recorder", exc_info=True)
            said = str(error)
            hint = said if "pip install" in said else f"{said}: {PIP_STORE}"
            once("store", "runmeter: nothing is stored, calls only move OpenTelemetry counters: %s", hint)
        except Exception as error:
            unless_the_hosts(error)
            once("store", "runmeter: nothing is stored, calls only move OpenTelemetry counters: %s", error)
            logger.debug("runmeter: no recorder", exc_info=True)
        return None
    once("store", "runmeter: nothing is stored, calls only move OpenTelemetry counters: %s", PIP_STORE)
    return None


def _seconds(value: object, otherwise: float = 2.0) -> float:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return otherwise
    return found if 0.0 <= found < 86_400 else otherwise
