"""The Pythons at hand, and uv from the package index."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

WANTED = ("3.11", "3.12", "3.13", "3.14")


def install_uv(folder: Path) -> str:
    """uv in an environment of its own."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    subprocess.run([*pip, "uv"], check=True)
    return str(folder / "bin" / "uv")


def find() -> tuple[dict[str, Path], list[str]]:
    """Version (3.12) → interpreter, this one's version first; and why a version is left out."""
    found = {".".join(map(str, sys.version_info[:2])): Path(sys.executable)}
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    skipped = []
    for version in WANTED:
        of_pyenv = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
        for candidate in filter(None, [shutil.which(f"python{version}"), *of_pyenv]):
            if version not in found and _works(Path(candidate), version):
                found[version] = Path(candidate)
        if version not in found:
            skipped.append(f"Python {version}: not at hand (neither on PATH nor of pyenv)")
    return found, skipped


def _works(python: Path, version: str) -> bool:
    """pyenv's shims are there for versions that are not switched on, and then only fail."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.strip() == version
