"""The base install: OpenTelemetry alone; runs are counted and OTel counters move."""

from __future__ import annotations

import subprocess

from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from wheel_kit import BIN, did, from_the_wheel, installed, runmeter_command

import runmeter

from_the_wheel()
allowed = {"runmeter", "opentelemetry-sdk", "opentelemetry-api", "opentelemetry-semantic-conventions",
           "typing-extensions", "importlib-metadata", "zipp", "deprecated", "wrapt"}  # fmt: skip
assert installed() <= allowed, f"the base install brings {installed() - allowed}"

reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
handle = runmeter.instrument()
with runmeter.run(thread_id="t", agent="a") as run:
    for _ in range(2):
        runmeter.record_usage(provider="acme", model="large", input_tokens=3, output_tokens=2, call_id="one")
    attributes = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "acme", "gen_ai.request.model": "large",
                  "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 5}  # fmt: skip
    with trace.get_tracer("a.tracer").start_as_current_span("chat large", kind=trace.SpanKind.CLIENT) as span:
        span.set_attributes(attributes)
assert (run.usage.calls, run.usage.total_tokens) == (2, 20), run.usage
did("record_usage counts a call once, a span counts")

moved: dict[str, float] = {}
data = reader.get_metrics_data()
assert data is not None
for resource in data.resource_metrics:
    for scope in resource.scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                moved[metric.name] = moved.get(metric.name, 0) + getattr(point, "value", 0)
assert moved["gen_ai.client.inference.usage.input_tokens"] == 13, moved
assert moved["gen_ai.client.inference.usage.output_tokens"] == 7, moved
did("OTel counters move")
assert handle.shutdown()

for arguments in (["--help"], ["--version"]):
    assert runmeter_command(*arguments)
refused = subprocess.run([BIN / "runmeter", "serve"], capture_output=True, text=True, timeout=60, check=False)
assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused
assert "pip install 'runmeter[sidecar]'" in refused.stderr
assert "SQLAlchemy" in runmeter_command("doctor", code=1)
did("--help, --version, doctor; serve names its pip line")
