"""What is remembered between requests, bounded in bytes: the least recently used goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from sys import getsizeof
from typing import Final, Generic, TypeVar

from runmeter.reading.read import Reading

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_READING: Final = 900
"""Bytes of a reading with its numbers and a few tags, without texts."""


def size_of(reading: Reading) -> int:
    """Bytes that a reading takes, at most; texts that it shares with others included."""
    size = _READING + sum([getsizeof(value) for value in reading if type(value) is str])
    for pair in reading.tags:
        size += getsizeof(pair) + getsizeof(pair[0]) + getsizeof(pair[1])
    return size


class Cache(Generic[K, V]):
    """Values whose sizes may change while they are used; `trim` after each use, whatever came of it."""

    def __init__(self, limit: int, size: Callable[[V], int]) -> None:
        """`limit`: bytes of all values; `size`: those of one, asked in no time."""
        self._limit = limit
        self._size = size
        self._values: OrderedDict[K, V] = OrderedDict()
        self._sizes: dict[K, int] = {}
        self._used: set[K] = set()
        self.bytes = 0
        """Of all values, as of the last `trim`."""

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __getitem__(self, key: K) -> V:
        return self._values[key]

    def get(self, key: K) -> V | None:
        """The value, if it is remembered."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
            self._used.add(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember a value."""
        self._values[key] = value
        self._values.move_to_end(key)
        self._used.add(key)

    def drop(self, key: K) -> None:
        """Forget one, if it is remembered."""
        self._values.pop(key, None)
        self._used.discard(key)
        self.bytes -= self._sizes.pop(key, 0)

    def trim(self) -> None:
        """Weigh what was used since, and forget the least recently used beyond the limit."""
        for key in self._used:
            size = self._size(self._values[key])
            self.bytes += size - self._sizes.get(key, 0)
            self._sizes[key] = size
        self._used.clear()
        while self.bytes > self._limit:
            key, _ = self._values.popitem(last=False)
            self.bytes -= self._sizes.pop(key)

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
        self._sizes.clear()
        self._used.clear()
        self.bytes = 0
