"""A real Prometheus scrapes the real sidecar while real agents work, and is asked everything dashboards and rules ask.

Prometheus and promtool are Debian's (`apt-get install prometheus`); where they are not, these tests are skipped.
Grafana itself does not run here: its variables are filled in as it would, and the queries go to Prometheus' HTTP API.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from prometheus_process import Prometheus
from provider import Provider
from sidecar_process import Agent, Sidecar, until
from test_exposition import FULL, page
from test_grafana import GRAFANA, expressions, recorded

pytestmark = pytest.mark.prometheus

JOBS = ("runmeter", "settled-only")
VARIABLES = {"$job": ".+", "$__rate_interval": "30s", "$__range": "5m"}
COMPARISON = re.compile(r"\s+(?:==|>)\s+[\d.e]+(?=\s+or\s|\s*$)")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if not found:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    return found


def configured(folder: Path, target: str) -> Prometheus:
    """With the shipped scrape job, once as it is and once for settled usage alone, and the shipped rules."""
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    config["scrape_configs"] = [job, {**job, "job_name": "settled-only", "params": {}}]
    folder.mkdir()
    for number, name in enumerate(config["rule_files"]):
        groups = yaml.safe_load((GRAFANA / name).read_text("utf-8"))["groups"]
        (folder / f"{number}.yml").write_text(
            yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in groups]}), "utf-8"
        )
    config["rule_files"] = ["*.yml"]
    return Prometheus(folder, config)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def filled(expr: str) -> str:
    """PromQL as Grafana sends it."""
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    return expr


@pytest.mark.timeout(300)
def test_prometheus_sees_what_rest_says(tmp_path: Path, provider: Provider) -> None:
    """Every query of every panel and rule returns series; burn shows while runs work; sums equal REST to the token at
    the end, and no counter fell, though the sidecar was killed in between; ids are scraped on request only."""
    with (
        Sidecar(f"sqlite:///{tmp_path}/store.sqlite") as sidecar,
        configured(tmp_path / "prometheus", sidecar.url.removeprefix("http://")) as prometheus,
        ExitStack() as leaving,
    ):
        for job in JOBS:
            until(lambda job=job: prometheus.number(f'sum(runmeter_tokens_total{{job="{job}"}})') == 0, "a scrape at 0")

        agents = []
        for n in range(4):
            agents.append(Agent(sidecar.database_url, provider.openai_url, f"run-{n}", f"thread-{n % 2}"))
            leaving.callback(agents[-1].kill)
        for agent in agents:
            for command in ("call", "stream", "call subagent:researcher", "fail", "call middleware:summarize"):
                agent.tell(command)

        # While they work: settled totals stand still, observed ones move.
        truth = provider.truth()
        spent = truth["input_tokens"] + truth["output_tokens"]
        until(lambda: prometheus.number("sum(runmeter_active_tokens)") == spent, "the active tokens are scraped")
        until(
            lambda: prometheus.number("sum(runmeter_observed_tokens_total)") == spent, "the observed tokens are scraped"
        )
        assert sidecar.get("/api/usage?include_active=true")["total_tokens"] == spent
        assert prometheus.number('sum(runmeter_tokens_total{job="runmeter"})') == 0
        assert prometheus.number("sum(runmeter_active_run_tokens)") == spent
        assert not prometheus.ask(
            '{job="settled-only",__name__=~"runmeter_(observed|active_tokens|active_run_|thread_).+"}'
        )
        assert not prometheus.ask('{job="settled-only",run_id!=""}')

        for agent in agents[:2]:
            assert agent.end() == 0
        until(
            lambda: prometheus.number('sum(runmeter_runs_total{job="runmeter",status="success"})') == 2,
            "two runs closed",
        )

        # Two have closed and two work: now everything that is asked has an answer.
        for where, expr in expressions():
            query = filled(expr)
            prometheus.ask(query)
            compared = COMPARISON.sub("", query)  # an alert that does not fire returns nothing
            until(lambda query=compared: prometheus.ask(query), f"{where} returns series: {compared}")

        # The sidecar dies while agents go on spending.
        sidecar.kill()
        until(lambda: prometheus.number('up{job="runmeter"}') == 0, "Prometheus sees it down")
        for agent in agents[2:]:
            agent.tell("call")
            agent.tell("call subagent:researcher")
        down = dict(expressions())["RunmeterSidecarDown"]
        assert [series["metric"]["job"] for series in prometheus.ask(down)] == ["runmeter"]
        sidecar.start()
        until(lambda: prometheus.number('runmeter_store_up{job="runmeter"}') == 1, "Prometheus sees it again")
        for agent in agents[2:]:
            agent.tell("stream")
            assert agent.end() == 0

        truth = provider.truth()
        spent = truth["input_tokens"] + truth["output_tokens"]
        rest = until(
            lambda: (usage := sidecar.get("/api/usage")) and usage["total_runs"] == 4 and usage, "all runs closed"
        )
        assert rest["total_tokens"] == spent
        for job in JOBS:
            total = f'sum(runmeter_tokens_total{{job="{job}"}})'
            until(lambda total=total: prometheus.number(total) == spent, "the settled tokens are scraped")
            assert prometheus.number(f'sum(runmeter_llm_calls_total{{job="{job}"}})') == rest["llm_call_count"]
            assert prometheus.number(f'sum(runmeter_cost_usd_total{{job="{job}"}})') == pytest.approx(
                rest["cost_usd"] or 0
            )
            for model, line in rest["by_model"].items():
                assert prometheus.number(f'sum(runmeter_tokens_total{{job="{job}",model="{model}"}})') == line["tokens"]
            for kind, tokens in rest["by_caller"].items():
                assert (prometheus.number(f'sum(runmeter_tokens_total{{job="{job}",caller="{kind}"}})') or 0) == tokens
        until(lambda: prometheus.number("sum(store:runmeter_tokens_total{job='runmeter'})") == spent, "it is recorded")
        until(lambda: prometheus.number("sum(runmeter_active_tokens)") == 0, "nothing is active")
        assert prometheus.number("sum(runmeter_observed_tokens_total)") == spent

        # Nothing fell on the way, and every first increment can be seen.
        for name in recorded():
            for series in prometheus.ask(f"{name}[1h]") + prometheus.ask(f"{name.removeprefix('store:')}[1h]"):
                values = [float(value) for _, value in series["values"]]
                assert values == sorted(values), (series["metric"], values)
                if not series["metric"]["__name__"].startswith("store:"):
                    assert values[0] == 0, (series["metric"], values)


def test_a_pages_metrics_follow_prometheus_conventions(promtool: str) -> None:
    """`promtool check metrics` has nothing to say about a full page, with and without active runs."""
    for query in ({}, {"include_active": "true"}):
        text = page(FULL, query, {"Accept": "text/plain"})
        done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "rules/runmeter.rules.yml", "rules/runmeter.alerts.yml"),
        ("test", "rules", "rules/runmeter.tests.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts(promtool: str, arguments: tuple[str, ...]) -> None:
    """The configuration and the rules are valid, and the rules pass their unit tests."""
    done = subprocess.run([promtool, *arguments], cwd=GRAFANA, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_every_alert_is_unit_tested() -> None:
    """Each alert has a case in which it fires."""
    cases = yaml.safe_load((GRAFANA / "rules/runmeter.tests.yml").read_text("utf-8"))["tests"]
    fired = {check["alertname"] for case in cases for check in case.get("alert_rule_test", []) if check["exp_alerts"]}
    groups = yaml.safe_load((GRAFANA / "rules/runmeter.alerts.yml").read_text("utf-8"))["groups"]
    assert fired == {rule["alert"] for group in groups for rule in group["rules"]}
