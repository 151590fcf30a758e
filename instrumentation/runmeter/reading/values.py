"""Values of attributes that mean something to us only, a provider and our own tags; `clean.py` cleans them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runmeter import clean
from runmeter.reading import semconv
from runmeter.reading.libraries import FRAMEWORKS, PROVIDERS


def as_provider(value: Any) -> str | None:
    """A provider by the name that the conventions have for it; None where a framework wrote its own."""
    said = clean.label(value)
    if said is None:
        return None
    said = said.lower()
    return None if said in FRAMEWORKS else PROVIDERS.get(said, said)


def as_tags(attributes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """The tags of a run, as its own span carries them."""
    prefix = semconv.TAG_PREFIX
    tags = []
    for key in attributes:
        if type(key) is str and key.startswith(prefix):
            name, value = clean.tag(key[len(prefix) :]), clean.tag(attributes[key])
            if name and value:
                tags.append((name, value))
    return tuple(sorted(tags)[: clean.MAX_TAGS])


def as_seconds(value: object) -> float | None:
    """Seconds, fewer than a million; None where it is no such number."""
    return float(value) if type(value) in (float, int) and 0 <= value < 1e6 else None  # type: ignore[operator,arg-type]
