"""What one ended span says, free of content: `read(span) -> Reading`. Pure and total; the Settler does the counting.

Spans come from programs we do not know, so nothing in an attribute may raise: numbers that are text are taken,
anything else that is not a count is dropped and its reason is kept on the reading (rule 9).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from itertools import repeat
from typing import Any, Final

from runmeter import semconv
from runmeter.dialects import (
    AGENT,
    AGGREGATE,
    CALL,
    PLAIN,
    RAW_NAME,
    RAW_SUFFIX,
    RAW_USAGE,
    TEXT_COUNT,
    TEXT_FIELDS,
    TOOL,
    WEAK,
    Dialect,
    Role,
)
from runmeter.guard import unless_the_hosts
from runmeter.plan import is_plain, plan_of
from runmeter.reading import Reading
from runmeter.spans import EndedSpan
from runmeter.usage import COUNT_LIMIT, Usage
from runmeter.values import ID_LIMIT, LABEL_LIMIT, as_cost, as_count, as_provider, as_tags, as_text, clean

__all__ = ["ID_LIMIT", "LABEL_LIMIT", "Reading", "Role", "clean", "is_plain", "read"]

_TEXT_LIMIT: Final = 65_536
_STREAMED: Final = "gen_ai.request.stream"
_NANO: Final = 1_000_000_000
_NOTHING: Final[Mapping[str, Any]] = {}
_new: Final[Any] = tuple.__new__
"""Makes a named tuple of a tuple as long as it: its own constructor, in Python, costs as much as half of reading."""


def read(span: EndedSpan) -> Reading:
    """What `span` says. Never raises: a span that cannot be read is a plain one with `unreadable` in `rejected`."""
    try:
        return _read(span)
    except Exception as error:  # hostile mappings and numbers; the host is never harmed (rule 8)
        unless_the_hosts(error)
        bare = Reading(span.trace_id, span.span_id, span.parent_id, bool(span.parent_is_remote))
        return bare._replace(rejected=("unreadable",))


def _read(span: EndedSpan) -> Reading:
    trace_id, span_id, parent_id, remote, name, _, scope, resource, attributes, started_at, ended_at, failed = span
    plan = plan_of(scope)
    dialect = plan.dialect
    shape = plan.shape(attributes)
    usual = shape.usual(attributes)
    seldom = shape.seldom(attributes) if shape.seldom_keys else _NOTHING
    model, provider, agent, thread_id, run_id, source_id = _names(usual[6:])

    role = plan.role(shape, usual, attributes, name, failed)
    usage: Usage | None = None
    response_id: str | None = None
    cost = messages = None
    retries = 0
    stream_log = False
    reasons: list[str] = []
    if role is not PLAIN and role is not TOOL:
        usage, raw_model, raw_id = _usage(usual, dialect, name, attributes, reasons)
        if usage is None and (role is WEAK or seldom.get("span_type") == "log"):
            role = PLAIN
        elif role is CALL or role is WEAK:
            response_id = as_text(usual[5], ID_LIMIT) or raw_id
            model = model or raw_model
            if seldom:
                cost, messages, retries = _priced(seldom, reasons)
                if seldom.get("span_type") == "log":
                    stream_log = True
                    started_at = _stream_began(attributes, started_at)
            if name == RAW_NAME:
                scope += RAW_SUFFIX
    if role is not CALL and role is not WEAK:
        provider = None

    resource_key, service = _facts(resource)
    if role is AGENT:
        if dialect.agent_key is not None and dialect.agent_key not in attributes:
            role = AGGREGATE
            agent = None
        elif agent is None:
            agent = _agent_in(name, dialect)
    if not dialect.names_threads and semconv.CONVERSATION_ID in attributes:
        thread_id = None
    caller = user_id = run_status = stop_reason = None
    is_root = False
    if seldom:
        caller = _caller(seldom, agent)
        user_id = as_text(seldom.get("user"), ID_LIMIT)
        is_root = scope == semconv.SCOPE and seldom.get("run_root") is True
        if is_root:
            run_status = as_text(seldom.get("run_status"), LABEL_LIMIT)
            stop_reason = as_text(seldom.get("stop_reason"), ID_LIMIT)
    reading: Reading = _new(
        Reading,
        (
            trace_id,
            span_id,
            parent_id,
            bool(remote),
            role,
            scope,
            resource_key,
            started_at,
            ended_at,
            bool(failed),
            usage,
            response_id,
            provider,
            model,
            agent,
            thread_id,
            run_id,
            source_id,
            user_id,
            service,
            as_tags(attributes) if scope == semconv.SCOPE else (),
            caller,
            cost,
            messages,
            retries,
            is_root,
            run_status,
            stop_reason,
            stream_log,
            dialect.aggregates_count,
            tuple(reasons),
        ),
    )
    return reading


_Names = tuple[str | None, str | None, str | None, str | None, str | None, str | None]
_cleaned: dict[tuple[Any, ...], _Names] = {}
_MAX_CLEANED: Final = 256


def _names(said: tuple[Any, ...]) -> _Names:
    """(model, provider, agent, thread, run id, source id), cleaned.

    The calls of one agent say the same again and again, so what was clean text is remembered, and nothing else: numbers
    are equal that are not the same, and what is too long is not kept (rule 11).
    """
    try:
        known = _cleaned.get(said)
    except TypeError:  # something that cannot be a key; it is no text either
        known = None
    if known is not None:
        return known
    model, provider, agent, thread_id, run_id, source_id = said
    names = (
        as_text(model, LABEL_LIMIT),
        as_provider(provider),
        as_text(agent, LABEL_LIMIT),
        as_text(thread_id, ID_LIMIT),
        as_text(run_id, ID_LIMIT),
        as_text(source_id, ID_LIMIT),
    )
    if all(text is None or (type(text) is str and len(text) <= ID_LIMIT) for text in said):
        if len(_cleaned) >= _MAX_CLEANED:
            _cleaned.clear()
        _cleaned[said] = names
    return names


def _priced(seldom: Mapping[str, Any], rejected: list[str]) -> tuple[int | None, int | None, int]:
    """(cost, messages, retries) of a call."""
    cost = as_cost(seldom["cost"], rejected) if "cost" in seldom else None
    messages = as_count(seldom["messages"], rejected) if "messages" in seldom else None
    retries = as_count(seldom["retries"], rejected) or 0 if "retries" in seldom else 0
    if "attempt" in seldom:
        retries = max(retries, (as_count(seldom["attempt"], rejected) or 1) - 1)
    return cost, messages, retries


def _caller(seldom: Mapping[str, Any], agent: str | None) -> str | None:
    """The explicit caller, or the subagent that a library names in its own way."""
    if "caller" in seldom:
        return as_text(seldom["caller"], LABEL_LIMIT)
    if "subagent" in seldom:
        subagent = agent or as_text(seldom["subagent"], LABEL_LIMIT - 9)
        return f"subagent:{subagent}" if subagent else None
    return None


def _agent_in(name: str, dialect: Dialect) -> str | None:
    """The agent whose span has no attribute with its name: OpenInference and Google ADK 1 name the span after it."""
    found = dialect.agent_in_name.match(name) if dialect.agent_in_name is not None else None
    if found:
        return as_text(found[1] or found[2], LABEL_LIMIT)
    return None if name == "invoke_agent" else as_text(name.removeprefix("invoke_agent "), LABEL_LIMIT)


def _usage(
    usual: Sequence[Any], dialect: Dialect, name: str, attributes: Mapping[str, Any], rejected: list[str]
) -> tuple[Usage | None, str | None, str | None]:
    """The inclusive counts, and the model and response id where only a raw answer has them."""
    given_input, given_output, cache_read, cache_write, reasoning = map(as_count, usual[:5], repeat(rejected))
    excludes_cache = dialect.input_excludes_cache
    excludes_reasoning = False
    model = response_id = None
    if dialect.texts:
        texts = [text for text in map(attributes.get, dialect.texts) if type(text) is str]
        if name == RAW_NAME:
            text, model, response_id = _raw_answer(attributes)
            texts += text
        if texts:
            found = _counts_in(texts)
            if given_input is None:
                given_input = found.get("input")
                excludes_cache |= "cache_read_input_tokens" in found and "prompt_tokens" not in found
            if given_output is None:
                given_output = found.get("output")
            if not cache_read:
                cache_read = found.get("cache_read")
            if not cache_write:
                cache_write = found.get("cache_write")
            if not reasoning:
                reasoning = found.get("reasoning")
                excludes_reasoning = dialect.output_excludes_reasoning
    if dialect.measured_key and dialect.measured_key not in attributes and attributes.get(_STREAMED) is True:
        return None, model, response_id
    if not given_input and not given_output:
        return None, model, response_id  # a provider never answers with 0 and 0: LiteLLM writes it for "unknown"
    tokens_in, tokens_out = given_input or 0, given_output or 0
    cached, written, thought = cache_read or 0, cache_write or 0, reasoning or 0
    if excludes_cache or cached + written > tokens_in:
        tokens_in = min(tokens_in + cached + written, COUNT_LIMIT)
        written = min(written, tokens_in - cached)
    if excludes_reasoning or thought > tokens_out:
        tokens_out = min(tokens_out + thought, COUNT_LIMIT)
    usage: Usage = _new(Usage, (tokens_in, tokens_out, cached, written, thought, 0, 0, 0, 0, 0, 0))
    return usage, model, response_id


def _counts_in(texts: list[str]) -> dict[str, int]:
    """Counts by field and by the name they had; the first of a field wins."""
    found: dict[str, int] = {}
    for text in texts:
        for word, digits in TEXT_COUNT.findall(text[-_TEXT_LIMIT:]):
            count = int(digits)
            if count <= COUNT_LIMIT:
                found.setdefault(TEXT_FIELDS[word], count)
                found.setdefault(word, count)
    return found


def _raw_answer(attributes: Mapping[str, Any]) -> tuple[list[str], str | None, str | None]:
    for key in attributes:
        if type(key) is str and RAW_USAGE.fullmatch(key):
            prefix = key[: -len("usage")]
            text = attributes[key]
            return (
                [text] if type(text) is str else [],
                as_text(attributes.get(prefix + "model"), LABEL_LIMIT),
                as_text(attributes.get(prefix + "id"), ID_LIMIT),
            )
    return [], None, None


def _stream_began(attributes: Mapping[str, Any], logged_at: int) -> int:
    duration = attributes.get("duration")
    if type(duration) is float and 0 <= duration < 1e6:
        return logged_at - int(duration * _NANO)
    return logged_at


_resources: dict[int, tuple[Mapping[str, Any], tuple[str, str | None]]] = {}
_MAX_RESOURCES: Final = 64


def _facts(resource: Mapping[str, Any]) -> tuple[str, str | None]:
    """(key, service) of a resource. A process has one resource object, so the answer is remembered by identity."""
    known = _resources.get(id(resource))
    if known is not None and known[0] is resource:
        return known[1]
    text = "\n".join(sorted(f"{key}={value}"[:512] for key, value in resource.items()))
    key = blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    service = as_text(resource.get(semconv.SERVICE_NAME), LABEL_LIMIT)
    if service is not None and service.startswith("unknown_service"):
        service = None
    if len(_resources) >= _MAX_RESOURCES:
        _resources.clear()
    _resources[id(resource)] = (resource, (key, service))
    return key, service
