"""LlamaIndex: usage from the provider's own answer, which the events of its instrumentation module carry.

Where no run is in force the outermost span of LlamaIndex's (an agent's or workflow's run, a query, a chat) is one; its
thread is the `thread_id` or `session_id` of `instrument_tags`. An agent that a tool of another runs is a subagent.
A stream has usage where the provider was asked for it, for OpenAI by
`additional_kwargs={"stream_options": {"include_usage": True}}`. What an embedding cost no event says: it is a call
without usage, unless the instrumentation of the client below saw it, too.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from opentelemetry.context import Context, attach
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

from runmeter import guard
from runmeter.guard import harmless
from runmeter.hooks.invocations import Invocations, caller_of, thread_of
from runmeter.hooks.report import Begun, Memory, Told, field, first, missing, now, number, report
from runmeter.otel.in_force import detach, now_in_force
from runmeter.otel.processor import PROCESSOR
from runmeter.reading import semconv

PIP = "pip install llama-index-core"
_CALLS, _PACKAGES, _INVOCATIONS = Memory(), Memory(), Invocations()
_PROVIDERS = {
    "azure_openai": "azure.ai.openai", "bedrock": "aws.bedrock", "bedrock_converse": "aws.bedrock",
    "gemini": "gcp.gemini", "google_genai": "gcp.gemini", "mistralai": "mistral_ai", "openai_like": "openai",
    "vertex": "gcp.vertex_ai",
}  # fmt: skip
"""By the package of LlamaIndex's that asks the provider; the others are called what their package is."""
_HERE = ("huggingface", "fastembed", "instructor", "clip", "adapter", "llama_cpp", "openvino", "ipex_llm")
"""How the packages begin that compute embeddings in the process: no provider is asked."""
_installed = False


class Asked(NamedTuple):
    """A call under way."""

    begun: Begun
    provider: str | None
    model: str | None
    caller: str | None
    thread_id: str | None
    raw: Any = None
    """What came of a stream so far that has usage."""
    span: Any = None
    """That of an embedding is open and in force while it is asked for, so that the client's own is below it: no event
    has anything else by which the two could be known for the same call."""
    token: Any = None


def usage_from(response: Any) -> Told:
    """What a `ChatResponse` or `CompletionResponse` says of its call: by `raw`, the provider's own answer, in any of
    the usual words; by `additional_kwargs`, which has OpenAI's counts, where that has none."""
    raw = field(response, "raw")
    usage = first(field(raw, "usage"), field(raw, "response", "usage"), field(raw, "usage_metadata"))
    model = first(
        field(raw, "model"), field(raw, "response", "model"), field(raw, "model_version"), field(raw, "modelVersion")
    )
    call_id = first(field(raw, "id"), field(raw, "response", "id"), field(raw, "response_id"))
    told = Told(
        model=model if isinstance(model, str) else None, call_id=call_id if isinstance(call_id, str) else None
    )
    if usage is None:
        usage = field(response, "additional_kwargs")
    given = _first(usage, "input_tokens", "prompt_tokens", "prompt_token_count", "inputTokens")
    answered = _first(usage, "output_tokens", "completion_tokens", "candidates_token_count", "outputTokens")
    if given is None and answered is None:
        return told
    read = number(first(
        field(usage, "prompt_tokens_details", "cached_tokens"), field(usage, "input_tokens_details", "cached_tokens"),
        _first(usage, "cache_read_input_tokens", "cached_content_token_count", "cacheReadInputTokens"),
    ))  # fmt: skip
    written = number(_first(usage, "cache_creation_input_tokens", "cacheWriteInputTokens"))
    # Anthropic and Bedrock state them beside the input; the others as a part of it.
    beside = _first(usage, "cache_read_input_tokens", "cache_creation_input_tokens", "cacheReadInputTokens") is not None
    thoughts = number(_first(usage, "thoughts_token_count"))
    return told._replace(
        input_tokens=number(given) + (read + written if beside else 0), output_tokens=number(answered) + thoughts,
        cache_read_tokens=read, cache_write_tokens=written,
        reasoning_tokens=thoughts or number(first(
            field(usage, "completion_tokens_details", "reasoning_tokens"),
            field(usage, "output_tokens_details", "reasoning_tokens"),
        )),
    )  # fmt: skip


def _first(usage: Any, *names: str) -> Any:
    return first(*(field(usage, name) for name in names))


def _package(instance: Any) -> str | None:
    """Whose integration it is: `openai` of `llama_index.llms.openai`, also for a subclass of the program's own."""
    for one in type(instance).__mro__:
        words = one.__module__.split(".")
        if words[0] == "llama_index" and len(words) > 2 and words[1] in ("llms", "embeddings", "multi_modal_llms"):
            return words[2]
    return None


@harmless(None)
def entered(span_id: str, parent: str | None, instance: Any, tags: Any) -> None:
    """A span of LlamaIndex's began."""
    kinds = {one.__name__ for one in type(instance).__mro__}
    agent = field(instance, "name") if "BaseWorkflowAgent" in kinds and ".run-" in span_id else None
    metadata = dict(tags) if isinstance(tags, dict) else {}
    metadata["lc_agent_name"] = agent if isinstance(agent, str) else None
    _INVOCATIONS.begin(span_id, parent, metadata, name=agent, tool=bool(kinds & {"BaseTool", "AsyncBaseTool"}))
    if kinds & {"BaseLLM", "BaseEmbedding", "MultiModalLLM"}:
        _PACKAGES.begin(span_id, _package(instance))


@harmless(None)
def left(span_id: str, error: BaseException | None = None) -> None:
    """It ended; a call whose answer nobody saw has failed."""
    if error is not None:
        _failed(span_id)
    _PACKAGES.take(span_id)
    _INVOCATIONS.end(span_id, error)


@harmless(None)
def heard(event: Any) -> None:
    """An event of LlamaIndex's: a call began, brought a piece of a stream, is over or fell."""
    kind, span_id = type(event).__name__, field(event, "span_id")
    if span_id is None:
        return
    if kind in ("LLMChatStartEvent", "LLMCompletionStartEvent", "EmbeddingStartEvent"):
        _asked(event, span_id, kind.startswith("LLM"))
    elif kind in ("LLMChatInProgressEvent", "LLMCompletionInProgressEvent"):
        if field(event, "response", "raw", "usage") is not None:
            asked: Asked | None = _CALLS.take(span_id)
            if asked is not None:
                _CALLS.begin(span_id, asked._replace(raw=event.response))
    elif kind in ("LLMChatEndEvent", "LLMCompletionEndEvent", "EmbeddingEndEvent"):
        asked = _CALLS.take(span_id)
        if asked is not None:
            told = usage_from(field(event, "response"))
            if told.input_tokens is None and told.output_tokens is None and asked.raw is not None:
                told = usage_from(asked.raw)
            _report(asked, told)
    elif kind == "ExceptionEvent":
        _failed(span_id)


def _asked(event: Any, span_id: str, answers: bool) -> None:
    package = _PACKAGES.peek(span_id)
    if not answers and (package is None or package.startswith(_HERE)):
        return
    tags = field(event, "tags")
    invocation, context = _INVOCATIONS.find(span_id), now().context
    if invocation is not None:
        invocation.outermost.open()
        context = invocation.outermost.around(context)
    model = guard.text(_first(field(event, "model_dict"), "model_name", "model"))
    scope = now_in_force(context)
    caller = None if scope is not None and scope.caller is not None else caller_of(invocation, None)
    asked = Asked(
        Begun(context, now().started_at), _PROVIDERS.get(package or "", package), model, caller,
        None if _named(context) else thread_of(tags),
    )  # fmt: skip
    _CALLS.begin(span_id, asked if answers else _embedding(asked))


def _embedding(asked: Asked) -> Asked:
    tracer = PROCESSOR.tracer
    if not PROCESSOR.enabled or tracer is None:
        return asked
    attributes = {semconv.OPERATION_NAME: "embeddings"}
    for key, words in (
        (semconv.PROVIDER_NAME, asked.provider), (semconv.REQUEST_MODEL, asked.model), (semconv.CALLER, asked.caller),
        (semconv.CONVERSATION_ID, asked.thread_id),
    ):  # fmt: skip
        if words is not None:
            attributes[key] = words
    name = f"embeddings {asked.model or 'unknown'}"
    span = tracer.start_span(name, asked.begun.context, SpanKind.CLIENT, attributes)
    return asked._replace(span=span, token=attach(set_span_in_context(span, asked.begun.context)))


def _named(context: Context) -> bool:
    scope = now_in_force(context)
    return scope is not None and scope.run is not None and scope.run.info.thread_id is not None


def _failed(span_id: str) -> None:
    asked = _CALLS.take(span_id)
    if asked is not None:
        _report(asked, Told(), failed=True)


def _report(asked: Asked, told: Told, failed: bool = False) -> None:
    if asked.span is not None:
        detach(asked.token)
        if failed:
            asked.span.set_status(StatusCode.ERROR)
        asked.span.end()
        return
    told = told._replace(provider=asked.provider, model=told.model or asked.model)
    report(told, asked.begun, caller=asked.caller, thread_id=asked.thread_id, failed=failed)


@cache
def _handlers() -> tuple[Any, Any]:
    from llama_index.core.instrumentation.event_handlers import BaseEventHandler
    from llama_index.core.instrumentation.span_handlers import BaseSpanHandler

    class RunmeterEvents(BaseEventHandler):  # type: ignore[misc,unused-ignore]
        """Hears every event."""

        def handle(self, event: Any, **_: Any) -> None:
            if _installed or _CALLS.peek(field(event, "span_id")) is not None:
                heard(event)

    class RunmeterSpans(BaseSpanHandler):  # type: ignore[misc,type-arg,unused-ignore]
        """Hears where every span begins and ends, and keeps none."""

        def span_enter(
            self, id_: str, bound_args: Any, instance: Any = None, parent_id: str | None = None, tags: Any = None,
            **_: Any,
        ) -> None:  # fmt: skip
            if _installed:
                entered(id_, parent_id, instance, tags or _tags())

        def span_exit(self, id_: str, bound_args: Any, instance: Any = None, result: Any = None, **_: Any) -> None:
            left(id_)

        def span_drop(self, id_: str, bound_args: Any, instance: Any = None, err: Any = None, **_: Any) -> None:
            left(id_, err if isinstance(err, BaseException) else None)

        def new_span(self, *_: Any, **__: Any) -> None:
            """None is kept."""

        def prepare_to_exit_span(self, *_: Any, **__: Any) -> None:
            """None is kept."""

        def prepare_to_drop_span(self, *_: Any, **__: Any) -> None:
            """None is kept."""

    return RunmeterEvents(), RunmeterSpans()


def _tags() -> Any:
    """Those of `instrument_tags`, which a span's own begin without in some releases."""
    with suppress(Exception):
        from llama_index_instrumentation.dispatcher import active_instrument_tags

        return active_instrument_tags.get()
    return None


def install() -> bool:
    """Hear of every call in this process. False, with the `pip install` line in the log, without LlamaIndex."""
    global _installed
    try:
        from llama_index.core.instrumentation import get_dispatcher

        events, spans = _handlers()
    except ImportError:
        return missing("LlamaIndex", PIP)
    root = get_dispatcher()
    # Before the others, so that the run is there when they begin a span for it.
    root.event_handlers = [events, *(one for one in root.event_handlers if one is not events)]
    root.span_handlers = [spans, *(one for one in root.span_handlers if one is not spans)]
    _installed = True
    return True


def uninstall() -> None:
    """Hear of nothing new; what is under way is still heard to its end."""
    global _installed
    _installed = False
