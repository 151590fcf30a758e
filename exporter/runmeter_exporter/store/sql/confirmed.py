"""What a database confirmed to this process lately, and whether it still holds it when a connection is made anew.

A standby that is promoted before it had everything, or a copy that takes the place of a server, forgets the latest
commits and says nothing. What was committed first is there if what was committed last is: so a few of the latest are
all that need be looked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runmeter_exporter.store.sql.rows import SqlRows
from runmeter_exporter.totals.run import is_otlp

LATEST = 32
"""Runs remembered, by id and version."""


class Confirmed:
    """Fed by every transaction that was committed. Safe for threads: whoever comes later knows more."""

    def __init__(self) -> None:
        self.due = False
        """A connection was made since anything was confirmed: look whether it is still there."""
        self.sources: frozenset[str] = frozenset()
        """Whose heartbeats this process writes."""
        self._versions: dict[str, tuple[int, int, bool]] = {}

    def connected(self) -> None:
        """There is a new connection, perhaps to another server."""
        self.due = bool(self._versions)

    def remember(self, rows: SqlRows) -> None:
        """This was committed."""
        if rows.beaten:
            self.sources = frozenset(rows.beaten)
        if not rows.saved and not rows.gone:
            return
        versions = dict(self._versions)
        for run_id in rows.gone:
            versions.pop(run_id, None)
        for run in rows.saved[-LATEST:]:
            # One that door 2 alone knows may yet prove to be another's, and vanish for a good reason.
            stays = run.closed or not all(map(is_otlp, run.sources))
            versions.pop(run.run_id, None)
            versions[run.run_id] = run.version, run.updated_at, stays
        self._versions = dict(list(versions.items())[-LATEST:])

    @contextmanager
    def known_to_be_lost(self) -> Iterator[frozenset[str]]:
        """Forget it, unless the block that says so in the database fails; the sources whose runs are concerned."""
        before, self._versions, self.due = self._versions, {}, False
        try:
            yield self.sources
        except BaseException:
            self._versions, self.due = before, True
            raise

    def lost(self, rows: SqlRows) -> bool:
        """The database is behind what it had confirmed."""
        self.due = False
        versions = self._versions
        found = rows.versions(list(versions))
        missing = [updated_at for run_id, (_, updated_at, stays) in versions.items() if stays and run_id not in found]
        # What is missing may have been pruned by somebody else: then the horizon has moved.
        return any(version < versions[run_id][0] for run_id, version in found.items()) or (
            bool(missing) and max(missing) >= rows.horizon()
        )
