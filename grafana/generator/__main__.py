"""Writes ../dashboards/*.json: `python grafana/generator`. A test compares the files with what this makes.

Counters are read from the recorded `store:…` series of rules/runmeter.rules.yml, where the replicas of a sidecar are
one: with `increase()` over raw series, a rollout in the middle of the range would count for less than was spent.
"""

from __future__ import annotations

import json
from pathlib import Path

from health import health
from live_runs import live_runs
from spend import spend

DASHBOARDS = Path(__file__).parent.parent / "dashboards"


def build() -> dict[str, str]:
    """File name → text of every dashboard."""
    made = {"live-runs.json": live_runs(), "spend.json": spend(), "meter-health.json": health()}
    return {name: json.dumps(model, indent=2, ensure_ascii=False) + "\n" for name, model in made.items()}


if __name__ == "__main__":
    for name, text in build().items():
        (DASHBOARDS / name).write_text(text, encoding="utf-8")
