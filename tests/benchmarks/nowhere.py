"""A store that costs nothing, where only what comes before it is measured."""

from __future__ import annotations

from collections.abc import Sequence

from runmeter_exporter.store import WriteResult
from runmeter_exporter.totals.run import RunSnapshot


class Nowhere:
    """Takes everything and keeps nothing; notes how often it was asked."""

    url_for_humans = "nowhere"

    def __init__(self) -> None:
        self.writes = 0

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        self.writes += 1
        return WriteResult(len(snapshots))

    def heartbeat(self, beats: object) -> None: ...
    def release(self) -> None: ...
    def dispose(self) -> None: ...
