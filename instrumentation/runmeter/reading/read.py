"""What one ended span says, free of content: `read(span) -> Reading`. Pure and total; the Settler does the counting.

Spans come from programs we do not know, so nothing in an attribute may raise: numbers that are text are taken,
anything else that is not a count is dropped and its reason is kept on the reading (rule 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from runmeter import clean
from runmeter.clean import ID_LIMIT, LABEL_LIMIT
from runmeter.guard import unless_the_hosts
from runmeter.reading import semconv
from runmeter.reading.again import read_again, remember, words_of
from runmeter.reading.libraries import RAW_NAME, RAW_SUFFIX, SUBAGENT, Library
from runmeter.reading.operations import CHAT, operation_of
from runmeter.reading.plan import is_plain, plan_of
from runmeter.reading.reading import Reading
from runmeter.reading.roles import AGENT, AGGREGATE, BEGINNING, CALL, PLAIN, REREAD, TOOL, WEAK, WHOLE, Role
from runmeter.reading.tokens import answer_of, usage_of
from runmeter.reading.values import as_provider, as_seconds, as_tags
from runmeter.spans import EndedSpan
from runmeter.usage import Usage

__all__ = ["ID_LIMIT", "LABEL_LIMIT", "Reading", "Role", "is_plain", "read"]

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
    resource_key, service = _facts(resource)
    words = words_of(plan, shape, span, resource_key)
    if words is not None and (again := read_again(words, plan, span)) is not None:
        return again
    usual = shape.usual(attributes)
    seldom = shape.seldom(attributes) if shape.seldom_keys else _NOTHING
    model, provider, agent, thread_id, run_id, source_id = _names(usual[6:])

    role = plan.role(shape, usual, attributes, name, failed)
    usage: Usage | None = None
    response_id: str | None = None
    cost = messages = None
    retries = 0
    stream_log = False
    tells = WHOLE
    operation = CHAT
    request_model = error = first_chunk = None
    reasons: list[str] = []
    if role is not PLAIN and role is not TOOL:
        usage, raw_model, raw_id = usage_of(usual, shape, dialect, name, attributes, reasons)
        if usage is None and (role is WEAK or seldom.get("span_type") == "log"):
            role = PLAIN
        elif role is CALL or role is WEAK:
            response_id = clean.identifier(usual[5]) or raw_id
            operation = operation_of(shape.kinds, attributes, name)
            if shape.requested is not None:
                asked = attributes[shape.requested]
                request_model = model if asked is usual[6] else clean.label(asked)
            if failed and semconv.ERROR_TYPE in attributes:
                error = clean.label(attributes[semconv.ERROR_TYPE])
            if semconv.FIRST_CHUNK in attributes:
                first_chunk = as_seconds(attributes[semconv.FIRST_CHUNK])
            model = model or raw_model
            if seldom:
                cost, messages, retries = _priced(seldom, reasons)
                if seldom.get("span_type") == "log":
                    stream_log = True
                    started_at = _stream_began(attributes, started_at)
            if name == RAW_NAME:
                scope += RAW_SUFFIX
            if plan.peculiar:
                provider = provider or dialect.provider
                if dialect.answer_key is not None and response_id is None:
                    response_id, tells = answer_of(dialect, name, attributes)
                    if tells == REREAD and usage is None:
                        role = PLAIN
                elif dialect.beginnings is not None and dialect.beginnings.search(name):
                    tells = BEGINNING
    if plan.peculiar and dialect.model_has_provider:
        provider, model = _split(model) if role is CALL else (None, None)
    if role is not CALL and role is not WEAK:
        provider = None

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
        user_id = clean.identifier(seldom.get("user"))
        is_root = scope == semconv.SCOPE and seldom.get("run_root") is True
        if is_root:
            run_status = clean.label(seldom.get("run_status"))
            stop_reason = clean.label(seldom.get("stop_reason"), ID_LIMIT)
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
            tells,
            operation,
            request_model,
            error,
            first_chunk,
        ),
    )
    if words is not None:
        remember(words, span, reading)
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
        clean.label(model),
        as_provider(provider),
        clean.label(agent),
        clean.identifier(thread_id),
        clean.identifier(run_id),
        clean.identifier(source_id),
    )
    if all(text is None or (type(text) is str and len(text) <= ID_LIMIT) for text in said):
        if len(_cleaned) >= _MAX_CLEANED:
            _cleaned.clear()
        _cleaned[said] = names
    return names


def _priced(seldom: Mapping[str, Any], rejected: list[str]) -> tuple[int | None, int | None, int]:
    """(cost, messages, retries) of a call."""
    cost = clean.cost(seldom["cost"], rejected) if "cost" in seldom else None
    if "amount" in seldom and str(seldom.get("currency")).strip().upper() == "USD":
        cost = clean.cost(seldom["amount"], rejected) or cost
    messages = clean.count(seldom["messages"], rejected) if "messages" in seldom else None
    retries = clean.count(seldom["retries"], rejected) or 0 if "retries" in seldom else 0
    if "attempt" in seldom:
        retries = max(retries, (clean.count(seldom["attempt"], rejected) or 1) - 1)
    return cost, messages, retries


def _caller(seldom: Mapping[str, Any], agent: str | None) -> str | None:
    """The explicit caller, or the subagent that a library names in its own way."""
    if "caller" in seldom:
        return clean.label(seldom["caller"])
    asked_by = seldom.get("asked_by")
    kind = SUBAGENT.fullmatch(asked_by) if type(asked_by) is str else None
    if kind is None and "subagent" not in seldom:
        return None
    # By its type: an id of each would be a caller of each.
    return clean.label(f"subagent:{(clean.label(kind[1]) if kind else None) or agent or 'agent'}")


def _agent_in(name: str, dialect: Library) -> str | None:
    """The agent whose span has no attribute with its name: OpenInference and Google ADK 1 name the span after it."""
    found = dialect.agent_in_name.match(name) if dialect.agent_in_name is not None else None
    if found:
        return clean.label(next(filter(None, found.groups()), None))
    return None if name == "invoke_agent" else clean.label(name.removeprefix("invoke_agent "))


def _split(model: str | None) -> tuple[str | None, str | None]:
    """(provider, model) of `provider/model`."""
    before, _, after = (model or "").partition("/")
    return (as_provider(before), after) if after else (None, model)


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
    service = clean.label(resource.get(semconv.SERVICE_NAME))
    if service is not None and service.startswith("unknown_service"):
        service = None
    if len(_resources) >= _MAX_RESOURCES:
        _resources.clear()
    _resources[id(resource)] = (resource, (key, service))
    return key, service
