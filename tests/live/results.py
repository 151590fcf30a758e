"""What `run.py --record` keeps of a framework: `results/NAME.json`, one row for each way of metering it and door."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

FIELDS = {
    "calls": ("calls", "calls_without_usage"), "input": ("input_tokens",), "output": ("output_tokens",),
    "cached": ("cache_read_tokens", "cache_write_tokens"), "reasoning": ("reasoning_tokens",),
    "thread": ("thread", "threads"), "agent": ("agent",), "callers": ("callers",),
}  # fmt: skip
"""Column of the page → what it is called in a case's report."""
COUNTS = ("calls", "input", "output", "cached", "reasoning")
_NAMES = {name: column for column, names in FIELDS.items() for name in names}
Outcome = Sequence[tuple[str, int, Sequence[Mapping[str, Any]]]]
"""(mode, door, cases) for each."""


class Measured(Protocol):
    """What of `run.Library` is kept."""

    packages: tuple[str, ...]
    name: str
    says: Mapping[str, str] | None
    todo: str


def row(mode: str, door: int, cases: Sequence[Mapping[str, Any]], says: Mapping[str, str]) -> dict[str, Any]:
    """One way of metering at one door: which columns were right in every case, and where another was first not."""
    checked, wrong = set(COUNTS), dict[str, str]()
    for case in cases:
        checked |= {_NAMES[name] for name in case.get("checked", ()) if name in _NAMES}
        found = case.get("differ", re.findall(r"(\w+): ", case.get("why", "")))
        if case["case"].startswith("("):
            found = [names[0] for column, names in FIELDS.items() if column in COUNTS]
        for name in found:
            if name in _NAMES:
                checked.add(_NAMES[name])
                wrong.setdefault(_NAMES[name], case["case"])
    # What a library leaves out everywhere is no fault of a case: it is right, and differs.
    silent = {_NAMES[name] for case in cases if case["ok"] for name in case.get("differ", ()) if name in _NAMES}
    reasons = [re.search(r" \((.*)\)$", case["why"]) for case in cases if case.get("impossible")]
    return {
        "mode": mode, "by": [says.get(part, part) for part in mode.split("+")], "door": door,
        "exact": [column for column in FIELDS if column in checked and column not in wrong],
        "wrong": {column: wrong[column] for column in FIELDS if column in wrong},
        "why": list(dict.fromkeys(found.group(1) for found in reasons if found))
        + [f"it leaves {' and '.join(column for column in FIELDS if column in silent)} out"] * bool(silent),
    }  # fmt: skip


def record(folder: Path, name: str, library: Measured, python: Path, outcome: Outcome) -> None:
    """Write the framework's file; versions are those of the environment."""
    distributions = [re.split(r"[\[<>=!~ ]", package)[0] for package in library.packages]
    code = "import json, sys, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    said = subprocess.run([python, "-c", code, *distributions], capture_output=True, text=True, check=True)
    kept = {
        "framework": library.name, "distribution": distributions[0], "date": datetime.now(UTC).date().isoformat(),
        "versions": json.loads(said.stdout), "todo": library.todo,
        "rows": [row(mode, door, cases, library.says or {}) for mode, door, cases in outcome],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
