"""How much a request would be once it is read: counted in its bytes, before anything is built of them.

A span without attributes is two bytes of protobuf and three of JSON, and half a kilobyte as an object; compressed,
thousands of them are one byte. Prompts are long and few, so what counts is the number of things, not of bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

THINGS: Final = 2_000_000
"""Spans, scopes, resources, attributes and values in one request of protobuf: more than a batch of a Collector (8,192
spans) that are long histories, some 250 each. At most 400 MB while they are read."""
JSON_THINGS: Final = 1_000_000
"""The same in JSON, which costs twice as much. Whoever writes it sends a few hundred spans at once."""
SMALL: Final = 256 * 2**10
"""Bytes of a body in which there cannot be enough to matter."""

_Table = Mapping[int, "_Table"]
"""Tag of a field that holds things → the same for what is inside; other fields are jumped over."""
_ANY: dict[int, _Table] = {}
_PAIR: dict[int, _Table] = {0x12: _ANY}
_ANY |= {0x2A: {0x0A: _ANY}, 0x32: {0x0A: _PAIR}}
_SPAN: _Table = {0x4A: _PAIR}
_REQUEST: _Table = {0x0A: {0x0A: {0x0A: _PAIR}, 0x12: {0x0A: {}, 0x12: _SPAN}}}
_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
"""Also one that is never closed: it would be tried again from every quote inside it."""
_FIELDS_A_THING: Final = 4
"""Fields that are read over, for each thing that may be there: a span has some ten of its own and many attributes."""


def things_in_protobuf(data: bytes, limit: int = THINGS) -> int:
    """How many things a serialized request holds; counting ends beyond `limit`, which a request with four times as many
    fields, read or not, is as well. What is not protobuf counts as far as it could be read: the parser refuses it."""
    found, fields = 0, _FIELDS_A_THING * limit
    table, at, end = _REQUEST, 0, len(data)
    outer: list[tuple[_Table, int, int]] = []
    try:
        while True:
            if at >= end:
                if not outer:
                    return found
                table, at, end = outer.pop()
                continue
            fields -= 1
            if fields < 0:
                return limit + 1
            tag = data[at]
            at += 1
            if tag >= 0x80:
                tag, at = _varint(data, at - 1)
            kind = tag & 7
            if kind == 2:
                size = data[at]
                at += 1
                if size >= 0x80:
                    size, at = _varint(data, at - 1)
                inside = table.get(tag)
                if inside is not None:
                    found += 1
                    if found > limit:
                        return found
                    if inside and size:
                        outer.append((table, at + size, end))
                        table, end = inside, at + size
                        continue
                at += size
            elif kind == 0:
                _, at = _varint(data, at)
            elif kind == 1:
                at += 8
            elif kind == 5:
                at += 4
            elif kind > 5:
                return found
            # What is left, 3 and 4, is a bare tag: the beginning and the end of a group.
    except IndexError:
        return found


def things_in_json(data: bytes, limit: int = JSON_THINGS) -> int:
    """The same of OTLP JSON, where every thing is an object."""
    # Prompts are full of braces: where it matters, what is quoted is left out.
    found = data.count(b"{")
    if found > limit:
        found = _STRINGS.sub(b"", data).count(b"{")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
