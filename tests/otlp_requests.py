"""Recorded requests taken apart, and answers put beside the truth: helpers for the tests of door 2."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runmeter.usage import ZERO, Usage
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF
from runmeter_exporter.store import RunStore

GRAND = {
    "input_tokens": "total_input_tokens",
    "output_tokens": "total_output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "reasoning_tokens": "reasoning_tokens",
    "calls": "llm_call_count",
    "failures": "llm_call_failures",
    "calls_without_usage": "calls_without_usage",
    "messages": "message_count",
    "unpriced_tokens": "unpriced_tokens",
}
"""Field of `Usage` → field of the answers."""


def apart(request: bytes) -> list[bytes]:
    """One request for every span of this one, in its order."""
    requests = []
    for resource_spans in ExportTraceServiceRequest.FromString(request).resource_spans:
        for scope_spans in resource_spans.scope_spans:
            for span in scope_spans.spans:
                single = ExportTraceServiceRequest()
                resource = single.resource_spans.add()
                resource.resource.CopyFrom(resource_spans.resource)
                scope = resource.scope_spans.add()
                scope.scope.CopyFrom(scope_spans.scope)
                scope.spans.add().CopyFrom(span)
                requests.append(single.SerializeToString())
    return requests


def usage_of(answer: Mapping[str, Any]) -> Usage:
    """The counters of an answer, but for money."""
    return Usage(**{field: answer[name] for field, name in GRAND.items()})


def difference(now: Usage, before: Usage) -> Usage:
    """What came since; settled totals never fall, so no part of it is negative."""
    assert now.at_least(before) == now, f"settled totals fell from {before} to {now}"
    return now.exceeding(before)


class Answers:
    """What a store says of the runs that were closed for one recording, in the shape that `test_recordings` judges."""

    def __init__(self, store: RunStore, before: Usage, run_ids: Iterable[str]) -> None:
        self.totals = difference(usage_of(store.usage()), before)
        runs = [run for run_id in run_ids if (run := store.run(run_id)) is not None]
        self._runs = [(run["thread_id"], usage_of(run)) for run in runs]

    def by_thread(self) -> dict[str | None, Usage]:
        """Totals of the runs of each thread."""
        found: dict[str | None, Usage] = {}
        for thread_id, usage in self._runs:
            if any(usage):
                found[thread_id] = found.get(thread_id, ZERO) + usage
        return found


def post(ingest: Ingest, request: bytes) -> None:
    """One request that must be taken."""
    status, _, body = ingest.handle("/v1/traces", request, PROTOBUF, None)
    assert status == 200, (status, body)


def answers_after(store: RunStore, requests: Sequence[bytes], send: Callable[[int, bytes], Ingest]) -> Answers:
    """Send them all, close every run, and read the answers. `send` posts one and says through whom to close."""
    before = usage_of(store.usage())
    ingest = None
    for number, request in enumerate(requests):
        ingest = send(number, request)
    run_ids = [run.run_id for run in store.watch().runs]
    if ingest is not None:
        ingest.close_runs(run_ids)
    return Answers(store, before, run_ids)
