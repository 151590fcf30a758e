"""Which instrumentation sees which client library, and turning the installed ones on.

Only instrumentations of model clients and agent frameworks, never the host's others (its web framework, its database);
and only one for each library: two vendors on one client would make every span twice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, version
from typing import Any

from runmeter.guard import logger, once, unless_the_hosts

GROUP = "opentelemetry_instrumentor"


@dataclass(frozen=True, slots=True)
class Client:
    """A library that calls models, and the instrumentations of it, the best first (November 2026)."""

    name: str
    """Its distribution on PyPI."""
    module: str
    instrumentations: tuple[str, ...]
    """Distributions with an `opentelemetry_instrumentor` entry point, the preferred one first."""
    native_from: tuple[int, ...] | None = None
    """From this version on it makes spans by itself once a provider is set."""
    hint: str = ""
    """What to do where no instrumentation is to be installed: the library's own switch."""
    through: tuple[str, ...] = ()
    """Clients that it calls models through: its own spans tell of those calls."""


CLIENTS = (
    Client(
        "openai",
        "openai",
        (
            "opentelemetry-instrumentation-genai-openai",
            "opentelemetry-instrumentation-openai",
            "openinference-instrumentation-openai",
        ),
    ),
    Client(
        "anthropic",
        "anthropic",
        (
            "opentelemetry-instrumentation-genai-anthropic",
            "opentelemetry-instrumentation-anthropic",
            "openinference-instrumentation-anthropic",
        ),
        native_from=(2,),
    ),
    Client(
        "langchain-core",
        "langchain_core",
        (
            "opentelemetry-instrumentation-genai-langchain",
            "opentelemetry-instrumentation-langchain",
            "openinference-instrumentation-langchain",
        ),
    ),
    # The official instrumentation of the agents makes no spans of model calls; that of the client below does.
    Client(
        "openai-agents",
        "agents",
        (
            "opentelemetry-instrumentation-genai-openai-agents",
            "opentelemetry-instrumentation-openai-agents",
            "openinference-instrumentation-openai-agents",
        ),
    ),
    Client(
        "google-genai",
        "google.genai",
        ("opentelemetry-instrumentation-google-genai", "openinference-instrumentation-google-genai"),
    ),
    Client("litellm", "litellm", ("openinference-instrumentation-litellm",), hint='litellm.callbacks = ["otel"]'),
    Client(
        "pydantic-ai-slim",
        "pydantic_ai",
        ("openinference-instrumentation-pydantic-ai",),
        hint="pydantic_ai.Agent.instrument_all()",
    ),
    Client("google-adk", "google.adk", (), native_from=(1,), through=("google-genai", "anthropic", "litellm")),
    Client(
        "strands-agents",
        "strands",
        (),
        native_from=(1,),
        through=("openai", "anthropic", "google-genai", "litellm", "mistralai", "boto3"),
    ),
    Client(
        "mistralai", "mistralai", ("opentelemetry-instrumentation-mistralai", "openinference-instrumentation-mistralai")
    ),
    Client("groq", "groq", ("opentelemetry-instrumentation-groq", "openinference-instrumentation-groq")),
    Client("cohere", "cohere", ("opentelemetry-instrumentation-cohere",)),
    Client("boto3", "boto3", ("opentelemetry-instrumentation-bedrock", "openinference-instrumentation-bedrock")),
)
"""boto3 is here for Bedrock, and is the one library that is often imported for something else: see `expected`."""

UNSURE = frozenset({"boto3"})
"""Imported for other reasons too, so that nothing instrumenting it is no reason for a warning."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How a client library is seen in this environment."""

    client: Client
    version: str
    imported: bool
    instrumentation: str | None
    """The distribution that instruments it or would; `itself` for a library that makes its own spans."""
    instrumentation_version: str | None
    enabled: bool
    """It is switched on in this process."""
    others: tuple[str, ...] = ()
    """Further instrumentations of the same library that are installed, and stay off."""
    remedy: str = ""
    """What to do where nothing instruments it: a pip line or the library's own switch."""


def coverage(*, enable: bool = False, tracer_provider: object = None) -> list[Coverage]:
    """One row for every known client library that is installed; with `enable` its instrumentation is switched on."""
    return [row for client in CLIENTS if (row := _cover(client, enable, tracer_provider)) is not None]


def warn_uncovered(rows: Iterable[Coverage]) -> None:
    """Say once for each client library that is imported and that nothing instruments: its calls are not counted."""
    for row in rows:
        if row.imported and not row.enabled and row.client.name not in UNSURE:
            once(
                f"uncovered {row.client.name}",
                "runmeter: %s %s is imported and nothing instruments it, so its calls are not counted%s: %s",
                row.client.name,
                row.version,
                _but_for(row.client),
                row.remedy,
            )


def _but_for(client: Client) -> str:
    """Calls of it that are counted all the same: those of a framework that makes spans by itself."""
    theirs = [one.name for one in CLIENTS if client.name in one.through and one.module in sys.modules]
    return f" but for those that {' and '.join(theirs)} makes" if theirs else ""


def late(module: str, *, enable: bool, tracer_provider: object) -> Coverage | None:
    """The row of a client library that is being imported only now, as `coverage` gives it."""
    client = next(one for one in CLIENTS if one.module == module)
    return _cover(client, enable, tracer_provider)


def _cover(client: Client, enable: bool, tracer_provider: object) -> Coverage | None:
    try:
        found = version(client.name)
    except PackageNotFoundError:
        return None
    imported = client.module in sys.modules
    installed = [one for name in client.instrumentations if (one := _installed(name)) is not None]
    names = tuple(_name(one) for one in installed)
    if client.native_from is not None and _numbers(found) >= client.native_from:
        return Coverage(client, found, imported, "itself", None, True, names)
    remedy = f"pip install {client.instrumentations[0]}" if client.instrumentations else client.hint
    if client.hint and client.hint != remedy:
        remedy = f"{client.hint}, or {remedy}"
    # One that the host has switched on itself is the one, whoever made it.
    on = next((one for one in installed if _is_on(one)), None)
    if on is None and enable:
        on = next((one for one in installed if _switch_on(one, tracer_provider)), None)
    chosen = on or next(iter(installed), None)
    if chosen is None:
        return Coverage(client, found, imported, None, None, False, (), remedy)
    others = tuple(name for name in names if name != _name(chosen))
    if on is None and enable:
        remedy = f"{_name(chosen)} {chosen.version} does not work with {client.name} {found}; {remedy} --upgrade"
    return Coverage(client, found, imported, _name(chosen), chosen.version, on is not None, others, remedy)


def _installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _name(found: Distribution) -> str:
    return str(found.metadata["Name"])


def _points(found: Distribution) -> Sequence[EntryPoint]:
    disabled = {name.strip() for name in os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",")}
    if "*" in disabled:
        return []
    return [point for point in found.entry_points if point.group == GROUP and point.name not in disabled]


def _is_on(found: Distribution) -> bool:
    """Whether it is switched on, without importing it for the question."""
    for point in _points(found):
        module = sys.modules.get(point.module)
        made = getattr(module, point.attr, None) if module is not None else None
        # Instrumentors are singletons; one that nobody made yet is not on.
        single = getattr(made, "_instance", None)
        if single is not None and getattr(single, "_is_instrumented_by_opentelemetry", False):
            return True
    return False


def _switch_on(found: Distribution, tracer_provider: object) -> bool:
    worked = False
    for point in _points(found):
        try:
            made: Any = point.load()()
            made.instrument(tracer_provider=tracer_provider)
            worked = bool(getattr(made, "_is_instrumented_by_opentelemetry", True)) or worked
        except Exception as error:
            unless_the_hosts(error)
            # Instrumentations break with the libraries they patch; the host works without them.
            once(f"enable {_name(found)}", "runmeter: %s could not be enabled: %r", _name(found), error)
    if worked:
        logger.debug("runmeter: enabled %s %s", _name(found), found.version)
    return worked


def _numbers(text: str) -> tuple[int, ...]:
    out = []
    for part in text.split("."):
        digits = "".join(char for char in part if char.isdigit())
        if not digits:
            break
        out.append(int(digits))
    return tuple(out)
