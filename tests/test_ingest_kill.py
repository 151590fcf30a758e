"""A sidecar killed at any moment loses nothing that it acknowledged, and counts nothing twice that is sent again."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_process import OtlpProcess

from runmeter_exporter.ingest.otlp import PROTOBUF
from runmeter_exporter.store import RunStore

SECOND = 10**9
NOON = 1_790_000_000 * SECOND
SENDERS = 4


def trace_of(draw: random.Random, calls: int) -> tuple[list[bytes], int]:
    """The requests of one trace, children first, and the input tokens its calls used; their agent repeats the sum."""
    trace_id, root = draw.randbytes(16), draw.randbytes(8)
    tokens = [draw.randrange(1, 10_000) for _ in range(calls)]
    requests = [ExportTraceServiceRequest() for _ in range(2)]
    scopes = []
    for request in requests:
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "killed"
        scopes.append(resource.scope_spans.add())
        scopes[-1].scope.name = "agents"

    def add(scope: int, span_id: bytes, parent: bytes, operation: str | None, used: int, at: tuple[int, int]) -> None:
        span = scopes[scope].spans.add(trace_id=trace_id, span_id=span_id, parent_span_id=parent, name="span")
        span.start_time_unix_nano, span.end_time_unix_nano = (NOON + moment * SECOND for moment in at)
        if operation is not None:
            span.attributes.add(key="gen_ai.operation.name").value.string_value = operation
            span.attributes.add(key="gen_ai.request.model").value.string_value = "m"
            span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = used
            span.attributes.add(key="gen_ai.usage.output_tokens").value.int_value = 1

    for number, used in enumerate(tokens):
        plain = draw.randbytes(8)
        add(0, draw.randbytes(8), plain, "chat", used, (number + 1, number + 2))
        add(0, plain, root, None, 0, (number + 1, number + 2))
    add(1, root, b"", "invoke_agent", sum(tokens), (0, calls + 3))
    return [request.SerializeToString() for request in requests], sum(tokens)


class Senders:
    """Clients that send each request again until they get a 200."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc
        self._stop = threading.Event()
        self.changed = threading.Condition()
        self.acknowledged = 0
        self.tokens = 0
        self._threads = [threading.Thread(target=self._send, args=(seed,)) for seed in range(SENDERS)]
        for thread in self._threads:
            thread.start()

    def _send(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stop.is_set():
            requests, tokens = trace_of(draw, draw.randrange(1, 6))
            for request in requests:
                self._until_taken(request)
                if draw.random() < 0.2:
                    self._until_taken(request)  # as if the answer had been lost
            with self.changed:
                self.tokens += tokens

    def _until_taken(self, request: bytes) -> None:
        again = threading.Event()
        while True:
            connection = HTTPConnection(self._address, timeout=20)
            try:
                connection.request("POST", "/v1/traces", request, {"Content-Type": PROTOBUF})
                answer = connection.getresponse()
                answer.read()
                status = answer.status
            except (OSError, HTTPException):
                again.wait(0.01)  # it is being started again
                continue
            finally:
                connection.close()
            if status == 200:
                break
            assert status in (429, 503), status
            again.wait(0.05)
        with self.changed:
            self.acknowledged += 1
            self.changed.notify_all()

    def finish(self) -> int:
        """Complete what is under way; the tokens of everything sent."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.tokens


def kill_and_restart(database_url: str, open_stores: Callable[..., RunStore], kills: int) -> None:
    """Kill the sidecar that often under load, then compare the sums."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    draw = random.Random(kills)
    sidecar = OtlpProcess(database_url, port)
    try:
        sidecar.start()
        senders = Senders(sidecar.url)
        try:
            for _ in range(kills):
                with senders.changed:
                    enough = senders.acknowledged + draw.randrange(1, 12)
                    assert senders.changed.wait_for(lambda enough=enough: senders.acknowledged >= enough, 60)
                sidecar.kill()
                sidecar.start()
        finally:
            sent = senders.finish()
    finally:
        sidecar.close()
    store = open_stores(database_url)
    usage = store.usage(include_active=True)
    assert usage["total_input_tokens"] == sent, f"stored {usage['total_input_tokens']}, sent {sent}, {kills} kills"
    assert store.verify() == []


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_killed_a_few_times(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """After some SIGKILLs under load everything sent is stored, to the token."""
    kill_and_restart(sql_url, open_stores, 6)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_killed_300_times(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """300 SIGKILLs at random moments of a loaded sidecar: Σ stored equals Σ sent, to the token."""
    kill_and_restart(sql_url, open_stores, 300)
