"""What every run store does: one suite for memory, SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from histories import NOON, SECOND

from runmeter.usage import ZERO, Usage
from runmeter_exporter import AsyncRunStore, open_async_store, open_store
from runmeter_exporter.store import OpenRun, RunStore, StoreError, default_url
from runmeter_exporter.totals import shapes
from runmeter_exporter.totals.answers import Series
from runmeter_exporter.totals.run import CellKey, Heartbeat, RunSnapshot

LEAD = CellKey("2026-05-28", "openai", "small", "lead_agent")
SUB = CellKey("2026-05-28", "anthropic", "large", "subagent:search")


def snap(run_id: str = "r", revision: int = 1, tokens: int | None = None, **fields: Any) -> RunSnapshot:
    """A snapshot by source s, of thread t, by default still running."""
    values: dict[str, Any] = {
        "source": "s",
        "thread_id": "t",
        "started_at": NOON,
        "updated_at": NOON + revision * SECOND,
        "usage_by": None if tokens is None else {LEAD: Usage(input_tokens=tokens, calls=1, messages=1)},
    }
    return RunSnapshot(run_id=run_id, revision=revision, **{**values, **fields})


def final(run_id: str = "r", revision: int = 9, tokens: int | None = None, **fields: Any) -> RunSnapshot:
    """The snapshot that ends a run."""
    return snap(run_id, revision, tokens, **{"final": True, "status": "success", **fields})


def tokens(store: RunStore, **which: Any) -> int:
    """Tokens of thread t."""
    return int(store.thread_usage("t", **which)["total_tokens"])


def test_trailing_write_replaces_the_leading_one(store: RunStore) -> None:
    """A later snapshot of a burst replaces the first; an older one that arrives late changes nothing."""
    store.write([snap(revision=1, tokens=10)])
    assert store.write([snap(revision=3, tokens=30)]).applied == 1
    assert store.write([snap(revision=2, tokens=20)]).stale == 1
    run = store.run("r")
    assert run is not None
    assert run["total_tokens"] == 30


def test_omitted_counters_preserved(store: RunStore) -> None:
    """A snapshot that says nothing of usage leaves it as it was."""
    store.write([snap(revision=1, tokens=10)])
    store.write([snap(revision=2)])
    run = store.run("r")
    assert run is not None
    assert (run["total_tokens"], run["llm_call_count"]) == (10, 1)


def test_terminal_runs_untouched_by_progress(store: RunStore) -> None:
    """Progress that arrives after the final snapshot is stale, and the run stays as it ended."""
    store.write([snap(tokens=10), final(revision=2, tokens=20)])
    before = store.run("r")
    assert store.write([snap(revision=3, tokens=99)]).stale == 1
    assert store.run("r") == before
    assert store.verify() == []


def test_completed_only_by_default(store: RunStore) -> None:
    """Totals hold closed runs alone unless active ones are asked for."""
    store.write([final("done", tokens=10), snap("working", tokens=5)])
    assert tokens(store) == 10
    assert store.usage()["total_tokens"] == 10


def test_include_active_opt_in(store: RunStore) -> None:
    """With include_active the active part is added, and shown apart."""
    store.write([final("done", tokens=10), snap("working", tokens=5)])
    answer = store.thread_usage("t", include_active=True)
    assert (answer["total_tokens"], answer["active"]["total_tokens"], answer["active_runs"]) == (15, 5, 1)
    assert answer["by_status"] == {"running": {"tokens": 5, "runs": 1}, "success": {"tokens": 10, "runs": 1}}
    assert answer["by_model"] == {"small": {"tokens": 15, "runs": 2}}
    assert answer["total_runs"] == 2
    assert store.usage(include_active=True)["total_tokens"] == 15


def test_counters_on_run_list_and_detail(store: RunStore) -> None:
    """Every counter of a run is on the list and on the detail, by caller and by line."""
    usage = Usage(100, 20, 30, 10, 5, calls=2, failures=1, calls_without_usage=1, messages=3, cost_nanousd=2_500_000)
    store.write([final(usage_by={LEAD: usage, SUB: Usage(1, 2, calls=1, messages=1, unpriced_tokens=3)})])
    run = store.run("r")
    assert store.runs()["runs"] == [run]
    assert run is not None
    expected = {
        "total_input_tokens": 101,
        "total_output_tokens": 22,
        "total_tokens": 123,
        "llm_call_count": 3,
        "llm_call_failures": 1,
        "calls_without_usage": 1,
        "message_count": 4,
        "cache_read_tokens": 30,
        "cache_write_tokens": 10,
        "reasoning_tokens": 5,
        "cost_usd": 0.0025,
        "unpriced_tokens": 3,
        "lead_agent_tokens": 120,
        "subagent_tokens": 3,
        "middleware_tokens": 0,
        "model_name": "small",
        "created_at": "2026-05-28T20:26:40.000000Z",
    }
    assert {name: run[name] for name in expected} == expected
    assert [(line["model"], line["cost_usd"]) for line in run["usage"]] == [("small", 0.0025), ("large", None)]


def test_stable_response_shape_for_an_empty_thread(store: RunStore) -> None:
    """A thread never seen has every field of one that was, at zero."""
    empty = store.thread_usage("nobody")
    store.write([final(tokens=1)])
    assert empty.keys() == store.thread_usage("t").keys()
    assert (empty["total_tokens"], empty["total_runs"], empty["cost_usd"], empty["usage"]) == (0, 0, None, [])
    assert empty["by_caller"] == {"lead_agent": 0, "subagent": 0, "middleware": 0}
    assert store.run("nobody") is None


def test_thread_answers_come_in_the_order_asked(store: RunStore) -> None:
    """A batch answers each id that was asked, also unknown and repeated ones."""
    store.write([final("r1", tokens=1), final("r2", tokens=2, thread_id="u")])
    answers = store.thread_usages(["u", "nobody", "t", "u"])
    assert [(answer["thread_id"], answer["total_tokens"]) for answer in answers] == [
        ("u", 2),
        ("nobody", 0),
        ("t", 1),
        ("u", 2),
    ]


def test_runs_without_a_thread_are_counted_everywhere_else(store: RunStore) -> None:
    """A run without a thread is in the grand totals and counted as unthreaded."""
    store.write([final("r1", tokens=7, thread_id=None), final("r2", tokens=1), snap("r3", tokens=2, thread_id=None)])
    usage = store.usage()
    assert (usage["total_tokens"], usage["unthreaded_runs"]) == (8, 1)
    assert store.usage(include_active=True)["unthreaded_runs"] == 2
    assert len(store.threads()["threads"]) == 1


def test_any_text_is_an_id(store: RunStore) -> None:
    """Ids come back as they were given: slashes, quotes, unicode, scope prefixes, SQL."""
    ids = ["a/runs/b", "100%", "t:p:", "p:t:t", "'; DROP TABLE runs; --", "thread ✓ 🧵", '["x"]', "l:", "\\", "\n"]
    store.write([final(f"run {text}", tokens=1, thread_id=text) for text in ids])
    for text in ids:
        assert store.thread_usage(text)["total_tokens"] == 1
        run = store.run(f"run {text}")
        assert run is not None
        assert (run["run_id"], run["thread_id"]) == (f"run {text}", text)
        assert [run["run_id"] for run in store.runs(thread_id=text)["runs"]] == [f"run {text}"]
    assert {thread["thread_id"] for thread in store.threads()["threads"]} == set(ids)
    assert store.verify() == []


def test_what_no_database_stores_is_cleaned(store: RunStore) -> None:
    """NUL and lone surrogates reach no database, and long text is cut; the row is kept and findable."""
    wild = "nul\0 surrogate\ud800 " + "long" * 200
    result = store.write(
        [
            final(wild, tokens=1, thread_id=wild, agent=wild, user_id=wild, service=wild, stop_reason=wild),
            final("r2", usage_by={CellKey("2026-05-28", wild, wild, wild): Usage(2)}, tags={wild: wild}),
            final("r3", usage_by={CellKey("2026-05-28", "\U0001f9f5" * 999, "m", "c"): Usage(2**90)}),
        ]
    )
    assert result.applied == 3
    run = store.run(wild)
    assert run is not None
    assert run["total_tokens"] == 1
    assert store.thread_usage(wild)["total_tokens"] == 1
    assert store.scrape().counts["overflowed", "text"] == 3
    assert store.verify() == []


def test_listings_filter(store: RunStore) -> None:
    """Each filter alone and together narrows the list; an unknown status or a bad limit is an error."""
    store.write(
        [
            final("a", tokens=1, service="web", user_id="u1"),
            final("b", tokens=1, service="web", thread_id="other", status="error"),
            snap("c", tokens=1, service="batch", user_id="u1"),
            snap("d", status="pending", thread_id=None),
        ]
    )

    def ids(**which: Any) -> list[str]:
        return sorted(run["run_id"] for run in store.runs(**which)["runs"])

    assert ids(status="running") == ["c"]
    assert ids(status="pending") == ["d"]
    assert ids(status="error") == ["b"]
    assert ids(service="web") == ["a", "b"]
    assert ids(user_id="u1") == ["a", "c"]
    assert ids(thread_id="t") == ["a", "c"]
    assert ids(thread_id="t", status="running", service="batch", user_id="u1") == ["c"]
    bad: list[dict[str, Any]] = [
        {"status": "asleep"}, {"limit": 0}, {"limit": 501}, {"cursor": "!"}, {"cursor": "W10"}, {"order": "size"},
        {"start": "May"}, {"end": "2026-05-28T10:00"}, {"status": ["running", "asleep"]},
        {"tags": dict.fromkeys("abcdefghi", "x")}, {"start": "2026-05-29", "end": "2026-05-28"},
    ]  # fmt: skip
    for wrong in bad:
        with pytest.raises(ValueError, match=r"status|limit|cursor|order|from|to is|tags"):
            store.runs(**wrong)


def test_listings_filter_by_what_a_run_was_for(store: RunStore) -> None:
    """Agent, a model it used, tags whatever is in them, several statuses, and when it began."""
    odd = {'a"b\\': "it's {x}: y, ü", ":": ","}
    store.write(
        [
            final("a", tokens=1, agent="writer", tags={"team": "x", "env": "prod"}),
            final("b", usage_by={SUB: Usage(1), LEAD: Usage(1)}, status="error", tags=odd, agent="writer"),
            snap("c", tokens=1, started_at=NOON + SECOND, tags={"a": ":", "x,": "prod"}),
            snap("d", status="pending", started_at=NOON + 2 * SECOND),
        ]
    )

    def ids(**which: Any) -> str:
        return "".join(sorted(run["run_id"] for run in store.runs(**which)["runs"]))

    assert ids(agent="writer") == "ab"
    assert ids(model="small") == "abc"
    assert ids(model="large", agent="writer", service=None) == "b"
    assert ids(tags={"team": "x"}) == ids(tags={"team": "x", "env": "prod"}) == "a"
    assert ids(tags=odd) == ids(tags={":": ","}) == "b"
    assert ids(tags={"team": "prod"}) == ids(tags={"env": ""}) == ids(tags={":": ":"}) == ""
    assert ids(status=("running", "pending")) == ids(status=["pending", "running", "running"]) == "cd"
    assert ids(status=["success", "pending"]) == "ad"
    assert ids(status=[]) == ""
    assert ids(start="2026-05-28T20:26:41Z") == "cd"
    assert ids(start="2026-05-28T22:26:41+02:00", end="2026-05-28T20:26:42Z") == "c"
    assert ids(start="2026-05-28", end="2026-05-28") == "abcd"
    assert ids(start="2026-05-29") == ids(end="2026-05-27") == ""
    assert ids(start="2026-05-28T20:26:41Z", model="small", order="cost") == "c"


@pytest.mark.parametrize("order", ["newest", "oldest", "tokens", "cost"])
def test_every_order_meets_every_run_once(store: RunStore, order: str) -> None:
    """By time both ways, by tokens and by cost, what the settled totals hold included; ties go by id."""
    for number in range(12):
        usage = Usage(input_tokens=number * 5 % 7, output_tokens=1, calls=1, cost_nanousd=number * 3 % 4)
        began = NOON + number // 3 * SECOND
        store.write([final(f"r{number:02d}", usage_by={LEAD: usage, SUB: usage}, started_at=began)])
    store.write([snap("idle", started_at=NOON - SECOND)])
    store.orphan("s")

    def place(run: Any) -> tuple[Any, str]:
        name = {"tokens": "total_tokens", "cost": "cost_usd"}.get(order, "created_at")
        return run[name] or 0, run["run_id"]

    expected = sorted(store.runs()["runs"], key=place, reverse=order != "oldest")
    seen: list[Any] = []
    cursor = None
    while True:
        page = store.runs(order=order, limit=5, cursor=cursor)
        seen += page["runs"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        for other in {"newest", "oldest", "tokens", "cost"} - {order}:
            with pytest.raises(ValueError, match="cursor"):
                store.runs(order=other, cursor=cursor)
    assert [run["run_id"] for run in seen] == [run["run_id"] for run in expected]


def test_a_pending_run_is_listed_and_not_added(store: RunStore) -> None:
    """include_active adds what has begun to run, whatever a pending run has said of itself."""
    store.write([snap("waits", status="pending", tokens=7), snap("works", tokens=5)])
    for answer in (store.thread_usage("t", include_active=True), store.usage(include_active=True)):
        assert (answer["total_tokens"], answer["total_runs"], answer["active_runs"]) == (5, 1, 2)
    store.write([snap("waits", revision=2, status="running", tokens=7)])
    assert tokens(store, include_active=True) == 12
    assert [run["run_id"] for run in store.runs(order="tokens")["runs"]] == ["waits", "works"]


def test_a_run_that_used_no_model_is_of_an_unknown_one(store: RunStore) -> None:
    """So the runs of by_model add up; a run whose usage comes after its end leaves that place, at every moment."""
    store.write([final("a"), final("b", tokens=1), final("c", source="otlp", usage_by={})])
    unknown = {"tokens": 0, "runs": 1}
    assert store.thread_usage("t")["by_model"] == {"small": {"tokens": 1, "runs": 1}, "unknown": unknown}
    store.close(["c"])
    assert store.usage()["by_model"]["unknown"]["runs"] == 2
    store.write([final("a", revision=10, tokens=4)])
    answer = store.thread_usage("t", include_active=True)
    assert answer["by_model"] == {"small": {"tokens": 5, "runs": 2}, "unknown": unknown}
    assert store.verify() == []


def test_threads_are_listed_with_what_they_burn(store: RunStore) -> None:
    """With include_active a page of threads has what each thread's own answer has."""
    store.write([snap("r", tokens=3), final("s", tokens=4, thread_id="u")])
    listed = store.threads(include_active=True)["threads"]
    assert listed == [store.thread_usage("u", True), store.thread_usage("t", True)] or listed == [
        store.thread_usage("t", True), store.thread_usage("u", True)
    ]  # fmt: skip
    assert {thread["thread_id"]: thread["total_tokens"] for thread in store.threads()["threads"]} == {"t": 0, "u": 4}


def test_pages_are_stable_while_runs_arrive(store: RunStore) -> None:
    """Paging newest first meets every run of the beginning once, whatever arrives, goes on or proves to be older."""
    store.write([snap(f"r{number:02d}", started_at=NOON + number // 3) for number in range(20)])
    seen, cursor, number = [], None, 100
    while True:
        page = store.runs(limit=3, cursor=cursor)
        seen += [run["run_id"] for run in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
        number += 1
        store.write([snap(f"r{number}", started_at=NOON + number), snap("r05", revision=number, tokens=number)])
    assert seen == sorted((f"r{number:02d}" for number in range(20)), reverse=True)


def test_threads_by_latest_activity(store: RunStore) -> None:
    """Threads are listed by the latest beginning or closing of a run, in stable pages; an active one is there too."""
    store.write([final(f"r{n}", tokens=n, thread_id=f"t{n}", updated_at=NOON + n * SECOND) for n in range(7)])
    store.write([snap("new", thread_id="t3", updated_at=NOON + 99 * SECOND), snap("x", thread_id="active-only")])
    seen, cursor = [], None
    while True:
        page = store.threads(limit=2, cursor=cursor)
        seen += [thread["thread_id"] for thread in page["threads"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == ["t3", "t6", "t5", "t4", "t2", "t1", "active-only", "t0"]


def test_supervisor_ends_an_active_run(store: RunStore) -> None:
    """A supervisor ends what runs, once; the rest is an answer and not an error, a status that is no end is one."""
    store.write([snap(tokens=10)])
    assert store.end_run("r", "timeout", "budget") is True
    assert store.end_run("r", "error") is False
    assert store.end_run("nobody", "error") is False
    run = store.run("r")
    assert run is not None
    assert (run["status"], run["stop_reason"], run["usage_state"]) == ("timeout", "budget", "settled")
    assert tokens(store) == 10
    with pytest.raises(ValueError, match="running"):
        store.end_run("r", "running")


def test_orphans_are_lower_bounds_until_they_return(store: RunStore) -> None:
    """A silent source's runs close as lower bounds; the one that returns goes on, and nothing is counted twice."""
    store.write([snap("r1", tokens=10), snap("r2", tokens=1), snap("r3", source="alive"), final("r4", tokens=100)])
    assert store.orphan("s") == 2
    assert store.orphan("s") == 0
    usage = store.usage()
    assert (usage["total_tokens"], usage["lower_bound_runs"]) == (111, 2)
    store.write([snap("r1", revision=2, tokens=15)])
    answer = store.thread_usage("t", include_active=True)
    assert (answer["total_tokens"], answer["active"]["total_tokens"], answer["lower_bound_runs"]) == (116, 5, 1)
    store.write([final("r1", revision=3, tokens=18)])
    scrape = store.scrape()
    assert store.usage()["total_tokens"] == 119
    assert scrape.runs == {"success": 1, "interrupted": 2, "error": 0, "timeout": 0}
    assert scrape.revised == {("interrupted", "success"): 1}
    assert scrape.orphaned == 2
    assert store.thread_usage("t")["by_status"]["success"]["runs"] == 2
    assert store.verify() == []


def test_watch_tells_the_reaper_what_is_open(store: RunStore) -> None:
    """Open runs with their owner and door, and the sources with their latest beat; closed runs are not there."""
    store.write([snap("r1"), final("r2"), final("r3", source="otlp"), snap("r4", source="otlp:s", owns=False)])
    store.heartbeat([Heartbeat("s", 3), Heartbeat("s", 2)])
    watch = store.watch()
    assert list(watch.sources) == [("s", 3)]
    assert sorted(watch.runs) == [
        OpenRun("r1", 1, "active", "s", False, False, False),
        OpenRun("r3", 1, "closing", "otlp", True, True, True),
        OpenRun("r4", 1, "active", None, True, False, False),
    ]
    store.close(["r3", "r4", "r1", "nobody"])
    assert [run.run_id for run in store.watch().runs] == ["r1"]


def test_losses_add_up_over_sources_and_restarts(store: RunStore) -> None:
    """What sources lost is absolute for each and added up over all, once, also when beats repeat or overtake."""
    dropped, rejected = ("snapshots_dropped", "queue"), ("spans_rejected", "malformed")
    store.heartbeat([Heartbeat("a", 1, "web", {dropped: 2}), Heartbeat("b", 1, None, {dropped: 1, rejected: 4})])
    store.heartbeat([Heartbeat("a", 3, None, {dropped: 5})])
    store.heartbeat([Heartbeat("a", 3, None, {dropped: 5}), Heartbeat("a", 2, None, {dropped: 3})])
    assert store.scrape().counts == {dropped: 6, rejected: 4}
    assert store.forget_sources(2**62, batch=1) == 2
    assert store.scrape().counts == {dropped: 6, rejected: 4}


def test_what_no_open_run_waits_for_is_not_watched_and_is_forgotten_when_old(store: RunStore) -> None:
    """An owner, or a child whose run has no owner yet, stays as long as its run; there may be very many others."""
    store.write([snap("mine", source="owner"), snap("hers", source="child", owns=False), final("done", source="gone")])
    store.heartbeat([Heartbeat(source, 1) for source in ("owner", "child", "gone", *map(str, range(20)))])
    watched = [("child", 1), ("owner", 1)]
    assert sorted(store.watch().sources) == watched
    assert [run.writers for run in sorted(store.watch().runs)] == [("child",), ()]
    assert store.forget_sources(0) == 0
    assert store.forget_sources(2**62, batch=8) == 21
    assert store.forget_sources(2**62) == 0
    assert sorted(store.watch().sources) == watched
    store.heartbeat([Heartbeat("gone", 1)])
    store.write([final("mine", source="owner")])
    assert store.prune(2**62) == 2
    assert sorted(store.watch().sources) == watched[:1]
    assert store.forget_sources(2**62) == 0, "pruning has let them go"
    assert store.verify() == []
    with pytest.raises(ValueError, match="a batch of 0 sources removes nothing"):
        store.forget_sources(0, batch=0)


def test_a_scrape_is_bounded_and_sums_to_the_totals(open_stores: Callable[..., RunStore], sqlite_url: str) -> None:
    """Label values are granted first come and for good; the rest is `other`, and sums equal REST at every moment."""
    for url in ("memory://", sqlite_url):
        store = open_stores(url, label_limit=3)
        for number in range(8):
            key = CellKey("2026-05-28", f"p{number}", f"m{number}", f"subagent:{number}")
            store.write([snap(f"r{number}", usage_by={key: Usage(input_tokens=1)}, service=f"s{number}")])
            store.write([final(f"r{number}", usage_by={key: Usage(input_tokens=10)})])
            scrape = store.scrape()
            total = sum((usage for usage in scrape.settled.values()), ZERO)
            assert total.total_tokens == store.usage()["total_tokens"] == 10 * (number + 1)
        assert set(scrape.settled) == {
            *[Series(f"p{number}", f"m{number}", "subagent", f"s{number}") for number in range(3)],
            Series("other", "other", "subagent", "other"),
        }
        assert store.usage()["by_model"]["other"] == {"tokens": 50, "runs": 5}
        assert store.thread_usage("t")["by_model"].keys() == {f"m{number}" for number in range(8)}
        # A value that was granted stands for itself for good, one that was not never will.
        again = CellKey("2026-05-28", "p5", "m0", "subagent:0")
        store.write([final("again", usage_by={again: Usage(input_tokens=1)})])
        assert store.scrape().settled[Series("other", "m0", "subagent", "")].input_tokens == 1
        assert store.verify() == []


def test_a_series_appears_at_zero_before_its_first_increment(store: RunStore) -> None:
    """An active run's series is there at 0, so that a rate sees its first increase."""
    store.write([snap(tokens=10, service="web")])
    series = Series("openai", "small", "lead_agent", "web")
    assert store.scrape().settled == {series: ZERO}
    store.write([final(tokens=10)])
    assert store.scrape().settled[series].input_tokens == 10


def test_observed_marks_never_fall(store: RunStore) -> None:
    """Settled plus active only grows for a scrape: a repeat recognised late is paid off by later growth."""
    series = Series("openai", "small", "lead_agent", "")

    def observed() -> tuple[int, int]:
        scrape = store.scrape(include_active=True)
        assert scrape.observed is not None
        assert scrape.active is not None
        return scrape.observed[series].input_tokens, scrape.active.get(series, ZERO).input_tokens

    store.write([snap(revision=1, tokens=10)])
    assert observed() == (10, 10)
    store.write([snap(revision=2, tokens=4)])
    assert observed() == (10, 4)
    store.write([final(revision=3, tokens=12)])
    assert observed() == (12, 0)
    assert store.scrape().observed is None


def test_the_largest_active_runs_are_named_and_the_rest_summed(store: RunStore) -> None:
    """With include_active the N largest runs and their threads are named; the sum with the rest is everything."""
    store.write([final("old", tokens=1000, thread_id="t2")])
    store.write([snap(f"r{n}", tokens=n, thread_id=f"t{n}", started_at=NOON + n) for n in range(1, 6)])
    scrape = store.scrape(include_active=True, largest=2)
    assert [(run.run_id, run.usage.input_tokens) for run in scrape.largest] == [("r5", 5), ("r4", 4)]
    assert scrape.rest.input_tokens == 6
    assert {thread: usage.input_tokens for thread, usage in scrape.threads_largest.items()} == {"t5": 5, "t4": 4}
    assert scrape.threads_rest.input_tokens == 1006
    assert (scrape.active_runs, scrape.oldest_active_started_at, scrape.threads) == (5, NOON + 1, 5)


def test_spans_set_aside_are_counted_when_a_run_closes(store: RunStore) -> None:
    """What was not counted is on the run at once, and in the totals by reason with its closing."""
    store.write([snap(set_aside={"late": 2, "repeat": 1})])
    run = store.run("r")
    assert run is not None
    assert run["set_aside"] == {"late": 2, "repeat": 1}
    assert store.scrape().set_aside == {}
    store.write([final(set_aside={"late": 5})])
    assert store.scrape().set_aside == {"late": 5}
    assert store.verify() == []


def test_daily_usage_answers_who_spent_what(store: RunStore) -> None:
    """Settled usage by any combination of groups; tags by their key; null where nothing is known."""
    other_day = LEAD._replace(day="2026-05-29")
    store.write(
        [
            final("a", usage_by={LEAD: Usage(1), other_day: Usage(2)}, user_id="u1", tags={"team": "x", "env": "p"}),
            final("b", usage_by={SUB: Usage(4)}, service="web", agent="helper", tags={"team": "x"}),
            snap("c", tokens=100),
        ]
    )

    def by(*groups: str, **between: str) -> dict[tuple[Any, ...], int]:
        rows = store.usage_daily(group_by=groups, **between)  # type: ignore[arg-type]
        return {tuple(row[group] for group in groups): row["total_tokens"] for row in rows}

    assert by("day") == {("2026-05-28",): 5, ("2026-05-29",): 2}
    assert by("day", start="2026-05-29", end="2026-05-29") == {("2026-05-29",): 2}
    assert by("user_id", "model") == {(None, "large"): 4, ("u1", "small"): 3}
    assert by("tag.team", "caller") == {("x", "lead_agent"): 3, ("x", "subagent"): 4}
    assert by("tag.env") == {("p",): 3, (None,): 4}
    assert by("service", "agent", "provider") == {(None, None, "openai"): 3, ("web", "helper", "anthropic"): 4}
    assert by(start="2030-01-01") == {}
    for bad in ({"group_by": ["weekday"]}, {"group_by": ["tag."]}, {"start": "May"}, {"end": "2026-13-01"}):
        with pytest.raises(ValueError, match=r"group|day"):
            store.usage_daily(**bad)  # type: ignore[arg-type]


def test_pruning_changes_no_total(store: RunStore) -> None:
    """Old closed runs go; totals, threads, daily usage and the balance stay; who returns is refused and counted."""
    store.write([final(f"r{n}", tokens=n, thread_id=f"t{n % 2}", service="web") for n in range(1, 8)])
    store.write([snap("working", tokens=5), snap("orphan", tokens=3), final("young", tokens=9, updated_at=NOON * 2)])
    store.orphan("s")
    store.write([snap("working", revision=2, tokens=6)])
    before = (store.usage(), store.thread_usages(["t0", "t1"]), store.usage_daily(group_by=["day", "service"]))
    settled = store.scrape().settled
    assert store.prune(NOON + 3600 * SECOND, batch=3) == 8
    assert (store.usage(), store.thread_usages(["t0", "t1"]), store.usage_daily(group_by=["day", "service"])) == before
    assert store.scrape().settled == settled
    assert {run["run_id"] for run in store.runs()["runs"]} == {"working", "young"}
    assert store.verify() == []
    assert store.write([snap("orphan", revision=2, tokens=50), final("r1", revision=10, tokens=50)]).refused == {
        "pruned": 2
    }
    assert store.scrape().counts == {("snapshots_dropped", "pruned"): 2}
    store.write([final("working", revision=3, tokens=7), final("later", tokens=1, started_at=NOON + 7200 * SECOND)])
    assert store.verify() == []
    assert store.prune(NOON + 3600 * SECOND) == 1


def test_threads_are_forgotten_only_when_asked_to(store: RunStore) -> None:
    """Forgetting removes old threads without runs; everything else keeps what they spent."""
    store.write([final("old", tokens=5, thread_id="old"), final("young", tokens=1, updated_at=NOON * 2)])
    store.prune(NOON + 3600 * SECOND)
    assert store.thread_usage("old")["total_tokens"] == 5
    store.prune(NOON + 3600 * SECOND, forget_threads=True, batch=1)
    assert store.thread_usage("old")["total_tokens"] == 0
    assert store.thread_usage("t")["total_tokens"] == 1
    assert (store.usage()["total_tokens"], store.scrape().threads) == (6, 1)
    assert store.verify() == []


def test_a_transaction_is_all_or_nothing(store: RunStore) -> None:
    """Steps of a transaction become durable together; a block that raises leaves no trace."""
    with store.transaction(["r1"]) as transaction:
        assert transaction.runs == {}
        assert transaction.apply([snap("r1", tokens=1), final("r2", tokens=2)]).applied == 2
        assert transaction.runs["r2"].status == "success"

    def stopped() -> None:
        with store.transaction(["r1", "never"]) as transaction:
            assert set(transaction.runs) == {"r1"}
            transaction.apply([final("r1", tokens=100), final("r3", tokens=1)])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert {run["run_id"] for run in store.runs()["runs"]} == {"r1", "r2"}
    assert tokens(store, include_active=True) == 3
    with store.transaction(["empty"]):
        pass
    assert store.run("empty") is None
    assert store.verify() == []


def test_a_transaction_removes_only_what_is_not_counted(store: RunStore) -> None:
    """A run whose calls all moved elsewhere disappears; one that the settled totals hold stays."""
    store.write([snap("r1", tokens=1, source="otlp"), final("r2", tokens=2)])
    with store.transaction(["r1", "r2"]) as transaction:
        assert transaction.delete_run("r1") is True
        assert transaction.delete_run("r2") is False
        assert transaction.delete_run("nobody") is False
    assert [run["run_id"] for run in store.runs()["runs"]] == ["r2"]
    assert store.verify() == []


def test_the_async_store_has_the_signatures_of_the_store() -> None:
    """Parameter by parameter and answer by answer, so that a type checker sees what is awaited."""
    for name, awaited in inspect.getmembers(AsyncRunStore, inspect.iscoroutinefunction):
        assert inspect.signature(awaited) == inspect.signature(getattr(RunStore, name)), name
    asked = {"run", "runs", "thread_usage", "thread_usages", "threads", "usage", "usage_daily", "scrape", "end_run"}
    assert asked <= {name for name, _ in inspect.getmembers(AsyncRunStore, inspect.iscoroutinefunction)}
    assert inspect.signature(open_async_store).parameters == inspect.signature(open_store).parameters


def test_answers_are_of_the_types_they_say(store: RunStore) -> None:
    """Every field of a shape and no other, of its type, as `/openapi.json` has it too."""
    usage = Usage(10, 5, cost_nanousd=7, unpriced_tokens=3, calls=1)
    store.write([final("a", usage_by={LEAD: usage, SUB: Usage(1)}, tags={"k": "v"}), snap("b", thread_id=None)])
    for answer, shape in (
        (store.run("a"), shapes.Run),
        (store.runs(), shapes.RunPage),
        (store.thread_usage("t"), shapes.ThreadUsage),
        (store.thread_usages(["t", "never"], include_active=True), list[shapes.ThreadUsage]),
        (store.threads(include_active=True), shapes.ThreadPage),
        (store.usage(include_active=True), shapes.GrandUsage),
        (store.usage_daily(group_by=("month", "day", "model")), list[shapes.DailyUsage]),
    ):
        assert msgspec.to_builtins(msgspec.convert(answer, shape)) == answer  # what is not in the shape would go


def test_answers_may_be_awaited(store: RunStore) -> None:
    """The async form gives the same answers."""

    async def ask() -> list[Any]:
        awaited = AsyncRunStore(store)
        return await asyncio.gather(
            awaited.run("r"), awaited.runs(), awaited.thread_usage("t"), awaited.usage(True), awaited.verify()
        )

    store.write([snap(tokens=1)])
    expected = [store.run("r"), store.runs(), store.thread_usage("t"), store.usage(True), []]
    assert asyncio.run(ask()) == expected


def test_the_default_store_is_in_the_users_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Without a URL agents and sidecar meet in one file, made on first use for its owner alone."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("RUNMETER_DATABASE_URL", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    store = open_store()
    path = tmp_path / "state" / "runmeter" / "runmeter.db"
    assert default_url() == f"sqlite:///{path}"
    assert not path.exists()
    store.write([snap()])
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    store.dispose()


@pytest.mark.parametrize(
    "url", ["mysql://h/d", "nonsense", "sqlite://", "sqlite+aiosqlite:///x", "postgresql+pg8000://h/d"]
)
def test_a_url_that_is_no_store_is_refused_with_a_sentence(url: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(StoreError, match="memory://"):
        open_store(url)


def test_passwords_are_not_shown() -> None:
    """The URL for people has no password."""
    store = open_store("postgresql://user:secret@localhost:1/db")
    assert "secret" not in store.url_for_humans
    assert "user" in store.url_for_humans
    store.dispose()
