"""The store's answers as tables for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table

from runmeter_exporter.console.plain import count as count
from runmeter_exporter.console.plain import plain as plain

Answer = Mapping[str, Any]


def console(stderr: bool = False) -> Console:
    """Rich where there is a terminal; plain, and wide enough not to cut ids, where there is none."""
    made = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 200
    return made


def money(value: float | None) -> str:
    """US dollars; `-` where nothing was priced, since unknown is not free."""
    if value is None:
        return "-"
    return f"${value:,.2f}" if abs(value) >= 100 else f"${value:.4f}"


def when(value: str | None) -> str:
    """An RFC 3339 time to the second."""
    return f"{value[:10]} {value[11:19]}Z" if value else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], texts: int) -> Table:
    """Left the first `texts` columns, right the numbers after them."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for index, name in enumerate(columns):
        # Ids are for copying: folded rather than cut where the terminal is narrow.
        made.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        made.add_row(*[plain(value) if isinstance(value, str) else count(value) for value in row])
    return made


def runs(answer: Answer) -> Table:
    """One line per run, newest first."""
    columns = ("run", "thread", "agent", "status", "usage", "created", "model", "calls", "input", "output", "cost")
    return table(columns, [
        (
            run["run_id"], run["thread_id"] or "", run["agent"] or "", run["status"], run["usage_state"],
            when(run["created_at"]), run["model_name"] or "", run["llm_call_count"], run["total_input_tokens"],
            run["total_output_tokens"], money(run["cost_usd"]),
        )
        for run in answer["runs"]
    ], 7)  # fmt: skip


def threads(answer: Answer) -> Table:
    """One line per thread, latest activity first; settled usage."""
    columns = ("thread", "updated", "runs", "active", "calls", "input", "output", "tokens", "cost")
    return table(columns, [
        (
            item["thread_id"], when(item["updated_at"]), item["total_runs"], item["active_runs"],
            item["llm_call_count"], item["total_input_tokens"], item["total_output_tokens"], item["total_tokens"],
            money(item["cost_usd"]),
        )
        for item in answer["threads"]
    ], 2)  # fmt: skip


def totals(title: str, answer: Answer) -> list[RenderableType]:
    """The totals of a thread, a run or everything, then its lines by model and caller."""
    rows = [
        ("tokens", answer["total_tokens"]),
        ("input", answer["total_input_tokens"]),
        ("  cache read", answer["cache_read_tokens"]),
        ("  cache write", answer["cache_write_tokens"]),
        ("output", answer["total_output_tokens"]),
        ("  reasoning", answer["reasoning_tokens"]),
        ("calls", answer["llm_call_count"]),
        ("failed attempts", answer["llm_call_failures"]),
        ("calls without usage", answer["calls_without_usage"]),
        ("messages", answer["message_count"]),
        ("cost", money(answer["cost_usd"])),
        ("unpriced tokens", answer["unpriced_tokens"]),
    ]
    rows = [*described(answer), *rows]
    rows += [(label, answer[key]) for key, label in _MORE if answer.get(key) is not None]
    for reason, number in sorted((answer.get("set_aside") or {}).items()):
        rows.append((f"spans set aside: {reason}", number))
    parts: list[RenderableType] = [plain(title), table(("", ""), rows, 1)]
    if answer.get("usage"):
        columns = ("provider", "model", "caller", "calls", "input", "output", "cost")
        parts += ["", table(columns, [
            (
                line["provider"], line["model"], line["caller"], line["llm_call_count"], line["total_input_tokens"],
                line["total_output_tokens"], money(line["cost_usd"]),
            )
            for line in answer["usage"]
        ], 3)]  # fmt: skip
    return parts


def described(run: Answer) -> list[tuple[str, str]]:
    """Of a run: whose it was, what for, when, and how it ended; nothing of other answers."""
    if "run_id" not in run:
        return []
    started, ended = run["created_at"], run["ended_at"]
    # Who still works has no end, and what we heard last is not one.
    took = age((datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()) if ended else ""
    tags = ", ".join(f"{key}={value}" for key, value in sorted(run["tags"].items()))
    found = [
        ("thread", run["thread_id"]), ("agent", run["agent"]), ("service", run["service"]), ("user", run["user_id"]),
        ("tags", tags), ("status", run["status"]), ("stop reason", run["stop_reason"]),
        ("usage state", run["usage_state"]), ("started", when(started)), ("ended", when(ended)), ("duration", took),
        ("last heard of", when(run["updated_at"])),
    ]  # fmt: skip
    return [(label, value or "-") for label, value in found]


def age(seconds: float) -> str:
    """`42s`, `3m10s`, `2h05m`, `3d04h`."""
    whole = int(max(0.0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


_MORE = (
    ("total_runs", "runs"), ("active_runs", "active runs"), ("lower_bound_runs", "lower bound runs"),
    ("unthreaded_runs", "runs without a thread"),
)  # fmt: skip


def daily(rows: Sequence[Answer], by: Sequence[str]) -> Table:
    """Settled usage by day, or by whatever was asked for, and its sum; JSON and CSV have every counter, and no sum."""
    counts = ("llm_call_count", "total_input_tokens", "total_output_tokens", "total_tokens", "unpriced_tokens")
    made = table((*by, "calls", "input", "output", "tokens", "unpriced", "cost"), [
        (
            *(str(row[name]) if row[name] is not None else "" for name in by),
            *(row[name] for name in counts), money(row["cost_usd"]),
        )
        for row in rows
    ], len(by))  # fmt: skip
    made.add_section()
    names = ["sum", *[""] * (len(by) - 1)]
    known = [row["cost_usd"] for row in rows if row["cost_usd"] is not None]
    sums = [count(sum(row[name] for row in rows)) for name in counts]
    made.add_row(*names, *sums, money(math.fsum(known) if known else None), style="bold")
    return made
