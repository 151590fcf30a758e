"""What may happen to a store, as hypothesis strategies: snapshots in any order, ends, orphans, closings, prunes."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from runmeter.sink import STATUSES, TERMINAL
from runmeter.usage import Usage
from runmeter_exporter.store import RunStore
from runmeter_exporter.totals.run import CellKey, Heartbeat, RunSnapshot

NOON = 1_780_000_000 * 10**9
SECOND = 10**9
RUNS = ("r0", "r1", "r2")
SOURCES = ("a", "b", "otlp", "otlp:a")

usages = st.builds(
    lambda input_tokens, output_tokens, calls, failures, cost, unpriced: Usage(
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        calls=calls,
        failures=failures,
        messages=calls,
        cost_nanousd=cost,
        unpriced_tokens=unpriced,
    ),
    *[st.integers(0, 50)] * 6,
)
keys = st.builds(
    CellKey,
    st.sampled_from(("2026-05-28", "2026-05-29")),
    st.sampled_from(("openai", "anthropic")),
    st.sampled_from(("small", "large")),
    st.sampled_from(("lead_agent", "subagent:x", "middleware:m")),
)
snapshots = st.builds(
    lambda started, took, **fields: RunSnapshot(
        started_at=NOON + started * SECOND, updated_at=NOON + (started + took) * SECOND, **fields
    ),
    started=st.integers(0, 20),
    took=st.integers(0, 20),
    run_id=st.sampled_from(RUNS),
    source=st.sampled_from(SOURCES),
    revision=st.integers(0, 12),
    owns=st.booleans(),
    final=st.booleans(),
    status=st.sampled_from(STATUSES),
    stop_reason=st.sampled_from((None, "max_turns")),
    thread_id=st.sampled_from((None, "t0", "t1")),
    service=st.sampled_from((None, "web", "batch")),
    agent=st.sampled_from((None, "helper")),
    user_id=st.sampled_from((None, "u0", "u1")),
    tags=st.dictionaries(st.sampled_from(("team", "env")), st.sampled_from(("x", "y")), max_size=2),
    usage_by=st.none() | st.dictionaries(keys, usages, max_size=4),
    set_aside=st.none() | st.dictionaries(st.sampled_from(("late", "repeat")), st.integers(0, 9), max_size=2),
)
beats = st.builds(
    Heartbeat,
    source=st.sampled_from(SOURCES[:2]),
    beat=st.integers(0, 9),
    service=st.sampled_from((None, "web")),
    counts=st.dictionaries(
        st.sampled_from((("snapshots_dropped", "queue"), ("spans_rejected", "malformed"))), st.integers(0, 9)
    ),
)
steps = st.one_of(
    st.tuples(st.just("write"), st.lists(snapshots, min_size=1, max_size=4)),
    st.tuples(st.just("end_run"), st.sampled_from(RUNS), st.sampled_from(TERMINAL)),
    st.tuples(st.just("orphan"), st.sampled_from(SOURCES[:2])),
    st.tuples(st.just("close"), st.lists(st.sampled_from(RUNS), min_size=1, max_size=3)),
    st.tuples(st.just("heartbeat"), st.lists(beats, min_size=1, max_size=2)),
    st.tuples(st.just("prune"), st.integers(0, 40).map(lambda seconds: NOON + seconds * SECOND)),
    st.tuples(st.just("scrape")),
    st.tuples(st.just("delete_run"), st.sampled_from(RUNS)),
)


def play(store: RunStore, step: tuple[Any, ...]) -> Any:
    """Do one step to a store."""
    name, *arguments = step
    if name == "scrape":
        return store.scrape(include_active=True)
    if name == "delete_run":
        with store.transaction(arguments) as transaction:
            return transaction.delete_run(*arguments)
    return getattr(store, name)(*arguments)


def everything(store: RunStore) -> dict[str, Any]:
    """All that a store answers, in one comparable value."""
    runs = store.runs(limit=500)["runs"]
    return {
        "runs": runs,
        "run": [store.run(run_id) for run_id in RUNS],
        "threads": store.threads(limit=500),
        "thread": store.thread_usages(["t0", "t1", "t2"], include_active=True),
        "usage": store.usage(),
        "usage_active": store.usage(include_active=True),
        "daily": store.usage_daily(
            group_by=("day", "service", "user_id", "agent", "provider", "model", "caller", "tag.team")
        ),
        "scrape": store.scrape(),
        "watch": (sorted(store.watch().sources), sorted(store.watch().runs)),
    }
