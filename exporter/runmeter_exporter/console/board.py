"""`top`'s table in any width: names shrink, columns go, numbers stay whole. Pure: lines in, text out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from runmeter_exporter.console.burn import Burning
from runmeter_exporter.console.tables import age, count, money, plain

GAP = 2
ROOMY = 110
"""Columns of a terminal from which on numbers are written out."""
NAME, ID = 8, 8
"""Cells that a name, and the beginning of a run's id, have at least."""


_UNITS = (("k", 10**3), ("M", 10**6), ("B", 10**9), ("T", 10**12))


class Column(NamedTuple):
    """One column; the lower its rank, the longer it stays when the terminal is narrow."""

    title: str
    rank: int
    cell: Callable[[Burning], str]
    sum: Callable[[Sequence[Burning]], str] = lambda lines: ""
    is_name: bool = False


def table(lines: Sequence[Burning], *, width: int, rows: int, note: str = "") -> list[str]:
    """A header, the first `rows` lines, the sum over all of them, how many are not shown, and `note`; no line is wider
    than `width`."""
    shown = lines[:rows]
    columns = _columns(width >= ROOMY)
    while True:
        sizes = _sizes(columns, shown, lines, width)
        if sum(sizes) + GAP * (len(sizes) - 1) <= width or len(columns) == 1:
            break
        columns.remove(max(columns, key=lambda column: column.rank))
    out = [_row([column.title for column in columns], columns, sizes)]
    ids = beginnings([line.run_id for line in shown], sizes[0])
    for line, run_id in zip(shown, ids, strict=True):
        out.append(_row([run_id, *[column.cell(line) for column in columns[1:]]], columns, sizes))
    out.append(_row([f"{len(lines)} active", *[column.sum(lines) for column in columns[1:]]], columns, sizes))
    hidden = f"{len(lines) - rows} more not shown  " if len(lines) > rows else ""
    return [cut(line, width).rstrip() for line in [*out, plain(hidden + note)]]


def beginnings(run_ids: Sequence[str], size: int) -> list[str]:
    """The beginning of each id: as short as tells it from the others here, not under 8 characters, filling `size`."""
    ordered = sorted(set(run_ids))
    needed = dict.fromkeys(ordered, ID)
    for one, other in itertools.pairwise(ordered):
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        needed[one], needed[other] = max(needed[one], same + 1), max(needed[other], same + 1)
    return [plain(run_id[: max(needed[run_id], size)]) for run_id in run_ids]


def short(value: int) -> str:
    """At most six characters: `9,999`, `123.4k`, `12.2M`, `1.4B`."""
    if value < 10_000:
        return f"{value:,}"
    unit, size = next((one for one in _UNITS if value < 999.95 * one[1]), _UNITS[-1])
    return f"{value / size:.1f}{unit}"


def per_second(value: float | None, roomy: bool = True) -> str:
    """A tenth below ten, whole above; `<0.1` is not nothing, and `-` is not known."""
    if value is None:
        return "-"
    if 0 < value < 0.1:
        return "<0.1"
    if value < 9.95:
        return f"{value:.1f}" if value else "0"
    return f"{value:,.0f}" if roomy else short(round(value))


def per_hour(value: float | None, roomy: bool = True) -> str:
    """US dollars an hour: cents, from a hundred on whole ones."""
    if value is None:
        return "-"
    if 0 < value < 0.01:
        return "<$0.01"
    return f"${value:.2f}" if value < 100 else f"${round(value):,}" if roomy else f"${short(round(value))}"


def spent(value: float | None, roomy: bool = True) -> str:
    """US dollars; `-` where nothing was priced."""
    return money(value) if value is None or roomy or value < 10_000 else f"${short(round(value))}"


def share(part: int, total: int) -> str:
    """A part as a percentage."""
    return f"{100 * part / total:.0f}%" if total else "-"


def _columns(roomy: bool) -> list[Column]:
    number = count if roomy else short
    return [
        Column("run", 0, lambda line: line.run_id, is_name=True),
        Column("thread", 5, lambda line: plain(line.thread_id or ""), is_name=True),
        Column("agent", 6, lambda line: plain(line.agent or line.service or ""), is_name=True),
        Column("model", 8, lambda line: plain(line.model or ""), is_name=True),
        Column("age", 4, lambda line: age(line.age_seconds)),
        Column("calls", 7, lambda line: number(line.llm_call_count),
               lambda lines: number(sum(line.llm_call_count for line in lines))),
        Column("tokens", 1, lambda line: number(line.total_tokens),
               lambda lines: number(sum(line.total_tokens for line in lines))),
        Column("tokens/s", 1, lambda line: per_second(line.tokens_per_second, roomy),
               lambda lines: per_second(_sum(line.tokens_per_second for line in lines), roomy)),
        Column("cost", 2, lambda line: spent(line.cost_usd, roomy),
               lambda lines: spent(_sum(line.cost_usd for line in lines), roomy)),
        Column("USD/h", 3, lambda line: per_hour(line.usd_per_hour, roomy),
               lambda lines: per_hour(_sum(line.usd_per_hour for line in lines), roomy)),
        Column("lead", 9, lambda line: share(line.lead_agent_tokens, line.total_tokens)),
        Column("sub", 10, lambda line: share(line.subagent_tokens, line.total_tokens)),
        Column("middle", 11, lambda line: share(line.middleware_tokens, line.total_tokens)),
    ]  # fmt: skip


def _sizes(columns: Sequence[Column], shown: Sequence[Burning], lines: Sequence[Burning], width: int) -> list[int]:
    """The cells of each column: numbers as wide as they are, names what is left, none under its least."""
    whole = [
        max(cell_len(column.title), cell_len(column.sum(lines)), *[cell_len(column.cell(line)) for line in shown], 0)
        for column in columns
    ]
    active = len(f"{len(lines)} active")
    least = [min(size, NAME) if column.is_name else size for column, size in zip(columns, whole, strict=True)]
    needed = max((len(one) for one in beginnings([line.run_id for line in shown], ID)), default=0)
    # What `runmeter run` takes is worth more than a thread's name.
    least[0] = max(active, min(needed, max(ID, width // 2)))
    whole[0] = max(whole[0], active)
    sizes = list(least)
    left = width - sum(sizes) - GAP * (len(sizes) - 1)
    while left > 0:
        small = [i for i, column in enumerate(columns) if column.is_name and sizes[i] < whole[i]]
        if not small:
            break
        smallest = min(small, key=lambda i: (sizes[i], i))
        sizes[smallest] += 1
        left -= 1
    return sizes


def _row(cells: Sequence[str], columns: Sequence[Column], sizes: Sequence[int]) -> str:
    made = []
    for index, (cell, column, size) in enumerate(zip(cells, columns, sizes, strict=True)):
        if column.is_name:
            # An ellipsis in an id would be copied with it; `runmeter run` takes the beginning as it is.
            made.append(set_cell_size(cell if index == 0 else cut(cell, size), size))
        else:
            made.append(" " * (size - cell_len(cell)) + cell)
    return (" " * GAP).join(made)


def cut(text: str, size: int) -> str:
    """The text in at most `size` cells, an ellipsis where something is missing."""
    return text if cell_len(text) <= size else set_cell_size(text, max(0, size - 1)).rstrip() + "…"


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
