"""Real exporters against a running door 2: Python's batch processor, and Node's with the Vercel AI SDK."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.trace import Status, StatusCode
from provider import Provider
from sidecar_process import Sidecar, until

from runmeter_exporter.http.server import Server
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import RunStore
from runmeter_exporter.web.app import create_otlp_app

PACKAGES = (
    "ai@7.0.173",
    "@ai-sdk/otel@1.0.173",
    "@ai-sdk/openai-compatible",
    "@opentelemetry/api",
    "@opentelemetry/resources",
    "@opentelemetry/sdk-trace-node",
    "@opentelemetry/exporter-trace-otlp-http",
)
AGENT_JS = """
import { trace } from '@opentelemetry/api';
import { OTLPTraceExporter } from '@opentelemetry/exporter-trace-otlp-http';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchSpanProcessor, NodeTracerProvider } from '@opentelemetry/sdk-trace-node';
import { OpenTelemetry } from '@ai-sdk/otel';
import { createOpenAICompatible } from '@ai-sdk/openai-compatible';
import { generateText, registerTelemetry } from 'ai';

const provider = new NodeTracerProvider({
  resource: resourceFromAttributes({ 'service.name': 'node-agent' }),
  spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
});
provider.register();
registerTelemetry(new OpenTelemetry());
const models = createOpenAICompatible({ name: 'openai', baseURL: process.env.PROVIDER_URL, apiKey: 'none' });
await trace.getTracer('app').startActiveSpan('request', async (span) => {
  for (const prompt of ['first', 'second']) {
    await generateText({ model: models('gpt-5-mini'), prompt, telemetry: { isEnabled: true } });
  }
  span.end();
});
await provider.forceFlush();
await provider.shutdown();
"""


@pytest.fixture
def door(open_stores: Callable[..., RunStore], sqlite_url: str) -> Iterator[tuple[RunStore, Ingest, str]]:
    """A store, door 2 over it, and the URL that exporters are given."""
    store = open_stores(sqlite_url)
    ingest = Ingest(store)
    server = Server(create_otlp_app(ingest, ingest_token="secret", allowed_hosts=("127.0.0.1",)), "127.0.0.1", 0)
    server.start()
    yield store, ingest, server.url
    server.stop()
    assert ingest.stop()


@pytest.mark.parametrize("compression", list(Compression))
def test_pythons_batch_processor(compression: Compression, door: tuple[RunStore, Ingest, str]) -> None:
    """What a TracerProvider exports in batches, however compressed, counts once, and its run ends as it ended."""
    store, ingest, url = door
    exporter = OTLPSpanExporter(
        endpoint=f"{url}/v1/traces", headers={"Authorization": "Bearer secret"}, compression=compression
    )
    provider = TracerProvider(resource=Resource.create({"service.name": "python-agent"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=7))
    tracer = provider.get_tracer("agents")
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "writer", "gen_ai.conversation.id": "t1"}
    with tracer.start_as_current_span("invoke_agent", attributes=agent) as root:
        for number in range(20):
            with tracer.start_as_current_span("work"), tracer.start_as_current_span("chat") as call:
                call.set_attribute("gen_ai.operation.name", "chat")
                call.set_attribute("gen_ai.request.model", "gpt-5-mini")
                call.set_attribute("gen_ai.usage.input_tokens", 1000 + number)
                call.set_attribute("gen_ai.usage.output_tokens", 10)
        root.set_attribute("gen_ai.usage.input_tokens", sum(range(1000, 1020)))
        root.set_status(Status(StatusCode.ERROR))
    assert provider.force_flush(30_000)
    provider.shutdown()
    ingest.close_runs([run.run_id for run in store.watch().runs])
    (run,) = store.runs(thread_id="t1")["runs"]
    assert (run["status"], run["agent"], run["service"]) == ("error", "writer", "python-agent")
    assert (run["total_input_tokens"], run["llm_call_count"]) == (sum(range(1000, 1020)), 20)
    assert store.verify() == []


def test_a_real_sidecar_settles_what_an_exporter_sends(sqlite_url: str) -> None:
    """`runmeter serve` shows a run while it works, settles it when its grace is over, and leaves on SIGTERM with 0."""
    with Sidecar(sqlite_url, "--grace", "100ms") as sidecar:
        exporter = OTLPSpanExporter(endpoint=f"{sidecar.otlp_url}/v1/traces")
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("agents")
        used = {"gen_ai.usage.input_tokens": 11, "gen_ai.usage.output_tokens": 1, "gen_ai.operation.name": "chat"}
        with tracer.start_as_current_span("turn", attributes={"gen_ai.conversation.id": "live"}):
            tracer.start_span("chat", attributes={**used, "gen_ai.conversation.id": "live"}).end()
            active = sidecar.get("/api/threads/live/token-usage?include_active=true")
            assert (active["total_tokens"], active["active_runs"]) == (12, 1)
            assert sidecar.get("/api/threads/live/token-usage")["total_tokens"] == 0
        provider.shutdown()
        until(lambda: sidecar.get("/api/threads/live/token-usage")["total_tokens"] == 12, "the run settles")
        assert sidecar.stop() == 0


@pytest.mark.live
@pytest.mark.timeout(400)
def test_node_with_the_vercel_ai_sdk(door: tuple[RunStore, Ingest, str], tmp_path: Path) -> None:
    """The AI SDK's calls, exported as OTLP JSON by Node, are what the provider answered."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    (tmp_path / "package.json").write_text(json.dumps({"name": "agent", "private": True, "type": "module"}))
    (tmp_path / "agent.js").write_text(AGENT_JS)
    install = [npm, "install", "--no-audit", "--no-fund", *PACKAGES]
    installed = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    if installed.returncode:
        pytest.skip(f"npm could not install: {installed.stderr[-300:]}")
    store, ingest, url = door
    with Provider() as provider:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer secret",
            "PROVIDER_URL": f"{provider.url}/v1",
        }
        subprocess.run(["node", "agent.js"], cwd=tmp_path, env=environment, timeout=60, check=True)
        truth = provider.truth()
    (run,) = [run.run_id for run in store.watch().runs]
    ingest.close_runs([run])
    usage = store.usage()
    assert truth["calls"] == 2
    assert usage["llm_call_count"] == truth["calls"]
    assert usage["total_input_tokens"] == truth["input_tokens"]
    assert usage["total_output_tokens"] == truth["output_tokens"]
    found = store.run(run)
    assert found is not None
    assert (found["service"], found["status"], found["usage_state"]) == ("node-agent", "success", "settled")
    assert store.verify() == []
