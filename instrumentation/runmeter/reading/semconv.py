"""Every attribute key we read or write, and nothing else: the current spelling first, older and foreign ones after it.

Current means the GenAI semantic conventions as running code emits them in November 2026 (the last released document is
semantic-conventions v1.41.0; the conventions moved to a repository of their own since). The rest is read-only, each
with the library and version it was seen in. What is more than a spelling is in `dialects.py`.
"""

from __future__ import annotations

from typing import Final

# --- ours, written and read -------------------------------------------------------------------------------------

RUN_ID: Final = "runmeter.run.id"
"""On every span of an explicit run, and the only key we put into baggage."""
RUN_ROOT: Final = "runmeter.run.root"
"""True on the run's own span."""
RUN_STATUS: Final = "runmeter.run.status"
RUN_STOP_REASON: Final = "runmeter.run.stop_reason"
SOURCE_ID: Final = "runmeter.source.id"
"""The door 1 source that counts this span itself, so that door 2 does not."""
CALLER: Final = "runmeter.caller"
"""An explicit caller; it wins over the nesting of agents."""
AGENT: Final = "runmeter.agent"
COST_USD: Final = "runmeter.cost_usd"
MESSAGES: Final = "runmeter.messages"
TAG_PREFIX: Final = "runmeter.tag."
SCOPE: Final = "runmeter"
"""Name of our own instrumentation scope."""

# --- the conventions' own, written by us too ----------------------------------------------------------------------

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_ID: Final = "gen_ai.response.id"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
AGENT_NAME: Final = "gen_ai.agent.name"
INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_write.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"
USER_ID: Final = "user.id"
SERVICE_NAME: Final = "service.name"
SERVICE_NAMESPACE: Final = "service.namespace"
SERVICE_INSTANCE_ID: Final = "service.instance.id"

# --- what a field may be called; the first present one wins ----------------------------------------------------------

INPUT: Final = (
    INPUT_TOKENS,
    "gen_ai.usage.prompt_tokens",  # semconv until 1.27, OpenLLMetry 0.40
    "llm.token_count.prompt",  # OpenInference
    "llm.usage.prompt_tokens",
    "ai.usage.inputTokens",  # Vercel AI SDK, spans of v4 to 6
    "ai.usage.promptTokens",
    "ai.usage.tokens",  # Vercel AI SDK, embeddings
)
OUTPUT: Final = (
    OUTPUT_TOKENS,
    "gen_ai.usage.completion_tokens",
    "llm.token_count.completion",
    "llm.usage.completion_tokens",
    "ai.usage.outputTokens",
    "ai.usage.completionTokens",
)
CACHE_READ: Final = (
    CACHE_READ_TOKENS,
    "gen_ai.usage.cache_read_input_tokens",
    "gen_ai.usage.cached_input_tokens",  # Mastra 0
    "llm.token_count.prompt_details.cache_read",
    "ai.usage.inputTokenDetails.cacheReadTokens",
    "ai.usage.cachedInputTokens",
    "gen_ai.usage.details.cache_read_tokens",  # pydantic-ai
)
CACHE_WRITE: Final = (
    CACHE_WRITE_TOKENS,
    "gen_ai.usage.cache_creation.input_tokens",
    "gen_ai.usage.cache_creation_input_tokens",
    "gen_ai.usage.cache_write_input_tokens",
    "llm.token_count.prompt_details.cache_write",
    "ai.usage.inputTokenDetails.cacheWriteTokens",
    "gen_ai.usage.details.cache_write_tokens",  # pydantic-ai
)
REASONING: Final = (
    REASONING_TOKENS,
    "gen_ai.usage.reasoning_tokens",
    "llm.token_count.completion_details.reasoning",
    "ai.usage.outputTokenDetails.reasoningTokens",
    "ai.usage.reasoningTokens",
    "gen_ai.usage.details.reasoning_tokens",  # pydantic-ai, OpenAI models
    "gen_ai.usage.details.thinking_tokens",  # pydantic-ai, Anthropic models
    "codex.usage.reasoning_output_tokens",
)
MODEL: Final = (
    RESPONSE_MODEL,
    "llm.model_name",  # OpenInference
    "ai.response.model",
    REQUEST_MODEL,
    "ai.model.id",
    "embedding.model_name",  # OpenInference
    "langfuse.observation.model.name",
)
PROVIDER: Final = (
    PROVIDER_NAME,
    "gen_ai.system",  # semconv until 1.36
    "llm.provider",
    "llm.system",
    "ai.model.provider",
)
REQUESTED: Final = (REQUEST_MODEL, "ai.model.id")
"""Those of `MODEL` that say which model was asked for."""
ERROR_TYPE: Final = "error.type"
FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"
RESPONSE: Final = (RESPONSE_ID, "ai.response.id")
THREAD: Final = (
    CONVERSATION_ID,
    "session.id",  # OpenInference, Strands, Claude Code
    "traceloop.association.properties.thread_id",  # OpenLLMetry
    "traceloop.association.properties.session_id",
    "langsmith.metadata.thread_id",
    "langsmith.metadata.session_id",
    "gcp.vertex.agent.session_id",  # Google ADK 1
    "ai.telemetry.metadata.threadId",  # Vercel AI SDK: whatever the application calls it
    "ai.telemetry.metadata.sessionId",
    "mastra.metadata.threadId",
    "mastra.metadata.sessionId",
    "genkit:sessionId",
)
USER: Final = (
    USER_ID,
    "enduser.id",
    "langsmith.metadata.user_id",
    "traceloop.association.properties.user_id",
    "ai.telemetry.metadata.userId",
    "mastra.metadata.userId",
    "mastra.metadata.resourceId",  # Mastra's own word for whom a thread belongs to
)
AGENT_NAMES: Final = (
    AGENT,
    AGENT_NAME,
    "traceloop.association.properties.lc_agent_name",  # OpenLLMetry on LangChain's create_agent
    "langsmith.metadata.lc_agent_name",
    "agent.name",  # OpenInference
    "agent_name",  # pydantic-ai 1
)
COST: Final = (
    COST_USD,
    "operation.cost",  # pydantic-ai, Logfire
    "gen_ai.cost.total_cost",  # LiteLLM
    "gen_ai.usage.cost",  # OpenLIT
    "llm.cost.total",  # OpenInference
    "github.copilot.cost",
)
COST_AMOUNT: Final = ("gen_ai.usage.cost.amount",)
"""Current conventions: an amount of `COST_CURRENCY`, which says what it is an amount of."""
COST_CURRENCY: Final = ("gen_ai.usage.cost.currency",)
RETRIES: Final = ("http.request.resend_count",)  # Anthropic SDK 2.12: retries inside the client leave no other trace

# --- what a span says it is -----------------------------------------------------------------------------------------

OPENINFERENCE_KIND: Final = "openinference.span.kind"
TRACELOOP_KIND: Final = "traceloop.span.kind"
LANGSMITH_KIND: Final = "langsmith.span.kind"
CLAUDE_CODE_KIND: Final = "span.type"
VERCEL_OPERATION: Final = "ai.operationId"
LANGFUSE_KIND: Final = "langfuse.observation.type"
GENKIT_KIND: Final = "genkit:metadata:subtype"
LLM_REQUEST_TYPE: Final = "llm.request.type"  # OpenLLMetry until 0.4x, LiteLLM
