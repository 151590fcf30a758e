"""What the spans of a run say about the run itself: the outermost one that states a fact wins."""

from __future__ import annotations

from collections.abc import Mapping

from runmeter.call import Reading
from runmeter.dialects import AGENT


class Facts:
    """Thread, agent, user, service and tags, as a function of the set of readings."""

    def __init__(self) -> None:
        self._named: dict[str, tuple[tuple[int, int, int, int], str]] = {}
        self._tags: tuple[tuple[int, int, int, int], tuple[tuple[str, str], ...]] | None = None
        self.learned = True
        """A fact may have changed since whoever keeps them set this to False."""

    @property
    def thread_id(self) -> str | None:
        """The thread that the outermost span naming one names."""
        return self._name("thread_id")

    @property
    def agent(self) -> str | None:
        """The outermost agent's name."""
        return self._name("agent")

    @property
    def user_id(self) -> str | None:
        """The user that the outermost span naming one names."""
        return self._name("user_id")

    @property
    def service(self) -> str | None:
        """`service.name` of the outermost span that has one."""
        return self._name("service")

    @property
    def tags(self) -> Mapping[str, str]:
        """The outermost tags."""
        return dict(self._tags[1]) if self._tags else {}

    def _name(self, field: str) -> str | None:
        found = self._named.get(field)
        return None if found is None else found[1]

    def _learn(self, reading: Reading) -> None:
        """The run's own facts: the outermost span that states one wins, and who encloses the others began first."""
        if reading.thread_id is not None:
            self._claim("thread_id", reading, reading.thread_id)
        if reading.agent is not None and (reading.role == AGENT or reading.is_run_root):
            self._claim("agent", reading, reading.agent)
        if reading.user_id is not None:
            self._claim("user_id", reading, reading.user_id)
        if reading.service is not None:
            self._claim("service", reading, reading.service)
        if reading.tags:
            order = _outermost(reading)
            if self._tags is None or order < self._tags[0]:
                self._tags = order, reading.tags

    def _claim(self, field: str, reading: Reading, value: str) -> None:
        held = self._named.get(field)
        if held is None or reading.started_at <= held[0][0]:
            order = _outermost(reading)
            if held is None or order < held[0]:
                self._named[field] = order, value
                self.learned = True


def _outermost(reading: Reading) -> tuple[int, int, int, int]:
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id
