"""The one cleaner of what comes from outside: ids, labels, tags, counts and money, the same at both doors.

Every function here is total and idempotent: whatever it is given it answers, and what was cleaned passes unchanged.
So the doors, the store and whoever asks by an id may all clean without agreeing who goes first, and the id that the
user knows finds what was stored under it.

Text loses NUL and lone surrogates, which no database takes, and nothing else. An id is what tells two things apart: one
that cannot be kept whole ends in a digest of all of it, so that two stay two. A label is for reading: it is cut.
"""

from __future__ import annotations

import re
from enum import Enum
from hashlib import blake2b
from math import isfinite
from typing import Any, Final

from runmeter.usage import COUNT_LIMIT

ID_LIMIT: Final = 256
"""Characters of an id."""
LABEL_LIMIT: Final = 128
"""Characters of a label: a model, an agent, a service."""
TAG_LIMIT: Final = 64
"""Characters of a tag's key and of its value."""
MAX_TAGS: Final = 8
"""Tags of a run."""
COST_LIMIT: Final = 1e6
"""Dollars that one call may cost."""
NANO: Final = 1_000_000_000

_DIRTY: Final = re.compile("[\x00\ud800-\udfff]")
_NUMBER: Final = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_DIGITS: Final = re.compile(r"[+-]?\d+", re.ASCII)
_LONGEST_NUMBER: Final = 32


def identifier(value: object, limit: int = ID_LIMIT) -> str | None:
    """An id of at most `limit` characters; None where there is none.

    One that is longer, or has something in it that no database takes, keeps its head and ends in a digest of the whole.
    """
    if type(value) is str and len(value) <= limit and value.isprintable():
        return value or None
    said = _text(value)
    if said is None:
        return None
    kept = said if len(said) <= limit and said.isprintable() else _DIRTY.sub("", said)
    if len(kept) <= limit and kept == said:
        return kept or None
    digest = blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{kept[: limit - 17]}~{digest}"


def label(value: object, limit: int = LABEL_LIMIT) -> str | None:
    """Text to read, of at most `limit` characters, without space around it; None where there is none."""
    if type(value) is str and len(value) <= limit and value.isprintable() and value[:1] != " " != value[-1:]:
        return value or None
    said = _text(value)
    if said is None:
        return None
    # Cut before it is cleaned, and generously: what comes may be megabytes.
    return _DIRTY.sub("", said[: 4 * limit]).strip()[:limit].strip() or None


def tag(value: object) -> str | None:
    """A tag's key or value."""
    return label(value, TAG_LIMIT)


def count(value: object, rejected: list[str] | None = None) -> int | None:
    """A count from 0 to `COUNT_LIMIT`, or None where nothing is said; what is no count adds its reason to `rejected`:
    `negative`, `too_large` or `malformed`.

    `12`, `"12"`, `12.0` and `"12.0"` are 12; booleans, `1.7`, `"1_000"` and `"$2"` are no counts.
    """
    if type(value) is int and 0 <= value <= COUNT_LIMIT:
        return value
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None or (type(number) is float and not number.is_integer()):
        reason = "malformed"
    elif number < 0:
        reason = "negative"
    elif number > COUNT_LIMIT:
        reason = "too_large"
    else:
        return int(number)
    if rejected is not None:
        rejected.append(reason)
    return None


def dollars(value: object, rejected: list[str] | None = None) -> float | None:
    """An amount of US dollars from 0 to `COST_LIMIT`, or None where nothing is said; what is no such amount adds its
    reason to `rejected`."""
    if value is None or value == "":
        return None
    number = _number(value)
    if number is None:
        reason = "malformed"
    elif number < 0:
        reason = "negative"
    elif number > COST_LIMIT:
        reason = "too_large"
    else:
        return float(number)
    if rejected is not None:
        rejected.append(reason)
    return None


def cost(value: object, rejected: list[str] | None = None) -> int | None:
    """Nano-dollars of an amount that an instrumentation reports. Zero is no answer: OpenLIT and Copilot write it for
    models whose price they do not know."""
    said = dollars(value, rejected)
    return round(said * NANO) or None if said is not None else None


def _text(value: Any) -> str | None:
    """A string, or a number that stands for one; None for anything else."""
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value) if -(2**64) < value < 2**64 else None
    if isinstance(value, Enum):  # a member of an enumeration of text: what it holds is what the wire has
        value = value.value
    return str.__str__(value) if isinstance(value, str) else None


def _number(value: Any) -> int | float | None:
    """A finite number, also as text; None for anything else."""
    kind = type(value)
    if kind is int:
        number: int = value
        return number
    if kind is float:
        return float(value) if isfinite(value) else None
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _DIGITS.fullmatch(text):
        return int(text) if len(text) <= 20 else (-1 if text[0] == "-" else COUNT_LIMIT + 1)
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    found = float(text)
    return found if isfinite(found) else None
