"""Reading one span: every spelling, inclusive counts, and nothing hostile ever raises."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runmeter.counting.settler import Settler
from runmeter.reading import again, semconv
from runmeter.reading.libraries import LIBRARIES
from runmeter.reading.read import ID_LIMIT, LABEL_LIMIT, Reading, Role, is_plain, read
from runmeter.reading.roles import BEGINNING, REREAD, WHOLE
from runmeter.spans import EndedSpan
from runmeter.usage import COUNT_LIMIT, Usage

OPENAI = "opentelemetry.instrumentation.genai.openai"


def span(attributes: dict[Any, Any], *, scope: str = OPENAI, name: str = "chat m", **fields: Any) -> EndedSpan:
    """An ended client span with these attributes."""
    given: dict[str, Any] = {
        "trace_id": 1,
        "span_id": 2,
        "parent_id": None,
        "parent_is_remote": False,
        "name": name,
        "kind": 3,
        "scope": scope,
        "resource": {"service.name": "svc", "service.instance.id": "i"},
        "attributes": attributes,
        "started_at": 1_000_000_000,
        "ended_at": 2_000_000_000,
        "failed": False,
    }
    return EndedSpan(**(given | fields))


def chat(**counts: Any) -> dict[str, Any]:
    """A chat call in current conventions; counts by the last word of their key's field."""
    keys = {
        "input": semconv.INPUT_TOKENS,
        "output": semconv.OUTPUT_TOKENS,
        "cache_read": semconv.CACHE_READ_TOKENS,
        "cache_write": semconv.CACHE_WRITE_TOKENS,
        "reasoning": semconv.REASONING_TOKENS,
    }
    return {semconv.OPERATION_NAME: "chat"} | {keys[name]: value for name, value in counts.items()}


def test_the_current_conventions_are_read() -> None:
    """A call of today's conventions gives usage, ids, model, provider, thread and user."""
    reading = read(
        span(
            chat(input=10, output=5, cache_read=3, cache_write=2, reasoning=1)
            | {
                semconv.PROVIDER_NAME: "openai",
                semconv.REQUEST_MODEL: "gpt-5-mini",
                semconv.RESPONSE_MODEL: "gpt-5-mini-2025-08-07",
                semconv.RESPONSE_ID: "chatcmpl-1",
                semconv.CONVERSATION_ID: "thread",
                semconv.USER_ID: "user",
                semconv.RUN_ID: "run",
                semconv.SOURCE_ID: "source",
                semconv.CALLER: "middleware:summarize",
            }
        )
    )
    assert reading.role == Role.CALL
    assert reading.usage == Usage(10, 5, 3, 2, 1)
    assert (reading.provider, reading.model, reading.response_id) == ("openai", "gpt-5-mini-2025-08-07", "chatcmpl-1")
    assert (reading.thread_id, reading.user_id, reading.service) == ("thread", "user", "svc")
    assert (reading.run_id, reading.source_id, reading.caller) == ("run", "source", "middleware:summarize")
    assert reading.rejected == ()


@pytest.mark.parametrize(
    ("field", "key"),
    [
        (field, key)
        for field, keys in enumerate(
            (semconv.INPUT, semconv.OUTPUT, semconv.CACHE_READ, semconv.CACHE_WRITE, semconv.REASONING)
        )
        for key in keys
    ],
)
def test_every_spelling_of_a_count_is_read(field: int, key: str) -> None:
    """Whatever a count is called, it arrives in its field, also as text or as a whole double."""
    others = chat(input=100, output=50)
    if field < 2:
        del others[(semconv.INPUT_TOKENS, semconv.OUTPUT_TOKENS)[field]]
    for value in (7, "7", 7.0):
        usage = read(span(others | {key: value})).usage
        assert usage is not None
        assert usage[field] == 7


def test_the_current_spelling_wins() -> None:
    """Where old and new keys are both written, the current one is believed; an empty one is not there."""
    assert read(span(chat(input=10) | {"gen_ai.usage.prompt_tokens": 99})).usage == Usage(10)
    assert read(span({"gen_ai.usage.prompt_tokens": 99} | chat(input=""))).usage == Usage(99)


def test_counts_become_inclusive() -> None:
    """Cache tokens that were left out of the input are added, by dialect and by their being more than the input."""
    anthropic = chat(input=746, output=107, cache_read=65, cache_write=200)
    older = chat(input=746, output=107, cache_read=65) | {"gen_ai.usage.cache_creation.input_tokens": 200}
    assert read(span(older, scope="openlit.instrumentation.anthropic")).usage == Usage(1011, 107, 65, 200)
    assert read(span(anthropic)).usage == Usage(746, 107, 65, 200)
    assert read(span(chat(input=10, output=5, cache_read=65))).usage == Usage(75, 5, 65)
    assert read(span(chat(input=10, output=5, reasoning=20))).usage == Usage(10, 25, 0, 0, 20)


@pytest.mark.parametrize(
    ("attributes", "role"),
    [
        ({semconv.OPERATION_NAME: "invoke_agent"}, Role.AGENT),
        ({semconv.OPERATION_NAME: "execute_tool"}, Role.TOOL),
        ({semconv.OPERATION_NAME: "invoke_workflow"}, Role.AGGREGATE),
        (
            {semconv.OPERATION_NAME: "fetch_response"} | chat(input=1) | {semconv.OPERATION_NAME: "fetch_response"},
            Role.PLAIN,
        ),
        ({semconv.OPERATION_NAME: "never heard of"}, Role.PLAIN),
        (chat(input=1) | {semconv.OPERATION_NAME: "never heard of"}, Role.WEAK),
        ({semconv.INPUT_TOKENS: 1}, Role.WEAK),
        ({"openinference.span.kind": "LLM"}, Role.CALL),
        ({"openinference.span.kind": "AGENT"}, Role.AGENT),
        ({"traceloop.span.kind": "workflow", semconv.OPERATION_NAME: "invoke_agent"}, Role.AGGREGATE),
        ({"langsmith.span.kind": "llm", semconv.OPERATION_NAME: "chat"}, Role.CALL),
        ({"ai.operationId": "ai.streamText.doStream"}, Role.CALL),
        ({"ai.operationId": "ai.streamText"}, Role.AGGREGATE),
        ({"llm.request.type": "chat"}, Role.CALL),
        ({"http.request.method": "POST"}, Role.PLAIN),
        ({}, Role.PLAIN),
    ],
)
def test_a_span_says_what_it_is(attributes: dict[str, Any], role: Role) -> None:
    """Kinds and operations of every dialect become one of six roles."""
    assert read(span(attributes)).role == role


def test_no_usage_is_none() -> None:
    """A call without counts, or with 0 and 0 (LiteLLM for unknown), reports no usage."""
    assert read(span(chat())).usage is None
    assert read(span(chat(input=0, output=0))).usage is None
    assert read(span(chat(input=1, output=0))).usage == Usage(1)


def test_hidden_retries_are_failures_of_the_call() -> None:
    """Resends inside the Anthropic client and Claude Code's attempt number count the attempts that failed."""
    assert read(span(chat(input=1) | {"http.request.resend_count": 2})).retries == 2
    attributes = {"span.type": "llm_request", "input_tokens": 1, "attempt": 3}
    assert read(span(attributes, scope="com.anthropic.claude_code.tracing")).retries == 2


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (-1, "negative"),
        ("-5", "negative"),
        (2**63, "too_large"),
        (COUNT_LIMIT + 1, "too_large"),
        ("9" * 5000, "too_large"),
        (1e300, "too_large"),
        (math.nan, "malformed"),
        (math.inf, "malformed"),
        (1.5, "malformed"),
        ("many", "malformed"),
        (True, "malformed"),
        ((1, 2), "malformed"),
        ({"a": 1}, "malformed"),
        (b"7", "malformed"),
    ],
)
def test_a_count_that_is_none_is_rejected_by_reason(value: Any, reason: str) -> None:
    """What cannot be a count of tokens is left out, and the reading says why; the rest of the span is read."""
    reading = read(span(chat(input=value, output=5)))
    assert reading.usage == Usage(0, 5)
    assert reading.rejected == (reason,)


def test_text_is_cleaned_and_cut() -> None:
    """NUL and lone surrogates never come in; ids end in a digest at 256 characters, labels at 128, tags at 64."""
    tags = {f"runmeter.tag.k{index}": "v" * 100 for index in range(20)}
    hostile = "a\x00b\ud800c"
    reading = read(
        span(
            chat(input=1)
            | tags
            | {
                semconv.RESPONSE_ID: "i" * 1_000_000,
                semconv.REQUEST_MODEL: "m" * 1000,
                semconv.CONVERSATION_ID: hostile,
            },
            scope=semconv.SCOPE,
        )
    )
    assert reading.response_id is not None
    assert len(reading.response_id) == ID_LIMIT
    assert reading.response_id.startswith("i" * (ID_LIMIT - 17) + "~")
    assert reading.model == "m" * LABEL_LIMIT
    assert str(reading.thread_id).startswith("abc~")
    assert len(reading.tags) == 8
    assert all(len(value) == 64 for _, value in reading.tags)


def test_a_previous_response_is_no_thread() -> None:
    """Microsoft Agent Framework calls the previous response's id a conversation; elsewhere it is one."""
    attributes = chat(input=1) | {semconv.CONVERSATION_ID: "resp_1"}
    assert read(span(attributes, scope="agent_framework")).thread_id is None
    assert read(span(attributes)).thread_id == "resp_1"


def test_agents_are_named_after_their_spans_where_nothing_else_names_them() -> None:
    """OpenInference and Google ADK 1 name the span; what calls itself an agent and is a workflow or a node is none."""
    assert read(span({"openinference.span.kind": "AGENT"}, scope="x", name="boss")).agent == "boss"
    assert read(span({}, scope="gcp.vertex.agent", name="agent_run [boss]")).agent == "boss"
    assert read(span({semconv.OPERATION_NAME: "invoke_agent"}, name="invoke_agent")).agent is None
    workflow = read(
        span(
            {"openinference.span.kind": "AGENT"},
            scope="openinference.instrumentation.openai_agents",
            name="Agent workflow",
        )
    )
    assert (workflow.role, workflow.agent) == (Role.AGGREGATE, None)


def test_estimates_are_not_usage() -> None:
    """OpenLIT's own count of a stream that ended without usage is not what the provider reported."""
    streamed = chat(input=4, output=3) | {"gen_ai.request.stream": True}
    scope = "openlit.instrumentation.openai"
    assert read(span(streamed, scope=scope)).usage is None
    measured = streamed | {"gen_ai.usage.cache_read.input_tokens": 0}
    assert read(span(measured, scope=scope)).usage == Usage(4, 3)
    older = chat(input=4, output=3) | {"gen_ai.request.is_stream": True, "gen_ai.system": "openai"}
    assert read(span(older, scope="openlit.otel.tracing")).usage is None
    answered = older | {"gen_ai.usage.reasoning_tokens": 1}
    assert read(span(answered, scope="openlit.otel.tracing")).usage == Usage(4, 3, 0, 0, 1)
    other = older | {semconv.PROVIDER_NAME: "anthropic"}
    assert read(span(other, scope="openlit.otel.tracing")).usage == Usage(4, 3)


def test_langfuse_says_parts_or_what_the_provider_said() -> None:
    """What is beside `input` is no part of it, but for a tier; the provider's own words mean what they always do."""
    parts = '{"input": 746, "input_cache_read": 65, "input_cache_creation": 200, "input_priority": 9, "output": 94,'
    parts += ' "output_reasoning": 13, "total": 1118}'
    openai = '{"prompt_tokens": 1011, "completion_tokens": 107, "prompt_tokens_details": {"cached_tokens": 65}}'
    beside = '{"input": 746, "output": 107, "cache_read_input_tokens": 65, "cache_creation_input_tokens": 200}'
    for said, usage in (
        (parts, Usage(1011, 107, 65, 200, 13)), (openai, Usage(1011, 107, 65)), (beside, Usage(1011, 107, 65, 200)),
        ('{"input": 7}', Usage(7)), ("{}", None), ("not JSON", None),
    ):  # fmt: skip
        attributes = {"langfuse.observation.type": "generation", "langfuse.observation.usage_details": said}
        reading = read(span(attributes | {"langfuse.observation.model.name": "m"}, scope="langfuse-sdk"))
        assert (reading.role, reading.model, reading.usage) == (Role.CALL, "m", usage)


def test_what_a_library_counts_itself_is_not_usage() -> None:
    """Traceloop's JavaScript writes the tokens of the texts for a stream: fewer than any provider counts, where the
    texts are short, since each message costs some beside its text; and it makes up the tokens of images."""
    scope = "@traceloop/instrumentation-openai"
    one = {"gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"{\\"role\\":1}"}]}]'}
    two = {"gen_ai.input.messages": '[{"role":"system","parts":[]},{"role":"user","parts":[]}]'}
    for count, said, usage in ((1, {}, None), (6, one, None), (7, one, Usage(7, 19)), (10, two, None)):
        assert read(span(chat(input=count, output=19) | said, scope=scope)).usage == usage
    assert read(span(chat(input=1, output=19))).usage == Usage(1, 19)
    image = chat(output=272) | {semconv.OPERATION_NAME: "image_generation"}
    assert read(span(image, scope=scope)).usage is None


def test_usage_inside_text_is_read_without_the_text() -> None:
    """Details in JSON or a repr fill what no attribute says; content that looks like a count does not."""
    raw = "{'completion_tokens': 107, 'prompt_tokens': 1011, 'prompt_tokens_details': {'cached_tokens': 65}}"
    reading = read(span(chat(input=1011, output=107) | {"metadata.usage_object": raw}, scope="litellm"))
    assert reading.usage == Usage(1011, 107, 65)
    said = '{"content":"\\"thoughts_token_count\\": 999","usage_metadata":{"thoughts_token_count":13}}'
    adk = {semconv.INPUT_TOKENS: 10, semconv.OUTPUT_TOKENS: 94, "gcp.vertex.agent.llm_response": said}
    reading = read(span(adk, scope="gcp.vertex.agent", name="call_llm"))
    assert reading.usage == Usage(10, 107, 0, 0, 13)
    assert "content" not in reading.pack()


def test_plain_spans_are_told_quickly_and_rightly() -> None:
    """`is_plain` never calls a span plain that says something."""
    assert is_plain("app", {"http.request.method": "GET"})
    assert is_plain("app", None)
    assert not is_plain("app", chat(input=1))
    assert not is_plain("app", {semconv.CONVERSATION_ID: "t"})
    assert is_plain("app", {semconv.CONVERSATION_ID: "t", semconv.RUN_ID: "r"}, below_a_run=True)
    assert not is_plain("com.anthropic.claude_code.tracing", {"span.type": "llm_request"})
    assert not is_plain("gcp.vertex.agent", {})


KEYS = sorted(
    {key for name in dir(semconv) if isinstance(keys := getattr(semconv, name), tuple) for key in keys}
    | {semconv.OPERATION_NAME, semconv.RUN_ID, semconv.RUN_ROOT, semconv.CALLER, semconv.MESSAGES}
    | {"openinference.span.kind", "traceloop.span.kind", "span.type", "langsmith.span.kind", "ai.operationId"}
    | {"llm.request.type", "llm.openai.usage", "gen_ai.usage.raw", "metadata.usage_object", "duration", "attempt"}
    | {"logfire.span_type", "input_tokens", "agent_id", "gcp.vertex.agent.llm_response", "runmeter.tag.x"}
)
VALUES: list[Any] = [
    *("chat", "LLM", "invoke_agent", "workflow", "llm_request", "log", "", " ", "a\x00b", "\ud800", "\udfff" * 3),
    *(0, 1, 7, -1, 2**63, -(2**63), 2**64, 10**4300, COUNT_LIMIT, COUNT_LIMIT + 1, True, False, None),
    *(0.5, 7.0, -7.0, math.nan, math.inf, -math.inf, 1e308),
    *("7", "-7", "7.0", "nan", "1e5", "٣", "9" * 5000, "{'prompt_tokens': 7}", '{"reasoning_tokens": 3}'),
    *((), (1, 2), ["x"], {"a": {"b": 1}}, b"\x00", object()),
]


def hostile_span(source: random.Random, big: str) -> EndedSpan:
    """A span as only an enemy, or a bug, writes it."""
    attributes: dict[Any, Any] = {
        source.choice(KEYS): source.choice([*VALUES, big]) for _ in range(source.randrange(12))
    }
    if source.random() < 0.1:
        attributes[source.choice([None, 1, (1,)])] = 1
    span_id = source.randrange(1, 200)
    return span(
        attributes,
        scope=source.choice([*LIBRARIES, "x", "", semconv.SCOPE]),
        name=source.choice(["chat x", "call_llm", "raw_gen_ai_request", "agent_run [", "agent_run [x]", "", big]),
        trace_id=source.choice([1, 2]),
        span_id=span_id,
        parent_id=source.choice([None, span_id, source.randrange(1, 200), 0, -1, 2**64]),
        started_at=source.choice([0, -1, 2**63, source.randrange(10**9)]),
        ended_at=source.choice([0, -1, 2**63, source.randrange(10**9)]),
        failed=source.choice([True, False]),
    )


def test_ten_thousand_hostile_spans_harm_nothing() -> None:
    """No exception, nothing negative, no content, bounded text, and every reading survives the ledger."""
    source = random.Random(20261122)
    big = "x\x00y" * 350_000
    settler = Settler()
    rejected = 0
    for _ in range(10_000):
        reading = read(hostile_span(source, big))
        rejected += len(reading.rejected)
        packed = reading.pack()
        packed.encode()
        assert len(packed) < 4000
        assert not reading.matters or Reading.unpack(packed) == reading
        assert Reading.unpack(packed)[:4] == reading[:4]
        for was, now in settler.add(reading):
            for call in (was, now):
                assert call is None or min(call.usage) >= 0
        assert min(settler.totals) >= 0
    assert rejected > 1000
    assert settler.totals.calls > 0


class Breaking(dict[str, Any]):
    """Attributes that cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(key)


def test_attributes_that_break_are_a_plain_span() -> None:
    """A mapping that raises gives a plain reading with the reason, and no exception."""
    reading = read(span(Breaking(chat(input=1))))
    assert (reading.role, reading.rejected) == (Role.PLAIN, ("unreadable",))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), st.integers() | st.floats() | st.text() | st.booleans(), max_size=8))
def test_counts_are_inclusive_and_within_bounds(attributes: dict[str, Any]) -> None:
    """Whatever the attributes, parts are never more than their whole and nothing exceeds the limit."""
    usage = read(span(attributes)).usage
    if usage is not None:
        assert usage.cache_read_tokens + usage.cache_write_tokens <= usage.input_tokens <= COUNT_LIMIT
        assert usage.reasoning_tokens <= usage.output_tokens <= COUNT_LIMIT
        assert min(usage) >= 0


SAID: list[Any] = [None, "", "chat", "m", "x" * 300, " m", 1, 1.0, True, -1, 2**41, "7", ("chat",), [], Role.CALL]
COMMON = [
    *("openinference.span.kind", "llm.request.type", "gen_ai.request.model"),
    *("gen_ai.response.model", "gen_ai.provider.name", "gen_ai.conversation.id", "session.id", "runmeter.caller"),
    *("user.id", "runmeter.run.id", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"),
    *("llm.token_count.prompt", "gen_ai.usage.cache_read.input_tokens", "gen_ai.response.id"),
    *("gen_ai.usage.cache_write.input_tokens", "gen_ai.usage.cache_creation.input_tokens"),
    *("gen_ai.cost.total_cost", "error.type", "gen_ai.response.time_to_first_chunk"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.fixed_dictionaries(
                {"gen_ai.operation.name": st.sampled_from(["chat", "chat", "embeddings", *SAID])},
                optional={key: st.sampled_from(SAID) for key in COMMON},
            ),
            st.sampled_from(
                [*sorted(LIBRARIES), *["openlit.instrumentation.anthropic"] * 4, OPENAI, OPENAI, semconv.SCOPE]
            ),
            st.sampled_from(["chat m", "chat m", "raw_gen_ai_request", "Response", "anthropic.chat"]),
            st.booleans(),
        ),
        min_size=2,
        max_size=8,
    )
)
def test_what_others_said_before_changes_no_reading(spans: list[tuple[dict[str, Any], str, str, bool]]) -> None:
    """Calls that say the same are read by what is remembered of them: as if nothing were."""
    made = [span(said, scope=scope, name=name, failed=failed) for said, scope, name, failed in spans]
    again._known.clear()
    alone = []
    for one in made:
        alone.append(read(one))
        again._known.clear()
    assert [[read(one) for one in made] for _ in range(2)] == [alone, alone]


def test_a_ledger_of_another_version_is_refused() -> None:
    """A packed reading says its version, and another one is an error with both versions in it."""
    with pytest.raises(ValueError, match="version 99; this runmeter reads version 1"):
        Reading.unpack("[99,1,2,null,0]")


# --- what one library means -----------------------------------------------------------------------------------------

CLAUDE = "com.anthropic.claude_code.tracing"


def test_a_habit_corrects_only_the_attribute_that_has_it() -> None:
    """Claude Code's own keys leave the cache out and the conventions' beside them do not; either alone is right too."""
    bare = {"span.type": "llm_request", "input_tokens": 746, "output_tokens": 107}
    bare |= {"cache_read_tokens": 65, "cache_creation_tokens": 200}
    current = chat(input=1011, output=107, cache_read=65, cache_write=200)
    for attributes in (bare, current, bare | current, bare | chat(input=""), current | {"cache_read_tokens": 65}):
        assert read(span(attributes, scope=CLAUDE)).usage == Usage(1011, 107, 65, 200)
    openlit = chat(input=746, output=107, cache_read=65) | {"gen_ai.usage.cache_creation.input_tokens": 200}
    for scope in ("openlit.instrumentation.anthropic", "@traceloop/instrumentation-anthropic"):
        assert read(span(openlit, scope=scope)).usage == Usage(1011, 107, 65, 200)
        assert read(span(current, scope=scope)).usage == Usage(1011, 107, 65, 200)  # a release with the newest words
        older = {semconv.OPERATION_NAME: "chat", "gen_ai.usage.prompt_tokens": 1011, semconv.OUTPUT_TOKENS: 1}
        assert read(span(older | {semconv.CACHE_READ_TOKENS: 65}, scope=scope)).usage == Usage(1011, 1, 65)
    genai_bedrock = chat(input=746, output=107, cache_read=65, cache_write=200)
    assert read(span(genai_bedrock, scope="opentelemetry.instrumentation.genai.bedrock")).usage == Usage(
        1011, 107, 65, 200
    )
    said = '{"usage_metadata":{"candidates_token_count":94,"thoughts_token_count":13}}'
    adk = {semconv.INPUT_TOKENS: 10, semconv.OUTPUT_TOKENS: 94, "gcp.vertex.agent.llm_response": said}
    for inclusive in (94, 107):
        reading = read(span(adk | {semconv.OUTPUT_TOKENS: inclusive}, scope="gcp.vertex.agent", name="call_llm"))
        assert reading.usage == Usage(10, 107, 0, 0, 13)


def test_a_subagent_of_claude_code_is_named_by_its_type() -> None:
    """Not by an id that is another one every time; and its conversation is the session's."""
    called = chat(input=1) | {"span.type": "llm_request", "session.id": "s", semconv.CONVERSATION_ID: "a0c32f5f"}
    for asked_by, caller in (
        ({"query_source": "agent:builtin:general-purpose"}, "subagent:general-purpose"),
        ({"query_source_safe": "agent.builtin.general-purpose", "agent_id": "a0c3"}, "subagent:general-purpose"),
        ({"query_source": "agent:custom:reviewer"}, "subagent:reviewer"),
        ({"agent_id": "a0c32f5f"}, "subagent:agent"),
        ({"agent_id": "a0c32f5f", "agent.name": "Explore"}, "subagent:Explore"),
        ({"query_source": "sdk"}, None),
        ({"query_source": "repl_main_thread"}, None),
        ({}, None),
    ):
        reading = read(span(called | asked_by, scope=CLAUDE))
        assert (reading.caller, reading.thread_id) == (caller, "s")


def test_an_operation_that_nobody_knows_is_weak() -> None:
    """Whatever else the span says; and an answer read again, or tokens only counted, never are a call."""
    unheard = chat(input=5) | {semconv.OPERATION_NAME: "search_memory"}
    assert read(span(unheard)).role == Role.WEAK
    assert read(span(unheard | {"llm.request.type": "chat"})).role == Role.WEAK
    assert read(span(unheard, scope="opentelemetry.instrumentation.openai.v1", name="openai.chat")).role == Role.WEAK
    assert read(span({semconv.OPERATION_NAME: "search_memory", "llm.request.type": "chat"})).role == Role.PLAIN
    for never in ("fetch_response", "count_tokens"):
        said = chat(input=5) | {semconv.OPERATION_NAME: never}
        for more in ({}, {"openinference.span.kind": "LLM"}, {"llm.request.type": "chat"}):
            reading = read(span(said | more))
            assert (reading.role, reading.usage) == (Role.PLAIN, None)
    turn = read(span(chat(input=5) | {semconv.OPERATION_NAME: "handle_conversation_turn"}))
    assert turn.role == Role.AGGREGATE


@pytest.mark.parametrize(
    ("attributes", "nano"),
    [
        ({"gen_ai.usage.cost.amount": 0.5, "gen_ai.usage.cost.currency": "USD"}, 500_000_000),
        ({"gen_ai.usage.cost.amount": "0.5", "gen_ai.usage.cost.currency": "usd", "operation.cost": 9}, 500_000_000),
        ({"gen_ai.usage.cost.amount": 0.5, "gen_ai.usage.cost.currency": "EUR"}, None),
        ({"gen_ai.usage.cost.amount": 0.5}, None),
        ({"gen_ai.usage.cost.amount": 0.5, "gen_ai.usage.cost.currency": "EUR", "operation.cost": 2}, 2_000_000_000),
        ({"gen_ai.usage.cost": 0.25}, 250_000_000),
    ],
)
def test_costs_are_dollars(attributes: dict[str, Any], nano: int | None) -> None:
    """An amount of another currency, or of none, is no dollars."""
    assert read(span(chat(input=1) | attributes)).cost_nanousd == nano


@pytest.mark.parametrize("scope", ["codex_exec", "codex-app-server", "codex_cli_rs", "codex_mcp_server"])
def test_codex_names_thread_model_and_provider_under_all_of_its_scopes(scope: str) -> None:
    """The provider is OpenAI; `thread.id` is an operating system's thread."""
    called = {semconv.INPUT_TOKENS: 1, "thread.id": 3}
    reading = read(span(called, scope=scope, name="handle_responses"))
    assert (reading.role, reading.provider, reading.thread_id) == (Role.WEAK, "openai", None)
    turn = read(span({"thread.id": 3, "model": "gpt-5-mini", "conversation.id": "c"}, scope=scope, name="run_turn"))
    assert (turn.role, turn.model, turn.thread_id) == (Role.PLAIN, "gpt-5-mini", "c")
    assert read(span({"thread_id": "c"}, scope=scope, name="session_loop")).thread_id == "c"


def test_openinference_is_the_same_in_javascript() -> None:
    """Its scopes are other names there; agents are named by their node."""
    agents = ("openinference.instrumentation.openai_agents", "@arizeai/openinference-instrumentation-openai-agents")
    for scope in agents:
        workflow = read(span({"openinference.span.kind": "AGENT"}, scope=scope, name="Agent workflow"))
        assert (workflow.role, workflow.agent) == (Role.AGGREGATE, None)
        agent = {"openinference.span.kind": "AGENT", "graph.node.id": "weather"}
        assert read(span(agent, scope=scope, name="weather")).agent == "weather"
    crew = {"openinference.span.kind": "AGENT"}
    scope = "openinference.instrumentation.crewai"
    assert read(span(crew | {"graph.node.id": "Boss"}, scope=scope, name="Boss.execute")).agent == "Boss"
    for scope in ("openinference.instrumentation.smolagents", "@arizeai/openinference-instrumentation-beeai"):
        for name, known in (("CodeAgent.run", "CodeAgent"), ("Boss.arun_stream", "Boss"), ("v1.2 agent", "v1.2 agent")):
            assert read(span(crew, scope=scope, name=name)).agent == known
    named = {"openinference.span.kind": "AGENT", "agent.name": "boss"}
    assert read(span(named, scope="openinference.instrumentation.agno", name="boss.run")).agent == "boss"


def test_methods_that_call_nobody_are_no_calls() -> None:
    """LlamaIndex's spans of kind LLM that prepare a request or read an answer; with usage, they are what they say."""
    scope = "openinference.instrumentation.llama_index"
    llm = {"openinference.span.kind": "LLM"}
    for method in ("_prepare_chat_with_tools", "get_tool_calls_from_response", "_validate_chat_with_tools_response"):
        assert read(span(llm, scope=scope, name=f"OpenAI.{method}")).role == Role.PLAIN
    for method in ("chat", "predict", "acomplete", "astream_chat", "_get_query_embedding", "predict_and_call"):
        assert read(span(llm, scope=scope, name=f"OpenAI.{method}")).role == Role.CALL
    used = llm | {"llm.token_count.prompt": 5}
    assert read(span(used, scope=scope, name="OpenAI._prepare_chat_with_tools")).role == Role.CALL
    assert read(span(llm, scope=scope, name="OpenAI.astream_chat")).tells == BEGINNING
    assert read(span(llm, scope=scope, name="OpenAI.chat")).tells == WHOLE


def test_a_response_that_is_read_again_is_known_by_its_request() -> None:
    """OpenInference's spans of Responses have no id and no method: the answer's JSON has the one, the request's that it
    asks for nothing."""
    scope = "openinference.instrumentation.openai"
    llm = {"openinference.span.kind": "LLM", "output.value": '{"id":"resp_1","usage":null}'}
    used = {"llm.token_count.prompt": 5}
    asked = read(span(llm | {"input.value": '{"input": "hi", "model": "m"}'}, scope=scope, name="Response"))
    assert (asked.role, asked.response_id, asked.tells) == (Role.CALL, "resp_1", WHOLE)
    pending = read(span(llm | {"input.value": "{}"}, scope=scope, name="Response"))
    assert pending.role == Role.PLAIN
    done = read(span(llm | used | {"input.value": '{"include": ["x"]}'}, scope=scope, name="Response"))
    assert (done.role, done.response_id, done.tells) == (Role.CALL, "resp_1", REREAD)
    assert Reading.unpack(done.pack()) == done
    for hidden in ({}, {"input.value": "__REDACTED__"}):
        assert read(span(llm | used | hidden, scope=scope, name="Response")).tells == WHOLE
    other = read(span(llm | used | {"input.value": "{}"}, scope=scope, name="ChatCompletion"))
    assert (other.response_id, other.tells) == (None, WHOLE)


def test_genkit_says_its_usage_in_what_an_action_returned() -> None:
    """The model and its provider are the action's name; thoughts are added where its total says that they were not."""
    said = '{"message":{"content":[{"text":"\\"inputTokens\\":9"}]},"usage":{"inputTokens":10,"outputTokens":5,%s}}'
    model = {"genkit:type": "action", "genkit:metadata:subtype": "model", "genkit:name": "googleai/gemini-2.5-flash"}
    for rest, usage in (
        ('"totalTokens":15', Usage(10, 5)),
        ('"thoughtsTokens":3,"totalTokens":18', Usage(10, 8, 0, 0, 3)),
        ('"thoughtsTokens":3,"totalTokens":15', Usage(10, 5, 0, 0, 3)),
        ('"cachedContentTokens":4', Usage(10, 5, 4)),
        ('"x":1},"before":{"usage":{"inputTokens":12,"outputTokens":5}', Usage(12, 5)),
    ):
        reading = read(span(model | {"genkit:output": said % rest}, scope="genkit-tracer", name="googleai/gemini"))
        assert (reading.role, reading.usage) == (Role.CALL, usage)
        assert (reading.provider, reading.model) == ("gcp.gemini", "gemini-2.5-flash")
    flow = {"genkit:metadata:subtype": "flow", "genkit:name": "menu/flow", "genkit:sessionId": "s"}
    reading = read(span(flow | {"genkit:output": said % '"x":1'}, scope="genkit-tracer"))
    assert (reading.role, reading.model, reading.thread_id) == (Role.AGGREGATE, None, "s")
    assert not reading.lone_aggregate


@pytest.mark.parametrize(
    "prefix", ["ai.telemetry.metadata.", "mastra.metadata."], ids=["vercel-ai-sdk", "mastra"]
)
def test_metadata_of_the_application_names_thread_and_user(prefix: str) -> None:
    """Vercel's AI SDK and Mastra pass on what the application calls them."""
    reading = read(span(chat(input=1) | {f"{prefix}sessionId": "s", f"{prefix}userId": "u"}))
    assert (reading.thread_id, reading.user_id) == ("s", "u")
    reading = read(span(chat(input=1) | {f"{prefix}sessionId": "s", f"{prefix}threadId": "t"}))
    assert reading.thread_id == "t"


def test_embeddings_of_vercel_and_openinference_are_read() -> None:
    """Their tokens and their models have keys of their own."""
    reading = read(span({"ai.operationId": "ai.embedMany.doEmbed", "ai.usage.tokens": 1011}, scope="ai"))
    assert (reading.role, reading.usage) == (Role.CALL, Usage(1011))
    embedding = {"openinference.span.kind": "EMBEDDING", "embedding.model_name": "small", "llm.token_count.prompt": 7}
    assert read(span(embedding)).model == "small"
