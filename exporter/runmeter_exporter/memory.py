"""How much of its memory a sidecar may fill with what it has seen, and what each part gets of it."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT = 512 * 10**6
"""Bytes."""
LEAST = 300 * 10**6
"""Bytes in which the largest run and the largest trace that are remembered at all have room: with less, they would be
read again for every request."""


class Memory(NamedTuple):
    """Bytes, at most."""

    traces: int
    """The places of spans in remembered traces."""
    folds: int
    """Remembered runs, with what their spans said."""
    queue: int
    """Spans that were read and wait to become durable."""


def divided(total: int) -> Memory:
    """What each part gets of so many bytes. ValueError for too few."""
    if total < LEAST:
        raise ValueError(f"{total} bytes of memory are less than {LEAST}, the least in which a large run has room")
    return Memory(total // 4, total // 2, total // 4)


BY_DEFAULT = divided(DEFAULT)
