"""The README does what it says: its code runs, its commands, targets, routes, extras and files exist."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from sidecar_process import Sidecar

from runmeter_exporter.cli import cli
from runmeter_exporter.prices.price_file import PriceFile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
_spec = importlib.util.spec_from_file_location("readme_blocks", ROOT / ".ci" / "readme_blocks.py")
assert _spec
assert _spec.loader
readme_blocks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(readme_blocks)


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert found, f"the README has no {language} block"
    return found


ENVIRONMENTS = readme_blocks.environments()


@pytest.mark.parametrize("packages", ENVIRONMENTS)
def test_blocks_run(tmp_path: Path, packages: str) -> None:
    """What is to be run with the packages of one `pip install` line runs, in order, against a loopback provider, with
    the numbers it returned. This environment has them all; .ci/readme_blocks.py does it in one that has no more."""
    said = [(block.language, text) for block, text in readme_blocks.run(packages, Path(sys.executable), tmp_path)]
    python = [text for language, text in said if language == "python"]
    if packages == "runmeter[openai]":
        about, tokens = python[0].splitlines()
        assert "counting calls of openai (opentelemetry-instrumentation-genai-openai)" in about
        assert re.fullmatch(r"[1-9]\d+ tokens in 2 calls", tokens)
    if packages == "runmeter[sidecar]":
        assert python[-1] == "1280\n0\n"
        assert "balanced" in said[-1][1]
        assert (tmp_path / "monitoring" / "compose.yaml").exists()
    if packages == "runmeter[openai,prometheus]":  # another process here may have the port
        assert python[-1] in ("http://127.0.0.1:9464/metrics\n", "None\n")


def test_each_environment_is_one_that_pip_makes() -> None:
    """Extras that are named above a block exist, and no block to run is without packages."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"runmeter[openai]", "runmeter[sidecar]"} < set(ENVIRONMENTS)
    for packages in ENVIRONMENTS:
        assert packages
        if found := re.fullmatch(r"runmeter\[(.*)\]", packages):
            assert set(found[1].split(",")) <= set(extras), packages


def test_the_price_file_is_one(tmp_path: Path) -> None:
    """The example of RUNMETER_PRICES is read, with every line in it."""
    [text] = blocks("toml")
    path = tmp_path / "prices.toml"
    path.write_text(text)
    prices = PriceFile.load(path)
    assert len(prices) == 3
    assert prices.find("openai", "gpt-5-mini-2025-08-07") is not None
    assert prices.find("ollama", "anything") is not None


def test_the_scrape_job_is_one(tmp_path: Path) -> None:
    """The scrape job is taken by promtool, beside the rules that it names."""
    [text] = blocks("yaml")
    assert yaml.safe_load(text)["scrape_configs"][0]["params"] == {"include_active": ["true"]}
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    shutil.copytree(ROOT / "grafana" / "rules", tmp_path / "rules")
    (tmp_path / "prometheus.yml").write_text(text)
    command = [promtool, "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_is_in_the_readme_and_the_other_way_round() -> None:
    """Commands come and go together with their line."""
    table = README[README.index("## Commands") : README.index("## Money")]
    named = set(re.findall(r"`(?:runmeter )?([a-z]+)[ `]", "".join(re.findall(r"^\| (`.*?) \|", table, re.M))))
    assert named == set(cli.commands)


def test_targets_extras_and_files_exist() -> None:
    """What the README tells to type or open is there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) - {"its"} <= targets
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {extra for names in re.findall(r"runmeter\[([a-z,]+)\]", README) for extra in names.split(",")}
    assert named <= set(extras)
    for path in re.findall(r"[`(]((?:grafana|tests|exporter|instrumentation)/[\w./-]*)[`)]", README):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"`(\w+\.py)`", README):
        assert list(ROOT.rglob(f"*/{name}")), name
    for name in re.findall(r"runmeter\.hooks\.(\w+)\.install", README):
        assert (ROOT / "instrumentation/runmeter/hooks" / f"{name}.py").exists(), name


def test_tests_that_the_readme_names_exist() -> None:
    """The table of faults names tests; each is there."""
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for name in set(re.findall(r"\btest_\w+(?!\.py)\b", README)):
        assert f"def {name}(" in code or (ROOT / "tests" / f"{name}.py").exists(), name


def test_routes_and_addresses_answer(tmp_path: Path) -> None:
    """Every route of the README is served, and its curl lines get an answer."""
    with Sidecar(f"sqlite:///{tmp_path}/store.db") as sidecar:
        for line in re.findall(r"curl '(.*?)'", README):
            assert sidecar.get(line.removeprefix("http://127.0.0.1:9465")) is not None, line
        paths = {re.sub(r"{\w+}", "{id}", path) for path in sidecar.get("/openapi.json")["paths"]}
        table = README[README.index("## REST") : README.index("## Commands")]
        for route in re.findall(r"`(?:GET |POST )?(/[^ `]*)`", table):
            path = route.partition("?")[0]
            assert path in paths or sidecar.get(path) is not None, route
