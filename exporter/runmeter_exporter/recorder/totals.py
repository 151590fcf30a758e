"""The totals of one run as one source knows them: changes in, snapshots out (rule 3). Pure; no clock, no lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from runmeter.sink import TERMINAL, Priced, RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.totals.cells import Cells
from runmeter_exporter.totals.run import RunSnapshot


class Ending(NamedTuple):
    """How a run ended here."""

    at: int
    """Nanoseconds since the epoch."""
    status: str
    stop_reason: str | None


class RunTotals:
    """What one source has counted for one run, and how much of it has been written."""

    __slots__ = (
        "_aside_before",
        "_cells",
        "_sent_aside",
        "_unsent",
        "end",
        "info",
        "owns",
        "revision",
        "source",
        "updated_at",
    )

    def __init__(self, info: RunInfo, source: str, owns: bool, *, late: bool = False) -> None:
        """`late`: what was set aside so far is another source's to tell (the one that wrote the run before)."""
        self.info = info
        self.source = source
        self.owns = owns
        self.revision = 0
        self.updated_at = info.started_at
        self.end: Ending | None = None
        """Set when the run has ended here: from then on every snapshot is final."""
        self._cells = Cells()
        self._unsent = False
        self._aside_before: Mapping[str, int] = info.set_aside if late else {}
        self._sent_aside: object = info.set_aside if late or not info.set_aside else None

    def finish(self, end: Ending) -> None:
        """The run ended here, not before anything known of it; every snapshot from now on is final."""
        self.end = Ending(max(end.at, self.info.started_at), end.status, end.stop_reason)
        self.updated_at = max(self.updated_at, self.end.at)

    def apply(self, changes: Iterable[Change], price: Callable[[Call], Usage]) -> int:
        """Add changes up; returns how many calls fell into `other` because the run has too many cells.

        `price` must be a function of the call alone: what was added is taken back at the price it got.
        """
        overflowed = 0
        cost, unpriced, tokens = self.info.priced
        for was, now in changes:
            if was is not None:
                usage = price(was)
                self._cells.add(was, usage, -1)
                cost -= usage.cost_nanousd
                unpriced -= usage.unpriced_tokens
                tokens -= usage.total_tokens
            if now is not None:
                usage = price(now)
                overflowed += self._cells.add(now, usage, 1)
                if now.ended_at > self.updated_at:
                    self.updated_at = now.ended_at
                cost += usage.cost_nanousd
                unpriced += usage.unpriced_tokens
                tokens += usage.total_tokens
        self.info.priced = Priced(cost, unpriced, tokens)
        self._unsent = True
        return overflowed

    @property
    def tokens(self) -> int:
        """Tokens counted so far."""
        return self._cells.tokens

    @property
    def calls(self) -> int:
        """Answered calls counted so far."""
        return self._cells.calls

    def snapshot(self) -> RunSnapshot:
        """The next snapshot; complete, but for what the one before already said (see `unsend`)."""
        info, end = self.info, self.end
        self.revision += 1
        status = info.status if end is None else end.status
        if end is None and status in TERMINAL:  # ended by now, but this end has not come through yet
            status = "running"
        aside = info.set_aside
        snapshot = RunSnapshot(
            run_id=info.run_id,
            source=self.source,
            revision=self.revision,
            owns=self.owns,
            final=end is not None,
            status=status,
            stop_reason=None if end is None else end.stop_reason,
            thread_id=info.thread_id,
            service=info.service,
            agent=info.agent,
            user_id=info.user_id,
            tags=info.tags,
            trace_id=None if info.trace_id is None else format(info.trace_id, "032x"),
            root_span_id=None if info.root_span_id is None else format(info.root_span_id, "016x"),
            started_at=info.started_at,
            updated_at=self.updated_at,
            ended_at=None if end is None else end.at,
            usage_by=self._cells.usage() if self._unsent or end is not None else None,
            set_aside=self._aside() if aside is not self._sent_aside or end is not None else None,
        )
        self._unsent = False
        self._sent_aside = aside
        return snapshot

    def unsend(self) -> None:
        """The last snapshot may not have arrived: the next one says everything."""
        self._unsent = True
        self._sent_aside = None

    def _aside(self) -> dict[str, int]:
        before = self._aside_before
        counts = {reason: count - before.get(reason, 0) for reason, count in self.info.set_aside.items()}
        return {reason: count for reason, count in counts.items() if count > 0}
