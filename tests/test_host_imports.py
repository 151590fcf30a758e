"""The host is never harmed by what we import: no thread of ours imports anything while the host works.

Method: a finder at the front of `sys.meta_path`, in a process of its own, notes every import that is not the main
thread's and holds it up, so that a thread that met the host's imports half done would be seen to; a real OpenAI client
then talks to the loopback provider, with prices, a store, an OTLP exporter and a Prometheus reader.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from provider import Provider

from runmeter_exporter import open_store

SLOW = """
import sys, threading, time

class Slow:
    seen = []
    def find_spec(self, name, path=None, target=None):
        thread = threading.current_thread()
        if thread is not threading.main_thread():
            self.seen.append((thread.name, name))
            time.sleep(0.02)

slow = Slow()
sys.meta_path.insert(0, slow)
"""

PROGRAM = SLOW + """
import json, os, runmeter
handle = runmeter.instrument(sys.argv[1], throttle=0.05)
from openai import OpenAI
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}

def work(run_id):
    client = OpenAI(base_url=sys.argv[2], api_key="none", max_retries=0)
    with runmeter.run(run_id=run_id, thread_id="t") as run:
        client.chat.completions.create(**ask)
        assert handle.flush(60)
        for _ in client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
            pass
    assert handle.flush(60)

work("parent")
child = os.fork() if "fork" in sys.argv else 0
if "fork" in sys.argv:
    if child == 0:
        work("child")
        sys.argv.append("is the child")
    else:
        assert os.waitpid(child, 0)[1] == 0
if "metrics" in sys.argv:
    from opentelemetry import metrics, trace
    assert metrics.get_meter_provider().force_flush(30_000)
    assert trace.get_tracer_provider().force_flush(30_000)
if "scrape" in sys.argv:
    from urllib.request import Request, urlopen
    url = "http://localhost:" + os.environ["OTEL_EXPORTER_PROMETHEUS_PORT"] + "/metrics"
    for accepted in ("*/*", "application/openmetrics-text; version=1.0.0"):
        with urlopen(Request(url, headers={"Accept": accepted, "Accept-Encoding": "gzip"})) as answer:
            assert answer.status == 200
left = handle.shutdown(30)
assert left and not slow.seen, slow.seen
print(json.dumps(slow.seen))
os._exit(0) if "is the child" in sys.argv else None
"""


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_no_import_for_stores_drivers_and_prices(sql_url: str, provider: Provider) -> None:
    """With a store, its driver and prices, in the process that instruments and in one that it forks."""
    done = program(sql_url, provider.openai_url, "fork")
    assert [json.loads(line) for line in done.stdout.splitlines()] in ([[]], [[], []])
    store = open_store(sql_url)
    try:
        for run_id in ("parent", "child"):
            run = store.run(run_id)
            assert run is not None
            assert (run["status"], run["llm_call_count"], run["unpriced_tokens"]) == ("success", 2, 0)
            assert run["cost_usd"] > 0
    finally:
        store.dispose()


class _Collector(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_no_import_for_exporters(sqlite_url: str, provider: Provider, collector: ThreadingHTTPServer) -> None:
    """The threads of the exporters that the environment asks us for (spans and metrics, OTLP) import nothing either."""
    program(
        sqlite_url,
        provider.openai_url,
        "metrics",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://localhost:{collector.server_port}",
        OTEL_METRIC_EXPORT_INTERVAL="50",
        OTEL_BSP_SCHEDULE_DELAY="50",
    )
    assert {"/v1/traces", "/v1/metrics"} <= set(collector.asked)  # type: ignore[attr-defined]


def test_no_import_for_the_prometheus_reader(sqlite_url: str, provider: Provider) -> None:
    """Nor do the threads that answer scrapes, in either format."""
    pytest.importorskip("opentelemetry.exporter.prometheus", reason="the prometheus extra is missing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    program(
        sqlite_url,
        provider.openai_url,
        "scrape",
        OTEL_METRICS_EXPORTER="prometheus",
        OTEL_EXPORTER_PROMETHEUS_PORT=str(port),
        OTEL_EXPORTER_PROMETHEUS_HOST="localhost",
    )
