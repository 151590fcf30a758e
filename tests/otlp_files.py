"""Recorded OTLP requests as the values both doors build: only tests parse them with opentelemetry-proto."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from runmeter.spans import EndedSpan

RECORDINGS = Path(__file__).parent / "recordings"

_HAS_IS_REMOTE = 0x100
_IS_REMOTE = 0x200


@dataclass(frozen=True)
class Recording:
    """One case: what a library really exported, and what the provider really answered."""

    name: str
    path: Path
    document: dict[str, Any]

    @property
    def truth(self) -> dict[str, Any]:
        """The provider's ledger, added up."""
        truth: dict[str, Any] = self.document["truth"]
        return truth

    def spans(self) -> list[EndedSpan]:
        """The spans of the case in the order of the file."""
        return spans_of(self.path.read_bytes())


def recordings(folder: Path = RECORDINGS) -> Iterator[Recording]:
    """Every recorded case, by name (`<library>/<case>`)."""
    for path in sorted(folder.glob("*/*.pb")):
        document = json.loads(path.with_suffix(".json").read_text())
        yield Recording(f"{path.parent.name}/{path.stem}", path, document)


def spans_of(request: bytes) -> list[EndedSpan]:
    """The spans of one serialized `ExportTraceServiceRequest`."""
    message = ExportTraceServiceRequest.FromString(request)
    found = []
    for resource_spans in message.resource_spans:
        resource = {pair.key: _value(pair.value) for pair in resource_spans.resource.attributes}
        for scope_spans in resource_spans.scope_spans:
            found += [_ended(span, scope_spans.scope.name, resource) for span in scope_spans.spans]
    return found


def _ended(span: Span, scope: str, resource: dict[str, Any]) -> EndedSpan:
    return EndedSpan(
        trace_id=int.from_bytes(span.trace_id),
        span_id=int.from_bytes(span.span_id),
        parent_id=int.from_bytes(span.parent_span_id) or None,
        parent_is_remote=bool(span.flags & _HAS_IS_REMOTE and span.flags & _IS_REMOTE),
        name=span.name,
        kind=span.kind,
        scope=scope,
        resource=resource,
        attributes={pair.key: _value(pair.value) for pair in span.attributes},
        started_at=span.start_time_unix_nano,
        ended_at=span.end_time_unix_nano,
        failed=span.status.code == Status.STATUS_CODE_ERROR,
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return {pair.key: _value(pair.value) for pair in value.kvlist_value.values}
    return getattr(value, kind)
