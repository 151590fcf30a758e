"""What happens to a stored run when somebody writes, ends, orphans or closes it. Pure: each returns the run to keep.

A result that *is* the run passed in means that nothing changed. The rules are those of the design: snapshots are
absolute and ordered by revision (3), progress never decides (4), and what the settled totals once held they keep (6).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from runmeter.sink import TERMINAL, UNINSTRUMENTED
from runmeter.usage import ZERO, Usage
from runmeter_exporter.totals.bounds import CELL_LIMIT, CELLS_CUT, TAG_LIMIT, bound
from runmeter_exporter.totals.run import Aside, Cell, CellKey, RunSnapshot, SourceState, StoredRun, caller_kind, is_otlp

OTHER = "other"
NO_CALLS = "no_calls_seen"
REWOUND = "rewound"
UNSEEN = (NO_CALLS, UNINSTRUMENTED)
"""Reasons for setting aside that stand for usage which nobody saw."""
OTHER_CELLS = 16
"""Cells named `other` of one source, before days are folded too."""


def merge(stored: StoredRun | None, snapshot: RunSnapshot) -> StoredRun:
    """The stored run with one snapshot put in; `stored` itself when the snapshot has nothing newer.

    Raises TypeError, ValueError or AttributeError for a snapshot that is none.
    """
    snapshot, cut = bound(snapshot)
    source = snapshot.source
    if stored is None:
        run = StoredRun(snapshot.run_id, started_at=snapshot.started_at, listed_at=snapshot.started_at)
        if snapshot.status == "pending" and snapshot.owns:
            run.status = "pending"
    else:
        known = stored.sources.get(source)
        if known is not None and (snapshot.revision <= known.revision or (known.final and not snapshot.final)):
            return stored
        run = stored.copy()
    arrives = source not in run.sources
    run.version += 1
    run.overflow |= cut
    run.sources = {**run.sources, source: SourceState(snapshot.revision, snapshot.final)}
    _own(run, snapshot)
    _fill(run, snapshot)
    if source.startswith("otlp:") and source[5:] in run.sources:
        _set_aside_recorded(run, snapshot)
    else:
        if arrives and not is_otlp(source) and f"otlp:{source}" in run.sources:
            _take_over(run, source)
        if snapshot.usage_by is not None:
            _replace(run, source, snapshot.usage_by)
        if snapshot.set_aside is not None:
            _replace_aside(run, source, snapshot.set_aside)
    if snapshot.final and source == run.owner and snapshot.status in TERMINAL:
        _owner_ends(run, snapshot)
    _settle(run)
    return run


def end(run: StoredRun, status: str, stop_reason: str | None, at: int) -> StoredRun:
    """A supervisor ends an active run; later usage is still added, the status stands."""
    if run.ended:
        return run
    run = run.copy()
    run.version += 1
    _end(run, "supervisor", status, stop_reason, max(at, run.updated_at))
    _settle(run)
    return run


def orphan(run: StoredRun, source: str) -> StoredRun:
    """The run's writer fell silent: it ends as far as known, a lower bound."""
    if run.ended or (run.owner or source) != source or source not in run.sources:
        return run
    run = run.copy()
    run.version += 1
    run.orphanings += 1
    _end(run, "orphan", "interrupted", "orphaned", run.updated_at)
    run.usage_state = "lower_bound"
    _settle(run)
    return run


def rewound(run: StoredRun, sources: Collection[str]) -> StoredRun:
    """The database lost what it had confirmed. Of an open run, spans may be gone that nobody sends again; and what one
    of `sources`, whose process is here, began may have ended by now: if it has not, its next snapshot says so."""
    if run.closed:
        return run
    if run.owner is not None and run.owner in sources:
        return orphan(run, run.owner)
    run = run.copy()
    run.version += 1
    run.set_aside = {**run.set_aside, (REWOUND, REWOUND): Aside(1, 0)}
    return run


def close(run: StoredRun) -> StoredRun:
    """Door 2's grace is over. A run that never ended was idle; one that an owner at door 1 works on is left alone."""
    if run.closed or (not run.ended and run.owner is not None and not is_otlp(run.owner)):
        return run
    run = run.copy()
    run.version += 1
    if not run.ended:
        _end(run, "idle", "interrupted", "idle", run.updated_at)
    run.usage_state = _known(run)
    _settle(run)
    return run


def _fill(run: StoredRun, snapshot: RunSnapshot) -> None:
    """What the run was for: its owner's latest word, whoever wrote first, and of the others what nobody has said yet;
    never after the settled totals hold the run under it."""
    if run.counted_status is None:
        decides = snapshot.source == run.owner
        for name in ("thread_id", "service", "agent", "user_id"):
            said = getattr(snapshot, name)
            if said is not None and (decides or getattr(run, name) is None):
                setattr(run, name, said)
        if snapshot.tags and snapshot.tags != run.tags:
            first, then = (snapshot.tags, run.tags) if decides else (run.tags, snapshot.tags)
            more = [(key, value) for key, value in then.items() if key not in first]
            run.tags = {**first, **dict(more[: TAG_LIMIT - len(first)])}
    if run.trace_id is None:
        run.trace_id, run.root_span_id = snapshot.trace_id, snapshot.root_span_id
    # A child may have come before the owner, and clocks jump: no negative durations.
    if snapshot.started_at < run.started_at:
        run.started_at = snapshot.started_at
    latest = max(snapshot.updated_at, snapshot.started_at, snapshot.ended_at or 0)
    if latest > run.updated_at:
        run.updated_at = latest


def _own(run: StoredRun, snapshot: RunSnapshot) -> None:
    """Who the owner is, and the two things its progress may say: pending became running; an orphan is back."""
    source = snapshot.source
    if snapshot.owns and source != run.owner:
        vanished = run.ended_by == "orphan"
        stronger = run.owner is not None and is_otlp(run.owner) and not is_otlp(source) and not run.ended
        if run.owner is None or stronger or vanished:
            run.owner = source
    if run.ended_by == "orphan" and (source == run.owner or run.owner is None):
        run.ended_by = run.ended_at = run.stop_reason = None
        run.usage_state = "active"
        run.status = "pending" if snapshot.status == "pending" else "running"
    elif run.status == "pending" and snapshot.status == "running" and source == run.owner:
        run.status = "running"


def _owner_ends(run: StoredRun, snapshot: RunSnapshot) -> None:
    ended_at = snapshot.ended_at if snapshot.ended_at is not None else snapshot.updated_at
    if not run.ended:
        _end(run, "owner", snapshot.status, snapshot.stop_reason, ended_at)
    elif run.ended_by == "idle":
        run.ended_by, run.status, run.stop_reason = "owner", snapshot.status, snapshot.stop_reason
        run.ended_at = max(ended_at, run.started_at)


def _end(run: StoredRun, by: str, status: str, stop_reason: str | None, at: int) -> None:
    run.ended_by, run.status, run.stop_reason = by, status, stop_reason
    run.ended_at = max(at, run.started_at)
    run.updated_at = max(run.updated_at, run.ended_at)
    run.usage_state = "closing" if any(map(is_otlp, run.sources)) else _known(run)


def _known(run: StoredRun) -> str:
    """How a closed run's usage is known: as a lower bound where there was reason to expect some and none was seen.

    Calls that the writer knows were made and nobody reported (it sets them aside as such). Or a trace that is a run,
    though it holds no call: then an agent's span made it one, and an agent that succeeds without a single call is seen
    by an instrumentation that makes no spans of calls. That is set aside as `no_calls_seen`. Or a database that lost
    what it had confirmed (`rewound`).
    """
    if (REWOUND, REWOUND) in run.set_aside:
        return "lower_bound"
    if any(any(cell.usage) for cell in run.cells.values()):
        return "settled"
    if any(aside.spans and reason in UNSEEN for (_, reason), aside in run.set_aside.items()):
        return "lower_bound"
    if run.run_id == run.trace_id and run.status == "success" and run.owner is not None and not run.set_aside:
        run.set_aside = {(run.owner, NO_CALLS): Aside(1, 0)}
        return "lower_bound"
    return "settled"


def _settle(run: StoredRun) -> None:
    """Everything the settled totals may hold by now, they hold: a closed run's usage, an ended run's door 1 usage."""
    state = run.usage_state
    # What an orphan, a supervisor or an owner settled before stays settled; an active run adds nothing to it.
    if state == "active":
        return
    whole = state != "closing"
    changed: dict[tuple[str, CellKey], Cell] = {}
    for place, cell in run.cells.items():
        if cell.usage is not cell.settled and (whole or not is_otlp(place[0])):
            held = cell.usage if cell.settled is ZERO else cell.usage.at_least(cell.settled)
            if held != cell.settled:
                changed[place] = Cell(cell.usage, held)
    if changed:
        run.cells = {**run.cells, **changed}
    if run.set_aside:
        run.set_aside = {
            place: Aside(aside.spans, max(aside.spans, aside.settled)) if whole or not is_otlp(place[0]) else aside
            for place, aside in run.set_aside.items()
        }
    if whole or run.counted_status is not None or not all(map(is_otlp, run.sources)):
        run.first_status = run.first_status or run.status
        run.counted_status = run.status


def _replace(run: StoredRun, source: str, usage_by: Mapping[CellKey, Usage]) -> None:
    """The source's cells are these now; what is settled of a cell that it no longer names stays held."""
    # The usual case first: every cell is known, or there is room, and none goes.
    mine = [place for place in run.cells if place[0] == source]
    if len(run.cells) + len(usage_by) > CELL_LIMIT:
        usage_by = _fold(run, source, usage_by)
    cells = dict(run.cells)
    for place in mine:
        if place[1] not in usage_by:
            settled = cells[place].settled
            # An emptied cell keeps its place once something is settled: usage folded into `other` must stay there.
            if run.counted_status is None and not any(settled):
                del cells[place]
            else:
                cells[place] = Cell(ZERO, settled)
    for key, usage in usage_by.items():
        place = (source, key)
        known = cells.get(place)
        if known is None:
            cells[place] = Cell(usage, ZERO)
        elif known.usage != usage:
            cells[place] = Cell(usage, known.settled)
    run.cells = cells


def _fold(run: StoredRun, source: str, usage_by: Mapping[CellKey, Usage]) -> dict[CellKey, Usage]:
    """At most 64 cells a run keep their names; the rest is added up by day and kind of caller, then by kind alone."""
    keeps = run.counted_status is not None
    taken = {place for place in run.cells if place[1].model != OTHER and (keeps or place[0] != source)}
    others = {place[1] for place in run.cells if place[1].model == OTHER and place[0] == source} if keeps else set()
    folded: dict[CellKey, Usage] = {}
    # Known cells keep their place, new ones come in a fixed order: the same snapshot always folds the same way.
    order = sorted(usage_by.items(), key=lambda item: ((source, item[0]) not in run.cells, item[0]))
    for key, usage in order:
        if (source, key) not in taken and key.model != OTHER:
            if len(taken) < CELL_LIMIT:
                taken.add((source, key))
            else:
                run.overflow |= CELLS_CUT
                key = _other(key, others)
                others.add(key)
        folded[key] = folded.get(key, ZERO) + usage
    return folded


def _other(key: CellKey, others: set[CellKey]) -> CellKey:
    kind = caller_kind(key.caller)
    caller = kind if kind == "lead_agent" else f"{kind}:{OTHER}"
    wanted = CellKey(key.day, OTHER, OTHER, caller)
    if wanted in others or len(others) < OTHER_CELLS:
        return wanted
    return max((other for other in others if other.caller == caller), default=wanted)


def _replace_aside(run: StoredRun, source: str, counts: Mapping[str, int]) -> None:
    aside = {
        place: Aside(0, held.settled) if place[0] == source else held
        for place, held in run.set_aside.items()
        if place[0] != source or held.settled
    }
    for reason, count in counts.items():
        place = (source, reason)
        aside[place] = Aside(count, aside[place].settled if place in aside else 0)
    run.set_aside = aside


def _take_over(run: StoredRun, source: str) -> None:
    """A door 1 source arrives whose spans door 2 counted so far: its word replaces theirs, what is settled is held."""
    shadow = f"otlp:{source}"
    cells, calls = dict(run.cells), 0
    for place, cell in run.cells.items():
        if place[0] == shadow:
            del cells[place]
            calls += cell.usage.calls + cell.usage.failures
            if any(cell.settled):
                cells[(source, place[1])] = Cell(ZERO, cell.settled)
    run.cells = cells
    held = run.set_aside.get((shadow, "recorded"), Aside(0, 0))
    if calls:
        run.set_aside = {**run.set_aside, (shadow, "recorded"): Aside(held.spans + calls, held.settled)}


def _set_aside_recorded(run: StoredRun, snapshot: RunSnapshot) -> None:
    """Door 2 repeats what the source itself has written to this run: seen, not counted."""
    counts = dict(snapshot.set_aside or {})
    if snapshot.usage_by is not None:
        calls = sum(usage.calls + usage.failures for usage in snapshot.usage_by.values())
        before = run.set_aside.get((snapshot.source, "recorded"), Aside(0, 0)).spans
        counts["recorded"] = max(before, calls)
    if counts:
        aside = dict(run.set_aside)
        for reason, count in counts.items():
            held = aside.get((snapshot.source, reason), Aside(0, 0))
            aside[(snapshot.source, reason)] = Aside(max(count, held.spans), held.settled)
        run.set_aside = aside
