"""Every recording through the two doors, live and settled, against what the provider really answered.

`python tests/test_recordings.py [folder]` prints the score of each, also over a folder of recordings that are not here.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from doors import Counted, door1, door2, unpriced
from otlp_files import RECORDINGS, Recording, recordings
from otlp_requests import post

from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import open_store

NOT_EMITTED = "the library does not write reasoning tokens"
NOT_EMITTED_EITHER = "the library writes neither cache writes nor reasoning tokens"
DETAILS = "the library writes neither cached nor reasoning tokens"
HIDDEN_RETRY = "the client library retries inside, and the failed attempt leaves no span"
HIDDEN_RETRY_TOO = "reasoning tokens are not written, and a retry inside the library leaves no span"
NO_CALLS = "emits workflow, agent and tool spans only; model calls need the client's instrumentation beside it"
ABANDONED = "the client closed the stream before the usage chunk; no instrumentation ever had it"
LOGS_ONLY = "thoughts and cached tokens are only in the logs"
NEVER_READ = "the spans of a response in the background end before it is complete, and no span has its usage"
MADE_UP = "the library drops the usage of a stream and writes counts of its own; of other answers no details"
NO_THREAD = "no span names the conversation"

MAIN = ("calls", "input", "output")

CANNOT: Mapping[str, tuple[str, str]] = {
    name: (wrong_of_it, reason)
    for wrong_of_it, reason, names in (
        (
            "reasoning",
            NOT_EMITTED,
            (
                "claude-code-2.1.197/cc_error_then_retry",
                "claude-code-2.1.197/cc_tool_loop",
                "claude-code-2.1.331/readme_command",
                "claude-code-2.1.331/subagent",
                "openlit-clients-1.45.0/anthropic_stream_helper",
                "openlit-clients-1.45.0/openai_chat_single",
                "openlit-langchain-1.45.0/langchain_chain_lcel",
                "openlit-langchain-1.45.0/langchain_llm_responses_api",
                "opentelemetry-instrumentation-anthropic-0.40.14/anthropic_tool_loop_in_app_span",
                "opentelemetry-instrumentation-langchain+openai-0.40.14/langchain_llm_responses_api",
                "opentelemetry-instrumentation-langchain+openai-0.62.4/langchain_llm_single",
                "opentelemetry-instrumentation-langchain+openai-0.62.4/langchain_llm_stream_usage",
                "opentelemetry-instrumentation-langchain-0.40.14/langchain_chain_lcel",
                "opentelemetry-instrumentation-langchain-0.40.14/langchain_llm_long_history",
                "opentelemetry-instrumentation-langchain-0.40.14/langchain_llm_responses_api",
                "opentelemetry-instrumentation-langchain-0.40.14/langgraph_agent_async_stream",
                "opentelemetry-instrumentation-langchain-0.62.4/langchain_llm_long_history",
                "opentelemetry-instrumentation-openai-0.40.14/openai_chat_long_history",
                "opentelemetry-instrumentation-openai-0.40.14/openai_chat_single",
                "pydantic-ai-slim-1.107.10/pai_single_anthropic_cached",
                "strands-agents-1.62.0/strands_tool_loop_session",
                "strands-agents-1.62.0+experimental/strands_single",
                "strands-agents-1.62.0+experimental/strands_tool_loop_session",
                "vercel-ai-sdk-7.0.173/ai_generate_single",
            ),
        ),
        (
            "errors",
            HIDDEN_RETRY,
            (
                "codex-cli-0.169.0/codex_error_then_retry",
                "litellm-1.106.2+reqspan/litellm_error_then_retry",
                "logfire+openai+anthropic-5.2.0/pai_error_sdk_retry",
                "logfire-5.2.0/pai_error_sdk_retry",
                "openlit-langchain+openai-1.45.0/langchain_error_then_sdk_retry",
                "opentelemetry-instrumentation-anthropic-0.40.14/anthropic_error_then_sdk_retry",
                "opentelemetry-instrumentation-openai-0.62.4/openai_error_then_sdk_retry",
                "opentelemetry-instrumentation-openai-v2-2.4b0+experimental/openai_error_then_sdk_retry",
                "pydantic-ai-slim-2.68.0+v2/pai_error_sdk_retry",
            ),
        ),
        (
            "output, cached, reasoning",
            LOGS_ONLY,
            (
                "gemini-cli-0.61.0/gcli_error_then_retry",
                "gemini-cli-0.61.0/gcli_tool_loop",
                "gemini-cli-0.61.0/resume_and_tools",
            ),
        ),
        (
            "input, output, without usage",
            ABANDONED,
            (
                "logfire-clients-5.2.0/openai_stream_abandoned",
                "opentelemetry-instrumentation-openai-v2-2.4b0/openai_stream_abandoned",
            ),
        ),
        (
            "input, output, cached, reasoning, without usage",
            NEVER_READ,
            ("openai-3.3.0+ollm-openai/openai_background",),
        ),
        (
            "input, output, cached, reasoning, without usage",
            MADE_UP,
            ("traceloop-instrumentation-openai-js-0.27.0/js_openai_chat_and_stream",),
        ),
        (
            "cached, reasoning",
            DETAILS,
            (
                "opentelemetry-instrumentation-openai+openinference-0.33.12/openai_async_parallel_streams",
                "opentelemetry-instrumentation-openai+openinference-0.33.12/openai_chat_two_streams_in_app",
                "openinference-instrumentation-openai-agents-2.6.0/agents_tool_loop_chat",
                "opentelemetry-instrumentation-openai-v2-2.4b0/openai_chat_single",
                "opentelemetry-instrumentation-openai-v2-2.4b0/openai_chat_stream_usage",
                "opentelemetry-instrumentation-openai-v2-2.4b0+experimental/openai_chat_long_history",
                "opentelemetry-instrumentation-openai-v2-2.4b0+experimental/openai_chat_stream_usage",
            ),
        ),
        (
            "thread",
            NO_THREAD,
            (
                "openinference-instrumentation-openai-agents-2.6.0/agents_two_threads_at_once",
                "opentelemetry-instrumentation-langchain+openai-0.40.14/langgraph_two_threads_at_once",
            ),
        ),
        (
            "calls, input, output",
            ABANDONED,
            ("openlit-clients-1.45.0/openai_stream_abandoned",),
        ),
        (
            "calls, input, output, cached, reasoning",
            NO_CALLS,
            (
                "opentelemetry-instrumentation-genai-openai-agents-1.3b0/agents_single_responses",
                "opentelemetry-instrumentation-genai-openai-agents-1.3b0/agents_tool_loop_chat",
                "opentelemetry-instrumentation-genai-openai-agents-1.3b0/agents_tool_loop_responses",
            ),
        ),
        (
            "cache write, reasoning",
            NOT_EMITTED_EITHER,
            ("opentelemetry-instrumentation-langchain+openai-0.40.14/langchain_anthropic_stream",),
        ),
        (
            "reasoning, errors",
            HIDDEN_RETRY_TOO,
            ("vercel-ai-sdk-7.0.173/ai_error_then_retry",),
        ),
    )
    for name in names
}
"""The few that cannot be right. Strict: one that becomes right, or wrong in another way, fails the test."""


def wrong(recording: Recording, got: Counted) -> list[str]:
    """What differs from the truth."""
    truth, usage = recording.truth, got.totals
    expected: dict[str, tuple[Any, Any]] = {
        "calls": (truth["llm_calls"] + truth.get("embedding_calls", 0), usage.calls),
        "input": (truth["input_tokens"] + truth.get("embedding_input_tokens", 0), usage.input_tokens),
        "output": (truth["output_tokens"], usage.output_tokens),
        "cached": (truth["cached_input_tokens"], usage.cache_read_tokens),
        "cache write": (truth["cache_write_input_tokens"], usage.cache_write_tokens),
        "reasoning": (truth["reasoning_tokens"], usage.reasoning_tokens),
        "errors": (truth["errors"], usage.failures),
        "without usage": (truth["calls_without_usage"], usage.calls_without_usage),
    }
    if "per_thread" in truth:
        expected["thread"] = (
            {
                thread: (part["llm_calls"], part["input_tokens"], part["output_tokens"])
                for thread, part in truth["per_thread"].items()
            },
            {thread: (part.calls, part.input_tokens, part.output_tokens) for thread, part in got.threads.items()},
        )
    # A stream that the provider broke off is a call or an error, and both are right.
    interrupted = truth["interrupted_calls"]
    if interrupted and usage.calls + usage.failures == truth["llm_calls"] + truth["errors"]:
        failed = usage.failures - truth["errors"]
        if 0 < failed <= interrupted:
            for name in ("calls", "errors", "without usage"):
                del expected[name]
    return [name for name, (want, is_now) in expected.items() if want != is_now]


def judged(recording: Recording) -> dict[str, list[str]]:
    """What is wrong at each door."""
    store = open_store("memory://")
    ingest = Ingest(store, price=unpriced)

    def send(_: int, request: bytes) -> Ingest:
        post(ingest, request)
        return ingest

    try:
        live, settled = door2(store, [recording.path.read_bytes()], send)
    finally:
        assert ingest.stop()
    found = {"door 1": door1(recording.spans()), "door 2, live": live, "door 2, settled": settled}
    return {door: wrong(recording, got) for door, got in found.items()}


CASES = {recording.name: recording for recording in recordings()}


@pytest.mark.parametrize("name", CASES)
def test_both_doors_say_what_the_provider_answered(name: str) -> None:
    """Calls, tokens, errors and threads equal the provider's ledger at door 1, and at door 2 while the runs are still
    active as well as when they have settled."""
    expected, reason = CANNOT.get(name, ("", ""))
    for door, found in judged(CASES[name]).items():
        said = ", ".join(found)
        assert said == expected, f"{name}, {door}: wrong: {said}; expected: {expected} ({reason})"


def test_what_cannot_be_right_is_recorded() -> None:
    """Every excuse names a recording that exists."""
    assert set(CANNOT) <= set(CASES)


def score(folder: Path) -> None:
    """Print what is wrong where, and how many are right at each door."""
    cases = list(recordings(folder))
    counts: dict[str, Counter[str]] = {}
    for recording in cases:
        for door, found in judged(recording).items():
            tally = counts.setdefault(door, Counter())
            tally.update(found)
            tally["any of calls, input, output"] += bool(set(found) & set(MAIN))
            if found:
                print(f"{recording.name}, {door}: {', '.join(found)}")
    for door, tally in counts.items():
        print(f"{door}: {len(cases)} recordings; wrong in:", dict(tally.most_common()))


if __name__ == "__main__":
    score(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDINGS)
