"""Our instruments against the GenAI semantic conventions' own tables, for real calls of a real client."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import openai
import pytest
from doors import replay
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.instrumentation.genai.openai import OpenAIInstrumentor
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    InMemoryMetricReader,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.sdk.trace import TracerProvider
from otlp_files import recordings
from prometheus_client import CollectorRegistry, generate_latest
from provider import Provider

import runmeter
from runmeter.otel.counters import Counters
from runmeter.otel.distributions import FULL, Distributions
from runmeter.otel.processor import PROCESSOR
from runmeter.reading import semconv
from runmeter.reading.operations import WELL_KNOWN
from runmeter.reading.read import read
from runmeter.reading.reading import Reading
from runmeter.reading.roles import Role
from runmeter.sink import RunInfo
from runmeter.spans import Call, Change, EndedSpan
from runmeter.usage import Usage
from runmeter_exporter.ingest.fold import RunFold

# --- what the conventions say ---------------------------------------------------------------------------------------
# open-telemetry/semantic-conventions-genai, docs/gen-ai: gen-ai-token-metrics.md (066d4a7), client-inference.md
# (024a4f9) and client-embeddings.md (88eccb1), as read in November 2026.


class Instrument(NamedTuple):
    """One row of theirs."""

    kind: str
    unit: str
    required: frozenset[str]
    conditional: frozenset[str]
    """Required where it is known, or where its condition holds."""
    recommended: frozenset[str]
    buckets: tuple[float, ...] = ()


OPERATION, PROVIDER = "gen_ai.operation.name", "gen_ai.provider.name"
REQUESTED, RESPONDED = "gen_ai.request.model", "gen_ai.response.model"
ERROR, MODALITY = "error.type", "gen_ai.token.modality"
WHO = frozenset({OPERATION, PROVIDER})
WHERE_KNOWN = frozenset({REQUESTED, "server.port"})
ALSO = frozenset({RESPONDED, "server.address"})
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)

USAGE = Instrument("counter", "{token}", WHO | {MODALITY}, WHERE_KNOWN, ALSO)
EACH = Instrument("histogram", "{token}", WHO, WHERE_KNOWN | {ERROR}, ALSO, TOKENS)
TOOK = Instrument("histogram", "s", WHO, WHERE_KNOWN | {ERROR}, ALSO, SECONDS)
TABLE: Mapping[str, Instrument] = {
    "gen_ai.client.inference.usage.input_tokens": USAGE,
    "gen_ai.client.inference.usage.output_tokens": USAGE,
    "gen_ai.client.inference.usage.cache_read.input_tokens": USAGE,
    "gen_ai.client.inference.usage.cache_write.input_tokens": USAGE,
    "gen_ai.client.inference.usage.reasoning.output_tokens": USAGE,
    "gen_ai.client.inference.operation.input_tokens": EACH,
    "gen_ai.client.inference.operation.output_tokens": EACH,
    "gen_ai.client.inference.duration": TOOK,
    "gen_ai.client.inference.time_to_first_chunk": TOOK._replace(conditional=WHERE_KNOWN),
    "gen_ai.client.embeddings.operation.input_tokens": EACH._replace(conditional=WHERE_KNOWN),
    "gen_ai.client.embeddings.duration": TOOK,
}
NOT_FED = {
    "gen_ai.client.inference.time_per_output_chunk": "a settled call knows when its first chunk came, and of no other",
    "gen_ai.client.operation.duration": "of operations that are no model calls",
    "gen_ai.invoke_agent.duration": "a settled call knows its caller's name, not the invocation",
    "gen_ai.invoke_agent.inference_calls": "a settled call knows its caller's name, not the invocation",
    "gen_ai.invoke_agent.tool_calls": "tools are not counted",
    "gen_ai.invoke_workflow.duration": "a run is no workflow",
    "gen_ai.invoke_workflow.inference_calls": "a run is no workflow",
    "gen_ai.invoke_workflow.tool_calls": "tools are not counted",
    "gen_ai.execute_tool.duration": "tools are not counted",
}
"""The conventions' other client and agent instruments, and why calls cannot feed them."""
OPERATIONS = {
    *("chat", "create_agent", "create_memory", "create_memory_store", "delete_memory", "delete_memory_store"),
    *("embeddings", "execute_tool", "fetch_response", "generate_content", "invoke_agent", "invoke_workflow", "plan"),
    *("retrieval", "search_memory", "text_completion", "update_memory", "upsert_memory"),
}
UNREAD = frozenset({"server.address", "server.port"})
"""Recommended, and not ours to say: a settled call does not know who was asked, only who answers there."""
OURS = frozenset({"runmeter.caller"})

Point = NumberDataPoint | HistogramDataPoint


class Host:
    """An application with OpenAI's client, the official instrumentation and a MeterProvider with two readers."""

    def __init__(self, provider: Provider) -> None:
        self.readers = (InMemoryMetricReader(), InMemoryMetricReader())
        self.meters = MeterProvider(self.readers, shutdown_on_exit=False)
        self.counters = Counters(self.meters)
        self.traces = TracerProvider(shutdown_on_exit=False)
        self.traces.add_span_processor(PROCESSOR)
        PROCESSOR.tracer = self.traces.get_tracer(semconv.SCOPE)
        PROCESSOR.start((self.counters,), source_id="conventions")
        OpenAIInstrumentor().instrument(tracer_provider=self.traces, meter_provider=NoOpMeterProvider())
        self.client = openai.OpenAI(base_url=provider.openai_url, api_key="none", max_retries=0)

    def chat(self, text: str = "hello", **more: Any) -> Any:
        return self.client.chat.completions.create(
            model="gpt-5-mini", messages=[{"role": "user", "content": text}], **more
        )

    def metrics(self, reader: int = 0) -> dict[str, Metric]:
        data = self.readers[reader].get_metrics_data()
        found: dict[str, Metric] = {}
        for resource in data.resource_metrics if data else ():
            for scoped in resource.scope_metrics:
                assert (scoped.scope.name, scoped.scope.version) == ("runmeter", version("runmeter"))
                assert scoped.schema_url == scoped.scope.schema_url
                assert str(scoped.schema_url).startswith("https://opentelemetry.io/schemas/gen-ai")
                found.update((metric.name, metric) for metric in scoped.metrics)
        return found

    def close(self) -> None:
        OpenAIInstrumentor().uninstrument()
        PROCESSOR.stop()
        PROCESSOR.fold.runs.sinks = ()
        PROCESSOR.tracer = PROCESSOR.source_id = None
        self.client.close()
        self.traces.shutdown()
        self.meters.shutdown()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as found:
        yield found


@pytest.fixture
def host(provider: Provider) -> Iterator[Host]:
    found = Host(provider)
    yield found
    found.close()


def points(metric: Metric | None) -> list[Point]:
    return [] if metric is None else list(metric.data.data_points)  # type: ignore[arg-type]


def said(point: Point) -> dict[str, Any]:
    return dict(point.attributes or {})


def everything(host: Host) -> None:
    """A chat, a stream, one that fails, embeddings, embeddings that fail, and a subagent's."""
    host.chat()
    assert list(host.chat(stream=True, stream_options={"include_usage": True}))
    with pytest.raises(openai.RateLimitError):
        host.chat("[[fail 429]]")
    host.client.embeddings.create(model="text-embedding-3-small", input="some text")
    nowhere = host.client.with_options(base_url="http://127.0.0.1:9/v1")  # the port of `discard`, where nobody listens
    with pytest.raises(openai.APIConnectionError):
        nowhere.embeddings.create(model="text-embedding-3-small", input="some text")
    with runmeter.caller("subagent:reader"):
        host.chat()


def drift(found: Mapping[str, Metric]) -> Iterator[str]:
    """What our instruments have, or have not, that the conventions' tables do not say."""
    gen_ai = {name: metric for name, metric in found.items() if name.startswith("gen_ai.")}
    yield from (f"{name} is in no table" for name in gen_ai.keys() - TABLE.keys())
    yield from (f"{name} is missing" for name in TABLE.keys() - gen_ai.keys())
    for name in gen_ai.keys() & TABLE.keys():
        metric, row = gen_ai[name], TABLE[name]
        data = metric.data
        kind = "histogram" if isinstance(data, Histogram) else "?"
        if isinstance(data, Sum):
            kind = "counter" if data.is_monotonic else "updowncounter"
        if (kind, metric.unit) != (row.kind, row.unit):
            yield f"{name} is a {kind} of {metric.unit}"
        for point in points(metric):
            keys = set(said(point))
            yield from (f"{name} without {key}" for key in row.required - keys)
            known = row.required | row.conditional | row.recommended | OURS
            yield from (f"{name} with {key}" for key in keys - known)
            # Of the calls here all is known but the address, which nothing of ours has.
            wanted = (row.conditional | row.recommended | OURS) - UNREAD - {ERROR}
            yield from (f"{name} without {key}" for key in wanted - keys)
            if said(point)[OPERATION] not in OPERATIONS:
                yield f"{name} of operation {said(point)[OPERATION]}"
            if isinstance(point, HistogramDataPoint) and tuple(point.explicit_bounds) != row.buckets:
                yield f"{name} with the buckets {point.explicit_bounds}"


def test_instruments_are_those_of_the_conventions(host: Host) -> None:
    """Name, kind, unit, attributes and buckets of all that real calls move are what the tables say, and all of it."""
    everything(host)
    assert not list(drift(host.metrics()))


@pytest.mark.parametrize("change", ["row", "name", "unit", "required", "unknown", "buckets"])
def test_the_table_sees_drift(host: Host, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever side moves, the comparison says so."""
    everything(host)
    found = host.metrics()
    name = "gen_ai.client.inference.duration"
    row = TABLE[name]
    other = {
        "row": {"gen_ai.client.inference.tomorrow": row},
        "unit": {name: row._replace(unit="ms")},
        "required": {name: row._replace(required=row.required | {"gen_ai.tomorrow"})},
        "unknown": {name: row._replace(recommended=frozenset())},
        "buckets": {name: row._replace(buckets=(1, 2))},
    }
    table = {**TABLE, **other.get(change, {})}
    if change == "name":
        del table[name]
    monkeypatch.setitem(globals(), "TABLE", table)
    assert list(drift(found))


def test_what_cannot_be_fed_is_not_claimed(host: Host) -> None:
    """Nothing is shown under names whose numbers calls do not know, and each operation's name is the conventions'."""
    everything(host)
    assert not NOT_FED.keys() & host.metrics().keys()
    assert not NOT_FED.keys() & TABLE.keys()
    assert WELL_KNOWN == OPERATIONS


def test_numbers_of_real_calls(host: Host, provider: Provider) -> None:
    """Tokens are the provider's, each call is one observation, embeddings are apart, and a failure says its kind."""
    everything(host)
    found = host.metrics()
    chats = provider.truth(wire="chat")
    embedded = provider.truth(wire="embeddings")
    for direction in ("input", "output"):
        used = points(found[f"gen_ai.client.inference.usage.{direction}_tokens"])
        assert {said(point)[OPERATION] for point in used} == {"chat"}
        assert {said(point)[MODALITY] for point in used} == {"unknown"}
        assert {said(point)[REQUESTED] for point in used} == {"gpt-5-mini"}
        assert sum(point.value for point in used) == chats[f"{direction}_tokens"]  # type: ignore[union-attr]
        each = points(found[f"gen_ai.client.inference.operation.{direction}_tokens"])
        assert sum(point.count for point in each) == chats["calls"] + chats["failures"]  # type: ignore[union-attr]
        assert sum(point.sum for point in each) == chats[f"{direction}_tokens"]  # type: ignore[union-attr]
        (failed,) = [point for point in each if ERROR in said(point)]
        assert (failed.count, failed.sum) == (1, 0)  # type: ignore[union-attr]
    took = points(found["gen_ai.client.inference.duration"])
    assert sum(point.count for point in took) == 4  # type: ignore[union-attr]
    assert all(0 < point.min <= point.max < 60 for point in took)  # type: ignore[union-attr]
    assert [said(point)[ERROR] for point in took if ERROR in said(point)] == ["openai.RateLimitError"]
    (first,) = points(found["gen_ai.client.inference.time_to_first_chunk"])
    assert first.count == 1, "of the one stream"  # type: ignore[union-attr]
    (tokens,) = points(found["gen_ai.client.embeddings.operation.input_tokens"])
    assert (tokens.count, tokens.sum) == (1, embedded["input_tokens"])  # type: ignore[union-attr]
    times = points(found["gen_ai.client.embeddings.duration"])
    assert [said(point).get(ERROR) for point in times if ERROR in said(point)] == ["openai.APIConnectionError"]
    assert sum(point.count for point in times) == 2  # type: ignore[union-attr]
    assert {said(point)[OPERATION] for point in [tokens, *times]} == {"embeddings"}
    calls = points(found["runmeter.client.calls"])
    assert sum(point.value for point in calls) == 4  # type: ignore[union-attr]


def test_two_readers_see_every_call_once(host: Host) -> None:
    """What one reader's collection records is in the other's as well, and nothing is recorded again."""
    name = "gen_ai.client.inference.operation.input_tokens"
    seen: list[tuple[int, int]] = []
    for turn in (0, 1, 0, 1):
        host.chat()
        host.metrics(turn)
        seen.append(tuple(sum(p.count for p in points(host.metrics(r).get(name))) for r in (0, 1)))  # type: ignore
    assert seen == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_two_providers_and_prometheus(host: Host) -> None:
    """A scrape of a provider of its own shows the histograms, too, and a provider that is gone is forgotten."""
    registry = CollectorRegistry()
    scraped = MeterProvider([PrometheusMetricReader(registry=registry)], shutdown_on_exit=False)
    host.counters.show_on(scraped)
    host.chat()
    text = generate_latest(registry).decode()
    (line,) = [line for line in text.splitlines() if line.startswith("gen_ai_client_inference_duration_seconds_count{")]
    assert line.endswith(" 1.0")
    assert 'gen_ai_operation_name="chat"' in line
    assert points(host.metrics()["gen_ai.client.inference.duration"])[0].count == 1  # type: ignore[union-attr]
    scraped.shutdown()


# --- calls that no client makes at will -------------------------------------------------------------------------------

RUN = RunInfo("r", 1)
SECOND = 1_000_000_000


def call(tokens: int = 10, **more: Any) -> Call:
    usage = more.pop("usage", Usage(tokens, 5, calls=1, messages=1))
    return Call("openai", "m", "lead_agent", usage, None, 3 * SECOND, **{"started_at": SECOND, **more})


@pytest.fixture
def shown() -> Iterator[tuple[Counters, Callable[[], dict[str, Metric]]]]:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)

    def metrics() -> dict[str, Metric]:
        data = reader.get_metrics_data()
        scopes = [scoped for resource in data.resource_metrics for scoped in resource.scope_metrics] if data else []
        return {metric.name: metric for scoped in scopes for metric in scoped.metrics}

    yield Counters(meters), metrics
    meters.shutdown()


Shown = tuple[Counters, Callable[[], dict[str, Metric]]]
INPUT = "gen_ai.client.inference.operation.input_tokens"


def recorded(metric: Metric | None) -> list[tuple[int, float]]:
    return [(point.count, point.sum) for point in points(metric)]  # type: ignore[union-attr]


def test_a_correction_takes_the_old_call_out(shown: Shown) -> None:
    """What a call turns out to be is what is recorded, a repeat is not, and what is recorded stays."""
    counters, metrics = shown
    first, better, repeat = call(10), call(20), call(10)
    counters.settled(RUN, [Change(None, first), Change(None, repeat)])
    counters.settled(RUN, [Change(first, better), Change(repeat, None)])
    assert recorded(metrics()[INPUT]) == [(1, 20)]
    counters.settled(RUN, [Change(better, call(30))])
    assert recorded(metrics()[INPUT]) == [(1, 20)]
    usage = metrics()["gen_ai.client.inference.usage.input_tokens"]
    assert [point.value for point in points(usage)] == [30]  # type: ignore[union-attr]


def test_equal_calls_are_two(shown: Shown) -> None:
    """Calls that have everything in common are recorded each."""
    counters, metrics = shown
    one, other = call(), call()
    assert one == other
    counters.settled(RUN, [Change(None, one), Change(None, other)])
    assert recorded(metrics()[INPUT]) == [(2, 20)]


def test_what_finds_no_room_is_a_loss(shown: Shown) -> None:
    """Beyond the limit calls are counted, and reported as missing in the histograms."""
    counters, metrics = shown
    counters._distributions = Distributions(limit=3)
    counters._distributions.show_on(MeterProvider([]).get_meter("nobody"))
    crowd = [call() for _ in range(5)]
    counters.settled(RUN, [Change(None, one) for one in crowd])
    counters.settled(RUN, [Change(crowd[4], call(20))])
    found = metrics()
    (lost,) = points(found["runmeter.client.losses"])
    assert (said(lost), lost.value) == ({"reason": FULL}, 2)  # type: ignore[union-attr]
    assert [point.value for point in points(found["runmeter.client.calls"])] == [5]  # type: ignore[union-attr]


def test_sums_of_calls_that_nobody_saw_are_no_operation(shown: Shown) -> None:
    """An agent's own total is counted under its operation, and is no operation's size or duration."""
    counters, metrics = shown
    counters.settled(RUN, [Change(None, call(500, operation="invoke_agent"))])
    counters.settled(RUN, [Change(None, call(usage=Usage(messages=1)))])
    found = metrics()
    assert not recorded(found.get(INPUT))
    assert not recorded(found.get("gen_ai.client.inference.duration"))
    used = points(found["gen_ai.client.inference.usage.input_tokens"])
    assert {said(point)[OPERATION]: point.value for point in used}["invoke_agent"] == 500  # type: ignore[union-attr]


def test_a_duration_that_nobody_measured_is_none(shown: Shown) -> None:
    """A call that was only reported has tokens, and no duration."""
    counters, metrics = shown
    counters.settled(RUN, [Change(None, call(started_at=0))])
    found = metrics()
    assert recorded(found[INPUT]) == [(1, 10)]
    assert not recorded(found.get("gen_ai.client.inference.duration"))


def test_kinds_of_errors_are_bounded(shown: Shown) -> None:
    """Errors that are named after what happened are series of their own up to a limit."""
    counters, metrics = shown
    counters.settled(
        RUN,
        [Change(None, call(error=f"error {number}", usage=Usage(failures=1))) for number in range(200)],
    )
    found = points(metrics()[INPUT])
    assert len(found) == 51
    assert sum(point.count for point in found) == 200  # type: ignore[union-attr]


def test_a_call_without_a_requested_model_has_no_label_for_it(shown: Shown) -> None:
    """`gen_ai.request.model` is there where it is known only."""
    counters, metrics = shown
    counters.settled(RUN, [Change(None, call()), Change(None, call(request_model="m-latest"))])
    used = points(metrics()["gen_ai.client.inference.usage.input_tokens"])
    assert sorted(said(point).get(REQUESTED, "") for point in used) == ["", "m-latest"]


# --- what spans say of it ---------------------------------------------------------------------------------------------


def span(attributes: dict[str, Any], *, name: str = "chat m", scope: str = "x", failed: bool = False) -> EndedSpan:
    return EndedSpan(1, 2, None, False, name, 3, scope, {}, attributes, SECOND, 3 * SECOND, failed)


@pytest.mark.parametrize(
    ("attributes", "name", "operation"),
    [
        ({OPERATION: "chat"}, "chat m", "chat"),
        ({OPERATION: "generate_content"}, "generate_content m", "generate_content"),
        ({OPERATION: "embeddings"}, "embeddings m", "embeddings"),
        ({OPERATION: "aembedding"}, "aembedding", "embeddings"),
        ({OPERATION: "responses"}, "responses", "chat"),
        ({OPERATION: "image_generation"}, "image", "image_generation"),
        ({"openinference.span.kind": "EMBEDDING"}, "CreateEmbeddings", "embeddings"),
        ({"openinference.span.kind": "LLM"}, "ChatCompletion", "chat"),
        ({"openinference.span.kind": "LLM", OPERATION: "made_up"}, "ChatCompletion", "chat"),
        ({"ai.operationId": "ai.embedMany.doEmbed"}, "ai.embedMany.doEmbed", "embeddings"),
        ({"llm.request.type": "completion"}, "openai.completion", "text_completion"),
        ({"llm.request.type": "completion"}, "anthropic.chat", "chat"),
        ({"llm.request.type": "embedding"}, "openai.embeddings", "embeddings"),
        ({"span.type": "llm_request"}, "claude_code.llm_request", "chat"),
        ({}, "anything", "chat"),
        ({OPERATION: "summarise"}, "summarise", "summarise"),
        ({OPERATION: 7}, "seven", "chat"),
    ],
)
def test_operations_have_the_conventions_names(attributes: dict[str, Any], name: str, operation: str) -> None:
    """Whatever a library calls it, and what it alone knows keeps its name."""
    reading = read(span({**attributes, "gen_ai.usage.input_tokens": 5}, name=name))
    assert reading.role in (Role.CALL, Role.WEAK)
    assert reading.operation == operation


def test_recorded_embeddings_are_embeddings() -> None:
    """In every recording the embeddings are those of the provider, with all of their tokens, and nothing else is."""
    seen = 0
    for recording in recordings():
        sink = replay(recording.spans())
        calls = [one for run in sink.runs for one in sink.calls[id(run)]]
        assert {one.operation for one in calls} <= OPERATIONS, recording.name
        embedded = [one.usage for one in calls if one.operation == "embeddings"]
        truth = recording.truth
        assert sum(usage.calls for usage in embedded) == truth.get("embedding_calls", 0), recording.name
        assert sum(usage.input_tokens for usage in embedded) == truth.get("embedding_input_tokens", 0), recording.name
        seen += len(embedded)
    assert seen


def test_the_requested_model_and_the_kind_of_error_are_read() -> None:
    """The model that was asked for is told from the one that answered, and the error of a failure is named."""
    said = {OPERATION: "chat", REQUESTED: "m", RESPONDED: "m-2026", ERROR: "timeout"}
    reading = read(span({**said, "gen_ai.response.time_to_first_chunk": 0.5}))
    assert (reading.model, reading.request_model, reading.error, reading.first_chunk) == ("m-2026", "m", None, 0.5)
    assert read(span(said, failed=True)).error == "timeout"
    assert read(span({OPERATION: "chat", RESPONDED: "m-2026"})).request_model is None
    for nonsense in (float("nan"), -1.0, "soon", True):
        assert read(span({**said, "gen_ai.response.time_to_first_chunk": nonsense})).first_chunk is None


def test_what_an_older_runmeter_packed_is_read() -> None:
    """A row of before these fields gives a chat of a model that nobody asked for by name, and new ones keep theirs."""
    old = (
        '[1,1,2,null,0,{"4":1,"5":"x","6":"cbf29ce484222325","7":1000000000,"8":3000000000,"10":[5,2,0,0,0,0,0,0,0,0,0],'
        '"13":"m-2026"}]'
    )
    reading = Reading.unpack(old)
    assert (reading.usage, reading.model) == (Usage(5, 2), "m-2026")
    assert (reading.operation, reading.request_model, reading.error, reading.first_chunk) == ("chat", None, None, None)
    assert reading.pack() == old
    new = read(span({OPERATION: "embeddings", REQUESTED: "m", "gen_ai.usage.input_tokens": 5}))
    assert Reading.unpack(new.pack()) == new


def test_what_a_call_was_priced_at_it_stays_priced_at() -> None:
    """The digest under which door 2 keeps a price knows nothing of how the call is shown."""
    told = {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 2, RESPONDED: "m-2026", PROVIDER: "openai"}
    before = read(span({OPERATION: "chat", **told}))
    after = read(span({OPERATION: "embeddings", REQUESTED: "m", **told}))
    first = RunFold("r", lambda call: call.usage._replace(cost_nanousd=7))
    priced = first.add(before)
    assert priced is not None
    assert priced.hex().startswith("14b4b636ff14cb30")
    second = RunFold("r", lambda call: call.usage._replace(cost_nanousd=8))
    second.fix(priced)
    assert second.add(after) is None
    assert next(iter(second.snapshots(None)[0].usage_by.values())).cost_nanousd == 7
