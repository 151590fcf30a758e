"""Door 2 under more than it can take: what a request costs is known before it is read, and who must come again is told
so at once."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest
from http_kit import connect, request_bytes, serving
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from otlp_files import recordings
from sidecar_process import Sidecar, until

from runmeter_exporter.ingest.admission import LATEST, Admission, Busy
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import JSON, PROTOBUF, OtlpError, decode
from runmeter_exporter.ingest.otlp.size import JSON_THINGS, SMALL, THINGS, things_in_json, things_in_protobuf
from runmeter_exporter.store import StoreUnavailable, open_store
from runmeter_exporter.web.app import create_otlp_app

MB = 2**20


def field(tag: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    size, length = len(content), b""
    while size >= 0x80:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([tag]) + length + bytes([size]) + content


def span_with(content: bytes) -> bytes:
    return field(0x0A, field(0x12, field(0x12, content)))


MANY = 3 * MB
BOMBS = {
    "spans": field(0x0A, field(0x12, b"\x12\x00" * MANY)),
    "resources": b"\x0a\x00" * MANY,
    "scopes": field(0x0A, b"\x12\x00" * MANY),
    "attributes": span_with(b"\x4a\x00" * MANY),
    "resource attributes": field(0x0A, field(0x0A, b"\x0a\x00" * MANY)),
    "scope attributes": field(0x0A, field(0x12, field(0x0A, b"\x1a\x00" * MANY))),
    "values": span_with(field(0x4A, field(0x12, field(0x2A, b"\x0a\x00" * MANY)))),
    "pairs": span_with(field(0x4A, field(0x12, field(0x32, b"\x0a\x00" * MANY)))),
}
JSON_BOMBS = {
    "spans": '{"resourceSpans":[{"scopeSpans":[{"spans":[%s]}]}]}',
    "resources": '{"resourceSpans":[%s]}',
    "attributes": '{"resourceSpans":[{"resource":{"attributes":[%s]}}]}',
    "values": '{"resourceSpans":[{"resource":{"attributes":[{"value":{"arrayValue":{"values":[%s]}}}]}}]}',
}
HARMLESS = ("scope attributes",)
"""Fields that we do not read: nothing is built of them."""


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("encoding", [None, "gzip"])
def test_a_bomb_is_refused_for_what_it_would_become(name: str, encoding: str | None) -> None:
    """Two bytes each, thousands of times less when compressed: counted before anything is built, and said."""
    body = gzip.compress(BOMBS[name], 1) if encoding else BOMBS[name]
    if name in HARMLESS:
        assert decode(body, PROTOBUF, encoding).spans == []
        return
    with pytest.raises(OtlpError, match=f"more than {THINGS} spans.*smaller batches") as refused:
        decode(body, PROTOBUF, encoding)
    assert refused.value.status == 413


@pytest.mark.parametrize("name", JSON_BOMBS)
def test_a_bomb_of_json_is_refused_as_well(name: str) -> None:
    """The same in the other encoding."""
    with pytest.raises(OtlpError, match=f"more than {JSON_THINGS}"):
        decode((JSON_BOMBS[name] % ",".join(["{}"] * JSON_THINGS)).encode(), JSON, None)


def test_long_prompts_are_no_bomb() -> None:
    """Megabytes of text full of braces and of bytes that would be tags are one attribute."""
    text = '{"a": [{}, {}]}\x12\x00\\"' * 200_000
    told = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": text}]}]}]}
    assert things_in_json(json.dumps(told).encode(), limit=1000) < 10
    request = ExportTraceServiceRequest()
    span = request.resource_spans.add().scope_spans.add().spans.add(name=text)
    span.attributes.add(key="k", value=AnyValue(string_value=text))
    assert things_in_protobuf(request.SerializeToString()) == 5  # resource, scope, span, attribute and value
    assert decode(request.SerializeToString(), PROTOBUF, None).rejected.total() == 1


FIRST = {"a group": b"\x0b\x0c", "an unknown number": b"\x78\x01", "an unknown text": b"\x7a\x01x"}


@pytest.mark.parametrize("name", FIRST)
def test_what_stands_before_a_bomb_does_not_hide_it(name: str) -> None:
    """Fields that nobody knows are passed over, also the groups of old."""
    assert things_in_protobuf(FIRST[name] + BOMBS["spans"]) > THINGS


def test_fields_that_nobody_reads_are_bounded_as_well() -> None:
    """Nothing is built of them, but passing over millions takes seconds."""
    assert things_in_protobuf(b"\x78\x01" * 1_000, limit=1_000) == 0
    assert things_in_protobuf(b"\x78\x01" * 5_000, limit=1_000) > 1_000


def test_a_number_without_end_ends_the_count() -> None:
    """A varint has ten bytes at most; what is longer is no protobuf."""
    assert things_in_protobuf(b"\x78" + b"\x80" * 20 + BOMBS["spans"]) == 0


def test_text_without_end_is_looked_at_once() -> None:
    """Quotes that are never closed, before enough braces to be counted again: this ends."""
    assert things_in_json(b'"' + b'\\"' * 1_000_000 + b"{" * 10, limit=5) == 0


def plain_count(request: ExportTraceServiceRequest) -> int:
    """Every resource, scope, span, attribute and value, by the message itself."""

    def values(value: AnyValue) -> int:
        inner = [*value.array_value.values, *(pair.value for pair in value.kvlist_value.values)]
        pairs = len(value.kvlist_value.values)
        container = value.WhichOneof("value") in ("array_value", "kvlist_value")
        return container + pairs + len(value.array_value.values) + sum(map(values, inner)) + pairs_with(value)

    def pairs_with(value: AnyValue) -> int:
        return sum(pair.HasField("value") for pair in value.kvlist_value.values)

    def attributes(pairs: Any) -> int:
        return sum(1 + pair.HasField("value") + values(pair.value) for pair in pairs)

    found = 0
    for resource in request.resource_spans:
        found += 1 + resource.HasField("resource") + attributes(resource.resource.attributes)
        for scope in resource.scope_spans:
            found += 1 + scope.HasField("scope")
            for span in scope.spans:
                found += 1 + attributes(span.attributes)
    return found


ANY = st.recursive(
    st.builds(AnyValue, string_value=st.text(max_size=200))
    | st.builds(AnyValue, int_value=st.integers(-(2**63), 2**63 - 1))
    | st.builds(AnyValue, double_value=st.floats(allow_nan=False))
    | st.just(AnyValue()),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: AnyValue(array_value={"values": items}))
        | st.lists(inner, max_size=3).map(
            lambda items: AnyValue(kvlist_value={"values": [{"key": "k", "value": item} for item in items]})
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(spans=st.lists(st.lists(ANY, max_size=4), max_size=4), of_resource=st.lists(ANY, max_size=3))
def test_the_count_is_that_of_the_message(spans: list[list[AnyValue]], of_resource: list[AnyValue]) -> None:
    """Whatever is in it, however deep: what is counted in the bytes is what would be built."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    for value in of_resource:
        resource.resource.attributes.add(key="r", value=value)
    scope = resource.scope_spans.add()
    scope.scope.name = "s"
    for values in spans:
        span = scope.spans.add(trace_id=b"1" * 16, span_id=b"2" * 8, name="n", start_time_unix_nano=1, flags=0x300)
        span.events.add(name="e").attributes.add(key="ignored")
        for value in values:
            span.attributes.add(key="a", value=value)
    data = request.SerializeToString()
    assert things_in_protobuf(data) == plain_count(request)
    for cut in range(0, len(data), 7):
        assert things_in_protobuf(data[:cut]) <= plain_count(request)  # never raises, whatever is missing


def test_recorded_requests_are_far_from_the_limit() -> None:
    """A Collector sends 8,192 spans at once: of most kinds twenty times as many would fit, of the densest one 7,000."""
    densest = max(
        things_in_protobuf(recording.path.read_bytes()) / max(1, len(recording.spans())) for recording in recordings()
    )
    assert 7_000 * densest < THINGS


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_what_waits_is_let_in_by_the_time_that_it_takes() -> None:
    """Up to the patience by the rate seen; who is refused is told when to come; alone, anything is let in."""
    clock = Clock()
    admission = Admission(clock, patience=1.0, rate=100.0, each=0)
    with admission.enter(5_000):  # alone
        with pytest.raises(Busy, match=r"will take 50\.0 s; the limit is 1 s") as refused, admission.enter(100):
            raise AssertionError("was let in")
        assert refused.value.seconds == LATEST
        clock.now += 5.0  # 1,000 bytes a second
    with admission.enter(500), admission.enter(501), pytest.raises(Busy), admission.enter(1):
        raise AssertionError("was let in")
    with admission.enter(10_000):
        pass


def test_who_fails_frees_what_he_held_and_says_nothing_of_the_speed() -> None:
    """A store that is away does not make the next ones look slow."""
    clock = Clock()
    admission = Admission(clock, patience=1.0, rate=100.0, each=0)

    def fail() -> None:
        with admission.enter(50):
            clock.now += 30
            raise StoreUnavailable("away")

    for _ in range(5):
        with pytest.raises(StoreUnavailable):
            fail()
    with admission.enter(50), admission.enter(50):
        pass


def test_what_is_small_does_not_make_what_is_large_wait() -> None:
    """Thousands of requests of one span cost a transaction each: of a large one that says nothing."""
    clock = Clock()
    admission = Admission(clock)
    for _ in range(2_000):
        with admission.enter(300):
            clock.now += 0.005
    with admission.enter(300), admission.enter(400_000), admission.enter(300):
        pass


def test_what_is_small_is_let_in_beside_what_is_large() -> None:
    """It waits for its like only; of its like there may be too much as well."""
    clock = Clock()
    admission = Admission(clock, patience=1.0, rate=100_000.0, each=0)
    with admission.enter(10 * MB), admission.enter(300), admission.enter(300):
        with pytest.raises(Busy), admission.enter(10 * MB):
            raise AssertionError("was let in")
        with ExitStack() as many:
            for _ in range(4):
                many.enter_context(admission.enter(30_000))
            with pytest.raises(Busy), admission.enter(300):
                raise AssertionError("was let in")
        with admission.enter(300):
            pass


def test_who_is_told_to_come_again_is_no_longer_in_line() -> None:
    """A request that was not begun in time is dropped, so that its repeat is not taken in twice over."""
    store = open_store("memory://")
    ingest = Ingest(store, price=lambda call: call.usage, wait=0.0)
    message = recordings().__next__().path.read_bytes()
    with ingest._writing:  # the writer is busy with something else
        statuses = [ingest.handle("/v1/traces", message, PROTOBUF, None)[0] for _ in range(3)]
        with ingest._changed:
            assert len(ingest._waiting) <= 1
            assert ingest._waiting.size == sum(request.size for request in ingest._waiting._requests)
    assert statuses == [503] * 3
    assert ingest.stop()


class Slow:
    """An ingest that works on one request until it is let go."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.entered, self.gate = threading.Semaphore(0), threading.Event()

    def handle(self, path: str, body: bytes, content_type: str, content_encoding: str) -> tuple[int, Any, bytes]:
        self.begun.append(body)
        self.entered.release()
        self.gate.wait(30)
        return 200, {"Content-Type": JSON}, b"{}"


def test_a_sender_that_has_left_the_line_is_passed_over() -> None:
    """Its request had not begun: it will send it again, and once is enough."""
    slow = Slow()
    with serving(create_otlp_app(slow), threads=1) as server:

        def post(body: bytes) -> socket.socket:
            client = connect(server)
            headers = {"Content-Type": JSON}
            client.sendall(request_bytes("/v1/traces", "POST", headers, body))
            return client

        first = post(b"first")
        assert slow.entered.acquire(timeout=30)
        left = post(b"left")
        workers = server._listener.task_dispatcher
        until(lambda: workers.queue, "the request is in line")
        left.close()
        last = post(b"last")
        until(lambda: len(workers.queue) == 2, "both are in line")
        slow.gate.set()
        assert b" 200 " in first.recv(100)
        assert b" 200 " in last.recv(100)
        assert slow.begun == [b"first", b"last"]


# With real processes.


def call_spans(number: int, count: int) -> bytes:
    """A request with so many calls, 64 in a trace."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    now = time.time_ns()
    for index in range(count):
        span = scope.spans.add(
            trace_id=(number * 1_000_000 + index // 64 + 1).to_bytes(16), span_id=(index + 1).to_bytes(8), name="chat",
            start_time_unix_nano=now, end_time_unix_nano=now + 1000,
        )  # fmt: skip
        span.attributes.add(key="gen_ai.operation.name", value=AnyValue(string_value="chat"))
        span.attributes.add(key="gen_ai.usage.input_tokens", value=AnyValue(int_value=number * 10_000 + index))
    return request.SerializeToString()


def posted(url: str, body: bytes, encoding: str | None = None, kind: str = PROTOBUF) -> tuple[int, float, str | None]:
    """(status, seconds, Retry-After) of one POST."""
    headers = {"Content-Type": kind} | ({"Content-Encoding": encoding} if encoding else {})
    began = time.monotonic()
    try:
        with urlopen(Request(url + "/v1/traces", body, headers), timeout=60) as answer:
            return answer.status, time.monotonic() - began, None
    except HTTPError as error:
        return error.code, time.monotonic() - began, error.headers.get("Retry-After")


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    with Sidecar(f"sqlite:///{tmp_path}/r.db") as started:
        yield started


class Innocent:
    """Posts a call, scrapes and asks, one after the other, as long as the block lasts."""

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._over = threading.Event()
        self.posts: list[tuple[int, float]] = []
        self.reads: list[float] = []
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        number = 900_000
        while not self._over.wait(0.05):
            number += 1
            status, took, _ = posted(self._sidecar.otlp_url, call_spans(number, 1))
            self.posts.append((status, took))
            for path in ("/-/healthy", "/metrics", "/api/usage"):
                began = time.monotonic()
                self._sidecar.get(path)
                self.reads.append(time.monotonic() - began)

    def __enter__(self) -> Innocent:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.mark.chaos
def test_bombs_cost_neither_memory_nor_the_others_time(sidecar: Sidecar) -> None:
    """Five of each kind, compressed and not, beside an innocent: 413, memory within 600 MB, and the innocent served."""
    spans = b"\x12\x00" * (9 * MB)
    bodies = [(field(0x0A, field(0x12, spans)), None), (gzip.compress(field(0x0A, field(0x12, spans * 4))), "gzip")]
    bodies += [(b"\x0a\x00" * (9 * MB), None), (gzip.compress(BOMBS["attributes"]), "gzip")]
    text = (JSON_BOMBS["spans"] % ",".join(["{}"] * (3 * MB))).encode()
    process = psutil.Process(sidecar.process.pid)
    before = process.memory_info().rss
    most = before
    with Innocent(sidecar) as innocent, ThreadPoolExecutor(4) as attackers:
        jobs = [attackers.submit(posted, sidecar.otlp_url, body, how) for body, how in bodies * 5]
        jobs += [attackers.submit(posted, sidecar.otlp_url, gzip.compress(text), "gzip", JSON) for _ in range(5)]
        while not all(job.done() for job in jobs):
            most = max(most, process.memory_info().rss)
            threading.Event().wait(0.01)
        answers = [job.result() for job in jobs]
    assert {status for status, _, _ in answers} <= {413, 429}
    assert [status for status, _, _ in answers].count(413) >= len(bodies)
    assert most - before < 600 * MB, (before, most)
    assert {status for status, _ in innocent.posts} <= {200, 429}
    assert max(took for _, took in innocent.posts) < 5
    assert max(innocent.reads) < 5


@pytest.mark.chaos
def test_more_than_it_can_take_is_said_at_once_and_counted_once(sidecar: Sidecar) -> None:
    """Eight senders of 4,096 spans, each sending what was refused again as Retry-After says: some are told 429, nobody
    waits long for that, scrapes and REST go on, and in the end every call is there once."""
    refused: list[float] = []
    failed: list[int] = []

    def send(number: int) -> None:
        body = call_spans(number, 4_096)
        while True:
            status, took, retry = posted(sidecar.otlp_url, body)
            if status == 200:
                return
            (refused if status == 429 else failed).append(took if status == 429 else status)
            assert retry is not None
            threading.Event().wait(float(retry))

    with Innocent(sidecar) as innocent, ThreadPoolExecutor(8) as senders:
        list(senders.map(send, range(1, 9)))
    assert refused
    assert not failed
    assert sorted(refused)[len(refused) // 2] < 1
    assert max(refused) < 5
    assert max(innocent.reads) < 5
    taken = sum(status == 200 for status, _ in innocent.posts)
    usage = sidecar.get("/api/usage?include_active=true")
    assert usage["llm_call_count"] == 8 * 4_096 + taken
    assert len(call_spans(1, 4_096)) > SMALL
