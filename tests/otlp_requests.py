"""Recorded requests taken apart, posted, and what answers count: helpers for the tests of door 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runmeter.usage import Usage
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF

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


def post(ingest: Ingest, request: bytes) -> None:
    """One request that must be taken."""
    status, _, body = ingest.handle("/v1/traces", request, PROTOBUF, None)
    assert status == 200, (status, body)
