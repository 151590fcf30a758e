"""DSPy: usage of every attempt that its language models make, whichever engine makes it.

Since 3.4 DSPy speaks to providers itself, so instrumentations of `openai` and of LiteLLM see next to none of its
calls. An attempt is one function there, below its cache and inside its retries, for plain, asynchronous and streamed
calls, for engines of one's own and for models that override `forward`; that function is listened to. Before 3.4
everything goes through LiteLLM, and LiteLLM's hook hears it.

`dspy.Parallel` and `Evaluate` work in threads without the context of their caller: what is in force where they are
called is carried there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import wraps
from typing import Any

from opentelemetry.context import attach, detach, get_current

from runmeter.guard import harmless
from runmeter.hooks import litellm
from runmeter.hooks.report import Begun, Told, field, missing, now, report

PIP = "pip install dspy"
_INSIDE: ContextVar[list[bool] | None] = ContextVar("runmeter_dspy_inside", default=None)
"""In a model that overrides `forward`: gets an entry for each attempt below it."""
_undo: list[Callable[[], None]] = []


def usage_from(result: Any) -> Told:
    """What a `CallResult` says of the call it came from. DSPy words usage as LiteLLM does: inclusive."""
    raw = field(result, "raw")
    said = {
        "usage": field(result, "usage") or None, "model": field(result, "response_model"), "id": field(raw, "id"),
    }  # fmt: skip
    return litellm.usage_from({}, said)


@harmless(None)
def _heard(given: Sequence[Any], before: int, below: Sequence[bool], begun: Begun, failed: bool) -> None:
    lm, call, results = given[0], given[1], given[6]
    new = results[before:]
    if field(call, "managed") is False and below:
        return  # its `forward` called a model of DSPy's, whose attempts are the calls
    name = field(lm, "model")
    provider, _, model = name.rpartition("/") if isinstance(name, str) else ("", "", "")
    for result in new or [None]:
        if field(result, "raw", "cache_hit") is True:
            continue
        told = usage_from(result)
        told = told._replace(provider=provider.partition("/")[0] or None, model=told.model or model or None)
        # What was answered was paid for, whatever went wrong after that.
        report(told, begun, failed=failed and not new)


def _enter() -> tuple[list[bool], Any]:
    around = _INSIDE.get()
    if around is not None:
        around.append(True)
    below: list[bool] = []
    return below, _INSIDE.set(below)


def _attempt(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def attempt(*given: Any) -> Any:
        before, begun, (below, token), failed = len(given[6]), now(), _enter(), True
        try:
            answer = original(*given)
            failed = False
            return answer
        finally:
            _INSIDE.reset(token)
            _heard(given, before, below, begun, failed)

    return attempt


def _attempt_async(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    async def attempt(*given: Any) -> Any:
        before, begun, (below, token), failed = len(given[6]), now(), _enter(), True
        try:
            answer = await original(*given)
            failed = False
            return answer
        finally:
            _INSIDE.reset(token)
            _heard(given, before, below, begun, failed)

    return attempt


def _carrying(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def execute(self: Any, function: Callable[[Any], Any], *more: Any, **named: Any) -> Any:
        context = get_current()

        def carried(item: Any) -> Any:
            token = attach(context)
            try:
                return function(item)
            finally:
                detach(token)

        return original(self, carried, *more, **named)

    return execute


def _replace(holder: Any, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    original = getattr(holder, name)
    setattr(holder, name, wrap(original))
    _undo.append(lambda: setattr(holder, name, original))


def install() -> bool:
    """Hear of every call that DSPy makes in this process. False, with the `pip install` line in the log, without
    DSPy."""
    try:
        import dspy  # noqa: F401
        from dspy.utils.parallelizer import ParallelExecutor
    except ImportError:
        return missing("DSPy", PIP)
    if _undo:
        return True
    _replace(ParallelExecutor, "execute", _carrying)
    try:
        from dspy.clients import execution

        _replace(execution, "_attempt", _attempt)
        _replace(execution, "_aattempt", _attempt_async)
    except (ImportError, AttributeError):
        _undo.append(litellm.uninstall)
        return litellm.install()
    return True


def uninstall() -> None:
    """Give DSPy its own functions back."""
    while _undo:
        _undo.pop()()
