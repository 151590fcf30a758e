"""The page and the doctor's data from what was measured.

    python tests/live/table.py [--check]

Writes the tables between the marks in `instrumentation/FRAMEWORKS.md` and all of
`instrumentation/runmeter/launch/frameworks.json` from `results/*.json`; with `--check` it writes nothing, and exits
with 1 where one of the two is not what the results make of it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE = ROOT / "instrumentation" / "FRAMEWORKS.md"
DATA = ROOT / "instrumentation" / "runmeter" / "launch" / "frameworks.json"
MARKS = ("<!-- measured: made by tests/live/table.py -->\n", "<!-- /measured -->\n")
COUNTS = ("calls", "input", "output", "cached", "reasoning")
NAMES = {
    "opentelemetry-instrumentation-genai-": "genai-", "opentelemetry-instrumentation-google-genai": "genai-google",
    "openinference-instrumentation-": "OpenInference ",
    "opentelemetry-instrumentation-": "OpenLLMetry ",
}  # fmt: skip
"""Beginning of a distribution's name → how the page words it."""


def results() -> list[dict[str, Any]]:
    """What was kept of every framework, by its name."""
    kept = [json.loads(path.read_text()) for path in (HERE / "results").glob("*.json")]
    return sorted(kept, key=lambda one: str(one["framework"]).lower())


def data(kept: Sequence[Mapping[str, Any]]) -> str:
    """What the doctor knows: of each framework its version, what to do, and what each way of metering gets wrong."""
    frameworks = [
        {
            "framework": one["framework"], "distribution": one["distribution"],
            "version": one["versions"][one["distribution"]], "todo": one["todo"],
            "rows": [{key: row[key] for key in ("by", "door", "wrong", "why")} for row in one["rows"]],
        }
        for one in kept
    ]  # fmt: skip
    return "[\n" + ",\n".join(json.dumps(one, ensure_ascii=False) for one in frameworks) + "\n]\n"


def page(kept: Sequence[Mapping[str, Any]], old: str) -> str:
    """The page with its tables made anew."""
    head, _, rest = old.partition(MARKS[0])
    tail = rest.partition(MARKS[1])[2]
    return head + MARKS[0] + "".join(f"{line}\n" for line in _tables(kept)) + MARKS[1] + tail


def _tables(kept: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| framework | what to do |\n|---|---|"
    for one in kept:
        yield f"| {one['framework']} {one['versions'][one['distribution']]} | {one['todo']} |"
    yield "\n| framework | metered by | door | exact | not exact | why |\n|---|---|---|---|---|---|"
    for one in kept:
        for row in one["rows"]:
            # The scenario where it went wrong says more than nothing where nobody knows why.
            why = "; ".join(row["why"]) or ", ".join(dict.fromkeys(f"`{case}`" for case in row["wrong"].values()))
            cells = [one["framework"], _by(row["by"]), row["door"], _words(row["exact"]), _words(row["wrong"]), why]
            yield "| " + " | ".join(str(cell) for cell in cells) + " |"


def _by(parts: Sequence[str]) -> str:
    return " + ".join(_called(part) for part in parts)


def _called(part: str) -> str:
    for begins, word in NAMES.items():
        if part.startswith(begins):
            return word + part.removeprefix(begins)
    return {"": "its own spans", "hook": "our hook", "auto": "`instrument()` alone"}.get(part, part)


def _words(columns: Sequence[str] | Mapping[str, str]) -> str:
    """`counts` is all five of them."""
    found = list(columns)
    if set(COUNTS) <= set(found):
        found = ["**counts**", *(column for column in found if column not in COUNTS)]
    return ", ".join(found)


def main(given: Sequence[str]) -> int:
    """Write or check both."""
    kept = results()
    made = {PAGE: page(kept, PAGE.read_text()), DATA: data(kept)}
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in given:
            print(f"{path.relative_to(ROOT)} is not what tests/live/results make of it: run python tests/live/table.py")
        else:
            path.write_text(made[path])
            print(f"wrote {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in given else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
