"""LangChain and LangGraph: usage from the callbacks that every chat model of theirs makes.

`install()` covers the whole process; `UsageCallbackHandler()` among the callbacks of one invocation covers that one.
Both at once count a call once. Where no run is in force, the outermost invocation is one: `metadata["thread_id"]` (for
LangGraph `configurable["thread_id"]`) is its thread, and it ends as the invocation does; see `invocations.py`.
Callers come from tags, `lead_agent`, `subagent:<name>` and `middleware:<name>`, the innermost winning; then from
`runmeter.caller`; then from the names of agents and middlewares that `create_agent` was given.
Messages are counted as `messages.py` says: human, AI and tool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, NamedTuple

from opentelemetry.context import Context

from runmeter import guard
from runmeter.guard import harmless
from runmeter.hooks.invocations import Invocations, caller_of, thread_of
from runmeter.hooks.messages import Unanswered, add_to_run, answers, has_human, run_key, tool_messages
from runmeter.hooks.report import Begun, Memory, Told, field, first, missing, now, number, report
from runmeter.otel.in_force import now_in_force

PIP = "pip install langchain-core"
_KINDS = ("subagent:", "middleware:")
_CALLS = Memory()
"""One for all handlers, so that two of them on one call count it once."""
_INVOCATIONS = Invocations()
_WAITING = Unanswered()
"""Messages that the next call of their run carries."""
_installed = False
_registered = False


def usage_from(result: Any) -> Told:
    """What an `LLMResult` says of its call. LangChain's `usage_metadata` is inclusive; older models only fill
    `llm_output["token_usage"]`, as OpenAI words it."""
    messages = [field(one, "message") for many in field(result, "generations") or () for one in many]
    message = first(*[m for m in messages if field(m, "usage_metadata")], *messages)
    meta, output = field(message, "response_metadata") or {}, field(result, "llm_output") or {}
    names = {
        "provider": first(field(meta, "model_provider"), field(output, "model_provider")),
        "model": first(field(meta, "model_name"), field(meta, "model"), field(output, "model_name")),
        "call_id": _response_id(message, meta, output),
        "messages": answers(field(result, "generations") or ()),
    }
    usage = field(message, "usage_metadata")
    if usage:
        return Told(
            **names,
            input_tokens=number(field(usage, "input_tokens")), output_tokens=number(field(usage, "output_tokens")),
            cache_read_tokens=number(field(usage, "input_token_details", "cache_read")),
            cache_write_tokens=number(field(usage, "input_token_details", "cache_creation")),
            reasoning_tokens=number(field(usage, "output_token_details", "reasoning")),
        )  # fmt: skip
    old = first(field(output, "token_usage"), field(output, "usage"))
    given, answered = field(old, "prompt_tokens"), field(old, "completion_tokens")
    if given is None and answered is None:
        return Told(**names)
    return Told(
        **names, input_tokens=number(given), output_tokens=number(answered),
        cache_read_tokens=number(field(old, "prompt_tokens_details", "cached_tokens")),
        reasoning_tokens=number(field(old, "completion_tokens_details", "reasoning_tokens")),
    )  # fmt: skip


def _response_id(message: Any, meta: Any, output: Any) -> str | None:
    for found in (field(meta, "id"), field(output, "id"), field(message, "id")):
        # Where a provider gave none, LangChain makes ids of its own from the run's.
        if isinstance(found, str) and found and not found.startswith(("run-", "lc_run-", "lc_")):
            return found
    return None


def caller_from(tags: Iterable[str] | None) -> str | None:
    """The caller that tags name; the last one wins, since tags of what is inside come last."""
    named = [tag for tag in tags or () if tag == "lead_agent" or tag.startswith(_KINDS)]
    return named[-1] if named else None


class Asked(NamedTuple):
    """A call under way, and what only its beginning says of it."""

    begun: Begun
    caller: str | None = None
    thread_id: str | None = None
    for_run: str | None = None


@harmless(None)
def _entered(run_id: Any, more: Mapping[str, Any], for_run: str | None, tool: bool = False) -> None:
    _INVOCATIONS.begin(
        run_id, more.get("parent_run_id"), more.get("metadata"), name=more.get("name"), tool=tool, for_run=for_run
    )


@harmless(None)
def _left(run_id: Any, for_run: str | None, error: BaseException | None = None, outermost: bool = False) -> None:
    invocation = _INVOCATIONS.find(run_id)
    if outermost if invocation is None else invocation.outermost.run_id == run_id:
        # What the last tools said, no call will carry.
        key = _key(run_id, for_run)
        add_to_run(key, _WAITING.left(key))
    _INVOCATIONS.end(run_id, error)


def _where(run_id: Any) -> Context:
    context, invocation = now().context, _INVOCATIONS.find(run_id)
    return context if invocation is None else invocation.outermost.around(context)


def _key(run_id: Any, for_run: str | None) -> Any:
    return run_key(_where(run_id), for_run)


@harmless(None)
def _began(run_id: Any, more: Mapping[str, Any], for_run: str | None, prompts: Any = None) -> None:
    metadata = more.get("metadata")
    invocation = _INVOCATIONS.begin(run_id, more.get("parent_run_id"), metadata, for_run=for_run)
    outermost = invocation.outermost
    for_run = for_run or outermost.for_run
    asked: Asked | None = _CALLS.take(run_id)
    if asked is None:
        if outermost.run_id != run_id:
            outermost.open()
        begun = Begun(_where(run_id), now().started_at)
        scope = now_in_force(begun.context)
        caller = None if scope is not None and scope.caller is not None else caller_of(invocation, metadata)
        known = scope is not None and scope.run is not None and scope.run.info.thread_id is not None
        asked = Asked(begun, caller, None if known else thread_of(metadata))
        if has_human(prompts):
            _WAITING.asked(run_key(begun.context, for_run))
    _CALLS.begin(run_id, asked._replace(for_run=asked.for_run or for_run))


@harmless(None)
def _ended(
    run_id: Any, tags: Any, told: Told, for_run: str | None, failed: bool = False, error: BaseException | None = None
) -> None:  # fmt: skip
    asked: Asked = _CALLS.take(run_id) or Asked(now())
    if _CALLS.first_time(run_id):
        for_run = asked.for_run or for_run
        caller = caller_from(tags) or asked.caller
        if failed:  # the attempt that is answered carries what waits
            told = told._replace(messages=0)
        else:
            more = _WAITING.carry(run_key(asked.begun.context, for_run), told.provider, told.model, caller)
            told = told._replace(messages=(1 if told.messages is None else told.messages) + more)
        invocation = _INVOCATIONS.find(run_id)
        begun = asked.begun
        if invocation is not None and invocation.outermost.run_id == run_id:
            invocation.outermost.open()
            begun = Begun(invocation.outermost.around(begun.context), begun.started_at)
        report(told, begun, caller=caller, thread_id=asked.thread_id, run_id=for_run, failed=failed)
    _INVOCATIONS.end(run_id, error)


@harmless(None)
def _tool_ended(run_id: Any, output: Any, for_run: str | None) -> None:
    number = tool_messages(output)
    if number and _CALLS.first_time(("tool", run_id)):
        _WAITING.add(_key(run_id, for_run), number)


@harmless(None)
def _external(records: Iterable[Mapping[str, Any]], for_run: str | None) -> None:
    for record in records:
        source = first(field(record, "source_run_id"), field(record, "source_id"))
        told = external_usage(record)
        if told is None or source is None or not str(source):
            continue
        key = run_key(now().context, for_run)
        if _CALLS.first_time(("external", key, str(source))):
            caller = guard.text(field(record, "caller")) or "lead_agent"
            if caller.partition(":")[0] not in ("subagent", "middleware"):
                caller = "lead_agent"
            # An id of the run's own: two runs may have a source of the same name, and no provider gave it.
            report(told._replace(call_id=f"{source}@{key}"), now(), caller=caller, run_id=for_run)


def external_usage(record: Mapping[str, Any]) -> Told | None:
    """The usage of one record; None where it has none. A total without its parts, or larger than they are, is kept
    whole: what nobody told apart counts as input."""
    given, answered = number(field(record, "input_tokens")), number(field(record, "output_tokens"))
    total = max(number(field(record, "total_tokens")), given + answered)
    if not total:
        return None
    return Told(
        provider=field(record, "provider"), model=first(field(record, "model_name"), field(record, "model")),
        input_tokens=total - answered, output_tokens=answered,
        cache_read_tokens=number(field(record, "cache_read_tokens")),
        cache_write_tokens=number(field(record, "cache_write_tokens")),
        reasoning_tokens=number(field(record, "reasoning_tokens")), messages=0,
    )  # fmt: skip


@cache
def _handler_class() -> type[Any]:
    try:
        from langchain_core.callbacks import BaseCallbackHandler
    except ImportError:
        raise ImportError(f"UsageCallbackHandler needs LangChain. Run: {PIP}") from None

    class UsageCallbackHandler(BaseCallbackHandler):  # type: ignore[misc,unused-ignore]
        """Counts each call of a chat model or LLM once, from any thread, with or without an event loop.

        `run_id`: the runmeter run that calls belong to, for threads that the context does not reach; without it,
        the run in force where the call began.
        """

        run_inline = True  # in order, in the caller's own context, also under asyncio

        def __init__(self, run_id: str | None = None) -> None:
            self.run_id = run_id

        def on_chat_model_start(self, serialized: Any, messages: Any, *, run_id: Any, **more: Any) -> None:
            _began(run_id, more, self.run_id, messages)

        def on_llm_start(self, serialized: Any, prompts: Any, *, run_id: Any, **more: Any) -> None:
            _began(run_id, more, self.run_id)

        def on_llm_end(self, response: Any, *, run_id: Any, tags: Any = None, **_: Any) -> None:
            _ended(run_id, tags, usage_from(response), self.run_id)

        def on_llm_error(self, error: BaseException, *, run_id: Any, tags: Any = None, **_: Any) -> None:
            told = usage_from(field(error, "response")) if field(error, "response", "generations") else Told()
            _ended(run_id, tags, told, self.run_id, failed=True, error=error)

        def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: Any, **more: Any) -> None:
            _entered(run_id, more, self.run_id)

        def on_chain_end(self, outputs: Any, *, run_id: Any, parent_run_id: Any = None, **_: Any) -> None:
            _left(run_id, self.run_id, outermost=parent_run_id is None)

        def on_chain_error(
            self, error: BaseException, *, run_id: Any, parent_run_id: Any = None, **_: Any
        ) -> None:  # fmt: skip
            _left(run_id, self.run_id, error, outermost=parent_run_id is None)

        def on_tool_start(self, serialized: Any, input_str: Any, *, run_id: Any, **more: Any) -> None:
            _entered(run_id, more, self.run_id, tool=True)

        def on_tool_end(self, output: Any, *, run_id: Any, **_: Any) -> None:
            _tool_ended(run_id, output, self.run_id)
            _left(run_id, self.run_id)

        def on_tool_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
            _left(run_id, self.run_id, error)

        def on_retriever_start(self, serialized: Any, query: Any, *, run_id: Any, **more: Any) -> None:
            _entered(run_id, more, self.run_id)

        def on_retriever_end(self, documents: Any, *, run_id: Any, **_: Any) -> None:
            _left(run_id, self.run_id)

        def on_retriever_error(self, error: BaseException, *, run_id: Any, **_: Any) -> None:
            _left(run_id, self.run_id, error)

        def record_external_llm_usage_records(self, records: Sequence[Mapping[str, Any]]) -> None:
            """Usage of subagents that ran elsewhere, a call each: `source_run_id`, `caller`, `model_name`,
            `input_tokens`, `output_tokens`, `total_tokens`, … as deer-flow's journal takes them. A record without a
            source id, or without usage, is skipped; a source id seen before in the run adds nothing. Without a caller
            that is a subagent or a middleware it is the lead agent's. These calls count no messages."""
            _external(records, self.run_id)

        record_external = record_external_llm_usage_records

    return UsageCallbackHandler


def _if_begun(ends: Any) -> Any:
    def end(*args: Any, run_id: Any, **kwargs: Any) -> None:
        if _installed or _CALLS.peek(run_id) is not None:
            ends(*args, run_id=run_id, **kwargs)

    return end


@cache
def _process_handler() -> Any:
    class Installed(_handler_class()):  # type: ignore[misc]
        """Once uninstalled it hears only how what it had heard of ends."""

    def while_installed(begins: Any) -> Any:
        def begin(*args: Any, **kwargs: Any) -> None:
            if _installed:
                begins(*args, **kwargs)

        return begin

    for name in ("chat_model", "llm", "chain", "tool", "retriever"):
        setattr(Installed, f"on_{name}_start", while_installed(getattr(Installed, f"on_{name}_start")))
    for name in ("on_llm_end", "on_llm_error"):
        setattr(Installed, name, _if_begun(getattr(Installed, name)))
    return Installed()


def _go_first() -> None:
    """The instrumentations put their handlers into every manager as it is made; ours goes before them, so that the
    run is there when they begin a span for it."""
    from langchain_core.callbacks.base import BaseCallbackManager

    make, ours = BaseCallbackManager.__init__, _process_handler()

    @wraps(make)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        if _installed:
            for name in ("handlers", "inheritable_handlers"):
                others = [one for one in getattr(self, name) if one is not ours]
                setattr(self, name, [ours, *others])

    BaseCallbackManager.__init__ = __init__


def install() -> bool:
    """Hear of every call in this process. False, with the `pip install` line in the log, without LangChain."""
    global _installed, _registered
    try:
        from langchain_core.tracers.context import register_configure_hook
    except ImportError:
        return missing("LangChain", PIP)
    if not _registered:
        # A default rather than a value: every context has it, those of threads and tasks included.
        everywhere = ContextVar("runmeter_usage", default=_process_handler())  # noqa: B039
        register_configure_hook(everywhere, inheritable=True)
        _go_first()
        _registered = True
    _installed = True
    return True


def uninstall() -> None:
    """Hear of no further call. LangChain cannot unregister a hook, so ours stays and does nothing."""
    global _installed
    _installed = False


def __getattr__(name: str) -> Any:
    if name == "UsageCallbackHandler":
        return _handler_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
