"""Finding the host's OpenTelemetry providers, or making them as its environment variables say."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from opentelemetry import metrics, trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from runmeter.guard import once
from runmeter.otel.sampling import count_unsampled
from runmeter.otel.stand_in import StandIn

if TYPE_CHECKING:
    from runmeter.otel.prometheus import ScrapePort

PIP = {"otlp": "pip install opentelemetry-exporter-otlp-proto-http"}


def find_tracer_provider() -> object | None:
    """The provider the host has set, or None. It may be of another SDK, and then cannot take a processor."""
    provider = trace.get_tracer_provider()
    return None if type(provider) is trace.ProxyTracerProvider else provider


def make_tracer_provider(processor: SpanProcessor, came: Callable[[Any], None]) -> TracerProvider:
    """A provider with `processor` for the whole process, where the host has none; `came(theirs)` when it sets one.

    Resource, limits and sampler are what `OTEL_*` say; what the sampler drops is recorded and still not exported.
    Spans are exported only where `OTEL_TRACES_EXPORTER` or an OTLP endpoint asks for it.
    """
    provider = StandIn(resource=Resource.create())
    count_unsampled(provider)
    for exporter in _exporters("opentelemetry_traces_exporter", "OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES"):
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider.add_span_processor(BatchSpanProcessor(exporter()))
    provider.add_span_processor(processor)
    provider.offer(came)
    return provider


def make_meter_provider() -> ScrapePort | None:
    """A MeterProvider for the whole process, where the host has none and `OTEL_METRICS_EXPORTER` or an OTLP endpoint
    asks for one; its scrape, if that was asked for.

    Otherwise none is made: without a reader it would show nothing, and it would be in the way of the one that the host
    may set later, which our counters join by themselves.
    """
    if type(metrics.get_meter_provider()).__module__.startswith("opentelemetry.sdk") or os.environ.get(
        "OTEL_PYTHON_METER_PROVIDER"
    ):
        return None
    asked = _asked("OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_METRICS")
    if not asked:
        return None
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    readers: list[MetricReader] = []
    scrape = None
    if "prometheus" in asked:
        from runmeter.otel.prometheus import reader_of_the_environment

        reader, scrape = reader_of_the_environment()
        readers += [reader] if reader is not None else []
    for make in _exporters("opentelemetry_metrics_exporter", "OTEL_METRICS_EXPORTER", "OTEL_EXPORTER_OTLP_METRICS"):
        made = make()
        readers.append(made if isinstance(made, MetricReader) else PeriodicExportingMetricReader(made))
    if readers:
        metrics.set_meter_provider(MeterProvider(readers))
    return scrape


def service_name(resource: Mapping[str, Any]) -> str | None:
    """The service as its owner named it; the SDK's `unknown_service` is no name."""
    name = resource.get("service.name")
    return name if isinstance(name, str) and name and not name.startswith("unknown_service") else None


_LAZY = ("encodings.idna", "netrc")
"""What exporters import at their first request: on threads of their own, while the host works and imports."""


def _import_lazy_parts() -> None:
    for name in _LAZY:
        with suppress(ImportError):
            import_module(name)


def _asked(variable: str, endpoint_prefix: str) -> list[str]:
    """The names of the exporters that the environment asks for."""
    asked = os.environ.get(variable)
    if asked is None:
        endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", f"{endpoint_prefix}_ENDPOINT")
        asked = "otlp" if any(os.environ.get(name) for name in endpoints) else "none"
    return [name for part in asked.split(",") if (name := part.strip()) not in ("", "none")]


def _exporters(group: str, variable: str, endpoint_prefix: str) -> list[Any]:
    """The exporter classes that the environment asks for; but Prometheus', which `make_meter_provider` makes itself."""
    found = []
    for name in _asked(variable, endpoint_prefix):
        if name == "prometheus" and variable == "OTEL_METRICS_EXPORTER":
            continue
        protocol = os.environ.get(f"{endpoint_prefix}_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        full = ("otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http") if name == "otlp" else name
        points = list(entry_points(group=group, name=full))
        try:
            found.append(points[0].load())
            _import_lazy_parts()
        except (IndexError, ImportError):
            once(
                f"exporter {full}",
                "runmeter: %s asks for %r, which is not installed: %s",
                variable,
                full,
                PIP.get(name, ""),
            )
    return found
