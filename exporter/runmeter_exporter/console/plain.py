"""Tables as plain text, for the commands that have to work where rich is not installed."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

_NARROWEST = 12
_GAP = 2


def plain(value: str) -> str:
    """Names come from outside; a terminal obeys some characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in value)


def count(value: Any) -> str:
    """A number with its thousands apart."""
    return f"{value:,}" if isinstance(value, int) else "" if value is None else str(value)


def width() -> int | None:
    """Columns of the terminal that stdout is; None where it is none, and nothing is to be cut."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError, AttributeError):
        return None


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], texts: int, fit: int | None = None) -> str:
    """Lines of a table: the first `texts` columns left, the numbers after them right. Text is folded, never cut, where
    the whole is wider than `fit`."""
    cells = [[plain(value) if isinstance(value, str) else count(value) for value in row] for row in rows]
    if any(columns):
        cells.insert(0, list(columns))
    widths = [max((len(row[index]) for row in cells), default=0) for index in range(len(columns))]
    while fit is not None and sum(widths) + _GAP * (len(widths) - 1) > fit:
        widest = max(range(texts), key=widths.__getitem__, default=0)
        if widths[widest] <= _NARROWEST:
            break
        widths[widest] -= 1
    lines = []
    for row in cells:
        parts = [_folded(cell, size) for cell, size in zip(row, widths, strict=True)]
        for number in range(max(map(len, parts))):
            words = [part[number] if number < len(part) else "" for part in parts]
            aligned = [
                word.ljust(size) if index < texts else word.rjust(size)
                for index, (word, size) in enumerate(zip(words, widths, strict=True))
            ]
            lines.append((" " * _GAP).join(aligned).rstrip())
    return "\n".join(lines)


def _folded(cell: str, size: int) -> list[str]:
    return textwrap.wrap(cell, size) if len(cell) > size else [cell]
