"""Spans that are sampled out still count: what is spent does not depend on what is exported.

A sampler that answers DROP makes a span that no processor ever sees. Answering RECORD_ONLY in its place lets
processors see it, while exporters, which look at the sampled flag, still skip it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from runmeter.guard import once


class CountUnsampled(Sampler):
    """The sampler given, with RECORD_ONLY for DROP.

    Not the SDK's `AlwaysRecordSampler`: samplers answer DROP without attributes, and it passes that on, so the
    span would be seen without what it was started with (its model, its agent). The caller's attributes are kept here.
    """

    def __init__(self, inner: Sampler) -> None:
        self.inner = inner

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        result = self.inner.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        if result.decision is Decision.DROP:
            return SamplingResult(Decision.RECORD_ONLY, result.attributes or attributes, result.trace_state)
        return result

    def get_description(self) -> str:
        return f"CountUnsampled{{{self.inner.get_description()}}}"


def drops(sampler: object) -> bool:
    """Whether this sampler leaves spans out that no processor will see (beside those of an unsampled remote parent)."""
    describe = getattr(sampler, "get_description", None)
    description = str(describe()) if callable(describe) else ""
    return not description.startswith(
        ("AlwaysOnSampler", "ParentBased{root:AlwaysOnSampler", "CountUnsampled{", "AlwaysRecordSampler{")
    )


def count_unsampled(provider: TracerProvider) -> None:
    """Wrap the sampler of a provider that exists already, and of the tracers it has given out; idempotent."""
    if isinstance(provider.sampler, CountUnsampled):
        return
    given_out: dict[Any, Any] | None = getattr(provider, "_tracers", None)
    if given_out is None and drops(provider.sampler):
        once(
            "tracers",
            "runmeter: this version of OpenTelemetry does not name the tracers that were made before "
            "runmeter.instrument(): what their sampler drops is not counted",
        )
    provider.sampler = CountUnsampled(provider.sampler)
    # Tracers copy the sampler when they are made; instrumentations often made theirs at import.
    for tracer in list((given_out or {}).values()):
        if isinstance(getattr(tracer, "sampler", None), Sampler) and not isinstance(tracer.sampler, CountUnsampled):
            tracer.sampler = CountUnsampled(tracer.sampler)
