"""What the GenAI conventions call the operation that a call is, whatever its library calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from runmeter import clean
from runmeter.reading import semconv

CHAT: Final = "chat"
"""Also where nobody says: what is asked of a model is nearly always that."""
EMBEDDINGS: Final = "embeddings"
INVOKE_AGENT: Final = "invoke_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"
SUMMARIES: Final = frozenset({INVOKE_AGENT, INVOKE_WORKFLOW})
"""Of a `Call` that stands for the calls nobody saw below an agent or a workflow: how many they were, and how long any
of them took, is not known."""
WELL_KNOWN: Final = frozenset(
    {
        *(CHAT, EMBEDDINGS, INVOKE_AGENT, INVOKE_WORKFLOW, "generate_content", "text_completion"),
        *("create_agent", "execute_tool", "fetch_response", "plan", "retrieval"),
        *("create_memory", "create_memory_store", "delete_memory", "delete_memory_store"),
        *("search_memory", "update_memory", "upsert_memory"),
    }
)
"""The names that the conventions have. Where one of them applies it must be used."""

_SAID: Final[Mapping[str, str]] = {
    "chat": CHAT,
    "embeddings": EMBEDDINGS,
    "generate_content": "generate_content",
    "text_completion": "text_completion",
    "acompletion": CHAT,  # LiteLLM 1.106 names its own functions, sync and async
    "completion": CHAT,
    "atext_completion": "text_completion",
    "embedding": EMBEDDINGS,
    "aembedding": EMBEDDINGS,
    "responses": CHAT,
    "aresponses": CHAT,
    "response": CHAT,
    "anthropic_messages": CHAT,
    "llm_call": "generate_content",  # Gemini CLI 0.61
}
"""Of `gen_ai.operation.name`."""
_KINDS: Final[Mapping[str, Mapping[str, str]]] = {
    semconv.OPENINFERENCE_KIND: {"EMBEDDING": EMBEDDINGS},
    semconv.LANGSMITH_KIND: {"embedding": EMBEDDINGS},
    semconv.LANGFUSE_KIND: {"embedding": EMBEDDINGS},
    semconv.VERCEL_OPERATION: {"ai.embed.doEmbed": EMBEDDINGS, "ai.embedMany.doEmbed": EMBEDDINGS},
    semconv.GENKIT_KIND: {"embedder": EMBEDDINGS},
    semconv.LLM_REQUEST_TYPE: {"completion": "text_completion", "embedding": EMBEDDINGS, "rerank": "rerank"},
}
"""Of a library's own word; any other one on a call is a chat."""


def operation_of(kinds: Sequence[tuple[str, object]], attributes: Mapping[str, Any], name: str) -> str:
    """The operation of a call; `kinds` are the attributes that say what it is (`Shape.kinds`), `name` the span's."""
    said = attributes.get(semconv.OPERATION_NAME)
    if type(said) is str:
        known = _SAID.get(said)
        if known is not None:
            return known
    for key, _ in kinds:
        if key != semconv.OPERATION_NAME:
            value = attributes[key]
            if type(value) is not str or (value == "completion" and name.endswith(".chat")):
                return CHAT  # OpenLLMetry 0.40.14 calls `anthropic.chat` a completion
            return _KINDS.get(key, _SAID).get(value, CHAT)
    return clean.label(said) or CHAT if type(said) is str else CHAT
