"""Values of attributes from outside: counts, costs and text, or the reason why not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from runmeter import semconv
from runmeter.dialects import FRAMEWORKS, PROVIDERS
from runmeter.usage import COUNT_LIMIT

ID_LIMIT: Final = 256
LABEL_LIMIT: Final = 128
TAG_LIMIT: Final = 64
MAX_TAGS: Final = 8
_COST_LIMIT: Final = 1e6
_NANO: Final = 1_000_000_000


def as_count(value: Any, rejected: list[str]) -> int | None:
    """A count, or None where nothing is said; what is none of both adds its reason to `rejected`."""
    kind = type(value)
    if kind is int and 0 <= value <= COUNT_LIMIT:
        count: int = value
        return count
    if value is None or value == "":
        return None
    if kind is str:
        text = value.strip()
        if not text.isascii() or not text.removeprefix("-").isdecimal():
            try:
                value = float(text) if len(text) <= 32 else None
            except ValueError:
                value = None
        else:
            value = int(text) if len(text) <= 20 else (-1 if text[0] == "-" else COUNT_LIMIT + 1)
        kind = type(value)
    if kind is float:
        if not isfinite(value) or not value.is_integer():
            rejected.append("malformed")
            return None
        value = int(value)
    elif kind is not int:
        rejected.append("malformed")
        return None
    if value < 0:
        rejected.append("negative")
        return None
    if value > COUNT_LIMIT:
        rejected.append("too_large")
        return None
    return int(value)


def as_cost(value: Any, rejected: list[str]) -> int | None:
    """Nano-dollars. Zero is no answer: OpenLIT and Copilot write it for models whose price they do not know."""
    if value is None:
        return None
    if type(value) is str:
        try:
            value = float(value[:32])
        except ValueError:
            value = None
    if type(value) not in (int, float) or not isfinite(value):
        rejected.append("malformed")
        return None
    if value < 0:
        rejected.append("negative")
        return None
    if value > _COST_LIMIT:
        rejected.append("too_large")
        return None
    return round(value * _NANO) or None


_DIRTY: Final = re.compile("[\x00\ud800-\udfff]")


def clean(text: str, limit: int) -> str:
    """`text` cut to `limit` characters, without NUL and lone surrogates, which no database takes."""
    text = text[:limit]
    return text if text.isprintable() else _DIRTY.sub("", text)


def as_text(value: Any, limit: int) -> str | None:
    if type(value) is str:
        if len(value) <= limit and value.isprintable():
            return value or None
        return clean(value, limit).strip() or None
    if type(value) is int and -(2**64) < value < 2**64:
        return str(value)
    if isinstance(value, str):  # an enumeration's member: what it holds is what the wire has
        return as_text(str.__str__(value), limit)
    return None


def as_provider(value: Any) -> str | None:
    said = as_text(value, LABEL_LIMIT)
    if said is None:
        return None
    said = said.lower()
    return None if said in FRAMEWORKS else PROVIDERS.get(said, said)


def as_tags(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    prefix = semconv.TAG_PREFIX
    tags = []
    for key in attributes:
        if type(key) is str and key.startswith(prefix):
            name, value = as_text(key[len(prefix) :], TAG_LIMIT), as_text(attributes[key], TAG_LIMIT)
            if name and value:
                tags.append((name, value))
    return tuple(sorted(tags)[:MAX_TAGS])
