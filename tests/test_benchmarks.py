"""The benchmarks run, so that they do not rot. What they measure is nobody's test: `make bench` shows it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "benchmarks" / "run.py"
NAMES = sorted(path.stem.removeprefix("bench_") for path in RUN.parent.glob("bench_*.py"))


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *options], capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_measures_something(name: str) -> None:
    """Quick, each runs to its end and yields rows with numbers, compared or held against a bar."""
    done = run("--quick", "--json", "--only", name)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    for row in rows:
        assert math.isfinite(row["measured"]), row
        assert row["beside"] is not None or row["at_most"] is not None, row


def test_the_table_is_markdown() -> None:
    """What a person sees: a header, and a line for each row with as many cells."""
    done = run("--quick", "--only", "import")
    assert done.returncode == 0, done.stderr
    header, _, *rows = done.stdout.splitlines()
    assert header.startswith("| What | Measured |")
    assert [row.count("|") for row in rows] == [header.count("|")]
    assert "`import runmeter`" in rows[0]


def test_a_benchmark_that_is_not_there_is_said() -> None:
    """A name that nobody has: exit 2, and the names that there are."""
    done = run("--only", "nonesuch")
    assert done.returncode == 2
    assert "no benchmark nonesuch" in done.stderr
    assert all(name in done.stderr for name in NAMES)


def test_a_benchmark_that_fails_is_said(tmp_path: Path) -> None:
    """The others are still shown, and the exit code is 1."""
    done = run("--quick", "--json", "--only", "import,ingest", "--mlflow", str(tmp_path / "no-such-python"))
    assert done.returncode == 1
    assert "ingest failed with exit code" in done.stderr
    assert [json.loads(line)["unit"] for line in done.stdout.splitlines()] == ["ms"]
