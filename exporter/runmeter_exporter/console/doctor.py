"""`runmeter doctor`: what is installed here and whether it is metered, and what the store has seen and set aside."""

from __future__ import annotations

import json
from typing import Any

from runmeter.launch.doctor import environment_report
from runmeter_exporter import scopes
from runmeter_exporter.console.advice import advice
from runmeter_exporter.console.plain import plain, table, width
from runmeter_exporter.store import StoreError, StoreMissing, open_store
from runmeter_exporter.totals.answers import Scrape

BEHIND = (
    "the store was made by an older release, and this one adds to it: {}. `runmeter serve` does so when it starts, and "
    "`runmeter migrate` now; agents of either release go on meanwhile"
)


def doctor(database_url: str | None, *, as_json: bool) -> int:
    """Print both reports. Exit code 1 when calls of something that is installed would not be counted."""
    rows = [row.as_dict() for row in environment_report()]
    store = store_report(database_url)
    missing = [row for row in rows if row["state"] == "missing"]
    if as_json:
        print(json.dumps({"environment": rows, "store": store}, indent=2, ensure_ascii=False))
        return 1 if missing else 0
    fit = width()
    columns = ("subject", "state", "version", "detail", "what to do")
    keys = ("subject", "state", "version", "detail", "remedy")
    print(table(columns, [[row[key] or "" for key in keys] for row in rows], 5, fit))
    if "error" in store:
        where = f"store {store['store']}" if store["store"] else "no store was looked at"
        print(f"\n{where}: {store['error']}")
        # Before the first run there is no store, and nothing is wrong with that.
        return 1 if missing or store.get("exists", True) else 0
    print(f"\nstore {store['store']}")
    counts = [(name.replace("_", " "), value) for name, value in store.items() if isinstance(value, int)]
    counts += [(f"spans set aside: {reason}", number) for reason, number in sorted(store["set_aside"].items())]
    for line in store["counts"]:
        what = line["what"].replace("_", " ")
        counts.append((f"{what}: {line['label']}" if line["label"] else what, line["count"]))
    print(table(("", ""), counts, 1, fit))
    if store["scopes"]:
        print("\nspans by the instrumentation that made them; calls count, or are set aside, when their run closes")
        columns = ("scope", "spans seen", "calls counted", "without usage", "set aside")
        print(table(columns, [_cells(row) for row in store["scopes"]], 1, fit))
    for sentence in store["advice"]:
        print(f"\n{plain(sentence)}")
    return 1 if missing else 0


def store_report(database_url: str | None) -> dict[str, Any]:
    """The store's own counters as plain data, by scope too, and what to say to them; `error` where it is away."""
    try:
        store = open_store(database_url)
    except (StoreError, ImportError, ValueError) as problem:
        return {"store": None, "error": str(problem)}
    try:
        report = {"store": store.url_for_humans, **_counted(store.scrape(include_active=False))}
        report["advice"] += [BEHIND.format(", ".join(steps)) for steps in (store.pending(),) if steps]
        return report
    except StoreMissing as problem:
        return {"store": store.url_for_humans, "error": str(problem), "exists": False}
    except StoreError as problem:
        return {"store": store.url_for_humans, "error": str(problem)}
    finally:
        store.dispose()


def _cells(row: dict[str, Any]) -> list[object]:
    aside = ", ".join(f"{reason} {count}" for reason, count in row["set_aside"].items())
    return [row["scope"], row["spans_seen"], row["calls_counted"], row["calls_without_usage"], aside]


def _counted(scrape: Scrape) -> dict[str, Any]:
    usage = list(scrape.settled.values())
    report: dict[str, Any] = {
        "llm_call_count": sum(one.calls for one in usage),
        "llm_call_failures": sum(one.failures for one in usage),
        "calls_without_usage": sum(one.calls_without_usage for one in usage),
        "total_tokens": sum(one.total_tokens for one in usage),
        "unpriced_tokens": sum(one.unpriced_tokens for one in usage),
        "runs": sum(scrape.runs.values()),
        "active_runs": scrape.active_runs,
        "set_aside": dict(scrape.set_aside),
        "counts": [
            {"what": family, "label": label, "count": number}
            for (family, label), number in sorted(scrape.counts.items())
            if number and family != scopes.FAMILY
        ],
        "scopes": scopes.by_scope(scrape.counts),
    }
    return {**report, "advice": advice(report)}
