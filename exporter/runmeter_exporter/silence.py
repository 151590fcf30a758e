"""For how long the reaper has seen nothing change, and how long it leaves alone what could not be closed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

ASIDE, ASIDE_AT_MOST = 60.0, 3600.0
"""Seconds until something that could not be closed is tried again, the first time and after many."""


class Quiet:
    """For how long something has not changed, as far as we could see it."""

    __slots__ = ("seconds", "state")

    def __init__(self, state: object) -> None:
        self.state = state
        self.seconds = 0.0

    def look(self, state: object, passed: float) -> None:
        """It is like this after so many seconds more."""
        if state == self.state:
            self.seconds += passed
        else:
            self.state, self.seconds = state, 0.0


class Aside:
    """Something that could not be closed, and when it is tried again."""

    __slots__ = ("done", "error", "left", "said", "wait")

    def __init__(self) -> None:
        self.wait = self.left = 0.0
        self.done = -1
        self.said = False
        self.error: Exception | None = None

    def failed(self, error: Exception, done: int) -> None:
        """Wait longer each time; but while nothing at all can be `done`, it is not the fault of this one."""
        if self.wait == 0.0 or done > self.done:
            self.wait = min(2 * self.wait, ASIDE_AT_MOST) or ASIDE
        self.left, self.done, self.error = self.wait, done, error


def looked(known: Mapping[str, Quiet], states: Mapping[str, object], passed: float) -> dict[str, Quiet]:
    """How quiet those are that are there."""
    found: dict[str, Quiet] = {}
    for name, state in states.items():
        quiet = found[name] = known.get(name) or Quiet(state)
        if name in known:
            quiet.look(state, passed)
    return found
