"""What one ended span says, free of content: `read(span) -> Reading`. Pure and total; the Settler does the counting.

Spans come from programs we do not know, so nothing in an attribute may raise: numbers that are text are taken,
anything else that is not a count is dropped and its reason is kept on the reading (rule 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from runmeter import semconv
from runmeter.dialects import (
    AGENT,
    AGGREGATE,
    CALL,
    DEFAULT,
    DIALECTS,
    KINDS,
    PLAIN,
    RAW_NAME,
    RAW_USAGE,
    TEXT_COUNT,
    TEXT_FIELDS,
    TOOL,
    WEAK,
    Dialect,
    Role,
)
from runmeter.reading import Reading
from runmeter.spans import EndedSpan
from runmeter.usage import COUNT_LIMIT, Usage
from runmeter.values import ID_LIMIT, LABEL_LIMIT, as_cost, as_count, as_provider, as_tags, as_text, clean

__all__ = ["ID_LIMIT", "LABEL_LIMIT", "Reading", "Role", "clean", "is_plain", "read"]

_TEXT_LIMIT: Final = 65_536
_STREAMED: Final = "gen_ai.request.stream"
_NANO: Final = 1_000_000_000


# --- the plan: which key fills which slot ---------------------------------------------------------------------------

_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "input": semconv.INPUT,
    "output": semconv.OUTPUT,
    "cache_read": semconv.CACHE_READ,
    "cache_write": semconv.CACHE_WRITE,
    "reasoning": semconv.REASONING,
    "model": semconv.MODEL,
    "provider": semconv.PROVIDER,
    "response_id": semconv.RESPONSE,
    "thread": semconv.THREAD,
    "user": semconv.USER,
    "agent": semconv.AGENT_NAMES,
    "cost": semconv.COST,
    "retries": semconv.RETRIES,
    "run_id": (semconv.RUN_ID,),
    "source_id": (semconv.SOURCE_ID,),
    "caller": (semconv.CALLER,),
    "messages": (semconv.MESSAGES,),
    "run_root": (semconv.RUN_ROOT,),
    "run_status": (semconv.RUN_STATUS,),
    "stop_reason": (semconv.RUN_STOP_REASON,),
    "attempt": (),
    "subagent": (),
    "span_type": (),
} | {f"kind{index}": (key,) for index, (key, _) in enumerate(KINDS)}
_SLOT: Final = {name: slot for slot, name in enumerate(_FIELDS)}
_EMPTY: Final = [None] * len(_SLOT)
(
    _INPUT,
    _OUTPUT,
    _CACHE_READ,
    _CACHE_WRITE,
    _REASONING,
    _MODEL,
    _PROVIDER,
    _RESPONSE_ID,
    _THREAD,
    _USER,
    _AGENT,
    _COST,
    _RETRIES,
    _RUN_ID,
    _SOURCE_ID,
    _CALLER,
    _MESSAGES,
    _RUN_ROOT,
    _RUN_STATUS,
    _STOP_REASON,
    _ATTEMPT,
    _SUBAGENT,
    _SPAN_TYPE,
) = range(23)
_KIND_TABLES: Final = tuple((23 + index, table) for index, (_, table) in enumerate(KINDS))
_NUMBERS_OF_TEXT: Final = {"input": 0, "output": 1, "cache_read": 2, "cache_write": 3, "reasoning": 4}


class _Plan:
    """How to read one scope: every key that means something there, with its slot and rank."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.by_name = bool(dialect.names or dialect.failed_names)
        self.keys: dict[str, tuple[int, int]] = {}
        for name, own in _FIELDS.items():
            for rank, key in enumerate((*own, *dialect.keys.get(name, ()))):
                self.keys.setdefault(key, (_SLOT[name], rank))
        if dialect.stream_log:
            self.keys["logfire.span_type"] = (_SPAN_TYPE, 0)
        deciding = {key for key in self.keys if self.keys[key][0] in _DECIDING_SLOTS}
        deciding.update(key for keys in dialect.keys.values() for key in keys)
        self.deciding = frozenset(deciding)
        self.deciding_below = self.deciding - {semconv.RUN_ID, semconv.CONVERSATION_ID, semconv.USER_ID}
        self._shapes: dict[tuple[Any, ...], list[tuple[int, str]]] = {}

    def shape(self, attributes: Mapping[str, Any]) -> list[tuple[int, str]]:
        """The (slot, key) pairs to read, in order of precedence. An instrumentation writes the same few sets of keys
        again and again, so the answer is remembered for small ones."""
        if len(attributes) > _SHAPE_LIMIT:
            return self._order(attributes)
        names = tuple(attributes)
        known = self._shapes.get(names)
        if known is None:
            if len(self._shapes) >= _MAX_SHAPES:
                self._shapes.clear()
            known = self._shapes[names] = self._order(attributes)
        return known

    def _order(self, attributes: Mapping[str, Any]) -> list[tuple[int, str]]:
        found = [(self.keys[key][1], self.keys[key][0], key) for key in attributes.keys() & self.keys.keys()]
        return [(slot, key) for _, slot, key in sorted(found)]


_SHAPE_LIMIT: Final = 64
_MAX_SHAPES: Final = 128
_DECIDING_SLOTS: Final = frozenset(_SLOT.values()) - {
    _MODEL,
    _PROVIDER,
    _RESPONSE_ID,
    _COST,
    _RETRIES,
    _SOURCE_ID,
    _MESSAGES,
    _RUN_STATUS,
    _STOP_REASON,
    _CACHE_READ,
    _CACHE_WRITE,
    _REASONING,
    _SPAN_TYPE,
}
_DEFAULT_PLAN: Final = _Plan(DEFAULT)
_PLANS: Final = {scope: _Plan(dialect) for scope, dialect in DIALECTS.items()}


def is_plain(scope: str, attributes: Mapping[str, Any] | None, *, below_a_run: bool = False) -> bool:
    """True where `read` would find nothing but ancestry, in a fraction of the time.

    Pass the plainest mapping at hand: a `dict` answers in C. With `below_a_run` the run id, thread and user that door 1
    stamps on every span of an explicit run do not count as news.
    """
    plan = _PLANS.get(scope, _DEFAULT_PLAN)
    if plan.by_name:
        return False
    if not attributes:
        return True
    return attributes.keys().isdisjoint(plan.deciding_below if below_a_run else plan.deciding)


def read(span: EndedSpan) -> Reading:
    """What `span` says. Never raises: a span that cannot be read is a plain one with `unreadable` in `rejected`."""
    try:
        return _read(span)
    except Exception:  # hostile mappings and numbers; the host is never harmed (rule 8)
        bare = Reading(span.trace_id, span.span_id, span.parent_id, bool(span.parent_is_remote))
        return bare._replace(rejected=("unreadable",))


def _read(span: EndedSpan) -> Reading:
    trace_id, span_id, parent_id, remote, name, _, scope, resource, attributes, started_at, ended_at, failed = span
    plan = _PLANS.get(scope, _DEFAULT_PLAN)
    dialect = plan.dialect
    raw: list[Any] = _EMPTY.copy()
    for slot, key in plan.shape(attributes):
        value = attributes[key]
        if value is not None and value != "" and raw[slot] is None:
            raw[slot] = value

    role: int = _role(raw, plan, name, failed)
    rejected: tuple[str, ...] = ()
    usage: Usage | None = None
    response_id = provider = model = cost = messages = None
    retries = 0
    stream_log = False
    if raw[_MODEL] is not None:
        model = as_text(raw[_MODEL], LABEL_LIMIT)
    if role != PLAIN and role != TOOL:
        reasons: list[str] = []
        usage, raw_model, raw_id = _usage(raw, dialect, name, attributes, reasons)
        if usage is None and (role == WEAK or raw[_SPAN_TYPE] == "log"):
            role = PLAIN
        elif role in (CALL, WEAK):
            response_id = raw_id if raw[_RESPONSE_ID] is None else as_text(raw[_RESPONSE_ID], ID_LIMIT)
            model = model or raw_model
            if raw[_PROVIDER] is not None:
                provider = as_provider(raw[_PROVIDER])
            if raw[_COST] is not None:
                cost = as_cost(raw[_COST], reasons)
            if raw[_MESSAGES] is not None:
                messages = as_count(raw[_MESSAGES], reasons)
            if raw[_RETRIES] is not None:
                retries = as_count(raw[_RETRIES], reasons) or 0
            if raw[_ATTEMPT] is not None:
                retries = max(retries, (as_count(raw[_ATTEMPT], reasons) or 1) - 1)
            if raw[_SPAN_TYPE] == "log":
                stream_log = True
                started_at = _stream_began(attributes, started_at)
            if name == RAW_NAME:
                scope += ".raw"  # the wire's view of a call that the library's own span may describe as well
        if reasons:
            rejected = tuple(reasons)

    resource_key, service = _facts(resource)
    agent = caller = thread_id = None
    if raw[_AGENT] is not None:
        agent = as_text(raw[_AGENT], LABEL_LIMIT)
    if role == AGENT:
        if dialect.agent_key is not None and dialect.agent_key not in attributes:
            role = AGGREGATE
            agent = None
        elif agent is None:
            agent = _agent_in(name, dialect)
    if raw[_CALLER] is not None:
        caller = as_text(raw[_CALLER], LABEL_LIMIT)
    elif raw[_SUBAGENT] is not None:
        subagent = agent or as_text(raw[_SUBAGENT], LABEL_LIMIT - 9)
        caller = f"subagent:{subagent}" if subagent else None
    if raw[_THREAD] is not None and (dialect.names_threads or semconv.CONVERSATION_ID not in attributes):
        thread_id = as_text(raw[_THREAD], ID_LIMIT)
    run_id = None if raw[_RUN_ID] is None else as_text(raw[_RUN_ID], ID_LIMIT)
    source_id = None if raw[_SOURCE_ID] is None else as_text(raw[_SOURCE_ID], ID_LIMIT)
    user_id = None if raw[_USER] is None else as_text(raw[_USER], ID_LIMIT)
    is_root = False
    tags: tuple[tuple[str, str], ...] = ()
    run_status = stop_reason = None
    if scope == semconv.SCOPE:
        is_root = raw[_RUN_ROOT] is True
        tags = as_tags(attributes)
        if is_root:
            run_status = as_text(raw[_RUN_STATUS], LABEL_LIMIT)
            stop_reason = as_text(raw[_STOP_REASON], ID_LIMIT)
    # Built as a plain tuple: a named tuple's own constructor costs as much as everything above.
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
            tags,
            caller,
            cost,
            messages,
            retries,
            is_root,
            run_status,
            stop_reason,
            stream_log,
            dialect.aggregates_count,
            rejected,
        ),
    )
    return reading


_new: Final[Any] = tuple.__new__


def _agent_in(name: str, dialect: Dialect) -> str | None:
    """The agent whose span has no attribute with its name: OpenInference and Google ADK 1 name the span after it."""
    found = dialect.agent_in_name.match(name) if dialect.agent_in_name is not None else None
    if found:
        return as_text(found[1] or found[2], LABEL_LIMIT)
    return None if name == "invoke_agent" else as_text(name.removeprefix("invoke_agent "), LABEL_LIMIT)


def _role(raw: list[Any], plan: _Plan, name: str, failed: bool) -> Role:
    for slot, table in _KIND_TABLES:
        said = raw[slot]
        if said is not None:
            role = table.get(said) if type(said) is str else None
            if role is not None:
                return role
    if plan.by_name:
        for start, role in plan.dialect.names:
            if name.startswith(start):
                return role
        if failed:
            for start, role in plan.dialect.failed_names:
                if name.startswith(start):
                    return role
    if raw[_INPUT] is not None or raw[_OUTPUT] is not None:
        return WEAK
    return PLAIN


def _usage(
    raw: list[Any], dialect: Dialect, name: str, attributes: Mapping[str, Any], rejected: list[str]
) -> tuple[Usage | None, str | None, str | None]:
    """The inclusive counts, and the model and response id where only a raw answer has them."""
    given_input = None if raw[_INPUT] is None else as_count(raw[_INPUT], rejected)
    given_output = None if raw[_OUTPUT] is None else as_count(raw[_OUTPUT], rejected)
    cache_read = None if raw[_CACHE_READ] is None else as_count(raw[_CACHE_READ], rejected)
    cache_write = None if raw[_CACHE_WRITE] is None else as_count(raw[_CACHE_WRITE], rejected)
    reasoning = None if raw[_REASONING] is None else as_count(raw[_REASONING], rejected)
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
