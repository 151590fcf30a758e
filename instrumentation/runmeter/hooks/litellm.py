"""LiteLLM: usage from its callbacks, also for the calls that its own OpenTelemetry callback writes onto the app's span.

LiteLLM calls back on threads of its own, so where a call belongs is remembered when it is sent.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

from runmeter.guard import harmless
from runmeter.hooks.report import Begun, Memory, Told, field, first, missing, now, number, report

PIP = "pip install litellm"
_CALLS = Memory()
_COPIES = (
    "success_callback", "failure_callback", "input_callback", "_async_success_callback", "_async_failure_callback",
    "_async_input_callback",
)  # fmt: skip
"""Lists into which LiteLLM copies its callbacks when a call is made."""


def usage_from(kwargs: Any, response: Any) -> Told:
    """What LiteLLM says of a call it made. Its `prompt_tokens` are inclusive; where cache counts exceed them, the
    provider's were passed through as Anthropic words them, and they are added."""
    usage = field(response, "usage")
    model = first(field(response, "model"), field(kwargs, "model"))
    call_id = field(response, "id")
    told = Told(
        provider=first(field(kwargs, "custom_llm_provider"), field(kwargs, "litellm_params", "custom_llm_provider")),
        model=model if isinstance(model, str) else None,
        call_id=call_id if isinstance(call_id, str) else None,
        cost_usd=field(kwargs, "response_cost"),
    )
    given = first(field(usage, "prompt_tokens"), field(usage, "input_tokens"))
    answered = first(field(usage, "completion_tokens"), field(usage, "output_tokens"))
    if given is None and answered is None:
        return told._replace(cost_usd=None)
    read = number(first(
        field(usage, "prompt_tokens_details", "cached_tokens"), field(usage, "input_tokens_details", "cached_tokens"),
        field(usage, "cache_read_input_tokens"),
    ))  # fmt: skip
    written = number(first(
        field(usage, "cache_creation_input_tokens"), field(usage, "prompt_tokens_details", "cache_creation_tokens"),
    ))  # fmt: skip
    counted = number(given)
    return told._replace(
        input_tokens=counted if read + written <= counted else counted + read + written,
        output_tokens=number(answered), cache_read_tokens=read, cache_write_tokens=written,
        reasoning_tokens=number(first(
            field(usage, "completion_tokens_details", "reasoning_tokens"),
            field(usage, "output_tokens_details", "reasoning_tokens"),
        )),
    )  # fmt: skip


def _nanoseconds(moment: Any) -> int | None:
    return int(moment.timestamp() * 1e9) if isinstance(moment, datetime) else None


@harmless(None)
def _sent(kwargs: Any) -> None:
    call = field(kwargs, "litellm_call_id")
    if call is not None:
        _CALLS.begin(call, now())


@harmless(None)
def _answered(kwargs: Any, response: Any, start_time: Any, end_time: Any, failed: bool) -> None:
    call, response_id = field(kwargs, "litellm_call_id"), field(response, "id")
    if field(kwargs, "cache_hit") is True:
        return  # answered from LiteLLM's own cache: no provider was asked
    if field(kwargs, "stream") is True and not failed and field(response, "usage") is None:
        return  # a chunk on its way; the complete answer is told once more
    started_at = _nanoseconds(start_time)
    # A call that is tried again keeps its id, and a success is told on two paths: each attempt counts once.
    if not _CALLS.first_time((call, response_id or started_at, failed)):
        return
    begun = _CALLS.peek(call) or now()
    begun = Begun(begun.context, started_at or begun.started_at)
    report(usage_from(kwargs, response), begun, ended_at=_nanoseconds(end_time), failed=failed)


@cache
def _logger() -> Any:
    from litellm.integrations.custom_logger import CustomLogger

    class RunmeterLogger(CustomLogger):  # type: ignore[misc,unused-ignore]
        """Among `litellm.callbacks`."""

        def log_pre_api_call(self, model: Any, messages: Any, kwargs: Any) -> None:
            _sent(kwargs)

        def log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _answered(kwargs, response_obj, start_time, end_time, failed=False)

        def log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _answered(kwargs, response_obj, start_time, end_time, failed=True)

        async def async_log_success_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _answered(kwargs, response_obj, start_time, end_time, failed=False)

        async def async_log_failure_event(self, kwargs: Any, response_obj: Any, start_time: Any, end_time: Any) -> None:
            _answered(kwargs, response_obj, start_time, end_time, failed=True)

    return RunmeterLogger()


def install() -> bool:
    """Hear of every call that LiteLLM makes in this process. False, with the `pip install` line in the log, without
    LiteLLM."""
    try:
        import litellm

        logger = _logger()
    except ImportError:
        return missing("LiteLLM", PIP)
    # Before LiteLLM's own spans: one of a stream, in a trace of its own, would be a run before we had said whose it is.
    for name in ("callbacks", *_COPIES):
        known = getattr(litellm, name, None)
        if isinstance(known, list) and logger not in known and (known or name == "callbacks"):
            known.insert(0, logger)
    return True


def uninstall() -> None:
    """Hear of no further call."""
    try:
        import litellm
    except ImportError:
        return
    for name in ("callbacks", *_COPIES):
        known = getattr(litellm, name, None)
        if isinstance(known, list) and _logger() in known:
            known.remove(_logger())
