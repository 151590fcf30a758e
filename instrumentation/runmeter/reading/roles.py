"""What a span is, for counting, and the words in which libraries say it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from runmeter.reading import semconv


class Role(IntEnum):
    """What a span is, for counting."""

    PLAIN = 0
    """Nothing to us but a link between others."""
    CALL = 1
    """One model call, answered or failed."""
    WEAK = 2
    """Has usage and no word on what it is: counts only where no call is above or below it."""
    AGENT = 3
    """An agent's turn; calls below it are its own."""
    TOOL = 4
    """A tool; calls below it are other calls, never repeats of one above."""
    AGGREGATE = 5
    """A chain, workflow, step or task around calls; usage on it (or on an agent) is theirs again."""


PLAIN, CALL, WEAK, AGENT, TOOL, AGGREGATE = Role

WHOLE: Final = 0
"""A span tells of a call from its beginning to its end."""
REREAD: Final = 1
"""It reads an answer again that was given to another span: the same call, however much later."""
BEGINNING: Final = 2
"""It ends when the stream that it returns begins, before the client's span of the same call does."""

OPERATIONS: Final[Mapping[str, Role]] = {
    "chat": CALL,
    "text_completion": CALL,
    "generate_content": CALL,
    "embeddings": CALL,
    "completion": CALL,  # LiteLLM 1.106 names its own functions, sync and async
    "acompletion": CALL,
    "atext_completion": CALL,
    "embedding": CALL,
    "aembedding": CALL,
    "responses": CALL,
    "aresponses": CALL,
    "anthropic_messages": CALL,
    "response": CALL,
    "llm_call": CALL,  # Gemini CLI 0.61
    "image_generation": CALL,
    "execute_tool": TOOL,
    "tool_call": TOOL,  # Gemini CLI 0.61
    "invoke_agent": AGENT,
    "invoke_workflow": AGGREGATE,
    "handle_conversation_turn": AGGREGATE,
    "create_agent": PLAIN,
    "plan": AGGREGATE,
    "retrieval": PLAIN,
    "chain": AGGREGATE,  # LangSmith 0.15
    "execute_task": AGGREGATE,  # OpenLLMetry 0.62
    "handoff": PLAIN,
    "agent_step": AGGREGATE,  # Vercel AI SDK 7
    "execute_event_loop_cycle": AGGREGATE,  # Strands 1.62
    "schedule_tool_calls": AGGREGATE,  # Gemini CLI 0.61
    "model_generation": AGGREGATE,  # Mastra 1: the loop around its calls
    "model_step": AGGREGATE,
    "workflow_run": AGGREGATE,
    "workflow_step": AGGREGATE,
}
"""What the conventions' operations, and those that libraries made up, are. One that is not here is weak where it has
tokens: it counts where no call is known below or above it, and says nothing otherwise."""

NO_CALLS: Final = ("fetch_response", "count_tokens")
"""Operations that never spend anything, whatever else the span says of itself: an answer read again, which was counted
when it was given (the conventions forbid usage on it), and the tokens of a request that nobody makes."""

KINDS: Final[tuple[tuple[str, Mapping[str, Role]], ...]] = (
    (
        semconv.OPENINFERENCE_KIND,
        {
            "LLM": CALL,
            "EMBEDDING": CALL,
            "AGENT": AGENT,
            "TOOL": TOOL,
            "CHAIN": AGGREGATE,
            "RETRIEVER": PLAIN,
            "RERANKER": PLAIN,
            "GUARDRAIL": PLAIN,
            "EVALUATOR": PLAIN,
            "PROMPT": PLAIN,
        },
    ),
    (
        semconv.TRACELOOP_KIND,
        {"workflow": AGGREGATE, "task": AGGREGATE, "agent": AGENT, "tool": TOOL},
    ),
    (
        semconv.CLAUDE_CODE_KIND,
        {"llm_request": CALL, "tool": TOOL, "interaction": AGGREGATE},
    ),
    (
        semconv.LANGSMITH_KIND,
        {
            "llm": CALL,
            "embedding": CALL,
            "tool": TOOL,
            "chain": AGGREGATE,
            "retriever": PLAIN,
            "prompt": PLAIN,
            "parser": PLAIN,
        },
    ),
    (
        semconv.VERCEL_OPERATION,
        {
            "ai.generateText.doGenerate": CALL,
            "ai.streamText.doStream": CALL,
            "ai.generateObject.doGenerate": CALL,
            "ai.streamObject.doStream": CALL,
            "ai.embed.doEmbed": CALL,
            "ai.embedMany.doEmbed": CALL,
            "ai.toolCall": TOOL,
            "ai.generateText": AGGREGATE,
            "ai.streamText": AGGREGATE,
            "ai.generateObject": AGGREGATE,
            "ai.streamObject": AGGREGATE,
            "ai.embed": AGGREGATE,
            "ai.embedMany": AGGREGATE,
        },
    ),
    (
        semconv.GENKIT_KIND,
        {
            "model": CALL,
            "background-model": CALL,
            "embedder": CALL,
            "tool": TOOL,
            "tool.v2": TOOL,
            "flow": AGGREGATE,
            "util": AGGREGATE,
            "prompt": AGGREGATE,
            "executable-prompt": AGGREGATE,
            "agent": AGENT,
            "retriever": PLAIN,
            "indexer": PLAIN,
        },
    ),
    (
        semconv.LANGFUSE_KIND,
        {
            "generation": CALL,
            "embedding": CALL,
            "agent": AGENT,
            "tool": TOOL,
            "chain": AGGREGATE,
            "retriever": PLAIN,
            "evaluator": PLAIN,
            "guardrail": PLAIN,
            "event": PLAIN,
        },
    ),
    (semconv.OPERATION_NAME, OPERATIONS),
    (
        semconv.LLM_REQUEST_TYPE,
        {"chat": CALL, "completion": CALL, "embedding": CALL, "rerank": CALL, "responses": CALL, "unknown": CALL},
    ),
)
"""Attributes that say what a span is, in the order in which they are believed: a library's own word before the
conventions', since OpenLLMetry 0.62 writes operation invoke_agent on its workflow spans."""
