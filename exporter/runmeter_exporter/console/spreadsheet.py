"""Usage as CSV: money as decimals, names that no spreadsheet runs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from typing import IO, Any

from runmeter.usage import ZERO
from runmeter_exporter.totals.answers import counters, dollars


def write(out: IO[str], rows: Sequence[Mapping[str, Any]], group_by: Sequence[str]) -> None:
    """A header, also over no rows, and a line for each. No sum: a spreadsheet adds up by itself."""
    columns = [*group_by, *counters(ZERO)]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([decimal(row[name]) if name == "cost_usd" else safe(row[name]) for name in columns])


def safe(value: Any) -> Any:
    """Names come from outside, and a spreadsheet runs what begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def decimal(value: float | None) -> str:
    """US dollars; empty where unpriced."""
    return "" if value is None else dollars(value)
