"""OTLP's JSON: proto3 JSON with hexadecimal ids; 64-bit integers come as strings or numbers, enums as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from runmeter.spans import EndedSpan
from runmeter_exporter.ingest.otlp.values import IS_REMOTE, Decoded, problem


class _AnyValue(msgspec.Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _Values | None = None
    kvlist_value: _KeyValues | None = None


class _KeyValue(msgspec.Struct):
    key: str = ""
    value: _AnyValue | None = None


class _Values(msgspec.Struct):
    values: list[_AnyValue] = []


class _KeyValues(msgspec.Struct):
    values: list[_KeyValue] = []


class _Resource(msgspec.Struct):
    attributes: list[_KeyValue] = []


class _Scope(msgspec.Struct):
    name: str = ""


class _Status(msgspec.Struct):
    code: int | str = 0


class _Span(msgspec.Struct, rename="camel"):
    trace_id: str = ""
    span_id: str = ""
    parent_span_id: str | None = ""
    name: str = ""
    kind: int | str = 0
    start_time_unix_nano: int | str = 0
    end_time_unix_nano: int | str = 0
    attributes: list[_KeyValue] = []
    status: _Status | None = None
    flags: int = 0


class _ScopeSpans(msgspec.Struct):
    scope: _Scope | None = None
    spans: list[_Span] = []


class _ResourceSpans(msgspec.Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] = []


class _Request(msgspec.Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] = []


_request = msgspec.json.Decoder(_Request)
_KINDS = {
    "SPAN_KIND_INTERNAL": 1,
    "SPAN_KIND_SERVER": 2,
    "SPAN_KIND_CLIENT": 3,
    "SPAN_KIND_PRODUCER": 4,
    "SPAN_KIND_CONSUMER": 5,
}


def from_json(data: bytes) -> Decoded:
    """The spans of a request in JSON. Raises msgspec.DecodeError, ValueError or RecursionError."""
    spans: list[EndedSpan] = []
    rejected: Counter[str] = Counter()
    for resource_spans in _request.decode(data).resource_spans:
        resource = _json_values(resource_spans.resource.attributes if resource_spans.resource else ())
        for scope_spans in resource_spans.scope_spans:
            scope = scope_spans.scope.name if scope_spans.scope else ""
            for span in scope_spans.spans:
                trace_id, span_id, parent_id = _hex(span.trace_id), _hex(span.span_id), _hex(span.parent_span_id or "")
                started_at, ended_at = int(span.start_time_unix_nano), int(span.end_time_unix_nano)
                if reason := problem(trace_id, span_id, parent_id, started_at, ended_at):
                    rejected[reason] += 1
                    continue
                spans.append(
                    EndedSpan(
                        int.from_bytes(trace_id),
                        int.from_bytes(span_id),
                        int.from_bytes(parent_id) or None,
                        span.flags & IS_REMOTE == IS_REMOTE,
                        span.name,
                        span.kind if isinstance(span.kind, int) else _KINDS.get(span.kind, 0),
                        scope,
                        resource,
                        _json_values(span.attributes),
                        min(started_at, ended_at),
                        ended_at,
                        span.status is not None and span.status.code in (2, "STATUS_CODE_ERROR"),
                    )
                )
    return Decoded(spans, rejected)


def _hex(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b"?"  # one byte: the wrong length for every id, so the span is rejected by the id's name


def _json_values(attributes: Iterable[_KeyValue]) -> dict[str, Any]:
    return {pair.key: _json_value(pair.value) for pair in attributes}


def _json_value(value: _AnyValue | None) -> Any:
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.int_value is not None:
        return int(value.int_value)
    if value.bool_value is not None:
        return value.bool_value
    if value.double_value is not None:
        return float(value.double_value)
    if value.array_value is not None:
        return tuple(_json_value(item) for item in value.array_value.values)
    if value.kvlist_value is not None:
        return {pair.key: _json_value(pair.value) for pair in value.kvlist_value.values}
    return None
