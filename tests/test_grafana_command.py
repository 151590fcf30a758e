"""`runmeter grafana`: what a pip user has instead of a checkout, from a wheel that is built here."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from runmeter_exporter.cli import cli
from runmeter_exporter.console import grafana

ROOT = Path(__file__).parent.parent


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["grafana", *arguments])
    return done.exit_code, done.output


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what the Dockerfile copies, and from nothing else."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "grafana/Dockerfile").read_text(), re.M):
        *names, _ = line.split()
        for name in names:
            path = ROOT / name
            ignore = shutil.ignore_patterns("__pycache__")
            (shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source / name))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110)
    if done.returncode and re.search("No matching distribution|ConnectionError|Temporary failure", done.stderr):
        pytest.skip("no package index to build a wheel with")
    assert done.returncode == 0, done.stderr
    [built] = out.glob("*.whl")
    return built


def test_the_wheel_writes_what_the_checkout_has(wheel: Path, tmp_path: Path) -> None:
    """With the wheel's code and files alone, the folder has every shipped file, as this checkout would write it."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    assert not list((tmp_path / "site").glob("grafana"))
    # The wheel's packages in front of those of an editable install.
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import runmeter.launch.main; runmeter.launch.main.main()"
    arguments = [str(tmp_path / "site"), "grafana", "--write", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {one.relative_to(tmp_path / "out").as_posix(): one.read_text("utf-8")
               for one in (tmp_path / "out").rglob("*") if one.is_file()}
    assert written == grafana.files()
    assert {"dashboards/spend.json", "rules/runmeter.rules.yml", "kubernetes/runmeter.yaml"} <= set(written)


def test_pyproject_ships_what_the_command_writes() -> None:
    """One list in two places."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    expected = {f"grafana/{name}": f"runmeter_exporter/grafana/{name}" for name in grafana.SHIPPED}
    assert build["wheel"]["force-include"] == expected


def test_the_written_compose_file_needs_no_checkout(tmp_path: Path) -> None:
    """Its image is built from the folder alone, of this version; every file it mounts is there; it is valid, and so are
    the Dockerfile and the scrape job."""
    assert call("--write", str(tmp_path))[0] == 0
    compose = yaml.safe_load((tmp_path / "compose.yaml").read_text())
    assert compose["services"]["runmeter"]["build"] == "."
    mounts = [one.partition(":")[0] for service in compose["services"].values() for one in service.get("volumes", ())]
    for mount in mounts:
        assert mount in compose["volumes"] or (tmp_path / mount).exists(), mount
    dockerfile = (tmp_path / "Dockerfile").read_text()
    assert f"'runmeter[all]=={version('runmeter')}'" in dockerfile
    assert "instrumentation" not in dockerfile
    assert "/src" not in dockerfile
    subprocess.run([Path(sys.executable).parent / "hadolint", tmp_path / "Dockerfile"], check=True, timeout=60)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    subprocess.run([*command, tmp_path / "compose.yaml"], check=True, timeout=60, capture_output=True)
    for name in yaml.safe_load((tmp_path / "prometheus.yml").read_text())["rule_files"]:
        assert (tmp_path / name).exists()


def test_a_changed_file_is_not_overwritten_without_a_word(tmp_path: Path) -> None:
    """Writing again writes nothing; a file that was changed is named and nothing at all is written, until asked to."""
    assert call("--write", str(tmp_path))[0] == 0
    code, said = call("--write", str(tmp_path))
    assert (code, said.splitlines()[0][:16]) == (0, "0 files written ")
    (tmp_path / "prometheus.yml").write_bytes(b"mine \xff")
    (tmp_path / "compose.yaml").unlink()
    code, said = call("--write", str(tmp_path))
    assert code != 0
    assert "prometheus.yml" in said
    assert "--overwrite" in said
    assert not (tmp_path / "compose.yaml").exists()
    code, said = call("--write", str(tmp_path), "--overwrite", "--json")
    assert json.loads(said)["replaced"] == ["prometheus.yml"]
    assert json.loads(said)["written"] == ["compose.yaml", "prometheus.yml"]
    assert (tmp_path / "prometheus.yml").read_text() == grafana.files()["prometheus.yml"]


def test_where_nothing_can_be_written_it_says_so(tmp_path: Path) -> None:
    """A file where the folder would be."""
    (tmp_path / "file").write_text("")
    code, said = call("--write", str(tmp_path / "file" / "below"))
    assert code != 0
    assert "cannot write to" in said
    assert "Traceback" not in said


def test_without_a_folder_it_lists() -> None:
    """So that one sees what there is."""
    code, said = call()
    assert code == 0
    assert "dashboards/live-runs.json" in said
