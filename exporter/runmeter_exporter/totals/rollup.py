"""What the settled totals hold of a run, and the rows that hold it.

A rollup row is (scope, dimension, key) → a count and a usage. What a change of a run adds to them is the *difference*
of what they should hold of it afterwards and before, so the rollups equal the sum over runs by construction; rule 6 is
kept one step earlier, where `merge` never lets a settled cell shrink.

Scopes: `""` everything, `t:<thread id>` a thread, and the same with `p:` in front for what pruned runs left behind.

    dimension    key                            count                    usage  scopes
    total                                       runs                     yes    both
    model        model                          runs that used it, or    yes    both
                                                none (`unknown`)
    status       status now                     runs                     yes    both
    line         provider, model, caller        -                        yes    both
    lower_bound                                 runs                     -      both
    series       provider, model, kind, service -                        yes    everything
    observed     provider, model, kind, service -                        yes    everything (a high-water mark)
    closed       status at first closing        runs                     -      everything
    revised      from, to                       runs                     -      everything
    orphaned                                    times                    -      everything
    unthreaded                                  runs                     -      everything
    set_aside    reason                         spans                    -      everything
    overflowed   what was cut                   runs                     -      everything
    threads                                     threads ever seen        -      everything
    count        family, label                  what sources lost        -      everything
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from runmeter.usage import ZERO, Usage
from runmeter_exporter.totals.bounds import OVERFLOWS
from runmeter_exporter.totals.run import StoredRun, caller_kind

EVERYTHING = ""
PRUNED = "p:"
UNKNOWN = "unknown"
"""The model of runs that used none, and of calls whose model nobody named; always granted."""
BOTH = frozenset({"total", "model", "status", "line", "lower_bound"})
LABELS = ("provider", "model", "kind", "service", "caller")
"""Labels whose values are granted first come, for good, up to a cap."""

Part = tuple[str, tuple[str, ...]]
"""(dimension, key)"""
Place = tuple[str, str, tuple[str, ...]]
"""(scope, dimension, key)"""


class Held(NamedTuple):
    """What one rollup row holds."""

    number: int = 0
    """Of runs, spans or whatever the dimension counts."""
    usage: Usage = ZERO
    updated_at: int = 0


class DailyKey(NamedTuple):
    """What a row of daily usage is about; `""` where nothing is known."""

    day: str
    service: str
    user_id: str
    agent: str
    tags: str
    """JSON, keys in order."""
    provider: str
    model: str
    caller: str
    """The kind only."""


def thread_scope(thread_id: str) -> str:
    """The scope of a thread."""
    return f"t:{thread_id}"


@lru_cache(maxsize=8192)
def pack(parts: tuple[str, ...]) -> str:
    """A key of several parts as one text."""
    return json.dumps(parts, separators=(",", ":"), ensure_ascii=False)


@lru_cache(maxsize=8192)
def unpack(text: str) -> tuple[str, ...]:
    """The parts of a packed key."""
    return tuple(json.loads(text))


@lru_cache(maxsize=8192)
def short(text: str) -> str:
    """`text`, or a hash where it is too long for the index of a database (PostgreSQL takes 2,704 bytes a row)."""
    if len(text) <= 120 and text.isascii():
        return text
    return "#" + blake2b(text.encode(), digest_size=16).hexdigest()


def packed_tags(tags: Mapping[str, str]) -> str:
    """Tags as one text, equal for equal tags."""
    return json.dumps(dict(sorted(tags.items())), separators=(",", ":"), ensure_ascii=False) if tags else ""


def series_key(provider: str, model: str, caller: str, service: str | None) -> tuple[str, str, str, str]:
    """The scrape series of a cell, before labels are granted."""
    return (provider, model, caller_kind(caller), service or "")


def contribution(run: StoredRun) -> tuple[dict[Part, tuple[int, Usage]], dict[DailyKey, Usage]]:
    """All that the settled totals hold of a run: (dimension, key) → (count, usage), and daily usage."""
    parts: dict[Part, tuple[int, Usage]] = {}
    daily: dict[DailyKey, Usage] = {}
    if run.overflow:
        for bit, name in enumerate(OVERFLOWS):
            if run.overflow >> bit & 1:
                parts["overflowed", (name,)] = (1, ZERO)
    if run.orphanings:
        parts["orphaned", ()] = (run.orphanings, ZERO)
    status = run.counted_status
    if status is None:
        return parts, daily
    total = ZERO
    tags = packed_tags(run.tags)
    for (_, key), cell in run.cells.items():
        held = cell.settled
        if held is ZERO or not any(held):
            continue
        total = total + held if total is not ZERO else held
        _add(parts, ("line", (key.provider, key.model, key.caller)), 0, held)
        model = ("model", (key.model,))
        _add(parts, model, 0 if model in parts else 1, held)
        _add(parts, ("series", series_key(key.provider, key.model, key.caller, run.service)), 0, held)
        place = DailyKey(
            key.day, run.service or "", run.user_id or "", run.agent or "", tags,
            key.provider, key.model, caller_kind(key.caller),
        )  # fmt: skip
        daily[place] = daily[place] + held if place in daily else held
    if total is ZERO:
        parts["model", (UNKNOWN,)] = (1, ZERO)
    parts["total", ()] = (1, total)
    parts["status", (status,)] = (1, total)
    first = run.first_status or status
    parts["closed", (first,)] = (1, ZERO)
    if first != status:
        parts["revised", (first, status)] = (1, ZERO)
    if run.usage_state == "lower_bound":
        parts["lower_bound", ()] = (1, ZERO)
    if run.thread_id is None:
        parts["unthreaded", ()] = (1, ZERO)
    for (_, reason), aside in run.set_aside.items():
        if aside.settled:
            _add(parts, ("set_aside", (reason,)), aside.settled, ZERO)
    return parts, daily


def _add(parts: dict[Part, tuple[int, Usage]], part: Part, count: int, usage: Usage) -> None:
    known = parts.get(part)
    parts[part] = (count, usage) if known is None else (known[0] + count, known[1] + usage)


class Grants:
    """Which label values may stand for themselves; the rest is `other`."""

    def __init__(self, granted: Iterable[tuple[str, str]] = (), limit: int = 100) -> None:
        self.limit = limit
        self._granted: dict[str, set[str]] = {label: set() for label in LABELS}
        self.add(granted)

    def add(self, granted: Iterable[tuple[str, str]]) -> None:
        """Take note of what was granted; grants are for good."""
        for label, value in granted:
            self._granted[label].add(value)

    def open(self, wanted: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the wanted (label, value) that are not granted and might be."""
        granted = self._granted
        return [
            (label, value)
            for label, value in wanted
            if value not in granted[label] and len(granted[label]) < self.limit
        ]

    def choose(self, wanted: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Grant what fits, in the order given; what was granted."""
        chosen = []
        for label, value in wanted:
            values = self._granted[label]
            if value not in values and len(values) < self.limit:
                values.add(value)
                chosen.append((label, value))
        return chosen

    def value(self, label: str, value: str) -> str:
        """The value itself, or `other`."""
        return value if value in self._granted[label] else "other"

    def map(self, dimension: str, key: tuple[str, ...]) -> tuple[str, ...]:
        """The key of a row in scope everything."""
        if dimension in ("series", "observed"):
            provider, model, kind, service = key
            return (
                self.value("provider", provider),
                self.value("model", model),
                self.value("kind", kind),
                self.value("service", service) if service else "",
            )
        if dimension == "line":
            provider, model, caller = key
            return (self.value("provider", provider), self.value("model", model), self._caller(caller))
        if dimension == "model":
            return key if key[0] == UNKNOWN else (self.value("model", key[0]),)
        return key

    def _caller(self, caller: str) -> str:
        if caller in self._granted["caller"]:
            return caller
        kind = self.value("kind", caller_kind(caller))
        return f"{kind}:other" if kind != "other" else kind


def wanted_labels(run: StoredRun, before: StoredRun | None) -> Iterable[tuple[str, str]]:
    """The label values of cells that are new in a run."""
    known = before.cells if before is not None and before.service == run.service else {}
    if len(known) == len(run.cells) and known.keys() == run.cells.keys():
        return
    for place in run.cells:
        if place not in known:
            _, provider, model, caller = place[1]
            yield "provider", provider
            yield "model", model
            yield "caller", caller
            yield "kind", caller_kind(caller)
            if run.service:
                yield "service", run.service


class Totals:
    """What a batch of changed runs adds to rollups and daily usage, with scopes."""

    def __init__(self, grants: Grants) -> None:
        self.grants = grants
        self.rows: dict[Place, list[object]] = {}
        self.daily: dict[DailyKey, Usage] = {}

    def change(self, before: StoredRun | None, after: StoredRun) -> None:
        """Add the difference that this change of a run makes."""
        if after.counted_status is None and not after.overflow and not after.orphanings:
            return
        parts, daily = contribution(after)
        if before is not None and (before.counted_status is not None or before.overflow or before.orphanings):
            was, was_daily = contribution(before)
            for part, (count, usage) in was.items():
                now = parts.get(part, (0, ZERO))
                parts[part] = (now[0] - count, _minus(now[1], usage))
            for key, usage in was_daily.items():
                daily[key] = _minus(daily.get(key, ZERO), usage)
        self._put(parts, after.thread_id, after.updated_at, "")
        for key, usage in daily.items():
            if any(usage):
                self.daily[key] = self.daily[key] + usage if key in self.daily else usage

    def prune(self, run: StoredRun) -> None:
        """Keep what the totals hold of a run that goes away where `verify` finds it."""
        self._put(contribution(run)[0], run.thread_id, run.updated_at, PRUNED)

    def add(self, dimension: str, key: tuple[str, ...], count: int) -> None:
        """Add to a count of scope everything."""
        self._add((EVERYTHING, dimension, key), count, ZERO, 0)

    def _put(self, parts: Mapping[Part, tuple[int, Usage]], thread_id: str | None, at: int, prefix: str) -> None:
        scope = None if thread_id is None else prefix + thread_scope(thread_id)
        for (dimension, key), (count, usage) in parts.items():
            if not count and not any(usage):
                continue
            if scope is not None and dimension in BOTH:
                self._add((scope, dimension, key), count, usage, at)
            self._add((prefix, dimension, self.grants.map(dimension, key)), count, usage, at)

    def _add(self, place: Place, count: int, usage: Usage, at: int) -> None:
        row = self.rows.get(place)
        if row is None:
            self.rows[place] = [count, usage, at]
        else:
            row[0] += count  # type: ignore[operator]
            row[1] += usage  # type: ignore[operator]
            if at > row[2]:  # type: ignore[operator]
                row[2] = at


def _minus(left: Usage, right: Usage) -> Usage:
    """The plain difference, fields may be negative: an increment, not a usage."""
    return Usage(*[mine - theirs for mine, theirs in zip(left, right, strict=True)])
