"""The live meter for agent runs: what an agent process imports.

    import runmeter

    runmeter.instrument()
    with runmeter.run(thread_id="conversation-1") as run:
        ...                     # every model call in here is counted once, under this run
        print(run.usage.total_tokens)

Needs only OpenTelemetry; the store it writes to comes with `pip install 'runmeter[store]'`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runmeter.otel.context import Run, caller, run, start_run
from runmeter.otel.handle import Handle, instrument
from runmeter.otel.record import record_usage
from runmeter.spans import Call
from runmeter.usage import Usage

if TYPE_CHECKING:
    from runmeter import hooks

__all__ = ["Call", "Handle", "Run", "Usage", "caller", "hooks", "instrument", "record_usage", "run", "start_run"]


def __getattr__(name: str) -> Any:
    """`runmeter.hooks` without an import of its own, loaded when it is asked for."""
    if name == "hooks":
        return import_module("runmeter.hooks")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
