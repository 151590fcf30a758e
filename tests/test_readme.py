"""The README does what it says: its code runs, its commands, targets, routes, extras and files exist."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from provider import Provider
from sidecar_process import Sidecar

from runmeter_exporter.cli import cli
from runmeter_exporter.prices.price_file import PriceFile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The fenced code blocks of a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", README, re.M | re.S)
    assert found, f"the README has no {language} block"
    return found


def test_every_python_block_runs_and_says_what_the_provider_says(tmp_path: Path) -> None:
    """The blocks run one after the other on one store, against the loopback provider, with the numbers it returned."""
    with Provider() as provider:
        env = {**os.environ, "RUNMETER_DATABASE_URL": f"sqlite:///{tmp_path}/store.db", "OPENAI_API_KEY": "none",
               "OPENAI_BASE_URL": provider.openai_url}
        said = []
        for code in blocks("python"):
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
            assert done.returncode == 0, f"{code}\n{done.stderr}"
            said.append(done.stdout)
        truth = provider.truth()
    assert said[0].splitlines()[1:] == [f"{truth['input_tokens'] + truth['output_tokens']} tokens in 2 calls"]
    assert "counting calls of openai (opentelemetry-instrumentation-genai-openai)" in said[0]
    assert said[2] == "1280\n0\n"
    assert said[3] in ("http://127.0.0.1:9464/metrics\n", "None\n")  # another process here may have the port


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
