"""Claude Agent SDK: each call of the Claude Code program as its messages come, and what they lack from the result.

A message names its call and says the input; what a call wrote is said when its query is over, as sums: of the query's
own calls, and by model of everything that the session ever spent, subagents and Claude Code's own calls included. So a
call counts at once with its input, and the query's end adds the output to the last call of each model and caller: calls
and sums are exact, and of several subagents with one model the output of all stands with the last of them. Without a
run or a span around it a query is a run, the session its thread, told of when it is over. Use this or Claude Code's own
telemetry, not both: nothing in the two says that they speak of the same calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.context import get_current

from runmeter import guard
from runmeter.guard import harmless
from runmeter.hooks.claude_sessions import NOTHING, Session, Spent, left_of, spent_by_model, spent_from
from runmeter.hooks.invocations import Outermost
from runmeter.hooks.report import Begun, Memory, Told, field, missing, now, number, report
from runmeter.otel.processor import PROCESSOR
from runmeter.sink import RunInfo

PIP = "pip install claude-agent-sdk"
_SEEN = Memory()
_SESSIONS = Memory()
_STARTED = Memory()
"""Tool use → the session whose subagent it started."""
_AGENTS: Final = 1024
"""Subagents that are remembered of a session; the oldest goes first."""
_SYNTHETIC: Final = "<synthetic>"
"""The model of messages that Claude Code writes itself, of an error for one."""
_original: Callable[..., Any] | None = None


def usage_from(message: Any) -> Told:
    """What a `ResultMessage` says of its query's own calls, those of subagents left out. The model is the one that
    wrote most. `total_cost_usd` runs on over a session's queries, so it is not a query's cost and is left out."""
    usage, models = field(message, "usage"), field(message, "model_usage") or {}
    model = max(models, key=lambda name: number(field(models, name, "outputTokens")), default=None)
    call_id, messages = field(message, "uuid"), number(field(message, "num_turns")) or None
    if not usage:
        return Told(provider="anthropic", model=model, call_id=call_id, messages=messages)
    return spent_from(usage).told(model, call_id, messages)


@harmless(None)
def heard(message: Any) -> None:
    """Count what a message says; for programs that receive messages in a way of their own."""
    kind = type(message).__name__
    if kind == "AssistantMessage":
        _answered(message)
    elif kind == "UserMessage":
        _agent_ended(message)
    elif kind == "ResultMessage":
        key = field(message, "uuid")
        if key is None or _SEEN.first_time(key):
            _ended(message)


def _session(session_id: Any) -> Session:
    if not isinstance(session_id, str):
        return Session()
    _SESSIONS.begin(session_id, Session())
    found = _SESSIONS.peek(session_id)
    return found if isinstance(found, Session) else Session()


def _answered(message: Any) -> None:
    """A part of a call's answer; the first one counts the call."""
    thread, above = field(message, "session_id"), field(message, "parent_tool_use_id")
    session = _session(thread)
    for block in field(message, "content") or ():
        started = field(block, "input", "subagent_type")
        if isinstance(started, str) and isinstance(block_id := field(block, "id"), str):
            session.agents[block_id] = started
            _STARTED.begin(block_id, session)
            if len(session.agents) > _AGENTS:
                del session.agents[next(iter(session.agents))]
    call_id, usage, model = field(message, "message_id"), field(message, "usage"), field(message, "model")
    if not call_id or not usage or model == _SYNTHETIC or not _SEEN.first_time((thread, call_id)):
        return
    # What it has written so far is no settled count.
    told = spent_from(usage)._replace(output=0, thought=0)
    who = None if above is None else f"subagent:{session.agents.get(above, 'agent')}"
    if who is None:
        session.own, session.model = session.own.plus(told), model
    else:
        session.asked[model or "", who] = None
    session.report(model, who, told, call_id, now(), thread_id=thread)


def _agent_ended(message: Any) -> None:
    """A subagent's last call: of what it only said no message tells, unless the host asked for that."""
    result = field(message, "tool_use_result")
    agent, model, told = field(result, "agentId"), field(result, "resolvedModel"), spent_from(field(result, "usage"))
    # The message that brings a result names no session: it is that of the message that started the subagent.
    used = next((field(block, "tool_use_id") for block in field(message, "content") or ()), None)
    session = None if used is None else _STARTED.peek(used)
    if session is None or not isinstance(agent, str) or not any(told) or not _SEEN.first_time((agent, used)):
        return
    who = f"subagent:{guard.text(field(result, 'agentType')) or session.agents.get(used, 'agent')}"
    heard = session.last.get((model or "", who))
    if heard is not None and heard.spent == told._replace(output=0, thought=0):
        session.add(model or "", who, Spent(output=told.output, thought=told.thought))
    else:
        session.report(model, who, told, f"{agent} {used}", now())


def _ended(message: Any) -> None:
    """A query is over: what its calls wrote, calls that no message told of, and its run if it is one."""
    session, ended = _session(field(message, "session_id")), now()
    begun = Begun(ended.context, ended.started_at - number(field(message, "duration_ms")) * 1_000_000)
    _complete(session, message, begun, ended.started_at)
    waiting, session.waiting, session.waits = session.waiting, [], None
    session.own, session.model, session.asked = NOTHING, None, {}
    if not waiting:
        return
    own = guard.identifier(field(message, "uuid")) or f"query-{ended.started_at:x}"
    began = min(one.started_at for _, one, _ in waiting)
    thread = guard.identifier(field(message, "session_id"))
    run = Outermost(own, get_current())
    run.begin(RunInfo(own, began, thread_id=thread, service=PROCESSOR.service))
    run.open()
    for told, one, more in waiting:
        report(told, Begun(run.around(get_current()), one.started_at), **more)
    cut = str(field(message, "terminal_reason") or "").startswith("aborted")
    failed = field(message, "is_error") is True
    run.end(asyncio.CancelledError() if cut else RuntimeError("the query failed") if failed else None)


def _complete(session: Session, message: Any, begun: Begun, ended_at: int) -> None:
    """Tell what the result knows more of than the messages before it."""
    thread, said = field(message, "session_id"), usage_from(message)
    more: dict[str, Any] = {"ended_at": ended_at, "thread_id": thread}
    query, by_model = spent_from(field(message, "usage") or {}), spent_by_model(message)
    failed = field(message, "is_error") is True
    # A turn that failed may have spent all the same: it is a failed attempt only where no usage came.
    if not any(query) and not session.own.input and (failed or not any(map(any, by_model.values()))):
        session.tell(said, begun, failed=failed, **more)
    main = session.model if session.own.input else said.model
    rest = query.minus(session.own)
    turns = said.messages if not session.own.input else None
    for model, left in left_of(session, main or "", rest, by_model):
        mine = rest if model == main else NOTHING
        if session.own.input and model == main and mine.output > 0 and (model, None) in session.last:
            # A query's own usage need not say what was thought; where nobody else asked the model, its sums do.
            thought = mine.thought if left.output > mine.output else left.thought
            session.add(model, None, Spent(output=mine.output, thought=thought), thread_id=thread)
            left = left._replace(output=left.output - mine.output, thought=left.thought - thought)
        # Where nothing was heard of a subagent since the last result, one of before may have ended only now.
        asked_now = [key for key in session.asked if key[0] == model]
        before = [] if left.input > 0 else [key for key in session.last if key[0] == model and key[1] is not None]
        if left.output > 0 and (subagents := asked_now or before):
            session.add(*subagents[-1], Spent(output=left.output, thought=left.thought), thread_id=thread)
            left = left._replace(output=0, thought=0)
        if left.input > 0 or left.output > 0:
            call_id = said.call_id if model == main else f"{said.call_id} {model}"
            messages = turns if model == main else None
            session.report(model or None, None, left, str(call_id), begun, messages=messages, **more)


def install() -> bool:
    """Hear of every message that the SDK receives, whether by `query` or `ClaudeSDKClient`. False, with the
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
