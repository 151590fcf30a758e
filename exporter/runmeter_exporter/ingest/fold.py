"""One run as door 2 folds it: readings in, priced cells and snapshots out. Pure but for the prices it asks for."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading
from runmeter.reading.scopes import Fates, tally
from runmeter.runs.shares import SHARES, share_id
from runmeter.sink import TERMINAL
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.ingest.cache import size_of
from runmeter_exporter.scopes import RECORDED
from runmeter_exporter.store.ledger_row import (
    Arrival,
    Key,
    Row,
    begins,
    default_run,
    implied_trace,
    pack_keys,
    reading_of,
)
from runmeter_exporter.totals.cells import Cells
from runmeter_exporter.totals.run import CellKey, RunSnapshot, StoredRun, is_otlp

SPAN_LIMIT = 32_768
"""Spans of a run that its fold remembers one by one; see `Settler`."""
DOOR = "otlp"
"""The source of what came through door 2; what a door 1 source X counts itself is `otlp:X`."""

_PRICE = struct.Struct(">8sqq")
_FOLD: Final = 5_500
"""Bytes of a fold in the cache, without what is in it …"""
_NODE, _GONE, _KEY, _KIND, _CELL, _FIXED, _STAMPED, _HEARD = 1_200, 120, 200, 1_500, 1_500, 280, 320, 400
"""… of a span beside its reading, of one that was forgotten, of a key, of a kind of call that was, and of the rest."""
_RUN_ROOT, _ROOT, _REMOTE_ROOT = 2, 1, 0


class End(NamedTuple):
    """The span that ended the run; the largest wins: the run's own, one without a parent, one with a remote parent."""

    rank: int
    at: int
    trace_id: int
    span_id: int
    status: str
    stop_reason: str | None


class RunFold:
    """The run's ledger rows, folded. Incremental, and whatever the order of what came before the run closed."""

    def __init__(self, run_id: str, price: Callable[[Call], Usage]) -> None:
        self.run_id = run_id
        self.settler = Settler(limit=SPAN_LIMIT)
        self.revisions: dict[str, int] = {}
        """What the store knew of door 2's sources when this was the fold: somebody else's spans raise them."""
        self.read: Collection[Key] = ()
        """Rows that were read while others may have written: they may be in what arrived after these revisions, too."""
        self._joined: list[Key] | None = []
        """Rows that joined since the fold was stored; None where others left."""
        self.order = 0
        """The place of the last reading that came after closing."""
        self.begun = False
        """There is something to show: a call, an agent, or a span that names the run."""
        self.explicit = False
        """Spans name the run by its id."""
        self.started_at = self.updated_at = 0
        self.end: End | None = None
        self._divides = implied_trace(run_id) is not None
        self._price = price
        self._fixed: dict[bytes, tuple[int, int]] = {}
        """What was priced before, and is not counted yet."""
        self._used: dict[bytes, tuple[int, int]] = {}
        """What was counted, at its price."""
        self._priced: list[bytes] = []
        self._cells: dict[tuple[str | None, str], Cells] = {}
        """By thread (None where the run is nobody's trace, and so has no shares) and source."""
        self._thread: str | None = None
        """Of a closed run: its thread. What was counted as the run's own stays that."""
        self.shared: dict[str, str] = {}
        """The shares that are stored."""
        self._heard: dict[str | None, int] = {}
        """When the last call of each thread ended."""
        self._stamped: dict[Call, list[str]] = {}
        self._recorders: set[str] = set()
        self._read = self._weighed = self._frozen = 0
        """Readings so far and their bytes; spans that the settler had forgotten when prices were last let go."""

    def size(self) -> int:
        """Bytes that it takes, at most."""
        nodes = len(self.settler)
        return (
            _FOLD
            + nodes * (_NODE + self._weighed // max(1, self._read))
            + _GONE * min(self.settler.frozen_spans, 4 * SPAN_LIMIT)
            + _KIND * self.settler.frozen_kinds
            + _CELL * sum(map(len, self._cells.values()))
            + _FIXED * (len(self._fixed) + len(self._used))
            + _KEY * len(self.read)
            + _STAMPED * len(self._stamped)
            + _HEARD * len(self._heard)
        )

    def fill(self, rows: Sequence[Row], *, closed: bool) -> None:
        """Fold the run's ledger rows, all of them or more of them; `closed`: the settled totals hold its usage."""
        for row in rows:
            self.fix(row.priced)
        for row in sorted(rows, key=lambda row: row.order):  # the set first, then the sequence
            if row.order:
                self.close()
            self.order = max(self.order, row.order)
            self._add(reading_of(row))
        if closed:
            self.close()
        if self.closed:
            self.settler.take_fates()  # whoever closed it has told them
        # Rows come in any order, so that a call may have seemed to be of a subagent's own conversation.
        self._cells = {key: cells for key, cells in self._cells.items() if key[0] is None or cells.used}
        self.shared = self.shares()
        self._let_go()

    @property
    def closed(self) -> bool:
        """Nothing counted is taken back any more."""
        return self.settler.closed

    def close(self) -> None:
        """From now on what belongs to something counted is late."""
        if not self.settler.closed:
            self._thread = self.thread_id
            self.settler.close()

    def fix(self, priced: bytes | None) -> None:
        """Take over what was priced before (`Row.priced`)."""
        for digest, cost, unpriced in _PRICE.iter_unpack(priced or b""):
            if digest not in self._used:
                self._fixed[digest] = cost, unpriced

    def add(self, reading: Reading, order: int = 0) -> bytes | None:
        """A reading joins the run, at place `order` after its closing; what that priced, for `Row.priced`."""
        self.order = max(self.order, order)
        if self._joined is not None:
            self._joined.append(reading.key)
        self._add(reading)
        self._let_go()
        priced, self._priced = b"".join(self._priced), []
        return priced or None

    def remove(self, reading: Reading) -> None:
        """A reading moved to the run that keeps its call. That the run was under way then is true all the same."""
        self.left()
        self._apply(self.settler.remove(*reading.key), source_of(reading))

    def left(self) -> None:
        """Rows are no longer in the run: who folded it before has to read it whole."""
        self._joined = None

    def _let_go(self) -> None:
        """What calls cost, and came with, whose spans were forgotten: they stay counted as they are."""
        if self.settler.frozen_spans - self._frozen <= SPAN_LIMIT // 8:
            return
        self._frozen = self.settler.frozen_spans
        calls = list(self.settler.remembered())
        kept = set(map(_digest, calls))
        self._used = {digest: fixed for digest, fixed in self._used.items() if digest in kept}
        self._stamped = {call: self._stamped[call] for call in calls if call in self._stamped}

    def _add(self, reading: Reading) -> None:
        self._read += 1
        self._weighed += size_of(reading)
        self._know(reading)
        self._apply(self.settler.add(reading), source_of(reading))

    def current(self, stored: StoredRun | None) -> bool:
        """Nobody else has added spans to the run since this was its fold."""
        return self.revisions == _revisions(stored)

    def stored(self, stored: StoredRun | None) -> None:
        """This is the fold of what is stored now."""
        self.revisions = _revisions(stored)
        self._joined = []
        self._recorders = {source for source in stored.sources if not is_otlp(source)} if stored is not None else set()

    @property
    def turn(self) -> int:
        """How far the run had come when this was its fold; see `turn_of`."""
        return sum(self.revisions.values())

    def arrival(self, stored: StoredRun | None) -> Arrival | None:
        """What the run's rows went through since this was what is stored, now that `stored` is; None, where nobody can
        have folded the run before."""
        since, turn = self.turn, turn_of(stored)
        if not since or turn <= since:
            return None
        return Arrival(self.run_id, since, turn, None if self._joined is None else pack_keys(self._joined))

    def take_fates(self) -> Fates:
        """What became, for good, of spans since this was last asked. A process that recorded the run has counted its
        own: here they are `recorded`, as the merge has it."""
        fates: Fates = Counter()
        for (fate, scope, source), spans in self.settler.take_fates().items():
            tally(fates, RECORDED if source in self._recorders else fate, scope, spans)
        return fates

    @property
    def counts(self) -> bool:
        """Any call, answered or failed, is counted here."""
        return any(cells.calls or cells.failures for cells in self._cells.values())

    def snapshots(self, stored: StoredRun | None) -> list[RunSnapshot]:
        """What the store has to know now, one snapshot for each source; none before the run has begun."""
        sources = stored.sources if stored is not None else {}
        if not self.begun and not any(map(is_otlp, sources)):
            return []
        owner = stored.owner if stored is not None else None
        if owner is None or not is_otlp(owner):
            mine = next((source for _, source in self._cells), DOOR)
        else:
            mine = owner
        own = self._own()
        names = dict.fromkeys([mine, *own, *filter(is_otlp, sources)])
        settler, end = self.settler, self.end
        # An implicit run is found by its id, which is its trace's.
        root = end if end is not None and self.explicit and end.rank != _REMOTE_ROOT else None
        set_aside = dict(settler.set_aside)
        return [
            self._told(
                stored,
                own.get(source, {}),
                set_aside=set_aside if source == mine else None,
                run_id=self.run_id,
                source=source,
                owns=source == mine and (owner is None or is_otlp(owner)),
                thread_id=self.thread_id,
                agent=settler.facts.agent,
                user_id=settler.facts.user_id,
                tags=settler.facts.tags,
                trace_id=None if root is None else default_run(root.trace_id),
                root_span_id=None if root is None else format(root.span_id, "016x"),
                started_at=self.started_at or (stored.started_at if stored is not None else 0),
                updated_at=self.updated_at,
            )
            for source in names
        ]

    @property
    def thread_id(self) -> str | None:
        """The conversation that the run is of."""
        return self._thread if self.closed else self.settler.facts.thread_id

    def shares(self) -> dict[str, str]:
        """Runs that are shares of this one, and the conversation of each. A function of what is counted: whoever folds
        the same rows finds the same ones."""
        used = {thread for (thread, _), cells in self._cells.items() if thread is not None and cells.used}
        found = sorted((share_id(self.run_id, thread), thread) for thread in used - {self.thread_id})
        return dict(found[:SHARES])

    def share(self, run_id: str, thread_id: str, stored: StoredRun | None) -> list[RunSnapshot]:
        """What the store has to know of a share, as `snapshots` says it of the run."""
        cells = {source: cells for (thread, source), cells in self._cells.items() if thread == thread_id}
        sources = stored.sources if stored is not None else {}
        owner = stored.owner if stored is not None else None
        mine = next(iter(cells)) if owner is None or not is_otlp(owner) else owner
        return [
            self._told(
                stored,
                cells[source].usage() if source in cells else {},
                run_id=run_id,
                source=source,
                owns=source == mine and (owner is None or is_otlp(owner)),
                thread_id=thread_id,
                started_at=stored.started_at if stored is not None else self.started_at,
                updated_at=self._heard.get(thread_id, self.updated_at),
            )
            for source in dict.fromkeys([mine, *cells, *filter(is_otlp, sources)])
        ]

    def _told(
        self,
        stored: StoredRun | None,
        usage: Mapping[CellKey, Usage],
        *,
        source: str,
        set_aside: dict[str, int] | None = None,
        **said: Any,
    ) -> RunSnapshot:
        """A snapshot of the run or of a share, with what both have from the run: its service, and how it ended."""
        end = self.end
        known = stored.sources.get(source) if stored is not None else None
        return RunSnapshot(
            source=source,
            revision=1 if known is None else known.revision + 1,
            final=end is not None,
            status="running" if end is None else end.status,
            stop_reason=None if end is None else end.stop_reason,
            service=self.settler.facts.service,
            ended_at=None if end is None else end.at,
            usage_by=usage,
            set_aside=set_aside,
            **said,
        )

    def _own(self) -> dict[str, dict[CellKey, Usage]]:
        """Usage by cell and source, without that of shares."""
        shared = set(self.shares().values())
        found: dict[str, dict[CellKey, Usage]] = {}
        for (thread, source), cells in self._cells.items():
            if thread in shared:
                continue
            held = found.get(source)
            if held is None:
                found[source] = cells.usage()
            else:
                for key, usage in cells.usage().items():
                    held[key] = held[key] + usage if key in held else usage
        return found

    def _know(self, reading: Reading) -> None:
        """What the reading says about the run itself."""
        if reading.run_id is not None:
            self.explicit = True
        if begins(reading):
            self.begun = True
            if reading.ended_at and (reading.started_at < self.started_at or not self.started_at):
                self.started_at = reading.started_at
        if reading.ended_at > self.updated_at:
            self.updated_at = reading.ended_at
        if not self.started_at and reading.ended_at:
            self.started_at = reading.started_at
        end = self._end(reading)
        if end is not None and (self.end is None or end > self.end):
            self.end = end

    def _end(self, reading: Reading) -> End | None:
        if reading.is_run_root:
            rank = _RUN_ROOT
        elif reading.parent_id is None:
            rank = _ROOT
        elif reading.parent_is_remote and reading.run_id is None:
            # An explicit run reaches into other processes: their local roots are not its end.
            rank = _REMOTE_ROOT
        else:
            return None
        status = reading.run_status if reading.run_status in TERMINAL else ("error" if reading.failed else "success")
        at = reading.ended_at
        return End(rank, at, reading.trace_id, reading.span_id, status or "success", reading.stop_reason)

    def _apply(self, changes: Iterable[Change], source: str) -> None:
        for was, now in changes:
            of = source
            if was is not None:
                # A call keeps the source that it came with, whoever's span made it better known.
                held = self._stamped.get(was)
                of = held.pop() if held else DOOR
                if held is not None and not held:
                    del self._stamped[was]
                self._count(was, of, -1)
            if now is not None:
                if of != DOOR:
                    self._stamped.setdefault(now, []).append(of)
                self._count(now, of, 1)

    def _count(self, call: Call, source: str, sign: int) -> None:
        place = (call.thread_id if self._divides else None), source
        self._heard[place[0]] = max(call.ended_at, self._heard.get(place[0], 0))
        cells = self._cells.get(place)
        if cells is None:
            cells = self._cells[place] = Cells(limit=None)  # the merge folds what is too much, whatever the order
        cells.add(call, self._priced_usage(call), sign)

    def _priced_usage(self, call: Call) -> Usage:
        """Rule 13: what a call was priced at first, here or in the ledger, it stays priced at."""
        digest = _digest(call)
        fixed = self._used.get(digest) or self._fixed.pop(digest, None)
        if fixed is not None:
            self._used[digest] = fixed
            return call.usage._replace(cost_nanousd=fixed[0], unpriced_tokens=fixed[1])
        usage = self._price(call)
        self._used[digest] = usage.cost_nanousd, usage.unpriced_tokens
        self._priced.append(_PRICE.pack(digest, usage.cost_nanousd, usage.unpriced_tokens))
        return usage


def _digest(call: Call) -> bytes:
    """Names what a price is of."""
    said = repr((call.provider, call.model, call.usage[:5], call.reported_cost_nanousd, call.ended_at))
    return blake2b(said.encode("utf-8", "replace"), digest_size=8).digest()


def source_of(reading: Reading) -> str:
    """Under which source door 2 counts what this span says."""
    return DOOR if reading.source_id is None else f"{DOOR}:{reading.source_id}"


def holds(stored: StoredRun | None) -> bool:
    """The settled totals hold usage that door 2 folded, or will hold it as soon as it is written."""
    if stored is None:
        return False
    return stored.closed or any(any(cell.settled) for (source, _), cell in stored.cells.items() if is_otlp(source))


def turn_of(stored: StoredRun | None) -> int:
    """How far a run has come: each transaction of door 2 that changes it goes beyond the last, whoever's it is."""
    return sum(_revisions(stored).values())


def _revisions(stored: StoredRun | None) -> dict[str, int]:
    sources = stored.sources if stored is not None else {}
    return {source: state.revision for source, state in sources.items() if is_otlp(source)}
