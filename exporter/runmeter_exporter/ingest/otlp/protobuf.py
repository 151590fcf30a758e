"""OTLP's protobuf messages, lean and of our own: only the fields we read.

Attributes are a map (a repeated `KeyValue` and a `map<string, AnyValue>` are the same bytes) and text is bytes, so
that the parser hashes the keys in C, Python touches the few that count, and one bad character in a prompt does not
cost a batch. Content that nobody reads never becomes a Python object.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, KeysView, Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from runmeter.spans import EndedSpan
from runmeter_exporter.ingest.otlp.values import IS_REMOTE, Decoded, problem

_TYPES = {"bytes": 12, "string": 9, "int32": 5, "int64": 3, "fixed32": 7, "fixed64": 6, "bool": 8, "double": 1}
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    # number and type of every field we read, as in opentelemetry-proto 1.7; `*` repeated, `{}` a map from string.
    "TraceRequest": {"resource_spans": (1, "*ResourceSpans")},
    "ResourceSpans": {"resource": (1, "Resource"), "scope_spans": (2, "*ScopeSpans")},
    "Resource": {"attributes": (1, "{}AnyValue")},
    "ScopeSpans": {"scope": (1, "Scope"), "spans": (2, "*Span")},
    "Scope": {"name": (1, "bytes")},
    "Span": {
        "trace_id": (1, "bytes"),
        "span_id": (2, "bytes"),
        "parent_span_id": (4, "bytes"),
        "name": (5, "bytes"),
        "kind": (6, "int32"),
        "start_time_unix_nano": (7, "fixed64"),
        "end_time_unix_nano": (8, "fixed64"),
        "attributes": (9, "{}AnyValue"),
        "status": (15, "Status"),
        "flags": (16, "fixed32"),
    },
    "Status": {"code": (3, "int32")},
    "AnyValue": {
        "string_value": (1, "bytes"),
        "bool_value": (2, "bool"),
        "int_value": (3, "int64"),
        "double_value": (4, "double"),
        "array_value": (5, "ArrayValue"),
        "kvlist_value": (6, "KeyValueList"),
        "bytes_value": (7, "bytes"),
    },
    "ArrayValue": {"values": (1, "*AnyValue")},
    "KeyValueList": {"values": (1, "{}AnyValue")},
    # Answers. PartialSuccess is the same for traces, metrics and logs.
    "Answer": {"partial_success": (1, "PartialSuccess")},
    "PartialSuccess": {"rejected": (1, "int64"), "error_message": (2, "string")},
    "RpcStatus": {"code": (1, "int32"), "message": (2, "string")},
}
_ONEOF = "AnyValue"
"""The message whose fields exclude each other."""


def _messages() -> Callable[[str], Any]:
    package = "runmeter.otlp"
    file = descriptor_pb2.FileDescriptorProto(name="runmeter_otlp.proto", package=package, syntax="proto3")

    def add(fields: Any, name: str, number: int, kind: str, *, repeated: bool = False) -> Any:
        field = fields.add(name=name, number=number, label=3 if repeated else 1)
        if kind in _TYPES:
            field.type = _TYPES[kind]
        else:
            field.type, field.type_name = 11, f".{package}.{kind}"
        return field

    for message_name, fields in _MESSAGES.items():
        message = file.message_type.add(name=message_name)
        if message_name == _ONEOF:
            message.oneof_decl.add(name="value")
        for name, (number, kind) in fields.items():
            if kind.startswith("{}"):
                entry_name = "".join(part.capitalize() for part in name.split("_")) + "Entry"
                entry = message.nested_type.add(name=entry_name)
                entry.options.map_entry = True
                add(entry.field, "key", 1, "string")
                add(entry.field, "value", 2, kind[2:])
                add(message.field, name, number, f"{message_name}.{entry_name}", repeated=True)
            else:
                field = add(message.field, name, number, kind.lstrip("*"), repeated=kind.startswith("*"))
                if message_name == _ONEOF:
                    field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))


_message = _messages()
_TraceRequest = _message("TraceRequest")
Answer = _message("Answer")
RpcStatus = _message("RpcStatus")


def from_protobuf(data: bytes) -> Decoded:
    """The spans of a serialized request. Raises DecodeError."""
    spans: list[EndedSpan] = []
    rejected: Counter[str] = Counter()
    for resource_spans in _TraceRequest.FromString(data).resource_spans:
        resource = dict(Attributes(resource_spans.resource.attributes))
        for scope_spans in resource_spans.scope_spans:
            scope = _text(scope_spans.scope.name)
            for span in scope_spans.spans:
                trace_id, span_id, parent_id = span.trace_id, span.span_id, span.parent_span_id
                started_at, ended_at = span.start_time_unix_nano, span.end_time_unix_nano
                if reason := problem(trace_id, span_id, parent_id, started_at, ended_at):
                    rejected[reason] += 1
                    continue
                flags = span.flags
                spans.append(
                    EndedSpan(
                        int.from_bytes(trace_id),
                        int.from_bytes(span_id),
                        (int.from_bytes(parent_id) or None) if parent_id else None,
                        flags & IS_REMOTE == IS_REMOTE,
                        _text(span.name),
                        span.kind,
                        scope,
                        resource,
                        Attributes(span.attributes),
                        min(started_at, ended_at),
                        ended_at,
                        span.status.code == 2,
                    )
                )
    return Decoded(spans, rejected)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


class Attributes(Mapping[str, Any]):
    """Attributes of one span, still in the parsed bytes; a value is converted when somebody asks for it."""

    __slots__ = ("_map", "_names")

    def __init__(self, parsed: Any) -> None:
        self._map = parsed
        self._names = dict.fromkeys(parsed)  # real keys: set operations on them stay in C

    def keys(self) -> KeysView[str]:
        """The names, as a view of a real dict."""
        return self._names.keys()

    def __getitem__(self, key: str) -> Any:
        if key in self._names:  # asking the parsed map would add the key
            return _value(self._map[key])
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return _text(value.string_value)
    if kind is None:
        return None
    if kind == "array_value":
        return tuple(_value(item) for item in value.array_value.values)
    if kind == "kvlist_value":
        return {key: _value(item) for key, item in value.kvlist_value.values.items()}
    return getattr(value, kind)
