"""Every recording through reading and settling, as door 1 does it, against what the provider really answered.

`python tests/test_recordings.py [folder]` prints the score, also over a folder of recordings that are not here.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from otlp_files import RECORDINGS, Recording, recordings

from runmeter.call import Reading, Role, read
from runmeter.settle import Settler
from runmeter.twins import RunFacts, TwinIndex, keeper
from runmeter.usage import ZERO, Usage

NOT_EMITTED = "the library does not write reasoning tokens"
NOT_EMITTED_EITHER = "the library writes neither cache writes nor reasoning tokens"
DETAILS = "the library writes neither cached nor reasoning tokens"
HIDDEN_RETRY = "the client library retries inside, and the failed attempt leaves no span"
HIDDEN_RETRY_TOO = "reasoning tokens are not written, and a retry inside the library leaves no span"
NO_CALLS = "emits workflow, agent and tool spans only; model calls need the client's instrumentation beside it"
ABANDONED = "the client closed the stream before the usage chunk; no instrumentation ever had it"
LOGS_ONLY = "thoughts and cached tokens are only in the logs"
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
            "cached, reasoning",
            DETAILS,
            (
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


class Runs:
    """The runs of one process: explicit by id, otherwise one per trace, and a call seen in two of them is moved to the
    run that keeps it."""

    def __init__(self) -> None:
        self.settlers: dict[str, Settler] = {}
        self._times: dict[str, tuple[int, int]] = {}
        self._explicit: set[str] = set()
        self._twins = TwinIndex()

    def add(self, reading: Reading) -> None:
        """A span ended."""
        run_id = reading.run_id or format(reading.trace_id, "032x")
        if reading.run_id is not None:
            self._explicit.add(run_id)
        first, last = self._times.get(run_id, (reading.started_at, reading.ended_at))
        self._times[run_id] = min(first, reading.started_at), max(last, reading.ended_at)
        settler = self.settlers.setdefault(run_id, Settler())
        settler.add(reading)
        if reading.role in (Role.CALL, Role.WEAK):
            found = self._twins.find_all(run_id, reading)
            self._twins.add(run_id, reading)
            if found:
                other_id = str(found[0][0])
                if keeper(self._facts(run_id), self._facts(other_id)).run_id == run_id:
                    for _, twin in found:
                        self._move(twin, other_id, run_id)
                else:
                    self._move(reading, run_id, other_id)

    def _move(self, reading: Reading, old: str, new: str) -> None:
        self.settlers[old].remove(*reading.key)
        self.settlers[new].add(reading)
        self._twins.moved(reading, new)

    def _facts(self, run_id: str) -> RunFacts:
        settler = self.settlers[run_id]
        named = settler.thread_id is not None or settler.agent is not None
        return RunFacts(run_id, run_id in self._explicit, named, *self._times[run_id])

    @property
    def totals(self) -> Usage:
        """Of all runs."""
        return sum((settler.totals for settler in self.settlers.values()), start=ZERO)

    def by_thread(self) -> dict[str | None, Usage]:
        """Totals of the runs of each thread."""
        found: dict[str | None, Usage] = {}
        for settler in self.settlers.values():
            if any(settler.totals):
                found[settler.thread_id] = found.get(settler.thread_id, ZERO) + settler.totals
        return found


def settle(readings: Iterable[Reading]) -> Runs:
    """All of them through one process."""
    runs = Runs()
    for reading in readings:
        runs.add(reading)
    return runs


def wrong(recording: Recording, runs: Runs) -> list[str]:
    """What differs from the truth."""
    truth, got = recording.truth, runs.totals
    expected: dict[str, tuple[Any, Any]] = {
        "calls": (truth["llm_calls"] + truth.get("embedding_calls", 0), got.calls),
        "input": (truth["input_tokens"] + truth.get("embedding_input_tokens", 0), got.input_tokens),
        "output": (truth["output_tokens"], got.output_tokens),
        "cached": (truth["cached_input_tokens"], got.cache_read_tokens),
        "cache write": (truth["cache_write_input_tokens"], got.cache_write_tokens),
        "reasoning": (truth["reasoning_tokens"], got.reasoning_tokens),
        "errors": (truth["errors"], got.failures),
        "without usage": (truth["calls_without_usage"], got.calls_without_usage),
    }
    if "per_thread" in truth:
        expected["thread"] = (
            {
                thread: (part["llm_calls"], part["input_tokens"], part["output_tokens"])
                for thread, part in truth["per_thread"].items()
            },
            {thread: (part.calls, part.input_tokens, part.output_tokens) for thread, part in runs.by_thread().items()},
        )
    # A stream that the provider broke off is a call or an error, and both are right.
    interrupted = truth["interrupted_calls"]
    if interrupted and got.calls + got.failures == truth["llm_calls"] + truth["errors"]:
        failed = got.failures - truth["errors"]
        if 0 < failed <= interrupted:
            for name in ("calls", "errors", "without usage"):
                del expected[name]
    return [name for name, (want, is_now) in expected.items() if want != is_now]


def orders(readings: list[Reading]) -> Iterable[list[Reading]]:
    """In the order of the file (in which the spans ended), and shuffled."""
    yield readings
    for seed in range(4):
        shuffled = list(readings)
        random.Random(seed).shuffle(shuffled)
        yield shuffled


CASES = {recording.name: recording for recording in recordings()}


@pytest.mark.parametrize("name", CASES)
def test_a_recording_settles_to_what_the_provider_answered(name: str) -> None:
    """Calls, tokens, errors and threads of a recorded case equal the provider's ledger, in any order of its spans."""
    recording = CASES[name]
    expected, reason = CANNOT.get(name, ("", ""))
    readings = [read(span) for span in recording.spans()]
    assert not any(reading.rejected for reading in readings)
    for order in orders(readings):
        found = ", ".join(wrong(recording, settle(order)))
        assert found == expected, f"{name}: wrong: {found or 'nothing'}; expected: {expected or 'nothing'} ({reason})"


def test_what_cannot_be_right_is_recorded() -> None:
    """Every excuse names a recording that exists."""
    assert set(CANNOT) <= set(CASES)


def score(folder: Path) -> None:
    """Print what is wrong where, and how many are right."""
    cases = list(recordings(folder))
    counts: Counter[str] = Counter()
    for recording in cases:
        found = wrong(recording, settle(read(span) for span in recording.spans()))
        counts.update(found)
        counts["any of calls, input, output"] += bool(set(found) & set(MAIN))
        if found:
            print(f"{recording.name}: {', '.join(found)}")
    print(f"{len(cases)} recordings; wrong in:", dict(counts.most_common()))


if __name__ == "__main__":
    score(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDINGS)
