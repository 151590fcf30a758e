"""Dashboards, rules and manifests: valid by the types of those who read them, and about metrics that exist.

What cannot run here is checked this far: dashboards against Grafana's own generated types, Kubernetes manifests against
its JSON schemas, compose.yaml against the Compose specification, the Dockerfile by hadolint. The PodMonitor's schema is
a custom resource's and only looked at; images are not pulled. Rules and queries do run, in test_prometheus.py.
"""

from __future__ import annotations

import enum
import json
import re
import runpy
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
import yaml
from sidecar_process import Sidecar

from runmeter_exporter.families import about_this_answer, families
from runmeter_exporter.totals.answers import Scrape

GRAFANA = Path(__file__).parent.parent / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
METRIC = re.compile(r"\b(?:store:)?runmeter_\w+")
PROMETHEUS_OWN = {"up", "scrape_samples_scraped"}
UNITS = {"short", "s", "percentunit", "currencyUSD", "reqps"}

dashboards = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def exposed() -> set[str]:
    """The names of all samples that /metrics can show."""
    shown = families(Scrape(observed={}, active={}), include_active=True)
    names = {metric.name + ("_total" if metric.type == "counter" else "") for metric in shown}
    about = about_this_answer(up=True, age=0, seconds=0)
    return names | {metric.name + ("_info" if metric.type == "info" else "") for metric in about}


def rules(name: str) -> list[dict[str, Any]]:
    """The rules of a file."""
    text = (GRAFANA / "rules" / name).read_text("utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def recorded() -> dict[str, str]:
    """Recorded series → the expression that makes them."""
    return {rule["record"]: rule["expr"] for rule in rules("runmeter.rules.yml")}


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL in the repository, and where it stands."""
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text("utf-8"))["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]
    for name in ("runmeter.rules.yml", "runmeter.alerts.yml"):
        for rule in rules(name):
            yield rule.get("record") or rule["alert"], rule["expr"]


# Dashboards


def test_there_are_the_three_dashboards() -> None:
    """Live runs, Spend and Meter health, under uids that links may rely on."""
    found = {json.loads(path.read_text("utf-8"))["uid"] for path in DASHBOARDS}
    assert found == {"runmeter-live", "runmeter-spend", "runmeter-health"}


def test_dashboards_are_what_their_generator_makes() -> None:
    """Nobody edited a dashboard by hand, and nobody forgot to run `python grafana/generator`."""
    made = runpy.run_path(str(GRAFANA / "generator"), run_name="generator")["build"]()
    assert {path.name: path.read_text("utf-8") for path in DASHBOARDS} == made


@dashboards
def test_a_dashboard_is_of_grafanas_types(path: Path) -> None:
    """Grafana's generated types know every key that is written, and every value is of the type they say."""
    model = json.loads(path.read_text("utf-8"))
    plugins = import_module("grafana_foundation_sdk.cog.plugins")
    encoder = import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder
    plugins.register_default_plugins()
    read = import_module("grafana_foundation_sdk.models.dashboard").Dashboard.from_json(model)
    assert not list(missing(model, json.loads(encoder().encode(read)), path.stem))
    assert not list(mistyped(read, path.stem))


def missing(written: object, known: object, place: str) -> Iterator[str]:
    """Where `known`, the model after a round trip, lacks or changes something that was written."""
    if isinstance(written, dict) and isinstance(known, dict):
        for key, value in written.items():
            if key not in known:
                yield f"{place}.{key} is unknown"
            else:
                yield from missing(value, known[key], f"{place}.{key}")
    elif isinstance(written, list) and isinstance(known, list) and len(written) == len(known):
        for number, (one, other) in enumerate(zip(written, known, strict=True)):
            yield from missing(one, other, f"{place}[{number}]")
    elif written != known:
        yield f"{place} is {written!r}, read as {known!r}"


def mistyped(value: object, place: str) -> Iterator[str]:
    """Where an object of the SDK holds what its annotations do not allow."""
    if not type(value).__module__.startswith("grafana_foundation_sdk.models"):
        return
    for name, hint in typing.get_type_hints(type(value)).items():
        held = getattr(value, name, None)
        if not fits(held, hint):
            yield f"{place}.{name} is {held!r}, not {hint}"
        for number, part in enumerate(held if isinstance(held, list) else [held]):
            yield from mistyped(part, f"{place}.{name}[{number}]")


def fits(value: object, hint: Any) -> bool:
    """Whether a value read from JSON is of an annotated type; enums are read as their values."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is object:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return isinstance(value, hint) or value in {one.value for one in hint}
    if isinstance(value, dict) and getattr(hint, "__module__", "").startswith("grafana_foundation_sdk.models"):
        # Left as read by the SDK (transformations); `id` is `id_val` there.
        return set(value) <= {name.removesuffix("_val") for name in typing.get_type_hints(hint)}
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, typing.get_origin(hint) or hint) and not (hint is int and isinstance(value, bool))


def test_the_type_check_finds_mistakes() -> None:
    """A misspelt key and a number where a text belongs are both reported."""
    model = json.loads(DASHBOARDS[0].read_text("utf-8"))
    model["panels"][0]["gridpos"] = model["panels"][0].pop("gridPos")
    model["panels"][0]["title"] = 7
    import_module("grafana_foundation_sdk.cog.plugins").register_default_plugins()
    read = import_module("grafana_foundation_sdk.models.dashboard").Dashboard.from_json(model)
    encoder = import_module("grafana_foundation_sdk.cog.encoder").JSONEncoder
    assert list(missing(model, json.loads(encoder().encode(read)), "d")) == ["d.panels[0].gridpos is unknown"]
    assert [found.split(" is ")[0] for found in mistyped(read, "d")] == ["d.panels[0].title"]


@dashboards
def test_every_panel_explains_itself(path: Path) -> None:
    """A panel has a title and a place of its own, a description, a unit, and a datasource that can be chosen."""
    model = json.loads(path.read_text("utf-8"))
    titles, places = [], set()
    for panel in model["panels"]:
        titles.append(panel["title"])
        assert len(panel["description"]) > 20, panel["title"]
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS or unit.startswith("suffix: "), panel["title"]
        for what in (panel, *panel["targets"]):
            assert what["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & places, f"{panel['title']} lies on another panel"
        places |= cells
    assert len(set(titles)) == len(titles)
    assert len({panel["id"] for panel in model["panels"]}) == len(titles)
    assert {variable["name"] for variable in model["templating"]["list"]} == {"datasource", "job"}


def test_every_metric_that_is_asked_for_exists() -> None:
    """Dashboards, rules and alerts name only what /metrics shows and what the rules record."""
    known = exposed() | set(recorded()) | PROMETHEUS_OWN
    unknown = {(where, name) for where, expr in expressions() for name in METRIC.findall(expr) if name not in known}
    assert not unknown


def test_every_metric_can_be_seen() -> None:
    """What /metrics shows is on a dashboard, in an alert, or recorded; nothing is exposed for nobody."""
    used = {name.removeprefix("store:") for _, expr in expressions() for name in METRIC.findall(expr)}
    assert exposed() <= used


def test_replicas_are_made_one_before_anything_else() -> None:
    """Each counter is recorded as the maximum over instance and pod, since replicas expose equal totals; and no other
    query rates or sums one that was not."""
    counters = {name for name in exposed() if name.endswith("_total")}
    assert recorded() == {f"store:{name}": f"max without (instance, pod) ({name})" for name in counters}
    for where, expr in expressions():
        if not where.startswith("store:"):
            assert not re.search(r"(?<!store:)\brunmeter_\w+_total", expr), where


# What is deployed


def test_prometheus_loads_all_rules() -> None:
    """The configuration names every rule file, records as often as it scrapes, and asks for active usage in a job named
    as in the alerts."""
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))
    assert set(config["rule_files"]) == {f"rules/{name}" for name in ("runmeter.rules.yml", "runmeter.alerts.yml")}
    [recording] = yaml.safe_load((GRAFANA / "rules/runmeter.rules.yml").read_text("utf-8"))["groups"]
    assert recording["interval"] == config["global"]["scrape_interval"]
    [job] = config["scrape_configs"]
    assert (job["job_name"], job["params"]) == ("runmeter", {"include_active": ["true"]})


def test_grafana_is_provisioned_with_what_compose_mounts() -> None:
    """The dashboards' folder and the datasource's host are those of compose.yaml."""
    compose = yaml.safe_load((GRAFANA / "compose.yaml").read_text("utf-8"))
    [provider] = yaml.safe_load((GRAFANA / "provisioning/dashboards/runmeter.yaml").read_text("utf-8"))["providers"]
    [source] = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text("utf-8"))["datasources"]
    assert f"./dashboards:{provider['options']['path']}:ro" in compose["services"]["grafana"]["volumes"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            mounted = volume.split(":")[0]
            assert mounted in compose["volumes"] or (GRAFANA / mounted).exists()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_compose_follows_its_specification() -> None:
    """compose.yaml is valid by the schema of the Compose specification."""
    run("check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(GRAFANA / "compose.yaml"))


@pytest.mark.parametrize("name", ["runmeter.yaml", "sidecar.yaml"])
@pytest.mark.parametrize("version", ["1.29", "1.34"])
def test_manifests_follow_kubernetes_schemas(name: str, version: str) -> None:
    """Every document is valid by Kubernetes' own schema, with no unknown field, from the first version with native
    sidecars on."""
    validate = import_module("kubernetes_validate").validate
    documents = list(yaml.safe_load_all((GRAFANA / "kubernetes" / name).read_text("utf-8")))
    assert documents
    for document in documents:
        validate(document, version, strict=True)


def test_the_pod_monitor_finds_what_the_manifests_run() -> None:
    """Its labels, port and secret are those of the Deployment and of the native sidecar."""
    folder = GRAFANA / "kubernetes"
    monitor = yaml.safe_load((folder / "podmonitor.yaml").read_text("utf-8"))["spec"]
    deployment = next(yaml.safe_load_all((folder / "runmeter.yaml").read_text("utf-8")))["spec"]["template"]
    sidecar = yaml.safe_load((folder / "sidecar.yaml").read_text("utf-8"))
    [endpoint] = monitor["podMetricsEndpoints"]
    for pod, containers in ((deployment, "containers"), (sidecar, "initContainers")):
        assert monitor["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
        [container] = pod["spec"][containers]
        assert endpoint["port"] in {port["name"] for port in container["ports"]}
        assert endpoint["authorization"]["credentials"]["name"] in {
            volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume
        }
    assert endpoint["params"] == {"include_active": ["true"]}


def test_the_image_runs_as_nobody() -> None:
    """hadolint has nothing to say, and the last user is a number that is not root's."""
    dockerfile = GRAFANA / "Dockerfile"
    subprocess.run([Path(sys.executable).parent / "hadolint", dockerfile], check=True, timeout=60)
    *_, user = [line.split()[1] for line in dockerfile.read_text("utf-8").splitlines() if line.startswith("USER")]
    assert int(user.split(":")[0]) > 0


def run(module: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_manifests_set_only_variables_that_serve_reads() -> None:
    """Each RUNMETER_ variable of the image, compose.yaml and the manifests is one of `serve`'s options."""
    from runmeter_exporter.cli import cli

    known = set()
    for option in cli.commands["serve"].params:
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
        known |= {name + end for name in names for end in ("", "_FILE")}
    assert known
    files = [GRAFANA / "Dockerfile", GRAFANA / "compose.yaml", *(GRAFANA / "kubernetes").glob("*.yaml")]
    named = {name for file in files for name in re.findall(r"\bRUNMETER_[A-Z_]+", file.read_text("utf-8"))}
    assert "RUNMETER_ALLOWED_HOST" in named
    assert named <= known


def test_prometheus_gets_through_as_compose_connects_them(tmp_path: Path) -> None:
    """With the variables of compose.yaml the sidecar answers on every address, to the name that prometheus.yml asks."""
    service = yaml.safe_load((GRAFANA / "compose.yaml").read_text("utf-8"))["services"]["runmeter"]
    config = yaml.safe_load((GRAFANA / "prometheus.yml").read_text("utf-8"))
    [target] = config["scrape_configs"][0]["static_configs"][0]["targets"]
    with Sidecar(f"sqlite:///{tmp_path}/runs.db", "--listen", "0.0.0.0:0", env=service["environment"]) as sidecar:
        assert "runmeter_store_up 1.0" in sidecar.get("/metrics?include_active=true", Host=target)
        with pytest.raises(HTTPError, match="421"):
            sidecar.get("/metrics", Host="somebody-else:9465")
