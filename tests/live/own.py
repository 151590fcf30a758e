"""Cases without `runmeter.run` around them: which runs come about, of which threads, with which callers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from harness import COUNTS, Live

from runmeter_exporter import open_store


@contextmanager
def own(
    scenario: Live, name: str, threads: Mapping[str | None, int], *, status: str = "success", agent: str | None = None,
    callers: Mapping[str, int] | None = None, loose: Mapping[str, str] | None = None,
) -> Iterator[None]:  # fmt: skip
    """What happens inside makes so many runs of each of these threads, all of which end as `status`; `callers` are
    calls by who made them; `agent` is who a run is by. `loose`: what cannot be right from what is told, a count's name,
    `threads`, `status`, `agent` or `callers`, and why."""
    store = open_store(scenario.url)
    scenario.flush()
    known, before = {run["run_id"] for run in _runs(store)}, len(scenario.provider.ledger)
    yield
    scenario.flush()
    runs = [run for run in _runs(store) if run["run_id"] not in known]
    told = [entry for entry in scenario.provider.ledger[before:] if entry.status == 200 and entry.reported]
    answered = [entry for entry in scenario.provider.ledger[before:] if entry.status == 200]
    truth = {key: sum(getattr(entry, key) for entry in told) for key in COUNTS if key.endswith("_tokens")}
    truth |= {"calls": len(answered), "calls_without_usage": len(answered) - len(told)}
    wrong: dict[str, str] = {}
    for key, field in COUNTS.items():
        ours = sum(run[field] for run in runs)
        if ours != truth[key]:
            wrong[key] = f"{ours} not {truth[key]}"
    found = Counter(run["thread_id"] for run in runs)
    if found != Counter(dict(threads)):
        wrong["threads"] = f"{dict(found)} not {dict(threads)}"
    if ended := {run["status"] for run in runs} - {status}:
        wrong["status"] = f"{ended} not {status}"
    if agent is not None and {run["agent"] for run in runs} != {agent}:
        wrong["agent"] = f"{[run['agent'] for run in runs]} not {agent}"
    by: Counter[str] = Counter()
    for run in runs:
        for cell in (store.run(run["run_id"]) or {"usage": []})["usage"]:
            by[cell["caller"]] += cell["llm_call_count"]
    if callers is not None and by != Counter(dict(callers)):
        wrong["callers"] = f"{dict(by)} not {dict(callers)}"
    store.dispose()
    why = ", ".join(f"{key}: {what}" for key, what in wrong.items())
    asked = {*COUNTS, "threads"} | {key for key, given in (("agent", agent), ("callers", callers)) if given is not None}
    report = {"case": name, "ok": not wrong, "why": why, "checked": sorted(asked), "differ": sorted(wrong)}
    if wrong and loose and wrong.keys() <= loose.keys():
        report |= {"impossible": True, "why": f"{why} ({', '.join(sorted({loose[key] for key in wrong}))})"}
    print("CASE " + json.dumps(report), flush=True)


def _runs(store: object) -> list[dict[str, object]]:
    return store.runs(limit=500)["runs"]  # type: ignore[attr-defined, no-any-return]
