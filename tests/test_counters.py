"""OpenTelemetry counters: what a Prometheus scrape of an agent process shows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from runmeter.otel.counters import LIMIT, Counters, counters_for
from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage

RUN = RunInfo("r", 1)


def call(model: str = "m", caller: str = "lead_agent", provider: str = "openai", **usage: int) -> Call:
    return Call(provider, model, caller, Usage(**{"calls": 1, "messages": 1, **usage}), None, 1)


class Scrape:
    """Counters behind a Prometheus reader with a registry of their own."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.registry = CollectorRegistry()
        self.provider = MeterProvider([PrometheusMetricReader(scope_info_enabled=False, registry=self.registry)])
        self.counters = Counters(self.provider, limit=limit)

    def add(self, *calls: Call) -> None:
        self.counters.settled(RUN, [Change(None, one) for one in calls])

    def lines(self) -> dict[str, float]:
        found = {}
        for line in generate_latest(self.registry).decode().splitlines():
            if match := re.fullmatch(r"((?:gen_ai|runmeter)_\w+?_total\{.*\}) (\S+)", line):
                found[match[1]] = float(match[2])
        return found

    def family(self, name: str) -> dict[str, float]:
        return {line: value for line, value in self.lines().items() if line.startswith(f"{name}_total{{")}


@pytest.fixture
def scrape() -> Iterator[Scrape]:
    found = Scrape()
    yield found
    found.provider.shutdown()


def test_a_call_moves_the_counters_of_the_conventions(scrape: Scrape) -> None:
    """A settled call is read through the Prometheus exporter under the names of the GenAI conventions."""
    scrape.add(
        call(input_tokens=746, output_tokens=65, cache_read_tokens=200, cache_write_tokens=30, reasoning_tokens=7)
    )
    labels = (
        '{gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_response_model="m",'
        'gen_ai_token_modality="unknown",runmeter_caller="lead_agent"}'
    )
    usage = "gen_ai_client_inference_usage"
    assert {line: value for line, value in scrape.lines().items() if line.startswith(usage)} == {
        f"{usage}_input_tokens_total{labels}": 746,
        f"{usage}_output_tokens_total{labels}": 65,
        f"{usage}_cache_read_input_tokens_total{labels}": 200,
        f"{usage}_cache_write_input_tokens_total{labels}": 30,
        f"{usage}_reasoning_output_tokens_total{labels}": 7,
    }


def test_failed_calls_are_zeros(scrape: Scrape) -> None:
    """A call that failed makes its series exist at 0, as the conventions ask, and counts as a failure."""
    scrape.add(call(calls=0, messages=0, failures=1))
    assert list(scrape.family("gen_ai_client_inference_usage_input_tokens").values()) == [0]
    assert list(scrape.family("runmeter_client_failures").values()) == [1]
    assert list(scrape.family("runmeter_client_calls").values()) == [0]


def test_callers_are_kinds(scrape: Scrape) -> None:
    """Calls and tokens say which kind of caller made or spent them, never its name."""
    names = ("subagent:a", "subagent:b", "middleware:x", "odd")
    scrape.add(*(call(caller=name, input_tokens=10) for name in names))
    for family, each in (("runmeter_client_calls", 1), ("gen_ai_client_inference_usage_input_tokens", 10)):
        shown = {
            re.search(r'runmeter_caller="(\w+)"', line)[1]: n for line, n in scrape.family(family).items()
        }  # type: ignore[index]
        assert shown == {"subagent": 2 * each, "middleware": each, "other": each}


def test_labels_are_granted_first_come_and_the_rest_is_other() -> None:
    """Beyond the cap models are one series `other`, and the sum over all series stays exact."""
    scrape = Scrape(limit=3)
    scrape.add(*(call(model=f"m{index}", input_tokens=10) for index in range(20)))
    shown = scrape.family("gen_ai_client_inference_usage_input_tokens")
    assert len(shown) == 4
    assert sum(shown.values()) == 200
    assert [value for line, value in shown.items() if 'model="other"' in line] == [170]
    scrape.provider.shutdown()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 1000), st.booleans()),
        max_size=30,
    )
)
def test_observed_values_never_fall(steps: list[tuple[str, int, bool]]) -> None:
    """Whatever is taken back, no series shows less than it showed before, and nothing more than was ever there."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    counters = Counters(provider)
    held: list[Call] = []
    before: dict[str, int] = {}
    added: dict[str, int] = {}
    for model, tokens, takes_back in steps:
        if takes_back and held:
            counters.settled(RUN, [Change(held.pop(), None)])
        else:
            held.append(call(model=model, input_tokens=tokens))
            counters.settled(RUN, [Change(None, held[-1])])
            added[model] = added.get(model, 0) + tokens
        data = reader.get_metrics_data()
        shown = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else []:
            if metric.name == "gen_ai.client.inference.usage.input_tokens":
                shown = {p.attributes["gen_ai.response.model"]: p.value for p in metric.data.data_points}
        for key, value in before.items():
            assert shown[key] >= value
        assert all(shown[key] <= added[key] for key in shown)
        before = shown
    provider.shutdown()


def test_losses_are_shown_by_reason(scrape: Scrape) -> None:
    """What was not counted is counted by reason."""
    scrape.counters.lost("span_evicted", 3)
    scrape.counters.lost("span_evicted")
    assert scrape.family("runmeter_client_losses") == {'runmeter_client_losses_total{reason="span_evicted"}': 4}


def test_one_set_of_counters_for_a_provider() -> None:
    """Instrumenting again goes on with the totals there are, since instruments cannot be made twice."""
    provider = MeterProvider([InMemoryMetricReader()])
    assert counters_for(provider) is counters_for(provider)
    assert counters_for(provider) is not counters_for(MeterProvider([]))
    provider.shutdown()


def test_a_fork_starts_from_zero(scrape: Scrape) -> None:
    """What the parent counted is not shown again by its child."""
    scrape.add(call(input_tokens=5))
    scrape.counters.after_fork()
    assert scrape.family("gen_ai_client_inference_usage_input_tokens") == {}
    scrape.add(call(input_tokens=2))
    assert list(scrape.family("gen_ai_client_inference_usage_input_tokens").values()) == [2]
