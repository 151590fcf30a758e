"""Every recording replayed span by span, begun and ended in the order of its times, through the processor of door 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from doors import Replayed, replay
from fake_sink import FakeSink
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from otlp_files import Recording, recordings

from runmeter.otel.processor import Processor
from runmeter.spans import EndedSpan


def cases() -> Iterator[Any]:
    for recording in recordings():
        # The truth of some counts chat answers only; to us embedding calls are calls. The others no span can tell.
        if not recording.document.get("impossible_from_spans") and not recording.name.endswith("embeddings"):
            yield pytest.param(recording, id=recording.name)


@pytest.mark.parametrize("recording", cases())
def test_totals_and_threads(recording: Recording) -> None:
    """Calls, tokens and the totals of each thread are what the provider answered, and every run that began ended."""
    sink = replay(recording.spans())
    calls = [call for run in sink.runs for call in sink.calls[id(run)]]
    truth = recording.truth
    embedded, embeddings = truth.get("embedding_input_tokens", 0), truth.get("embedding_calls", 0)
    assert sum(call.usage.input_tokens for call in calls) == truth["input_tokens"] + embedded
    assert sum(call.usage.output_tokens for call in calls) == truth["output_tokens"]
    answered = sum(call.usage.calls for call in calls) - embeddings
    assert truth["llm_calls"] <= answered <= truth["llm_calls"] + truth.get("interrupted_calls", 0)
    assert {id(run) for run, _ in sink.ends} == {id(run) for run in sink.runs}
    assert "error" not in sink.losses
    if len(truth.get("per_thread") or ()) > 1 and all(run.thread_id for run in sink.runs):
        threads: dict[str | None, int] = {}
        for run in sink.runs:
            threads[run.thread_id] = threads.get(run.thread_id, 0) + sink.usage(run.run_id).total_tokens
        told = sorted(one["input_tokens"] + one["output_tokens"] for one in truth["per_thread"].values())
        assert sorted(threads.values()) == told


def test_a_streams_call_waits_for_its_log_and_not_for_ever() -> None:
    """Logfire's call of a stream is told with the usage that its log brings; one whose stream nobody read is told, as a
    call without usage, when another call comes a minute later."""
    second = 10**9
    chat = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    used = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2}

    def span(number: int, began: int, ended: int, **attributes: Any) -> EndedSpan:
        said = {**chat, **attributes}
        return EndedSpan(number, number, None, False, "chat", 3, "logfire.openai", {}, said, began, ended, False)

    call = span(1, second, 2 * second)
    log = span(2, 3 * second, 3 * second, **used, **{"logfire.span_type": "log", "duration": 1.0})
    unread = span(3, 10 * second, 11 * second)
    later = span(4, 80 * second, 81 * second, **used)
    sink = FakeSink()
    processor = Processor()
    processor.start((sink,))
    resource = Resource({})
    told = []
    for one in (call, log, unread, later):
        processor.on_start(Replayed(one, resource, began=True), Context())  # type: ignore[arg-type]
        processor.on_end(Replayed(one, resource, began=False))
        usages = [sink.usage(run.run_id) for run in sink.runs]
        told.append(tuple((usage.calls, usage.calls_without_usage, usage.input_tokens) for usage in usages))
    processor.stop()
    assert told == [(), ((1, 0, 5),), ((1, 0, 5),), ((1, 0, 5), (1, 1, 0), (1, 0, 5))]
