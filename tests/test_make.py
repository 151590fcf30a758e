"""The Makefile on machines that lack something: one line that says what, and nothing half made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def make(target: str, python: Path | str, venv: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", "--no-print-directory", target, f"PYTHON={python}", f"VENV={venv}"], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("target", ["run", "test", "test-live", "bench", "lint"])
def test_a_python_that_is_too_old_is_one_line(target: str, tmp_path: Path) -> None:
    """It names the version found and how to name another Python; no environment is begun."""
    old = script(tmp_path / "python2", 'case "$*" in -V) echo "Python 2.7.18";; *) exit 1;; esac')
    done = make(target, old, tmp_path / "venv")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert "Python 3.11 or newer" in lines[0]
    assert "Python 2.7.18" in lines[0]
    assert not (tmp_path / "venv").exists()


def test_a_python_without_ensurepip_is_one_line(tmp_path: Path) -> None:
    """Debian's python3 without python3-venv: the line says what to install."""
    bare = script(tmp_path / "python3", f'case "$*" in *ensurepip*) exit 1;; esac; exec "{sys.executable}" "$@"')
    done = make("run", bare, tmp_path / "venv")
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert "apt install python3-venv" in lines[0]
    assert not (tmp_path / "venv").exists()


def test_no_python_at_all_is_one_line(tmp_path: Path) -> None:
    """A name that is not there."""
    done = make("test", "no-such-python", tmp_path / "venv")
    assert done.returncode == 2
    assert "no-such-python" in done.stderr


def test_help_names_every_target() -> None:
    """What can be made is said by `make` alone."""
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for target in ("run", "test", "test-chaos", "test-live", "bench", "lint"):
        assert f"make {target}\t" in done.stdout
