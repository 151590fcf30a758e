"""What is in force in an OpenTelemetry context: whose run, and who calls."""

from __future__ import annotations

from typing import Any

from opentelemetry import baggage
from opentelemetry.context import Context, create_key, get_value, set_value

from runmeter import guard
from runmeter.reading import semconv
from runmeter.runs.known import RunState

IN_FORCE = create_key("runmeter-in-force")
"""Where in an OpenTelemetry context it is."""


class InForce:
    """What `run()` and `caller()` put into the context: whose run, and who calls. Immutable."""

    __slots__ = ("caller", "run")

    def __init__(self, run: RunState | None, caller: str | None) -> None:
        self.run = run
        self.caller = caller


def in_force(state: RunState, context: Context) -> Context:
    """`context` with this run in force, for other processes too."""
    context = set_value(IN_FORCE, InForce(state, None), context)
    return baggage.set_baggage(semconv.RUN_ID, state.info.run_id, context)


def now_in_force(context: Context | None = None) -> InForce | None:
    """What is in force in `context`, or in the current one."""
    found = get_value(IN_FORCE, context)
    return found if isinstance(found, InForce) else None


def detach(token: Any) -> None:
    """Like OpenTelemetry's detach, without its error in the log where a generator is closed in another context than it
    was started in: there is nothing to restore then."""
    if token is None:
        return
    try:
        token.var.reset(token)
    except (ValueError, RuntimeError, AttributeError):
        guard.logger.debug("runmeter: left a run in another context than it was entered in")
