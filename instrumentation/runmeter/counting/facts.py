"""What the spans of a run say about the run itself: the outermost one that states a fact wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from runmeter.reading.read import Reading
from runmeter.reading.roles import AGENT

_Order = tuple[int, int, int, int]
_UNKNOWN: Final = (2**63, 0, 0, 0)
"""Of a value that only spans that were forgotten state: it counts after all others."""
_FIELDS: Final = ("thread_id", "agent", "user_id", "service", "tags")


class _Said:
    """One value of one fact: the outermost span that states it, and how many do."""

    __slots__ = ("order", "spans")

    def __init__(self, order: _Order) -> None:
        self.order: _Order | None = order
        """None where that span has left the run: whoever wants to know looks for the next one."""
        self.spans = 1


class Facts:
    """Thread, agent, user, service and tags, as a function of the set of readings."""

    __slots__ = ("_readings", "_said", "learned")

    def __init__(self, readings: Callable[[], Iterable[Reading]]) -> None:
        """`readings`: those that are the run's now."""
        self._readings = readings
        self._said: dict[str, dict[object, _Said]] = {}
        self.learned = True
        """A fact may have changed since whoever keeps them set this to False."""

    @property
    def thread_id(self) -> str | None:
        """The thread that the outermost span naming one names."""
        return self._outermost("thread_id")  # type: ignore[return-value]

    @property
    def several_threads(self) -> bool:
        """Its spans name more than one conversation: those of subagents, or several beside each other."""
        return len(self._said.get("thread_id", ())) > 1

    @property
    def agent(self) -> str | None:
        """The outermost agent's name."""
        return self._outermost("agent")  # type: ignore[return-value]

    @property
    def user_id(self) -> str | None:
        """The user that the outermost span naming one names."""
        return self._outermost("user_id")  # type: ignore[return-value]

    @property
    def service(self) -> str | None:
        """`service.name` of the outermost span that has one."""
        return self._outermost("service")  # type: ignore[return-value]

    @property
    def tags(self) -> Mapping[str, str]:
        """The outermost tags."""
        return dict(self._outermost("tags") or ())  # type: ignore[call-overload, no-any-return]

    def learn(self, reading: Reading) -> None:
        """What this span says of its run."""
        if reading.thread_id is not None:
            self._claim("thread_id", reading, reading.thread_id)
        if reading.agent is not None and _names_agent(reading):
            self._claim("agent", reading, reading.agent)
        if reading.user_id is not None:
            self._claim("user_id", reading, reading.user_id)
        if reading.service is not None:
            self._claim("service", reading, reading.service)
        if reading.tags:
            self._claim("tags", reading, reading.tags)

    def said_by(self, reading: Reading) -> tuple[_Said, ...]:
        """What is kept of what this span, which was learned, says: for `again`."""
        found = ((field, _states(reading, field)) for field in _FIELDS)
        return tuple(self._said[field][value] for field, value in found if value)

    def again(self, said: Sequence[_Said], reading: Reading) -> None:
        """Learn from a span that says the same as the one that `said` is by."""
        for one in said:
            one.spans += 1
            if one.order is not None and reading.started_at <= one.order[0]:
                order = _order(reading)
                if order < one.order:
                    one.order = order
                    self.learned = True

    def unlearn(self, reading: Reading) -> None:
        """The span has left the run."""
        for field in _FIELDS:
            value = _states(reading, field)
            if not value:
                continue
            said = self._said[field]
            one = said[value]
            one.spans -= 1
            if not one.spans:
                del said[value]
                self.learned = True
            elif one.order == _order(reading):
                one.order = None
                self.learned = True

    def _claim(self, field: str, reading: Reading, value: object) -> None:
        said = self._said.get(field)
        if said is None:
            said = self._said[field] = {}
        one = said.get(value)
        if one is None:
            said[value] = _Said(_order(reading))
            self.learned = True
            return
        self.again((one,), reading)

    def _outermost(self, field: str) -> object:
        said = self._said.get(field)
        if not said:
            return None
        if len(said) == 1:
            return next(iter(said))
        for value, one in said.items():
            if one.order is None:
                stating = (_order(other) for other in self._readings() if _states(other, field) == value)
                one.order = min(stating, default=_UNKNOWN)
        return min(said, key=lambda value: said[value].order or ())


def _states(reading: Reading, field: str) -> object:
    return None if field == "agent" and not _names_agent(reading) else getattr(reading, field)


def _names_agent(reading: Reading) -> bool:
    return reading.role == AGENT or reading.is_run_root


def _order(reading: Reading) -> _Order:
    """Who encloses the others began first."""
    return reading.started_at, -reading.ended_at, reading.trace_id, reading.span_id
