"""Durations as people write them: a number with its unit. Pure."""

from __future__ import annotations

import re

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
"""Seconds of each unit; `m` is minutes."""
LONGEST = 36525 * UNITS["d"]
"""Seconds; a hundred years. Beyond lies a typing error."""
_WRITTEN = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-z]*)", re.IGNORECASE)


def seconds(text: str) -> float:
    """`500ms`, `90s`, `15m`, `12h`, `30d` or `2w` in seconds; `0` is nothing in every unit.

    ValueError with a sentence where the unit is missing (30 of what?) or the text is no duration.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or (match[2] and match[2] not in UNITS):
        raise ValueError(f"{_short(text)} is not a duration such as 90s, 15m, 12h or 30d")
    number, unit = match.groups()
    if not unit and float(number):
        raise ValueError(
            f"{_short(text)} has no unit: write {number}s for seconds, {number}d for days (units: {', '.join(UNITS)})"
        )
    value = float(number) * UNITS[unit or "s"]
    if value > LONGEST:
        raise ValueError(f"{_short(text)} is longer than {written(LONGEST)}, the longest duration there is")
    return value


def written(value: float) -> str:
    """Seconds as somebody would write them, in the largest unit that divides them: `30d`, `90s`, `500ms`."""
    for unit in ("d", "h", "m", "s"):
        if value >= UNITS[unit] and value % UNITS[unit] == 0:
            return f"{value / UNITS[unit]:g}{unit}"
    return f"{value:g}s" if value >= 1 or value == 0 else f"{value * 1000:g}ms"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
