"""What a session of Claude Code has spent, as far as its messages told, and what they left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from opentelemetry import trace
from opentelemetry.context import get_current

from runmeter.hooks.invocations import in_force
from runmeter.hooks.report import Begun, Told, field, now, number, report
from runmeter.otel.processor import PROCESSOR


class Spent(NamedTuple):
    """Counts of some calls, the input inclusive."""

    input: int = 0
    output: int = 0
    read: int = 0
    written: int = 0
    thought: int = 0

    def plus(self, other: Spent) -> Spent:
        return Spent(*(one + more for one, more in zip(self, other, strict=True)))

    def minus(self, other: Spent) -> Spent:
        return Spent(*(one - less for one, less in zip(self, other, strict=True)))

    def told(self, model: str | None, call_id: str | None, messages: int | None = None) -> Told:
        """As a call of Anthropic's; what an odd sum makes negative is 0."""
        given, wrote, read, written, thought = (max(0, count) for count in self)
        return Told("anthropic", model, given, wrote, read, written, thought, call_id, messages=messages)


NOTHING: Final = Spent()


class Heard(NamedTuple):
    """The last call that was heard of a model and caller."""

    call_id: str
    begun: Begun
    spent: Spent


class Session:
    """What was reported of a session, and what it had spent before we heard of it."""

    def __init__(self) -> None:
        self.before: dict[str, Spent] | None = None
        """By model; None until the first result, which alone shows whether there was something."""
        self.reported: dict[str, Spent] = {}
        self.own = NOTHING
        """Of the calls since the last result, those that no subagent made."""
        self.model: str | None = None
        self.asked: dict[tuple[str, str | None], None] = {}
        """Of which model and subagent something was heard since the last result."""
        self.last: dict[tuple[str, str | None], Heard] = {}
        self.agents: dict[str, str] = {}
        """Tool use → the subagent that it started."""
        self.waits: bool | None = None
        """Nothing is around the query under way that its calls would belong to; None between queries."""
        self.waiting: list[tuple[Told, Begun, dict[str, Any]]] = []
        """Calls of a query that is a run of its own."""

    def tell(self, told: Told, begun: Begun, **more: Any) -> None:
        """Count a call, or keep it until the query is over."""
        if self.waits is None:
            self.waits = PROCESSOR.enabled and not (trace.get_current_span().is_recording() or in_force(get_current()))
        if self.waits:
            self.waiting.append((told, begun, more))
        else:
            report(told, begun, **more)

    def report(self, model: str | None, who: str | None, told: Spent, call_id: str, begun: Begun, **more: Any) -> None:
        """Count the call, and remember it for what is added to it later."""
        name = model or ""
        self.reported[name] = self.reported.get(name, NOTHING).plus(told)
        self.last[name, who] = Heard(call_id, begun, told)
        self.tell(told.told(model, call_id, more.pop("messages", None)), begun, caller=who, **more)

    def add(self, model: str, who: str | None, told: Spent, **more: Any) -> None:
        """Count the last call of a model and caller anew, with this added. Of two spans with one id the one that
        began later is the call."""
        heard = self.last[model, who]
        self.reported[model] = self.reported.get(model, NOTHING).plus(told)
        whole = heard.spent.plus(told)
        self.last[model, who] = heard._replace(spent=whole)
        moment = now().started_at
        begun = Begun(heard.begun.context, moment)
        self.tell(whole.told(model or None, heard.call_id), begun, caller=who, ended_at=moment, **more)


def spent_from(usage: Any) -> Spent:
    """Anthropic states cache tokens beside the input; here they are part of it."""
    read, written = number(field(usage, "cache_read_input_tokens")), number(field(usage, "cache_creation_input_tokens"))
    thought = number(field(usage, "output_tokens_details", "thinking_tokens"))
    given = number(field(usage, "input_tokens")) + read + written
    return Spent(given, number(field(usage, "output_tokens")), read, written, thought)


def spent_by_model(message: Any) -> dict[str, Spent]:
    found = {}
    for model, said in (field(message, "model_usage") or {}).items():
        plain, read, written, wrote, thought = (
            number(field(said, f"{name}Tokens"))
            for name in ("input", "cacheReadInput", "cacheCreationInput", "output", "thinking")
        )
        found[model] = Spent(plain + read + written, wrote, read, written, thought)
    return found


def left_of(session: Session, main: str, rest: Spent, by_model: dict[str, Spent]) -> Iterator[tuple[str, Spent]]:
    """By model, what was spent and not reported. Where a session is resumed that another process began, the sums hold
    what was spent there: then the query's own usage is all that is certain."""
    if not by_model:
        yield main, rest
        return
    if session.before is None:
        heard = {model: spent for model, spent in session.reported.items() if spent.input}
        began_here = heard and all(by_model.get(model, NOTHING).input == spent.input for model, spent in heard.items())
        session.before = {}
        if not began_here:
            for model, spent in by_model.items():
                known = session.reported.get(model, NOTHING)
                session.before[model] = spent.minus(known).minus(rest if model == main else NOTHING)
    for model, spent in by_model.items():
        yield model, spent.minus(session.before.get(model, NOTHING)).minus(session.reported.get(model, NOTHING))
