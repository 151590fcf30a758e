"""What the wheel and the sdist hold: the two packages, who wrote what under which licence, and nothing else."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

PACKAGES = {"runmeter": "instrumentation", "runmeter_exporter": "exporter"}
BESIDE = {"README.md", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
"""Files of the sdist beside the packages; `.gitignore` is hatchling's own doing: it builds by it."""


def check(root: Path, dist: Path) -> str:
    """What was found right; AssertionError names what is not."""
    [wheel], [sdist] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        [name] = [name for name in held if name.endswith(".dist-info/METADATA")]
        about = archive.read(name).decode()
    info = name.split("/")[0]
    tracked = subprocess.run(
        ["git", "ls-files", *PACKAGES.values()], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    code = {path.split("/", 1)[1] for path in tracked if path.split("/")[1] in PACKAGES}
    packed = {path for path in held if not path.startswith(f"{info}/")}
    assert code <= packed, f"the wheel lacks {sorted(code - packed)}"
    assert all(path.split("/")[0] in PACKAGES for path in packed), sorted(packed)
    _clean(held)
    assert f"{info}/licenses/LICENSE" in held, "the wheel has no LICENSE"
    assert {"runmeter/py.typed", "runmeter_exporter/py.typed"} <= held, "the wheel has no py.typed"
    metadata = message_from_string(about)
    assert metadata["License-Expression"] == "Apache-2.0"
    readme = str(metadata.get_payload())
    relative = re.findall(r"!\[[^]]*\]\((?!https?:)([^)]*)\)", readme)
    assert not relative, f"pictures that a package index cannot show: {relative}"

    with tarfile.open(sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    _clean(names)
    outside = {path for path in names if path.split("/")[0] not in PACKAGES.values()}
    assert BESIDE - outside <= {".gitignore"}, f"the sdist lacks {BESIDE - outside}"
    outside -= BESIDE
    extra = {path for path in outside if not path.startswith("grafana/")}
    assert not extra, f"the sdist holds {sorted(extra)}"
    missing = set(tracked) - names
    assert not missing, f"the sdist lacks {sorted(missing)}"
    size = f"{wheel.stat().st_size // 1024} kB, {sdist.stat().st_size // 1024} kB"
    return f"wheel from sdist: {len(packed)} and {len(names)} files ({size}), LICENSE, types, nothing else"


def _clean(names: set[str]) -> None:
    junk = [name for name in names if re.search(r"__pycache__|\.py[co]$|\.sqlite|\.egg-info|/\.", name)]
    assert not junk, f"junk: {junk}"
