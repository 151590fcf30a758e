"""What became of spans, by the instrumentation scope that made them: what a total of zero is explained from."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Final

from runmeter.reading.libraries import FAMILIES, LIBRARIES

SEEN: Final = "seen"
"""A span that speaks of model calls, agents or tools, or that should: told when it ends."""
COUNTED: Final = "counted"
"""It is a call of the totals, with usage or failed: told, like why a span was set aside, when its run closes."""
WITHOUT_USAGE: Final = "without_usage"
"""It is a call of the totals, and nobody reported its usage."""
OTHER: Final = "other"
NEWS_LIMIT: Final = 256
"""Kinds of news that wait to be told; beyond, those of further scopes are of scope `other`."""

Fates = Counter[tuple[str, str]]
"""(fate, scope) → spans. A fate is one of the above, or the reason under which a span was set aside."""

_GENAI: Final = frozenset({"ai", "gen_ai", "github.copilot", *LIBRARIES})
_GENAI_BEGINS: Final = (
    "@arizeai/openinference",
    "@mastra/",
    "@traceloop/",
    *(family for family, _ in FAMILIES),
    "com.anthropic.",
    "langfuse",
    "langsmith",
    "openinference.",
    "openlit.",
    "opentelemetry.util.genai",
    *(
        f"opentelemetry.instrumentation.{client}"
        for client in (
            "agno", "anthropic", "bedrock", "cohere", "crewai", "genai", "google_genai", "google_generativeai", "groq",
            "haystack", "langchain", "llamaindex", "mistralai", "ollama", "openai", "replicate", "sagemaker",
            "together", "transformers", "vertexai", "watsonx", "writer",
        )
    ),
)  # fmt: skip


@lru_cache(maxsize=1024)
def is_genai(scope: str) -> bool:
    """The scope is an instrumentation of model clients or agents: its spans are seen even where none of their
    attributes says anything to us, which is how a dialect looks that we do not know yet."""
    return scope in _GENAI or scope.startswith(_GENAI_BEGINS)


def tally(fates: Fates, fate: str, scope: str, spans: int = 1) -> None:
    """Add to `fates`, within `NEWS_LIMIT`."""
    key = (fate, scope)
    if len(fates) >= NEWS_LIMIT and key not in fates:
        key = (fate, OTHER)
    fates[key] += spans
