"""Door 2's reader: the same spans as opentelemetry-proto reads, from every encoding, never more than allowed."""

from __future__ import annotations

import base64
import gzip
import json
import random
import zlib

import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from otlp_files import recordings, spans_of

from runmeter.spans import EndedSpan
from runmeter_exporter.ingest import otlp
from runmeter_exporter.ingest.otlp import JSON, PROTOBUF, OtlpError, decode

RECORDINGS = list(recordings())
SECOND = 10**9
NOW = 1_790_000_000 * SECOND


def as_json(request: bytes) -> bytes:
    """A request as OTLP JSON, which is proto3 JSON with the ids in hexadecimal."""
    document = MessageToDict(ExportTraceServiceRequest.FromString(request), use_integers_for_enums=True)
    for resource_spans in document.get("resourceSpans", []):
        for scope_spans in resource_spans["scopeSpans"]:
            for span in scope_spans["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64decode(span[key]).hex()
    return json.dumps(document).encode()


def request_of(**fields: object) -> bytes:
    """A request with one good span, but for the fields given."""
    request = ExportTraceServiceRequest()
    span = (
        request.resource_spans.add()
        .scope_spans.add()
        .spans.add(
            trace_id=b"t" * 16, span_id=b"s" * 8, name="chat", start_time_unix_nano=NOW, end_time_unix_nano=NOW + SECOND
        )
    )
    for name, value in fields.items():
        setattr(span, name, value)
    return request.SerializeToString()


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
def test_every_recording_reads_as_with_opentelemetry_proto(encoding: str) -> None:
    """Our lean messages and our JSON say of every recorded span exactly what the full messages say."""
    for recording in RECORDINGS:
        body = recording.path.read_bytes()
        decoded = decode(as_json(body) if encoding == JSON else body, encoding, None)
        assert decoded.spans == spans_of(body), recording.name
        assert not decoded.rejected


def test_attributes_are_a_mapping_that_asking_does_not_change() -> None:
    """A key that is not there is not there afterwards either; the values are what Python makes of them."""
    request = ExportTraceServiceRequest.FromString(request_of())
    attributes = request.resource_spans[0].scope_spans[0].spans[0].attributes
    attributes.add(key="text").value.string_value = "t"
    attributes.add(key="list").value.array_value.values.add().int_value = 3
    attributes.add(key="nothing")
    attributes.add(key="text").value.string_value = "the last of two wins"
    (span,) = decode(request.SerializeToString(), PROTOBUF, None).spans
    assert span.attributes.get("absent") is None
    assert "absent" not in span.attributes
    assert span.attributes == {"text": "the last of two wins", "list": (3,), "nothing": None}
    assert span.attributes.keys() & {"text", "absent"} == {"text"}


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda body: zlib.compress(body, wbits=-15)),
        ("GZIP", lambda body: gzip.compress(body[:40]) + gzip.compress(body[40:])),
        ("identity", bytes),
        (None, bytes),
    ],
)
def test_content_encodings(encoding: str | None, compress: object) -> None:
    """gzip (of several members too), deflate with and without its header, and none give the same spans."""
    body = request_of()
    assert decode(compress(body), PROTOBUF, encoding).spans == spans_of(body)  # type: ignore[operator]


@pytest.mark.parametrize("wrap", [gzip.compress, zlib.compress])
def test_a_bomb_is_refused_before_it_unfolds(wrap: object) -> None:
    """A small body that would become very large is a 413, after inflating no more than the limit."""
    bomb = wrap(bytes(otlp.INFLATED_LIMIT + 1))  # type: ignore[operator]
    with pytest.raises(OtlpError, match="inflates beyond the limit") as caught:
        decode(bomb, PROTOBUF, "gzip" if wrap is gzip.compress else "deflate")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("body", "content_type", "encoding", "status"),
    [
        (b"\xff" * 40, PROTOBUF, None, 400),
        (request_of()[:-3], PROTOBUF, None, 400),
        (b"{", JSON, None, 400),
        (b"[]", JSON, None, 400),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"startTimeUnixNano": "soon"}]}]}]}', JSON, None, 400),
        (b'{"resourceSpans": ' + b"[" * 10_000, JSON, None, 400),
        (b'{"x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", JSON, None, 400),
        (b"not gzip", PROTOBUF, "gzip", 400),
        (gzip.compress(request_of(), mtime=0)[:-9], PROTOBUF, "gzip", 400),
        (b"".join(gzip.compress(b"", mtime=0) for _ in range(100)), PROTOBUF, "gzip", 400),
        (b"", PROTOBUF, "br", 415),
        (b"", "text/plain", None, 415),
        (b"", None, None, 415),
        (bytes(otlp.BODY_LIMIT + 1), PROTOBUF, None, 413),
    ],
)
def test_what_is_refused_whole(body: bytes, content_type: str | None, encoding: str | None, status: int) -> None:
    """Bad data is a 400, a body too large a 413, a type or encoding that we do not read a 415, with a sentence."""
    with pytest.raises(OtlpError) as caught:
        decode(body, content_type, encoding)
    assert caught.value.status == status
    assert len(str(caught.value)) > 20


def test_json_attributes_nested_deeply_are_a_clear_error() -> None:
    """An attribute of arrays in arrays, 10,000 deep, is refused and does not exhaust the stack."""
    deep = b'{"arrayValue": {"values": [' * 10_000 + b"{}" + b"]}}" * 10_000
    body = b'{"resourceSpans": [{"resource": {"attributes": [{"key": "k", "value": ' + deep + b"}]}}]}"
    with pytest.raises(OtlpError) as caught:
        decode(body, JSON, None)
    assert caught.value.status == 400


@pytest.mark.parametrize("encoding", [PROTOBUF, JSON])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"trace_id": b"short"}, "trace_id"),
        ({"trace_id": bytes(16)}, "trace_id"),
        ({"trace_id": b""}, "trace_id"),
        ({"span_id": b"much too long"}, "span_id"),
        ({"span_id": bytes(8)}, "span_id"),
        ({"parent_span_id": b"abc"}, "parent_id"),
        ({"start_time_unix_nano": 0}, "time"),
        ({"end_time_unix_nano": 2**63}, "time"),
        ({"end_time_unix_nano": 2**64 - 1}, "time"),
        ({"end_time_unix_nano": 2**63 - 1}, "time"),
    ],
)
def test_spans_that_are_rejected_by_reason(encoding: str, fields: dict[str, object], reason: str) -> None:
    """An id of the wrong length or all zero, or a time outside 2000 to 2200, rejects that span by reason."""
    body = request_of(**fields) + request_of()
    decoded = decode(as_json(body) if encoding == JSON else body, encoding, None)
    assert decoded.rejected == {reason: 1}
    assert len(decoded.spans) == 1


def test_edges_of_good_spans() -> None:
    """A zero parent is none, a start after the end is the end, broken UTF-8 is replaced, remote needs both bits."""
    request = ExportTraceServiceRequest.FromString(
        request_of(parent_span_id=bytes(8), start_time_unix_nano=NOW + 9 * SECOND, flags=0x201)
    )
    request.resource_spans[0].resource.attributes.add(key="service.name").value.string_value = "##"
    (span,) = decode(request.SerializeToString().replace(b"##", b"\xff\xfe"), PROTOBUF, None).spans
    assert span.parent_id is None
    assert span.started_at == span.ended_at == NOW + SECOND
    assert span.resource == {"service.name": "\ufffd\ufffd"}
    assert not span.parent_is_remote
    (remote,) = decode(request_of(parent_span_id=b"p" * 8, flags=0x301), PROTOBUF, None).spans
    assert remote.parent_is_remote


def read_or_refused(body: bytes, content_type: str, encoding: str | None) -> list[EndedSpan]:
    """The spans read, or none where the body was refused as bad."""
    refused = 200
    try:
        return decode(body, content_type, encoding).spans
    except OtlpError as error:
        refused = error.status
    assert refused == 400
    return []


@given(seed=st.integers(0, 2**32), data=st.data())
def test_mutated_requests_are_read_or_refused(seed: int, data: st.DataObject) -> None:
    """Whatever was done to a real request's bytes, spans with good ids and times come out, or a 400."""
    choice = random.Random(seed)
    recording = choice.choice(RECORDINGS)
    encoding = choice.choice([PROTOBUF, JSON])
    body = recording.path.read_bytes()
    broken = bytearray(as_json(body) if encoding == JSON else body)
    for _ in range(data.draw(st.integers(1, 8))):
        if not broken:  # one recording holds no span, so its request no byte
            break
        at = choice.randrange(len(broken))
        if choice.random() < 0.5:
            broken[at] = choice.randrange(256)
        else:
            del broken[at : at + choice.randrange(1, 20)]
    for span in read_or_refused(bytes(broken), encoding, None):
        assert 0 < span.trace_id < 2**128
        assert 0 < span.span_id < 2**64
        assert otlp.EARLIEST <= span.started_at <= span.ended_at < otlp.LATEST


@given(st.binary(max_size=400), st.sampled_from([PROTOBUF, JSON]), st.sampled_from([None, "gzip", "deflate"]))
def test_any_bytes_are_read_or_refused(body: bytes, content_type: str, encoding: str | None) -> None:
    """Arbitrary bytes raise nothing but OtlpError."""
    read_or_refused(body, content_type, encoding)


def test_answers_are_what_a_client_reads() -> None:
    """Success, partial success and Status parse with the official messages, in the request's encoding."""
    assert otlp.success("/v1/traces", PROTOBUF) == b""
    assert json.loads(otlp.success("/v1/traces", JSON)) == {}
    traces = ExportTraceServiceResponse.FromString(otlp.success("/v1/traces", PROTOBUF, 3, "3 had no id"))
    assert (traces.partial_success.rejected_spans, traces.partial_success.error_message) == (3, "3 had no id")
    metrics = ExportMetricsServiceResponse.FromString(otlp.success("/v1/metrics", PROTOBUF, 0, "only traces"))
    assert metrics.partial_success.error_message == "only traces"
    logs = ExportLogsServiceResponse.FromString(otlp.success("/v1/logs", PROTOBUF, 0, "only traces"))
    assert logs.partial_success.error_message == "only traces"
    assert json.loads(otlp.success("/v1/traces", JSON, 3, "why")) == {
        "partialSuccess": {"rejectedSpans": "3", "errorMessage": "why"}
    }
    status = Status.FromString(otlp.failure(429, PROTOBUF, "full"))
    assert (status.code, status.message) == (8, "full")
    assert json.loads(otlp.failure(400, JSON, "bad")) == {"code": 3, "message": "bad"}
