"""An agent at the second door: OpenTelemetry and its OTLP/HTTP exporter (protobuf), no line of runmeter. Argument: the
sidecar's OTLP address."""

from __future__ import annotations

import sys

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"{sys.argv[1]}/v1/traces")))
with provider.get_tracer("an.agent").start_as_current_span("chat gpt-5-mini", kind=SpanKind.CLIENT) as span:
    span.set_attributes(
        {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini",
         "gen_ai.usage.input_tokens": 1000, "gen_ai.usage.output_tokens": 100}
    )  # fmt: skip
provider.shutdown()
