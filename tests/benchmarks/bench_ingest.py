"""OTLP intake: a real `runmeter serve` on SQLite, exactly once, beside parsing alone and beside MLflow's receiver.

CPU of the server's processes per span, of requests that one client sends one after the other; so 66.7 µs are 15,000
spans a second and core. One span in five is a model call, a span has some twenty attributes. Nothing closes runs in
the meantime. MLflow is measured where `--mlflow PYTHON` names a Python that has it.
"""

from __future__ import annotations

import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from harness import Options, Row, cpu, interleaved, main, note
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF
from runmeter_exporter.store import open_store

sys.path.insert(0, str(Path(__file__).parent.parent))
from sidecar_process import Sidecar

BATCH = 512
TRACE = 64
"""Spans of a trace: an agent span, then tools, HTTP and database spans below it, and a call for one in five."""
BEGAN = 1_790_000_000 * 10**9
BAR = 1e6 / 15_000
PATIENCE = 120.0


def requests(spans: int, seed: int, thread: str | None = None) -> tuple[list[bytes], int]:
    """Serialized requests of 512 spans with some 20 attributes each, and the tokens that they say."""
    draw = random.Random(seed)
    made: list[bytes] = []
    tokens = 0
    number = 0
    while number < spans:
        request = ExportTraceServiceRequest()
        resource = request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "bench"
        scope = resource.scope_spans.add()
        scope.scope.name = "opentelemetry.instrumentation.openai"
        for _ in range(BATCH):
            is_root = number % TRACE == 0
            if is_root:
                trace_id, root = draw.randbytes(16), draw.randbytes(8)
            span = scope.spans.add(trace_id=trace_id, span_id=root if is_root else draw.randbytes(8), name="span")
            if not is_root:
                span.parent_span_id = root
            span.start_time_unix_nano = BEGAN + number * 10**6
            span.end_time_unix_nano = span.start_time_unix_nano + 10**6
            for key in range(14):
                span.attributes.add(key=f"http.request.header.number.{key}").value.string_value = f"value {key}"
            if is_root:
                span.attributes.add(key="gen_ai.operation.name").value.string_value = "invoke_agent"
                if thread:
                    span.attributes.add(key="gen_ai.conversation.id").value.string_value = thread
            elif number % 5 == 0:
                for key, value in (
                    ("gen_ai.operation.name", "chat"),
                    ("gen_ai.provider.name", "openai"),
                    ("gen_ai.request.model", "gpt-5-mini"),
                    ("gen_ai.response.id", f"chatcmpl-{seed}-{number}"),
                ):
                    span.attributes.add(key=key).value.string_value = value
                span.attributes.add(key="gen_ai.usage.input_tokens").value.int_value = 1000 + number
                span.attributes.add(key="gen_ai.usage.output_tokens").value.int_value = 100
                tokens += 1100 + number
            number += 1
        made.append(request.SerializeToString())
    return made, tokens


class Sender:
    """One client, one connection."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        address = urlsplit(url)
        self._connection = HTTPConnection(address.hostname or "", address.port, timeout=PATIENCE)
        self._headers = {"Content-Type": PROTOBUF, **(headers or {})}

    def post(self, bodies: list[bytes]) -> None:
        """One after the other, each answered before the next."""
        for body in bodies:
            self._connection.request("POST", "/v1/traces", body, self._headers)
            answer = self._connection.getresponse()
            said = answer.read()
            assert answer.status == 200, (answer.status, said)


def spent(process: psutil.Process) -> float:
    """CPU seconds of a server and everything that it started."""
    family = [process, *process.children(recursive=True)]
    return sum(one.cpu_times().user + one.cpu_times().system for one in family)


def per_span(server: psutil.Process, sender: Sender, bodies: list[bytes]) -> float:
    """CPU microseconds."""
    before = spent(server)
    sender.post(bodies)
    return (spent(server) - before) / (len(bodies) * BATCH) * 1e6


def in_process(bodies: list[bytes], tokens: int) -> float:
    """CPU microseconds a span of the ingest alone, without HTTP."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder, 'bench.db')}", create=True)
        ingest = Ingest(store)
        store.usage()  # the schema is made before the clock starts
        took = cpu(lambda: [ingest.handle("/v1/traces", body, PROTOBUF, None) for body in bodies])
        assert store.usage(include_active=True)["total_tokens"] == tokens
        ingest.stop()
        store.dispose()
    return took / (len(bodies) * BATCH) * 1e6


@contextmanager
def under_load(sender: Sender, bodies: list[bytes]) -> Iterator[None]:
    """Somebody else sends as quickly as is answered, the same again and again."""
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            sender.post(bodies)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def until_visible(sidecar: Sidecar, sender: Sender, number: int) -> float:
    """Seconds from sending a request to its tokens in a thread's REST answer."""
    thread = f"visible-{number}"
    bodies, tokens = requests(BATCH, seed=1000 + number, thread=thread)
    began = time.monotonic()
    sender.post(bodies)
    while sidecar.get(f"/api/threads/{thread}/token-usage?include_active=true")["total_tokens"] != tokens:
        assert time.monotonic() < began + PATIENCE
    return time.monotonic() - began


@contextmanager
def mlflow(python: str, folder: Path) -> Iterator[tuple[psutil.Process, Sender]]:
    """MLflow's tracking server on SQLite."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    command = [python, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    with Path(folder, "mlflow.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        ready(port, server, Path(folder, "mlflow.log"))
        yield psutil.Process(server.pid), Sender(f"http://127.0.0.1:{port}", {"x-mlflow-experiment-id": "0"})
    finally:
        family = psutil.Process(server.pid).children(recursive=True)
        server.terminate()
        server.wait(PATIENCE)
        for process in family:
            if process.is_running():
                process.kill()


def ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for MLflow, which makes its tables first."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise RuntimeError(f"MLflow is not ready after {PATIENCE:g} s: {log.read_text()[-2000:]}")


def beside_mlflow(options: Options, folder: Path) -> float | None:
    """CPU microseconds a span of MLflow's server; None where it is not to be had."""
    if options.mlflow is None:
        note("ingest: no --mlflow PYTHON, so MLflow's receiver is not measured")
        return None
    bodies, _ = requests(options.of(10, 2) * BATCH, seed=3)
    with mlflow(options.mlflow, folder) as (server, sender):
        sender.post(bodies[:1])
        return per_span(server, sender, bodies[1:])


def measure(options: Options) -> Iterator[Row]:
    """CPU per span, and seconds until visible."""
    bodies, tokens = requests(options.of(100, 3) * BATCH, seed=7)
    rounds = options.of(5, 1)
    share = len(bodies) // rounds
    parse: Callable[[], object] = lambda: [ExportTraceServiceRequest.FromString(body) for body in bodies]  # noqa: E731
    floor = interleaved({"parse": parse}, rounds)["parse"] / (len(bodies) * BATCH) * 1e6
    alone = statistics.median(in_process(bodies, tokens) for _ in range(options.of(3, 1)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Sidecar(f"sqlite:///{folder / 'bench.db'}", "--grace", "1h") as sidecar:
            server, sender = psutil.Process(sidecar.process.pid), Sender(sidecar.otlp_url)
            sender.post(requests(BATCH, seed=1)[0])
            before = sidecar.get("/api/usage?include_active=true")["total_tokens"]
            taken = [per_span(server, sender, bodies[turn * share : (turn + 1) * share]) for turn in range(rounds)]
            repeated = [per_span(server, sender, bodies[turn * share : (turn + 1) * share]) for turn in range(rounds)]
            seen = sidecar.get("/api/usage?include_active=true")["total_tokens"] - before
            assert rounds * share < len(bodies) or seen == tokens, (seen, tokens)
            with under_load(Sender(sidecar.otlp_url), requests(10 * BATCH, seed=5)[0]):
                visible = [until_visible(sidecar, sender, turn) for turn in range(options.of(20, 2))]
            sidecar.stop()
        theirs = beside_mlflow(options, folder)
    ours = statistics.median(taken)
    parsing = "protobuf's parsing alone"
    yield Row(
        what="OTLP taken in over HTTP, a span, the server's CPU",
        measured=ours, unit="µs", peer=parsing, beside=floor, at_most=BAR,
    )  # fmt: skip
    yield Row(what="the same without HTTP", measured=alone, unit="µs", peer=parsing, beside=floor)
    yield Row(
        what="the same sent again (adds nothing)", measured=statistics.median(repeated),
        unit="µs", peer=parsing, beside=floor,
    )  # fmt: skip
    if theirs is not None:
        yield Row(
            what="OTLP taken in, a span, the server's CPU", measured=ours,
            unit="µs", peer="MLflow", beside=theirs, ratio_at_most=1 / 20,
        )  # fmt: skip
    yield Row(
        what="OTLP visible in REST while others send, slowest of some", measured=max(visible),
        unit="s", peer="their median", beside=statistics.median(visible), at_most=1.0,
    )  # fmt: skip


if __name__ == "__main__":
    main(measure)
