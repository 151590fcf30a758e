"""Several conversations in one trace: each beside the first is a run of its own, a *share* of the trace's.

An evaluation, a batch or a worker's own span may stand around turns of many conversations. The calls are counted in one
tree all the same, so that nothing is counted twice; each call says of which conversation it is (`Call.thread_id`), and
what is of another one than the trace's run goes to that run's share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Final

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change

SHARES: Final = 64
"""Shares of one run. What is of further conversations stays with the run itself."""
_DIGITS: Final = 16


def share_id(run_id: str, thread_id: str) -> str:
    """The id of the run that is this conversation's share of a trace's run; the same at both doors."""
    digest = blake2b(thread_id.encode("utf-8", "replace"), digest_size=_DIGITS // 2).hexdigest()
    return f"{run_id}-{digest}"


def shared_run(run_id: str) -> str | None:
    """The run that this one is a share of, as far as its id says; None where it says nothing of the kind."""
    whole, dash, digest = run_id.rpartition("-")
    if dash and len(whole) == 32 and len(digest) == _DIGITS and not set(whole + digest) - set("0123456789abcdef"):
        return whole
    return None


class Shares:
    """Where the calls of one run go: to the run itself, or to the shares of other conversations."""

    __slots__ = ("_begin", "_home", "_run", "infos")

    def __init__(self, run: RunInfo, begin: Callable[[RunInfo], None]) -> None:
        """`begin` tells the sinks of a share."""
        self._run = run
        self._home: str | None = None  # what was told before is the run's own, whatever it was of
        self._begin = begin
        self.infos: dict[str, RunInfo] = {}
        """Shares by thread."""

    def divide(
        self, changes: Sequence[Change], counted: Callable[[], Iterable[Call]]
    ) -> list[tuple[RunInfo, list[Change]]]:
        """The changes, each where it belongs. `counted`: the run's calls after them; asked for where the run turns out
        to be of another conversation than it seemed, so that calls told before go over."""
        before, self._home = self._home, self._run.thread_id
        found: dict[int, tuple[RunInfo, list[Change]]] = {}

        def tell(info: RunInfo, change: Change) -> None:
            found.setdefault(id(info), (info, []))[1].append(change)

        if before != self._home:
            new = Counter(now for _, now in changes if now is not None)
            for call in counted():
                if new[call]:
                    new[call] -= 1
                    continue
                was, now = self._place(call, before), self._place(call, self._home)
                if was is not now:
                    tell(was, Change(call, None))
                    tell(now, Change(None, call))
        for change in changes:
            there = None if change.was is None else self._place(change.was, before)
            here = None if change.now is None else self._place(change.now, self._home)
            if there is None or here is None or there is here:
                tell(there or here or self._run, change)
            else:
                tell(there, Change(change.was, None))
                tell(here, Change(None, change.now))
        return list(found.values())

    def _place(self, call: Call, home: str | None) -> RunInfo:
        thread_id = call.thread_id
        if thread_id is None or home is None or thread_id == home:
            return self._run
        info = self.infos.get(thread_id)
        if info is None:
            if len(self.infos) >= SHARES:
                return self._run
            run = self._run
            info = self.infos[thread_id] = RunInfo(
                share_id(run.run_id, thread_id),
                call.started_at or call.ended_at,
                owns=run.owns,
                thread_id=thread_id,
                service=run.service,
            )
            self._begin(info)
        return info
