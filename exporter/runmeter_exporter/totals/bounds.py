"""What the store takes from outside: clean text of bounded length and counts of bounded size.

Everything here is idempotent and total over `str`: what was cleaned once passes unchanged, so the doors, the store and
the answers may all ask without agreeing who goes first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from runmeter.clean import ID_LIMIT, LABEL_LIMIT, MAX_TAGS, identifier, label, tag
from runmeter.sink import STATUSES
from runmeter.usage import COUNT_LIMIT, Usage

if TYPE_CHECKING:
    from runmeter_exporter.totals.run import CellKey, RunSnapshot

TAG_LIMIT = MAX_TAGS
CELL_LIMIT = 64
"""Cells of a run with names of their own; beyond, usage goes to cells named `other`."""

COST_LIMIT = 2**50
"""Nano-dollars in one cell: a million dollars."""
AHEAD = 300 * 10**9
"""Nanoseconds by which others' clocks may be ahead of ours. Beyond, what they say happened now: else it would be the
latest of all for years."""
TIME_LIMIT = 9_223_372_036 * 10**9
"""The last whole second that 64 bits of nanoseconds since the epoch can say, in the year 2262."""

OVERFLOWS = ("cells", "tags", "text")
"""What was cut in a run; the position is the bit in `StoredRun.overflow`."""
CELLS_CUT, TAGS_CUT, TEXT_CUT = 1, 2, 4


def clean_id(text: str) -> str:
    """An id as it is stored, see `clean.identifier`; empty where it is none."""
    return identifier(text) or ""


def clean_label(text: str) -> str:
    """A label as it is stored, see `clean.label`; empty where it is none."""
    return label(text) or ""


def bound(snapshot: RunSnapshot) -> tuple[RunSnapshot, int]:
    """The snapshot as it may be stored, and the bits of `OVERFLOWS` that say what was cut.

    Raises TypeError, ValueError or AttributeError where a field is not of its type at all: such a snapshot is refused.
    """
    bits = 0
    changes: dict[str, object] = {}
    if not snapshot.run_id or not snapshot.source:
        raise ValueError("a snapshot needs a run id and a source")
    if snapshot.status not in STATUSES:
        raise ValueError(f"status {snapshot.status!r} is none of {', '.join(STATUSES)}")
    if type(snapshot.revision) is not int or not 0 <= snapshot.revision < 2**62:
        raise ValueError(f"revision {snapshot.revision!r} is not a count")
    if not _plain(snapshot):
        bits |= _bound_texts(snapshot, changes)
        if None in (changes.get("run_id", ""), changes.get("source", "")):
            raise ValueError(f"run id {snapshot.run_id!r} and source {snapshot.source!r} have to be more than space")
    started, updated, ended = snapshot.started_at, snapshot.updated_at, snapshot.ended_at
    if not (
        type(started) is type(updated) is int
        and 0 <= started <= TIME_LIMIT
        and 0 <= updated <= TIME_LIMIT
        and (ended is None or (type(ended) is int and 0 <= ended <= TIME_LIMIT))
    ):
        for name in ("started_at", "updated_at", "ended_at"):
            moment = getattr(snapshot, name)
            if name != "ended_at" or moment is not None:
                changes[name] = max(0, min(int(moment), TIME_LIMIT))
    if snapshot.tags:
        tags = bound_tags(snapshot.tags)
        if tags != snapshot.tags:
            changes["tags"] = tags
            bits |= TAGS_CUT
    if snapshot.usage_by:
        cells: dict[CellKey, Usage] = {}
        as_given = True
        for key, given in snapshot.usage_by.items():
            kept, usage = _bound_key(key), _bound_usage(given)
            if kept is not key:
                bits |= TEXT_CUT
            if kept is not key or usage is not given:
                as_given = False
            cells[kept] = cells[kept] + usage if kept in cells else usage
        if not as_given:
            changes["usage_by"] = cells
    if snapshot.set_aside:
        changes["set_aside"] = {
            clean_label(reason): max(0, min(int(count), COUNT_LIMIT)) for reason, count in snapshot.set_aside.items()
        }
    return (replace(snapshot, **changes) if changes else snapshot), bits  # type: ignore[arg-type]


def _plain(snapshot: RunSnapshot) -> bool:
    """Nearly every snapshot's texts are short and plain ASCII, seen at a glance. TypeError where one is no text."""
    service, agent, reason = snapshot.service, snapshot.agent, snapshot.stop_reason
    texts = (
        snapshot.run_id, snapshot.source, snapshot.thread_id, snapshot.user_id, service, agent, reason,
        snapshot.trace_id, snapshot.root_span_id,
    )  # fmt: skip
    joined = "".join([text for text in texts if text is not None])
    if len(joined) > ID_LIMIT or not joined.isascii() or "\0" in joined or "" in texts:
        return False
    if snapshot.trace_id is not None and not f"{snapshot.trace_id}{snapshot.root_span_id}".isalnum():
        return False
    return len(joined) <= LABEL_LIMIT or max(len(service or ""), len(agent or ""), len(reason or "")) <= LABEL_LIMIT


def _bound_texts(snapshot: RunSnapshot, changes: dict[str, object]) -> int:
    bits = 0
    for names, cleaned in (
        (("run_id", "source", "thread_id", "user_id"), clean_id),
        (("service", "agent", "stop_reason"), clean_label),
    ):
        for name in names:
            text = getattr(snapshot, name)
            if text is not None and (not text or cleaned(text) != text):
                changes[name] = cleaned(text) or None
                bits |= TEXT_CUT if text else 0
    for name in ("trace_id", "root_span_id"):
        text = getattr(snapshot, name)
        if text is not None and not (len(text) <= 32 and text.isascii() and text.isalnum()):
            changes[name] = None
    return bits


def bound_tags(tags: object) -> dict[str, str]:
    """Clean tags, at most 8 of 64 characters each way."""
    pairs = sorted(dict(tags).items())[:TAG_LIMIT]  # type: ignore[call-overload]
    return {tag(key) or "": tag(value) or "" for key, value in pairs}


def _bound_key(key: CellKey) -> CellKey:
    day, provider, model, caller = key
    if len(day) != 10 or day[4] != "-" or day[7] != "-" or not (day[:4] + day[5:7] + day[8:]).isdecimal():
        raise ValueError(f"{day!r} is not a day written as YYYY-MM-DD")
    joined = day + provider + model + caller
    if len(joined) <= LABEL_LIMIT and joined.isascii() and "\0" not in joined and provider and model and caller:
        return key
    cleaned = type(key)(
        day,
        clean_label(provider) or "unknown",
        clean_label(model) or "unknown",
        clean_label(caller) or "lead_agent",
    )
    return key if cleaned == key else cleaned


def _bound_usage(usage: Usage) -> Usage:
    if type(sum(usage)) is not int:
        raise TypeError("counts are whole numbers")
    if min(usage) >= 0 and max(usage) <= COUNT_LIMIT:
        return usage
    counts = [max(0, min(count, COUNT_LIMIT)) for count in usage]
    return Usage(*counts)._replace(cost_nanousd=max(0, min(usage.cost_nanousd, COST_LIMIT)))
