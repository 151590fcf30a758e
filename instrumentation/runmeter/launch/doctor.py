"""What `runmeter doctor` shows of an environment: data only, the command line prints it."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

from runmeter.otel.clients import coverage
from runmeter.otel.handle import PIP_STORE

_EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report."""

    subject: str
    """`python`, `opentelemetry`, `store`, `zero-code`, or a client library's distribution."""
    state: str
    """`ok`, `missing` (something is needed for calls to be counted) or `note`."""
    version: str | None
    detail: str
    remedy: str = ""
    """A pip line or a switch, where there is something to do."""

    def as_dict(self) -> dict[str, str | None]:
        return asdict(self)


def environment_report() -> list[Row]:
    """Every client library that is installed, what instruments it and what is missing; nothing is imported or
    switched on for it."""
    rows = [
        Row("python", "ok", platform.python_version(), platform.python_implementation()),
        Row("opentelemetry", "ok", _version("opentelemetry-sdk"), _opentelemetry()),
        _store(),
    ]
    covered = coverage()
    for one in covered:
        imported = "imported" if one.imported else "installed"
        if one.instrumentation is None:
            rows.append(Row(one.client.name, "missing", one.version, f"{imported}; nothing instruments it", one.remedy))
            continue
        by = one.instrumentation
        if one.instrumentation_version is not None:
            by = f"{by} {one.instrumentation_version}"
        detail = f"{imported}; makes its own spans" if by == "itself" else f"{imported}; instrumented by {by}"
        if one.others:
            detail += f"; also installed and left off: {', '.join(one.others)}"
        rows.append(Row(one.client.name, "ok", one.version, detail))
    if not covered:
        rows.append(
            Row("clients", "note", None, "no known client library is installed; runmeter.record_usage() counts any")
        )
    rows.append(_zero_code())
    return rows


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _opentelemetry() -> str:
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return "OTEL_SDK_DISABLED is set: nothing is counted"
    sampler = os.environ.get("OTEL_TRACES_SAMPLER")
    return f"sampler {sampler}: what it drops still counts" if sampler else "every span is seen"


def _store() -> Row:
    found = _version("sqlalchemy")
    if found is None or not list(entry_points(group="runmeter_recorder")):
        return Row("store", "missing", found, "nothing is stored, calls only move OpenTelemetry counters", PIP_STORE)
    return Row("store", "ok", found, "RUNMETER_DATABASE_URL" if os.environ.get("RUNMETER_DATABASE_URL") else "SQLite")


def _zero_code() -> Row:
    found = _version("opentelemetry-instrumentation")
    if found is None:
        return Row("zero-code", "note", None, "runmeter exec -- CMD works", "")
    # The distro asks for the OTLP exporter over gRPC where the environment says nothing, and one exporter that is not
    # installed keeps all of OpenTelemetry from starting, and us with it.
    told = "OTEL_EXPORTER_OTLP_PROTOCOL" in os.environ or all(name in os.environ for name in _EXPORTERS)
    if not told and _version("opentelemetry-distro") and not _version("opentelemetry-exporter-otlp-proto-grpc"):
        detail = "runmeter exec -- CMD works; opentelemetry-instrument starts nothing without the gRPC exporter"
        remedy = " ".join(f"{name}=none" for name in _EXPORTERS) + " opentelemetry-instrument CMD"
        return Row("zero-code", "note", found, detail, remedy)
    return Row("zero-code", "ok", found, "runmeter exec -- CMD and opentelemetry-instrument CMD work")
