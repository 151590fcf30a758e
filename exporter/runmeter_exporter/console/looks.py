"""Where `runmeter top` looks: at a sidecar over REST, or at a store where there is no sidecar."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import click

from runmeter_exporter.console.burn import Burn, Burning

PAGES = 4
"""Of 500 runs each; beyond, the table says that there are more."""
Runs = dict[str, Mapping[str, Any]]


class Place(Protocol):
    """Something that knows active runs."""

    name: str

    def page(self, status: str, cursor: str | None) -> Mapping[str, Any]:
        """`{runs, next_cursor}` of the runs in this state."""

    def sentence(self, error: Exception) -> str:
        """What an error means here, and what to do."""

    def close(self) -> None:
        """Let go of it."""


class Sidecar:
    """A sidecar's REST, on any host."""

    def __init__(self, url: str, token: str | None, timeout: float = 10.0) -> None:
        self.name, self._token, self._timeout = url, token, timeout

    def page(self, status: str, cursor: str | None) -> Mapping[str, Any]:
        """See Place. Raises OSError or ValueError."""
        query = {"status": status, "limit": "500"} | ({"cursor": cursor} if cursor else {})
        request = urllib.request.Request(f"{self.name.rstrip('/')}/api/runs?{urllib.parse.urlencode(query)}")
        if self._token:
            request.add_header("Authorization", f"Bearer {self._token}")
        with urllib.request.urlopen(request, timeout=self._timeout) as response:
            found: Mapping[str, Any] = json.load(response)
        return found

    def sentence(self, error: Exception) -> str:
        """See Place."""
        if isinstance(error, urllib.error.HTTPError):
            hint = "; set RUNMETER_READ_TOKEN or --read-token" if error.code in (401, 403) else ""
            return f"{self.name} answers {error.code} {error.reason}{hint}"
        reason = getattr(error, "reason", None) or error
        return f"{self.name} does not answer as a sidecar ({reason}); is `runmeter serve` running there?"

    def close(self) -> None:
        """See Place."""


class Store:
    """A store, read directly. None is made where there is none."""

    def __init__(self, url: str | None) -> None:
        from runmeter_exporter.store import StoreError, open_store

        try:
            self._store = open_store(url, create=False, pool_size=1)
        except (StoreError, ImportError, ValueError) as problem:
            raise click.ClickException(str(problem)) from None
        self.name = f"store {self._store.url_for_humans}"

    def page(self, status: str, cursor: str | None) -> Mapping[str, Any]:
        """See Place. Raises StoreError."""
        return self._store.runs(status=status, limit=500, cursor=cursor)

    def sentence(self, error: Exception) -> str:
        """See Place."""
        return str(error)

    def close(self) -> None:
        """See Place."""
        self._store.dispose()


def fetch(place: Place) -> tuple[Runs, bool]:
    """Every active run by id, and whether there are more than `top` reads."""
    found: Runs = {}
    more = False
    for status in ("running", "pending"):
        cursor: str | None = None
        for _ in range(PAGES):
            page = place.page(status, cursor)
            found |= {run["run_id"]: run for run in page["runs"]}
            cursor = page.get("next_cursor")
            if not cursor:
                break
        more = more or bool(cursor)
    return found, more


class Lookout:
    """Looks at a place again and again; keeps what a burn rate needs."""

    def __init__(self, place: Place, clock: Callable[[], float] = time.monotonic) -> None:
        self.place, self._clock = place, clock
        self._burn = Burn()
        self._lines: list[Burning] = []
        self.problem: str | None = None
        self.answered = False
        """At least one look succeeded."""

    def look(self) -> list[Burning]:
        """One look; when the place is away, the last lines known and `problem`."""
        from runmeter_exporter.store import StoreError

        try:
            found, more = fetch(self.place)
            self._lines = self._burn.look(self._clock(), datetime.now(UTC), found)
        except (OSError, ValueError, KeyError, TypeError, StoreError) as error:
            self.problem = self.place.sentence(error)
        else:
            self.answered = True
            self.problem = "more runs are active than top reads" if more else None
        return self._lines
