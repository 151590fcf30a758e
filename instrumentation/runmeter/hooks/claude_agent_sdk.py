"""Claude Agent SDK: usage from the result message that ends each query.

The calls are made by the Claude Code program below, so what reaches Python is one sum for each query: it counts as one
call with the query's tokens, and its turns are the messages. Use this or Claude Code's own telemetry, not both:
nothing in the two says that they speak of the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runmeter.guard import harmless
from runmeter.hooks.report import Begun, Memory, Told, field, missing, now, number, report

PIP = "pip install claude-agent-sdk"
_SEEN = Memory()
_original: Callable[..., Any] | None = None


def usage_from(message: Any) -> Told:
    """What a `ResultMessage` says. Anthropic states cache tokens beside the input; here they are part of it. The
    model is the one that wrote most. `total_cost_usd` runs on over a connection's queries, so it is not a query's cost
    and is left out."""
    usage, models = field(message, "usage"), field(message, "model_usage") or {}
    told = Told(
        provider="anthropic",
        model=max(models, key=lambda name: number(field(models, name, "outputTokens")), default=None),
        call_id=field(message, "uuid"), messages=number(field(message, "num_turns")) or None,
    )  # fmt: skip
    if not usage:
        return told
    read, written = number(field(usage, "cache_read_input_tokens")), number(field(usage, "cache_creation_input_tokens"))
    return told._replace(
        input_tokens=number(field(usage, "input_tokens")) + read + written,
        output_tokens=number(field(usage, "output_tokens")), cache_read_tokens=read, cache_write_tokens=written,
    )  # fmt: skip


@harmless(None)
def heard(message: Any) -> None:
    """Count a message if it is a result; for programs that receive messages in a way of their own."""
    if type(message).__name__ != "ResultMessage":
        return
    key = field(message, "uuid")
    if key is not None and not _SEEN.first_time(key):
        return
    ended = now()
    begun = Begun(ended.context, ended.started_at - number(field(message, "duration_ms")) * 1_000_000)
    # A turn that failed may have spent all the same: it is a failed attempt only where no usage came.
    failed = field(message, "is_error") is True and not field(message, "usage")
    report(usage_from(message), begun, ended_at=ended.started_at, thread_id=field(message, "session_id"), failed=failed)


def install() -> bool:
    """Hear of every result that the SDK receives, whether by `query` or `ClaudeSDKClient`. False, with the
    `pip install` line in the log, without the SDK."""
    global _original
    try:
        from claude_agent_sdk._internal import client, message_parser
    except ImportError:
        return missing("the Claude Agent SDK", PIP)
    if _original is None:
        parse = _original = message_parser.parse_message

        def parse_message(data: Any) -> Any:
            message = parse(data)
            heard(message)
            return message

        # Both paths go through the parser: the client by its module, `query` by a name that it imported.
        message_parser.parse_message = client.parse_message = parse_message
    return True


def uninstall() -> None:
    """Give the SDK its own parser back."""
    global _original
    if _original is not None:
        from claude_agent_sdk._internal import client, message_parser

        message_parser.parse_message = client.parse_message = _original
        _original = None
