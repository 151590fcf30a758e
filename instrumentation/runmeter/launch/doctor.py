"""What `runmeter doctor` shows of an environment: data only, the command line prints it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from runmeter.otel.clients import coverage
from runmeter.otel.handle import PIP_STORE

_EXPORTERS = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")


@dataclass(frozen=True, slots=True)
class Found:
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


def environment_report() -> list[Found]:
    """Every client library that is installed, what instruments it and what is missing; nothing is imported or
    switched on for it."""
    rows = [
        Found("python", "ok", platform.python_version(), platform.python_implementation()),
        Found("opentelemetry", "ok", _version("opentelemetry-sdk"), _opentelemetry()),
        _store(),
    ]
    covered = coverage()
    for one in covered:
        imported = "imported" if one.imported else "installed"
        if one.instrumentation is None:
            detail = f"{imported}; nothing instruments it"
            rows.append(Found(one.client.name, "missing", one.version, detail, one.remedy))
            continue
        by = one.instrumentation
        if one.instrumentation_version is not None:
            by = f"{by} {one.instrumentation_version}"
        detail = f"{imported}; makes its own spans" if by == "itself" else f"{imported}; instrumented by {by}"
        if one.others:
            detail += f"; also installed and left off: {', '.join(one.others)}"
        rows.append(Found(one.client.name, "ok", one.version, detail))
    if not covered:
        rows.append(
            Found("clients", "note", None, "no known client library is installed; runmeter.record_usage() counts any")
        )
    rows += _frameworks()
    rows.append(_zero_code())
    return rows


_HOOK = "hook"
_COUNTS = ("calls", "input", "output", "cached", "reasoning")


def _frameworks() -> Iterator[Found]:
    """Frameworks that were measured (`instrumentation/FRAMEWORKS.md`): whether what is installed beside each counts its
    calls exactly in this process. Our own hooks are not looked for: the program that installs one knows."""
    for known in json.loads((Path(__file__).parent / "frameworks.json").read_text("utf-8")):
        found = _version(known["distribution"])
        if found is None:
            continue
        ways = [
            (sum(field in way["wrong"] for field in _COUNTS), way)
            for way in known["rows"]
            if way["door"] == 1 and _HOOK not in way["by"] and all(not by or _version(by) for by in way["by"])
        ]
        if not ways:
            detail = "nothing that was measured with it is installed"
            yield Found(known["framework"], "note", found, detail, known["todo"])
            continue
        wrong, way = min(ways, key=lambda one: one[0])
        by = " and ".join(by or "its own spans" for by in way["by"])
        if not wrong:
            yield Found(known["framework"], "ok", found, f"exact by {by}, as measured with {known['version']}")
            continue
        misses = ", ".join(field for field in _COUNTS if field in way["wrong"])
        detail = f"{by}: not exact in {misses}, as measured with {known['version']}"
        if way["why"]:
            detail += f" ({'; '.join(way['why'])})"
        yield Found(known["framework"], "missing", found, detail, known["todo"])


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


def _store() -> Found:
    found = _version("sqlalchemy")
    if found is None or not list(entry_points(group="runmeter_recorder")):
        return Found("store", "missing", found, "nothing is stored, calls only move OpenTelemetry counters", PIP_STORE)
    return Found("store", "ok", found, "RUNMETER_DATABASE_URL" if os.environ.get("RUNMETER_DATABASE_URL") else "SQLite")


def _zero_code() -> Found:
    found = _version("opentelemetry-instrumentation")
    if found is None:
        return Found("zero-code", "note", None, "runmeter exec -- CMD works", "")
    # The distro asks for the OTLP exporter over gRPC where the environment says nothing, and one exporter that is not
    # installed keeps all of OpenTelemetry from starting, and us with it.
    told = "OTEL_EXPORTER_OTLP_PROTOCOL" in os.environ or all(name in os.environ for name in _EXPORTERS)
    if not told and _version("opentelemetry-distro") and not _version("opentelemetry-exporter-otlp-proto-grpc"):
        detail = "runmeter exec -- CMD works; opentelemetry-instrument starts nothing without the gRPC exporter"
        remedy = " ".join(f"{name}=none" for name in _EXPORTERS) + " opentelemetry-instrument CMD"
        return Found("zero-code", "note", found, detail, remedy)
    return Found("zero-code", "ok", found, "runmeter exec -- CMD and opentelemetry-instrument CMD work")
