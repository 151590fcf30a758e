"""What the libraries mean by their spans, as data: everything that is more than another spelling of a key.

Adding a dialect is a few lines here (and in `semconv.py` for new keys) and a recording under `tests/recordings`. Every
fact names the library and version it was seen in, and says what in the library makes it true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from runmeter.reading import semconv
from runmeter.reading.roles import AGENT, CALL, TOOL, Role

# --- facts about one library ----------------------------------------------------------------------------------------


RAW_NAME: Final = "raw_gen_ai_request"
RAW_SUFFIX: Final = ".raw"
"""Set behind the scope of such spans: the wire's view of a call that the library's own span may describe as well."""
RAW_USAGE: Final = re.compile(r"llm\.[^.]*\.usage")
"""LiteLLM 1.106.2 names the attribute after the provider (`llm.openai.usage`, also `llm.None.usage`)."""


class Library(NamedTuple):
    """What is peculiar to the spans of one instrumentation scope.

    A habit that changes numbers is one of certain attributes, never of the whole scope: the next release says the same
    in other words, often beside the old ones, and does not have the habit there.
    """

    exclusive_input: frozenset[str] = frozenset()
    """Where the input was said by one of these keys, cache reads and writes must be added to make it inclusive."""
    inclusive_with: str | None = semconv.CACHE_WRITE_TOKENS
    """A span that has this key is of a release without that habit."""
    output_excludes_reasoning: bool = False
    """Reasoning that only stands in one of `texts` is not in the output, unless the text has another output."""
    aggregates_count: bool = True
    """False where usage on an agent or workflow span is not what happened inside it."""
    summary_of: str | None = None
    """The program's scope whose calls its agent spans tell of, from what the program said of them in passing: where the
    program tells of calls itself, usage on those spans is theirs again, wherever they stand."""
    names_threads: bool = True
    """False where what stands in `gen_ai.conversation.id` is not a conversation."""
    provider: str | None = None
    """Who answers its calls where no span says so."""
    model_has_provider: bool = False
    """Models are named `provider/model`, and spans that are no calls have something else in the same key."""
    keys: Mapping[str, tuple[str, ...]] = {}
    """More keys for a field of `semconv`, read after its own."""
    first: Mapping[str, tuple[str, ...]] = {}
    """Keys read before a field's own, where those hold something else."""
    texts: tuple[str, ...] = ()
    """Attributes holding usage as JSON or Python repr."""
    names: tuple[tuple[str, Role], ...] = ()
    """Roles by the beginning of a span's name, for spans that no attribute describes."""
    failed_names: tuple[tuple[str, Role], ...] = ()
    """The same for spans that failed: libraries that set attributes only on success."""
    no_calls: re.Pattern[str] | None = None
    """Finds, in names, spans that call nobody though their kind says that they are calls; usage on them counts."""
    beginnings: re.Pattern[str] | None = None
    """Finds, in names, spans that are a call's `BEGINNING`."""
    answer_key: str | None = None
    """Where the provider's answer stands as JSON. Its beginning has the response id where no attribute has."""
    request_key: str | None = None
    """Where the request stands as JSON: without anything to answer it reads an answer again (`REREAD`)."""
    wraps_itself: bool = False
    """Its call spans contain each other: methods of a model that call each other."""
    hollow: bool = False
    """Its call spans never say usage, and are there where no call is made as well (answers from a cache of its own):
    they count only where no other instrumentation of calls is at work in the run."""
    agent_key: str | None = None
    """An agent span without this key is no agent but a workflow, or a step of a graph."""
    agent_in_name: re.Pattern[str] | None = None
    """Finds an agent's name in a span's name."""
    after_the_fact: bool = False
    """Its call spans are made when the call is over, from what a callback is told: the client's span of the same call
    is never below them, and where that one has neither usage nor id only the time says that it is the same."""
    own_ids: bool = False
    """Writes response ids of its own making where it passes a provider's answer on."""
    measured: bool = False
    """On a streamed call's span the absence of any details shows that the counts are the library's own."""
    measured_provider: str | None = None
    """The same, of this provider's calls alone."""
    makes_up: tuple[str, ...] = ()
    """Operations whose counts may be the library's own, with nothing that says so; a prompt's that are fewer than its
    messages alone come to are."""
    parts: bool = False
    """Counts in `texts` named `input`, `input_…`, `output` or `output_…` are parts that exclude one another."""
    usage_begins: str | None = None
    """What stands in `texts` right before the usage, after whatever else they hold."""
    stream_log: bool = False
    """A stream's usage comes on a second, log-type span after the call span ended without."""


DEFAULT: Final = Library()

_METHOD_OF_AGENT: Final = re.compile(
    r"^(.+?)\.(?:_?a?(?:run|invoke|kickoff|execute|call|query|chat|step)(?:_\w+)?|__call__|on_messages(?:_stream)?|turn)$",
    re.DOTALL,
)
"""A span named after a method of an agent: the agent's name is what stands before it."""

LIBRARIES: Final[Mapping[str, Library]] = {
    # Claude Code 2.1.197, beta traces: bare keys, Anthropic's own exclusive counting, `attempt` numbers from 1. 2.1.331
    # writes the conventions' keys, inclusive as those are, beside them; what it calls a subagent's conversation is the
    # subagent, whose type stands in `query_source`.
    "com.anthropic.claude_code.tracing": Library(
        exclusive_input=frozenset({"input_tokens"}),
        first={"thread": ("session.id",)},
        keys={
            "input": ("input_tokens",),
            "output": ("output_tokens",),
            "cache_read": ("cache_read_tokens",),
            "cache_write": ("cache_creation_tokens",),
            "model": ("model",),
            "attempt": ("attempt",),
            "subagent": ("agent_id",),
            "asked_by": ("query_source", "query_source_safe"),
        },
    ),
    # OpenLLMetry 0.40.14 writes every message as attributes of its own: of a long history's span nothing but the name
    # says that it is a call. 0.62.4 sets what says so on success only, where a response is concerned.
    "opentelemetry.instrumentation.openai.v1": Library(
        names=(("openai.chat", CALL),), failed_names=(("openai.response", CALL),)
    ),
    "opentelemetry.instrumentation.anthropic": Library(names=(("anthropic.chat", CALL),)),
    # Traceloop's JavaScript 0.27 counts the tokens of a stream itself, those of the messages' texts alone, and drops
    # what the provider reports; of images it makes up a number for each.
    "@traceloop/instrumentation-openai": Library(
        makes_up=("chat", "image_generation", "image_edit", "image_variation")
    ),
    # OpenLIT 1.45.0 copies Anthropic's input_tokens, which leave the cache out; a failed call's span ends before any
    # attribute is set; its LangGraph spans repeat the usage (and the response id) of the last call below them.
    "openlit.instrumentation.anthropic": Library(
        exclusive_input=frozenset({semconv.INPUT_TOKENS}), failed_names=(("chat ", CALL),)
    ),
    # Bedrock leaves the cache out of its inputTokens, and all who copy them do: OpenLLMetry 0.62, the official ones of
    # botocore 0.66 and genai 1.3, which has the newest words for all. OpenInference adds it.
    "opentelemetry.instrumentation.bedrock": Library(exclusive_input=frozenset({semconv.INPUT_TOKENS})),
    "opentelemetry.instrumentation.botocore.bedrock-runtime": Library(
        exclusive_input=frozenset({semconv.INPUT_TOKENS})
    ),
    "opentelemetry.instrumentation.genai.bedrock": Library(
        exclusive_input=frozenset({semconv.INPUT_TOKENS}), inclusive_with=None
    ),
    # Traceloop's JavaScript 0.27 copies them too; OpenLLMetry, its Python, adds the cache.
    "@traceloop/instrumentation-anthropic": Library(exclusive_input=frozenset({semconv.INPUT_TOKENS})),
    # Where a stream ended without usage it counts characters; the cache counts (0 included) are set from a provider's
    # usage only.
    "openlit.instrumentation.openai": Library(measured=True, failed_names=(("chat ", CALL),)),
    # 1.34 had one scope for all. It took the usage of a streamed answer of Responses, which has reasoning, and counted
    # characters for every streamed chat.
    "openlit.otel.tracing": Library(measured=True, measured_provider="openai"),
    # Its invoke_agent spans are the nodes of the graph; no key tells a real agent from them.
    "openlit.instrumentation.langgraph": Library(aggregates_count=False, agent_key=""),
    # OpenInference for OpenAI Agents 2.6.0: the trace around the agents is of kind AGENT too, but no node of the graph.
    # The JavaScript one (0.2.15) names an agent by its node only.
    "openinference.instrumentation.openai_agents": Library(
        agent_key="graph.node.id", keys={"agent": ("graph.node.id",)}
    ),
    # OpenInference for the Claude Agent SDK: a span of each turn, which is beside the program's where a client connects
    # once for many.
    "openinference.instrumentation.claude_agent_sdk": Library(
        summary_of="com.anthropic.claude_code.tracing", agent_in_name=_METHOD_OF_AGENT
    ),
    "openinference.instrumentation.crewai": Library(keys={"agent": ("graph.node.id",)}, agent_in_name=_METHOD_OF_AGENT),
    # OpenInference for OpenAI 0.1.66 makes one more `Response` span of every time that a response is read again.
    "openinference.instrumentation.openai": Library(answer_key="output.value", request_key="input.value"),
    # OpenInference for LlamaIndex: every method of a model that the framework's dispatcher knows is a span of kind LLM,
    # also those that only prepare a request; that of a stream ends when the method returns, before anything is sent.
    "openinference.instrumentation.llama_index": Library(
        wraps_itself=True,
        no_calls=re.compile(
            r"\._?(?:prepare|validate|extend|parse|from_|as_|get_(?:tool_calls|prompt|messages|model_name))"
        ),
        beginnings=re.compile(r"\._?a?stream"),
        agent_in_name=_METHOD_OF_AGENT,
    ),
    "opentelemetry.instrumentation.llamaindex": Library(wraps_itself=True),
    # OpenInference for DSPy: its spans are around the cache that DSPy asks first.
    "openinference.instrumentation.dspy": Library(hollow=True, wraps_itself=True),
    # Google ADK 1.14.1: no operation name; thoughts and cached tokens only inside the JSON of the response. ADK 2.13
    # keeps the names and says the operation as well.
    "gcp.vertex.agent": Library(
        output_excludes_reasoning=True,
        texts=("gcp.vertex.agent.llm_response",),
        names=(("call_llm", CALL), ("agent_run [", AGENT), ("invoke_agent ", AGENT), ("execute_tool", TOOL)),
        agent_in_name=re.compile(r"^(?:agent_run \[(.*)\]|invoke_agent (.*))$", re.DOTALL),
    ),
    # OpenInference for ADK 1 (0.1.28) leaves ADK's own counts beside its own, in which thoughts are part of the output.
    "openinference.instrumentation.google_adk": Library(
        output_excludes_reasoning=True,
        texts=("gcp.vertex.agent.llm_response",),
        first={"output": ("llm.token_count.completion",)},
        agent_in_name=_METHOD_OF_AGENT,
    ),
    # Gemini CLI 0.61 takes candidatesTokenCount for the output; thoughts and cached tokens are only in its logs.
    "gemini-cli": Library(),
    # Genkit 1.42 (JavaScript): the usage in the JSON of what an action returned, the model's name the action's.
    "genkit-tracer": Library(
        aggregates_count=False,
        model_has_provider=True,
        texts=("genkit:output",),
        usage_begins='"usage":{',
        keys={"model": ("genkit:name",)},
    ),
    # Microsoft Agent Framework 1.23 hands the previous response's id to the Responses API and calls it conversation.
    "agent_framework": Library(names_threads=False),
    # Strands 1.62: the agent object keeps adding, so the second turn's span holds the first turn too.
    "strands.telemetry.tracer": Library(aggregates_count=False),
    # LiteLLM 1.106.2: details only in the repr of its usage object; `raw_gen_ai_request` holds the provider's own
    # answer, and is all that is left where every call writes its attributes on the application's one span around it.
    # Responses get an id that encodes the deployment beside the provider's.
    "litellm": Library(after_the_fact=True, own_ids=True, texts=("metadata.usage_object",), names=((RAW_NAME, CALL),)),
    # LangSmith 0.15: details as JSON.
    "langsmith": Library(
        texts=(
            "langsmith.metadata.usage_metadata",
            "gen_ai.usage.input_token_details",
            "gen_ai.usage.output_token_details",
        )
    ),
    # Langfuse 3 to 5: the provider's usage as JSON, or in Langfuse's own words: parts that exclude one another.
    "langfuse-sdk": Library(texts=("langfuse.observation.usage_details",), parts=True),
    # Logfire 5.2.0: the provider's usage as JSON; a stream's call span ends when the stream begins, and the usage comes
    # on a log-type span of the same scope when it is exhausted.
    "logfire.openai": Library(texts=("gen_ai.usage.raw",), stream_log=True),
    "logfire.anthropic": Library(texts=("gen_ai.usage.raw",), stream_log=True),
    # pydantic-ai 2.68: a FallbackModel's failed attempts are spans of their own, without an operation.
    "pydantic-ai": Library(failed_names=(("model request attempt", CALL),)),
}

FAMILIES: Final[tuple[tuple[str, Library], ...]] = (
    # Codex CLI 0.169: usage on `handle_responses`, without operation or model. The model stands on the turn's span
    # above, the thread on `run_turn`, `codex.sampling` (`conversation.id`) and `session_loop` (`thread_id`);
    # `thread.id` is an operating system's thread nearly everywhere. The scope is the program's: `codex_exec`,
    # `codex-app-server` (the TUI).
    ("codex", Library(provider="openai", keys={"model": ("model",), "thread": ("conversation.id", "thread_id")})),
    # OpenInference names spans of agents after a method where the framework has no name for them.
    ("openinference.instrumentation.", Library(agent_in_name=_METHOD_OF_AGENT)),
)
"""Dialects of the scopes that begin with a text and are in no line of their own."""

JAVASCRIPT: Final = ("@arizeai/openinference-instrumentation-", "openinference.instrumentation.")
"""How OpenInference's scopes begin in JavaScript, and those of the same instrumentation in Python."""

SUBAGENT: Final = re.compile(r"agent[:.](?:.*[:.])?([^:.]+)")
"""Who asked, in Claude Code: `agent:builtin:general-purpose`, `agent.custom.reviewer`; `sdk` is the lead agent."""

# --- providers ------------------------------------------------------------------------------------------------------

PROVIDERS: Final[Mapping[str, str]] = {
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "gcp.gen_ai": "gcp.gemini",
    "googleai": "gcp.gemini",  # Genkit
    "vertexai": "gcp.vertex_ai",
    "google.generative-ai": "gcp.gemini",  # Vercel AI SDK
    "google.vertex": "gcp.vertex_ai",
    "vertex_ai": "gcp.vertex_ai",
    "bedrock": "aws.bedrock",
    "amazon-bedrock": "aws.bedrock",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
    "openai.chat": "openai",  # Vercel AI SDK names the API as well
    "openai.responses": "openai",
    "openai.completion": "openai",
    "openai.embedding": "openai",
    "anthropic.messages": "anthropic",
}
"""Other names of providers the conventions have a name for."""

FRAMEWORKS: Final = frozenset(
    {
        "strands-agents",
        "microsoft.agent_framework",
        "gcp.vertex.agent",
        "langchain",
        "langgraph",
        "litellm",
        "pydantic-ai",
    }
)
"""What some libraries write where the provider belongs: their own name. It is no provider, and is left out."""

AFTER_THE_FACT: Final = frozenset(scope for scope, dialect in LIBRARIES.items() if dialect.after_the_fact)
OWN_IDS: Final = frozenset(scope for scope, dialect in LIBRARIES.items() if dialect.own_ids)
WRAPS_ITSELF: Final = frozenset(scope for scope, dialect in LIBRARIES.items() if dialect.wraps_itself)
HOLLOW: Final = frozenset(scope for scope, dialect in LIBRARIES.items() if dialect.hollow)
STREAM_LOGS: Final = frozenset(scope for scope, dialect in LIBRARIES.items() if dialect.stream_log)
