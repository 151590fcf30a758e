"""OTLP/HTTP bytes → `EndedSpan`s, and the answers the specification wants (opentelemetry.io/docs/specs/otlp, 1.9)."""

from __future__ import annotations

import threading
import zlib
from contextlib import nullcontext

import msgspec
from google.protobuf.message import DecodeError

from runmeter_exporter.ingest.otlp.json import from_json
from runmeter_exporter.ingest.otlp.protobuf import Answer, RpcStatus, from_protobuf
from runmeter_exporter.ingest.otlp.size import JSON_THINGS, SMALL, THINGS, things_in_json, things_in_protobuf
from runmeter_exporter.ingest.otlp.values import EARLIEST, LATEST, Decoded

__all__ = [
    "EARLIEST",
    "JSON",
    "LATEST",
    "PROTOBUF",
    "Decoded",
    "OtlpError",
    "answers_in",
    "decode",
    "failure",
    "inflate",
    "parse",
    "success",
    "weighed",
]

BODY_LIMIT = 20 * 2**20
"""Bytes of a body as sent; the OpenTelemetry Collector's own limit."""
INFLATED_LIMIT = 4 * BODY_LIMIT
"""Bytes of a body after gzip or deflate; spans seldom shrink by less than that, bombs by a thousand."""
PROTOBUF, JSON = "application/x-protobuf", "application/json"
_LARGE = threading.Lock()
_BECOMES_LARGE = 16 * 2**10
"""Bytes of a body that gzip may have made of 16 MB."""
_MEMBERS = 64
"""gzip members of one body; more is somebody playing."""


class OtlpError(Exception):
    """A request that is refused whole: the HTTP status, and a sentence for the one who sent it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def decode(body: bytes, content_type: str | None, content_encoding: str | None) -> Decoded:
    """The spans of one `ExportTraceServiceRequest`.

    Raises OtlpError 400 (not what it says it is), 413 (too large) or
    415 (content type or encoding that we do not read).
    """
    answers_in(content_type)  # 415 before any work
    return parse(weighed(body, content_type, content_encoding), content_type)


def weighed(body: bytes, content_type: str | None, content_encoding: str | None) -> bytes:
    """The body without its content encoding, if it is none that would become too much. Raises OtlpError 413."""
    # One at a time where it may become large: beside these bytes only what was let in is held.
    with _LARGE if len(body) > _BECOMES_LARGE else nullcontext():
        data = inflate(body, content_encoding)
        if len(data) > SMALL:
            as_json = _media_type(content_type) == JSON
            limit = JSON_THINGS if as_json else THINGS
            if (things_in_json(data) if as_json else things_in_protobuf(data)) > limit:
                raise OtlpError(
                    413, f"more than {limit} spans, attributes and values in one request of {len(data)} bytes; "
                    "send smaller batches (OTEL_BSP_MAX_EXPORT_BATCH_SIZE)"
                )  # fmt: skip
        return data


def parse(data: bytes, content_type: str | None) -> Decoded:
    """The spans in a body without its content encoding. Raises OtlpError 400."""
    try:
        return from_json(data) if _media_type(content_type) == JSON else from_protobuf(data)
    except RecursionError:
        raise OtlpError(400, "attributes are nested too deeply to be an ExportTraceServiceRequest") from None
    except DecodeError as error:
        raise OtlpError(400, f"the body is not a serialized ExportTraceServiceRequest: {error}"[:300]) from None
    except (msgspec.DecodeError, ValueError) as error:
        raise OtlpError(400, f"the body is not an ExportTraceServiceRequest in OTLP JSON: {error}"[:300]) from None


def answers_in(content_type: str | None) -> str:
    """The content type an answer must have, which is the request's. Raises OtlpError 415 for any other."""
    media_type = _media_type(content_type)
    if media_type not in (PROTOBUF, JSON):
        raise OtlpError(415, f"content type {(content_type or 'none')[:100]!r}: send {PROTOBUF} or {JSON}")
    return media_type


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def inflate(body: bytes, content_encoding: str | None, limit: int = INFLATED_LIMIT) -> bytes:
    """The body without its content encoding, of at most `limit` bytes however little was sent."""
    if len(body) > BODY_LIMIT:
        raise OtlpError(413, f"body of {len(body)} bytes: the limit is {BODY_LIMIT}; send smaller batches")
    encoding = (content_encoding or "identity").strip().lower()
    if encoding == "identity" or encoding == "":
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise OtlpError(415, f"content encoding {encoding[:100]!r}: send gzip, deflate or identity")
    try:
        if encoding == "deflate":
            # RFC 9110 means zlib by "deflate"; bare deflate has always been sent as well.
            try:
                return _inflate(body, zlib.MAX_WBITS, limit)
            except zlib.error:
                return _inflate(body, -zlib.MAX_WBITS, limit)
        return _inflate(body, zlib.MAX_WBITS | 16, limit)
    except zlib.error as error:
        raise OtlpError(400, f"the body is not {encoding}: {error}") from None


def _inflate(body: bytes, wbits: int, limit: int) -> bytes:
    parts: list[bytes] = []
    room = limit
    for _ in range(_MEMBERS):
        inflater = zlib.decompressobj(wbits)
        part = inflater.decompress(body, room + 1)
        if len(part) > room:
            raise OtlpError(413, f"the body inflates beyond the limit of {limit} bytes; send smaller batches")
        if not inflater.eof:
            raise OtlpError(400, "the compressed body ends before its end: it was cut off on the way")
        parts.append(part)
        room -= len(part)
        body = inflater.unused_data
        if not body:
            return b"".join(parts)
    raise OtlpError(400, f"the compressed body has more than {_MEMBERS} members")


_REJECTED = {"/v1/traces": "rejectedSpans", "/v1/metrics": "rejectedDataPoints", "/v1/logs": "rejectedLogRecords"}
_RPC_CODES = {400: 3, 413: 8, 415: 3, 429: 8, 503: 14, 404: 5}
"""HTTP status → google.rpc.Code: INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNAVAILABLE, NOT_FOUND."""


def success(path: str, content_type: str, rejected: int = 0, message: str = "") -> bytes:
    """An `Export…ServiceResponse` in the request's encoding; without `message` everything was taken."""
    if content_type == JSON:
        partial = {_REJECTED[path]: str(rejected), "errorMessage": message}
        return msgspec.json.encode({"partialSuccess": partial} if message else {})
    answer = Answer()
    if message:
        answer.partial_success.rejected = rejected
        answer.partial_success.error_message = message
    return bytes(answer.SerializeToString())


def failure(status: int, content_type: str, message: str) -> bytes:
    """A `google.rpc.Status` in the request's encoding."""
    code = _RPC_CODES.get(status, 2)
    if content_type == PROTOBUF:
        return bytes(RpcStatus(code=code, message=message).SerializeToString())
    return msgspec.json.encode({"code": code, "message": message})
