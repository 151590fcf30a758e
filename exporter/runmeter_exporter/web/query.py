"""What a request asks: a malformed or repeated parameter is an error that names it; one that the route does not know is
ignored, as clients of the API that ours follows expect."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from werkzeug.routing import BaseConverter

from runmeter_exporter.http.problems import Problem
from runmeter_exporter.totals import questions
from runmeter_exporter.totals.questions import boolean, no_such_group

ID_LIMIT = 4096
"""Characters of any id or name that may be asked for: what is stored of a longer one than 256 is found by the whole."""
CURSOR_LIMIT = 1024
DEFAULT_PAGE = 50
LARGEST_PAGE = questions.LIMIT
TAG_LIMIT = 64
TAG_PREFIX = "tag."
LISTS = frozenset({"status"})
"""Parameters that may be given several times."""

T = TypeVar("T")


def text(value: str, what: str, limit: int = ID_LIMIT) -> str:
    """`value`, or a 400 problem when it is too long to be asked for."""
    if len(value) > limit:
        raise Problem(400, f"{what} has {len(value)} characters; it may have {limit}.")
    return value


class IdConverter(BaseConverter):
    """One segment of the raw path, decoded only after it was split off: an id may contain a slash."""

    regex = "[^/]+"
    part_isolating = True

    def to_python(self, value: str) -> str:
        """The id; raises a 400 problem when it is not UTF-8 or too long."""
        try:
            decoded = unquote_to_bytes(value).decode("utf-8")
        except UnicodeDecodeError:
            raise Problem(400, "The id in the path is not percent-encoded UTF-8.") from None
        return text(decoded, "The id in the path")


class Query:
    """The parameters of one request; each getter raises a 400 problem for a value that it cannot take."""

    def __init__(self, raw: bytes, known: Collection[str]) -> None:
        try:
            pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=32)
        except ValueError:
            raise Problem(400, "The query is not percent-encoded UTF-8, or has more than 32 parameters.") from None
        self._values: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        self._tags: dict[str, str] = {}
        for name, value in pairs:
            if name in LISTS and name in known:
                self._lists.setdefault(name, []).extend(value.split(","))
            elif name.startswith(TAG_PREFIX) and TAG_PREFIX in known:
                key = name.removeprefix(TAG_PREFIX)
                if not key or key in self._tags:
                    raise Problem(400, f"{name[:64]} is given twice." if key else f"{name} names no tag.")
                self._tags[text(key, "A tag's name", TAG_LIMIT)] = text(value, name[:64], TAG_LIMIT)
            elif name in known:
                if name in self._values:
                    raise Problem(400, f"{name} is given twice.")
                self._values[name] = value

    def flag(self, name: str) -> bool:
        """true or false in any usual spelling; false when absent."""
        value = self._values.get(name, "false")
        said = boolean(value)
        if said is None:
            raise Problem(400, f'{name} is "{value[:64]}"; it is true or false.')
        return said

    def limit(self) -> int:
        """Page size, 1 to 500; 50 when absent."""
        value = self._values.get("limit")
        if value is None:
            return DEFAULT_PAGE
        if not (value.isascii() and value.isdigit() and len(value) <= 9 and 1 <= int(value) <= LARGEST_PAGE):
            raise Problem(400, f'limit is "{value[:64]}"; it is a number from 1 to {LARGEST_PAGE}.')
        return int(value)

    def text(self, name: str, limit: int = ID_LIMIT) -> str | None:
        """An id or name as it stands, None when absent."""
        value = self._values.get(name)
        return None if value is None else text(value, name, limit)

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str | None:
        """One of `choices`."""
        value = self._values.get(name, default)
        if value is not None and value not in choices:
            raise Problem(400, f'{name} is "{value[:64]}"; it is one of {", ".join(choices)}.')
        return value

    def choices(self, name: str, choices: Sequence[str]) -> tuple[str, ...] | None:
        """Some of `choices`, repeated or separated by commas; None when absent."""
        found = self._lists.get(name)
        if found is None:
            return None
        for value in found:
            if value not in choices:
                raise Problem(400, f'{name} is "{value[:64]}"; it is of {", ".join(choices)}.')
        return tuple(dict.fromkeys(found))

    @property
    def tags(self) -> Mapping[str, str]:
        """What `tag.<key>=` ask for."""
        return self._tags

    def day(self, name: str) -> str | None:
        """A UTC day, YYYY-MM-DD."""
        value = self._values.get(name)
        if value is None:
            return None
        try:
            day = date.fromisoformat(value)
        except ValueError:
            day = None
        if day is None or day.isoformat() != value:
            raise Problem(400, f'{name} is "{value[:64]}"; it is a day such as 2026-01-31.')
        return value

    def names(self, name: str, choices: Sequence[str], prefix: str, default: tuple[str, ...]) -> tuple[str, ...]:
        """A comma-separated list of different names, each one of `choices` or `prefix` and a key of the user's."""
        value = self._values.get(name)
        if value is None:
            return default
        found = tuple(value.split(","))
        for one in found:
            if one not in choices and not (one.startswith(prefix) and len(one) > len(prefix)):
                raise Problem(400, f'{name} has "{one[:64]}": {no_such_group(one[:64], choices)}.')
            text(one, name, len(prefix) + 64)
        if len(set(found)) < len(found):
            raise Problem(400, f"{name} names something twice.")
        if len(found) > 16:
            raise Problem(400, f"{name} has {len(found)} names; it takes at most 16.")
        return found


def body(raw: bytes, mimetype: str, kind: type[T]) -> T:
    """A JSON body as `kind` (a msgspec Struct); raises a 415 or 400 problem that says where it is wrong."""
    if mimetype != "application/json":
        raise Problem(415, f'The body is "{mimetype[:64]}"; send application/json.')
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"The body is not what is asked for: {error}.") from None
