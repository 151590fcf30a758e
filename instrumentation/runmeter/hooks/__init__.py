"""Hooks: one small file per framework whose own signal is better than its spans.

Each has `install()`, `uninstall()` and a pure `usage_from`. `install()` imports the framework; where that is missing
it says which `pip install` line brings it and does nothing (rule 8). What a hook reports becomes a span of ours over
the time of the call, so a hook and an instrumentation that see the same call are joined by what joins any two spans:
the provider's response id, or the same numbers inside the same time.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def __getattr__(name: str) -> Any:
    """`runmeter.hooks.langchain`, and any other file here, loaded when it is asked for."""
    if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no hook {name!r}")
