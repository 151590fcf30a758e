"""Runs to fill a store with."""

from __future__ import annotations

from typing import Any

from runmeter.sink import TERMINAL
from runmeter.usage import Usage
from runmeter_exporter.totals.run import CellKey, RunSnapshot

SECOND = 10**9
START = 1_700_000_000 * SECOND
"""2023-11-14T22:13:20Z"""


def usage(tokens_in: int = 100, tokens_out: int = 20, **more: int) -> Usage:
    return Usage(**{"input_tokens": tokens_in, "output_tokens": tokens_out, "calls": 1, "messages": 1, **more})


def snapshot(run_id: str, *, status: str = "success", number: int = 0, **more: Any) -> RunSnapshot:
    """A run that began `number` seconds after `START`; ended, unless `status` says that it runs."""
    ended = status in TERMINAL
    begun = START + number * SECOND
    cell = CellKey("2023-11-14", "openai", "gpt-5-mini", "lead_agent")
    fields: dict[str, Any] = {
        "run_id": run_id,
        "source": "a-source",
        "revision": 1,
        "final": ended,
        "status": status,
        "thread_id": "t",
        "service": "tests",
        "started_at": begun,
        "updated_at": begun + SECOND,
        "ended_at": begun + SECOND if ended else None,
        "usage_by": {cell: usage()},
    }
    return RunSnapshot(**fields | more)
