"""The merge of snapshots into runs, as rules: whatever is lost, repeated or reordered, totals come out the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from histories import NOON, SECOND, everything, keys, play, snapshots, steps, usages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import update

from runmeter.usage import ZERO, Usage
from runmeter_exporter import open_store
from runmeter_exporter.store import RunStore
from runmeter_exporter.store.sql.schema import meta, metadata
from runmeter_exporter.store.sql.store import SqlRunStore
from runmeter_exporter.totals import merge as merging
from runmeter_exporter.totals.bounds import CELL_LIMIT, ID_LIMIT, LABEL_LIMIT, bound, clean_id
from runmeter_exporter.totals.merge import close, end, merge, orphan
from runmeter_exporter.totals.rollup import contribution
from runmeter_exporter.totals.run import Cell, CellKey, RunSnapshot, StoredRun

KEY = CellKey("2026-05-28", "openai", "small", "lead_agent")


def snap(revision: int, tokens: int | None = None, **fields: Any) -> RunSnapshot:
    """A snapshot of run r by source a; `tokens` input tokens, or usage unchanged."""
    values: dict[str, Any] = {
        "run_id": "r",
        "source": "a",
        "revision": revision,
        "started_at": NOON,
        "updated_at": NOON + revision * SECOND,
        "usage_by": None if tokens is None else {KEY: Usage(input_tokens=tokens, calls=1, messages=1)},
    }
    return RunSnapshot(**{**values, **fields})


def final(revision: int, tokens: int | None = None, status: str = "success", **fields: Any) -> RunSnapshot:
    """The snapshot that ends run r."""
    return snap(revision, tokens, final=True, status=status, **fields)


def after(*moments: RunSnapshot) -> StoredRun:
    """Run r after these snapshots."""
    run: StoredRun | None = None
    for moment in moments:
        run = merge(run, moment)
    assert run is not None
    return run


def settled(run: StoredRun) -> Usage:
    """What the totals hold of it, added up by hand."""
    return sum((cell.settled for cell in run.cells.values()), ZERO)


@st.composite
def growing(draw: st.DrawFn) -> list[RunSnapshot]:
    """What several sources honestly say of one run: totals that only grow, a final snapshot each at most."""
    said: list[RunSnapshot] = []
    for source, owns in (("a", True), ("b", False), ("c", False)):
        totals: dict[CellKey, Usage] = {}
        count = draw(st.integers(1, 4))
        for revision in range(1, count + 1):
            totals = dict(totals)
            for key, usage in draw(st.dictionaries(keys, usages, max_size=2)).items():
                totals[key] = totals.get(key, ZERO) + usage
            said.append(
                snap(
                    revision,
                    source=source,
                    owns=owns,
                    usage_by=totals,
                    final=revision == count,
                    status="success" if owns and revision == count else "running",
                )
            )
    return said


@given(growing(), st.data())
def test_any_order_duplication_and_loss_then_resend_gives_the_same_run(said: list[RunSnapshot], data: Any) -> None:
    """Snapshots in any order, repeated, lost and sent again end in the same totals and status."""
    expected = after(*said)
    lost = data.draw(st.sets(st.sampled_from(range(len(said)))))
    shuffled = data.draw(st.permutations([one for index, one in enumerate(said) if index not in lost] + said))
    run = after(*shuffled)
    assert run.reported() == expected.reported()
    assert settled(run) == settled(expected) == expected.reported()
    assert (run.status, run.usage_state) == ("success", "settled")


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8), st.randoms())
def test_only_the_latest_revision_counts(totals: list[int], random: Any) -> None:
    """A snapshot replaces older ones, also with less usage, while the run is active: a repeat was recognised."""
    said = [snap(revision, tokens) for revision, tokens in enumerate(totals)]
    random.shuffle(said)
    assert after(*said).reported().input_tokens == totals[-1]


def test_omitted_counters_are_preserved() -> None:
    """A snapshot without usage leaves the counters as they were; an empty usage empties them."""
    run = after(snap(1, 10), snap(2))
    assert run.reported().input_tokens == 10
    assert after(snap(1, 10), snap(2, usage_by={})).reported() == ZERO


def test_progress_after_the_final_changes_nothing() -> None:
    """Once its source has ended the run, a progress snapshot is ignored whatever its revision."""
    run = after(snap(1, 10), final(2, 20))
    assert merge(run, snap(3, 99, status="running")) is run


def test_a_later_final_adds() -> None:
    """Usage that comes after the end comes in a later final, and is in the totals at once."""
    run = after(final(1, 10), final(2, 30, status="error"))
    assert settled(run).input_tokens == 30
    assert (run.status, run.usage_state) == ("success", "settled")


def test_progress_never_decides() -> None:
    """A progress snapshot cannot end a run, and only its owner moves it from pending to running."""
    run = after(snap(1, status="pending"), snap(1, 5, source="b", owns=False, status="running"))
    assert run.status == "pending"
    assert after(snap(1, status="pending"), snap(2, status="running")).status == "running"
    assert after(snap(1, status="running"), snap(2, status="pending")).status == "running"
    assert after(snap(1), snap(2, status="error")).status == "running"


def test_a_child_does_not_end_its_parents_run() -> None:
    """The final snapshot of a source that only joined settles nothing and decides nothing."""
    run = after(snap(1, 10), final(1, 5, source="b", owns=False, status="error"))
    assert (run.status, run.usage_state, settled(run)) == ("running", "active", ZERO)
    run = merge(run, final(2, 10))
    assert (run.status, settled(run).input_tokens) == ("success", 15)


def test_a_child_may_come_before_the_owner() -> None:
    """A run first heard of through a child has no owner until one arrives; nothing is lost."""
    run = after(snap(1, 5, source="b", owns=False, started_at=NOON + SECOND))
    assert (run.owner, run.status) == (None, "running")
    run = merge(run, final(1, 10))
    assert (run.owner, run.started_at, settled(run).input_tokens) == ("a", NOON, 15)


def test_usage_that_outlives_the_run_settles_at_once() -> None:
    """What a child adds after the owner's end is in the totals with its snapshot."""
    run = after(final(1, 10), snap(1, 7, source="b", owns=False))
    assert settled(run).input_tokens == 17


def test_a_supervisors_end_stands() -> None:
    """After a supervisor ended it, the owner's final adds usage and changes no status; a second end does nothing."""
    run = end(after(snap(1, 10)), "timeout", "budget", NOON + 5 * SECOND)
    assert (run.status, run.stop_reason, settled(run).input_tokens) == ("timeout", "budget", 10)
    assert end(run, "error", None, NOON) is run
    run = merge(run, final(2, 25))
    assert (run.status, run.stop_reason, settled(run).input_tokens) == ("timeout", "budget", 25)


def test_an_orphan_is_a_lower_bound_and_may_return() -> None:
    """A silent owner's run closes as known; when it writes again the run goes on, and nothing is counted twice."""
    run = orphan(after(snap(1, 10)), "a")
    assert (run.status, run.stop_reason, run.usage_state) == ("interrupted", "orphaned", "lower_bound")
    assert settled(run).input_tokens == 10
    run = merge(run, snap(2, 15))
    assert (run.status, run.stop_reason, run.usage_state, run.ended_at) == ("running", None, "active", None)
    assert (settled(run).input_tokens, run.active().input_tokens, run.reported().input_tokens) == (10, 5, 15)
    run = merge(run, final(3, 18))
    assert (run.status, run.usage_state, settled(run).input_tokens) == ("success", "settled", 18)
    assert contribution(run)[0]["revised", ("interrupted", "success")] == (1, ZERO)


def test_only_the_owners_silence_orphans() -> None:
    """Another source's silence, or an ended run, is no orphan; an owner that restarts may take a lower bound over."""
    run = after(snap(1, 10), snap(1, 5, source="b", owns=False))
    assert orphan(run, "b") is run
    ended = after(final(1, 10))
    assert orphan(ended, "a") is ended
    run = merge(orphan(run, "a"), snap(1, 3, source="a2"))
    assert (run.owner, run.status, run.usage_state) == ("a2", "running", "active")


def test_door_two_closes_later() -> None:
    """A run that door 2 writes to is closing when it has ended, and settled when the grace is over."""
    run = after(final(1, 10, source="otlp"))
    assert (run.status, run.usage_state, settled(run)) == ("success", "closing", ZERO)
    assert run.counted_status is None
    run = close(merge(run, final(2, 12, source="otlp")))
    assert (run.usage_state, settled(run).input_tokens) == ("settled", 12)
    assert close(run) is run
    assert settled(merge(run, final(3, 20, source="otlp"))).input_tokens == 20


def test_a_closing_run_settles_door_one_at_once() -> None:
    """The owner's final settles the cells of door 1; those of door 2 wait for the closing."""
    run = after(snap(1, 7, source="otlp", owns=False), final(1, 10))
    assert (run.usage_state, settled(run).input_tokens, run.active().input_tokens) == ("closing", 10, 7)
    assert settled(close(run)).input_tokens == 17


def test_closing_an_idle_run_interrupts_it_unless_an_owner_works_on_it() -> None:
    """Door 2's idle runs end as interrupted; a run of door 1 is left alone; a late end of door 2 gives the status."""
    run = close(after(snap(1, 10, source="otlp")))
    assert (run.status, run.stop_reason, run.usage_state) == ("interrupted", "idle", "settled")
    run = merge(run, final(2, 14, source="otlp"))
    assert (run.status, run.stop_reason, settled(run).input_tokens) == ("success", None, 14)
    working = after(snap(1, 10), snap(1, 5, source="otlp", owns=False))
    assert close(working) is working


def test_what_door_two_repeats_of_a_recorded_source_is_not_counted() -> None:
    """Spans stamped by a source that writes itself are set aside as recorded, whoever comes first."""
    run = after(snap(1, 10), snap(1, 10, source="otlp:a", owns=False))
    assert (run.reported().input_tokens, run.set_aside["otlp:a", "recorded"].spans) == (10, 1)
    run = after(snap(1, 10, source="otlp:a", owns=False), snap(1, 10))
    assert (run.reported().input_tokens, run.set_aside["otlp:a", "recorded"].spans) == (10, 1)
    other = after(snap(1, 10), snap(1, 10, source="otlp:b", owns=False))
    assert other.reported().input_tokens == 20


def test_what_was_settled_of_a_shadow_is_held_when_its_source_arrives() -> None:
    """Settled usage of `otlp:a` becomes the held part of a's own cells: nothing falls, nothing is added twice."""
    run = close(after(final(1, 10, source="otlp:a")))
    assert settled(run).input_tokens == 10
    run = merge(run, final(1, 12))
    assert settled(run).input_tokens == 12
    assert settled(merge(run, final(2, 99, source="otlp:a"))).input_tokens == 12


def test_the_owner_says_what_a_run_was_for_until_it_is_counted() -> None:
    """A thread, user, service or tag is the owner's latest word, whoever wrote first; others say what it does not; and
    nothing changes once it is counted."""
    child = {"source": "b", "owns": False, "thread_id": "inner", "user_id": "u"}
    for order in (0, 1):
        told = [snap(1, thread_id="outer", tags={"team": "x"}), snap(1, tags={"team": "y", "env": "p"}, **child)]
        run = after(*(told[::-1] if order else told))
        assert (run.thread_id, run.user_id, run.tags) == ("outer", "u", {"team": "x", "env": "p"})
    run = after(
        snap(1, thread_id=None, tags={"team": "x"}), snap(2, thread_id="t", user_id="u", tags={"team": "y", "env": "p"})
    )
    assert (run.thread_id, run.user_id, run.tags) == ("t", "u", {"team": "y", "env": "p"})
    run = merge(run, final(3, thread_id="t", service=None))
    late = merge(run, final(4, thread_id="other", service="late"))
    assert (late.thread_id, late.service) == ("t", None)


def test_no_duration_is_negative() -> None:
    """A wall clock that jumped back does not end a run before it started."""
    run = after(snap(1, 1), final(2, 1, updated_at=0, ended_at=NOON - 86_400 * SECOND))
    assert run.ended_at == run.started_at == NOON


@settings(max_examples=300, deadline=None)
@given(st.lists(snapshots | st.sampled_from(("end", "orphan", "close")), max_size=12))
def test_settled_totals_never_fall(history: list[Any]) -> None:
    """Whatever comes, and however late, no settled cell and no total that holds it ever shrinks (rule 6)."""
    run: StoredRun | None = None
    held, closed = ZERO, 0
    for step in history:
        if isinstance(step, RunSnapshot):
            run = merge(run, replace(step, run_id="r"))
        elif run is not None:
            run = {"end": lambda r: end(r, "error", None, NOON), "orphan": lambda r: orphan(r, "a"), "close": close}[
                step
            ](run)
        if run is None:
            continue
        now = settled(run)
        assert now.at_least(held) == now
        parts = contribution(run)[0]
        assert parts.get(("total", ()), (0, ZERO))[1] == now
        assert (("total", ()) in parts) >= closed
        held, closed = now, int(("total", ()) in parts)
        assert run.reported() == now + run.active()
        if run.closed:
            assert run.active() == ZERO


@settings(max_examples=150, deadline=None)
@given(st.lists(snapshots, max_size=10))
def test_the_merge_is_pure(history: list[RunSnapshot]) -> None:
    """Merging never changes the run that it was given."""
    run: StoredRun | None = None
    for snapshot in history:
        before = run.copy() if run is not None else None
        cells = dict(run.cells) if run is not None else None
        merged = merge(run, snapshot)
        assert run == before
        assert run is None or dict(run.cells) == cells
        run = merged


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=12))
def test_rollups_are_the_sum_over_runs(history: list[Any]) -> None:
    """After any history the totals balance, agree with the runs' own answers, and never fell on the way."""
    store = open_store("memory://")
    held: dict[str, Any] = {}
    for step in history:
        play(store, step)
        assert store.verify() == []
        usage = store.usage()
        for name in ("total_tokens", "total_runs", "llm_call_count", "llm_call_failures", "unpriced_tokens"):
            assert usage[name] >= held.get(name, 0), name
        held = usage
    if any(step[0] == "prune" for step in history):
        return
    with store._reading() as rows:  # type: ignore[attr-defined]
        runs = list(rows.every_run())
    for answer in (store.usage(include_active=True), *store.thread_usages(["t0", "t1"], include_active=True)):
        thread_id = answer.get("thread_id")
        mine = [run for run in runs if thread_id is None or run.thread_id == thread_id]
        assert answer["total_tokens"] == sum(added(run).total_tokens for run in mine)
        begun = [run for run in mine if run.status != "pending" or run.counted_status is not None]
        assert answer["total_runs"] == sum(share["runs"] for share in answer["by_status"].values()) == len(begun)
        models = [{key.model for (_, key), cell in run.cells.items() if any(added_of(run, cell))} for run in begun]
        expected = Counter(model for used in models for model in used or {"unknown"})
        assert {model: share["runs"] for model, share in answer["by_model"].items()} == expected
        cells = [(key.caller, added_of(run, cell)) for run in mine for (_, key), cell in run.cells.items()]
        below = sum(usage.total_tokens for caller, usage in cells if caller.startswith("subagent"))
        assert answer["by_caller"]["subagent"] == below


def added_of(run: StoredRun, cell: Cell) -> Usage:
    """What include_active has of a cell: of a run that waits to run, what was settled before alone."""
    return cell.settled if run.status == "pending" else cell.usage.at_least(cell.settled)


def added(run: StoredRun) -> Usage:
    return sum((added_of(run, cell) for cell in run.cells.values()), ZERO)


@pytest.fixture(scope="module")
def fresh_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], RunStore]]:
    """A SQLite store that every call empties: making one costs more than what an example does to it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('same') / 'runmeter.db'}"
    store = SqlRunStore(url, create=True, clock=lambda: NOON + 60 * SECOND)
    store.usage()

    def fresh() -> RunStore:
        with store.engine.begin() as connection:
            for table in metadata.tables.values():
                if table.name != "meta":
                    connection.execute(table.delete())
            connection.execute(update(meta).where(meta.c.name == "horizon").values(value="0"))
        store.forget_grants()
        return store

    yield fresh
    store.dispose()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=st.lists(steps, min_size=2, max_size=8))
def test_memory_and_sqlite_are_the_same_store(fresh_sqlite: Callable[[], RunStore], history: list[Any]) -> None:
    """After any history both stores give the same answers, to the last field."""
    memory = open_store("memory://", clock=lambda: NOON + 60 * SECOND)
    sqlite = fresh_sqlite()
    for step in history:
        assert play(memory, step) == play(sqlite, step)
    assert everything(memory) == everything(sqlite)
    # What is said to have come as OTLP came without spans here.
    assert [line for line in sqlite.verify() if "the ledger is empty" not in line] == []


@given(st.integers(CELL_LIMIT + 1, 200), st.integers(0, 3))
def test_more_cells_than_a_run_may_have_are_added_up_in_other(count: int, again: int) -> None:
    """Beyond 64 cells usage goes to `other`, with its kind of caller; nothing is lost, also when it settles twice."""
    usage_by = {
        CellKey("2026-05-28", "p", f"m{number}", f"subagent:{number}"): Usage(input_tokens=1) for number in range(count)
    }
    run = after(snap(1, usage_by=usage_by), *[final(2 + more, usage_by=usage_by) for more in range(again + 1)])
    assert settled(run).input_tokens == count
    assert len(run.cells) == CELL_LIMIT + 1
    assert run.cells["a", CellKey("2026-05-28", "other", "other", "subagent:other")].usage.input_tokens == (
        count - CELL_LIMIT
    )
    assert contribution(run)[0]["overflowed", ("cells",)] == (1, ZERO)


def test_other_cells_are_bounded_too() -> None:
    """A hostile spread over days folds into few cells."""
    usage_by = {
        CellKey(f"20{year:02d}-01-01", "p", f"m{number}", "lead_agent"): Usage(input_tokens=1)
        for year in range(60)
        for number in range(3)
    }
    run = after(final(1, usage_by=usage_by))
    assert settled(run).input_tokens == 180
    assert len(run.cells) <= CELL_LIMIT + merging.OTHER_CELLS + 1


@given(st.text(st.characters(codec=None), max_size=400))
def test_text_is_made_storable(one: str) -> None:
    """Ids are bounded, free of NUL and lone surrogates, and cleaned once for good."""
    cleaned = clean_id(one)
    assert len(cleaned) <= ID_LIMIT
    assert "\0" not in cleaned
    cleaned.encode()
    assert clean_id(cleaned) == cleaned


def test_long_ids_with_one_head_stay_two_runs() -> None:
    """A cut id ends in a hash of the whole."""
    head = "x" * ID_LIMIT
    assert clean_id(head + "1") != clean_id(head + "2")
    assert len(clean_id(head + "1")) == ID_LIMIT


def test_what_is_out_of_bounds_is_cut_and_said() -> None:
    """Long text, many tags and absurd counts are cut; the run remembers what kind was."""
    wild = snap(
        1,
        agent="a" * 500,
        tags={f"key{number}": "v" * 100 for number in range(20)},
        usage_by={CellKey("2026-05-28", "p\0", "m" * 500, ""): Usage(input_tokens=2**70, output_tokens=-5)},
        ended_at=2**80,
    )
    bounded, bits = bound(wild)
    assert bits == 6
    assert len(bounded.agent or "") == LABEL_LIMIT
    assert len(bounded.tags) == 8
    assert {len(value) for value in bounded.tags.values()} == {64}
    ((key, usage),) = (bounded.usage_by or {}).items()
    assert key == CellKey("2026-05-28", "p", "m" * LABEL_LIMIT, "lead_agent")
    assert usage == Usage(input_tokens=2**40)
    assert contribution(after(wild))[0].keys() == {("overflowed", ("tags",)), ("overflowed", ("text",))}


@pytest.mark.parametrize(
    "nonsense",
    [
        {"run_id": ""},
        {"run_id": None},
        {"run_id": 7},
        {"revision": -1},
        {"revision": "1"},
        {"status": "sleeping"},
        {"started_at": None},
        {"usage_by": {CellKey("yesterday", "p", "m", "c"): ZERO}},
        {"usage_by": {KEY: Usage(input_tokens=1.5)}},  # type: ignore[arg-type]
        {"usage_by": {KEY: Usage(cost_nanousd=float("nan"))}},  # type: ignore[arg-type]
    ],
)
def test_what_is_no_snapshot_is_refused(nonsense: dict[str, Any]) -> None:
    """A snapshot whose fields are not of their types raises, and a store counts it and goes on."""
    with pytest.raises((TypeError, ValueError, AttributeError)):
        merge(None, replace(snap(1), **nonsense))
    store = open_store("memory://")
    result = store.write([snap(1, run_id="good"), replace(snap(1), **nonsense)])
    assert (result.applied, result.refused) == (1, {"malformed": 1})
    assert store.scrape().counts == {("snapshots_dropped", "malformed"): 1}


TRACE = "0af7651916cd43dd8448eb211c80319c"


def test_an_agent_that_succeeds_without_a_call_is_a_lower_bound() -> None:
    """A trace that is a run has calls, or an agent's span whose instrumentation makes no spans of calls: it says so."""
    run = merge(None, final(1, run_id=TRACE, trace_id=TRACE, agent="crew", source="otlp"))
    assert run.usage_state == "closing"
    run = close(run)
    assert (run.usage_state, run.status) == ("lower_bound", "success")
    assert [reason for _, reason in run.set_aside] == ["no_calls_seen"]
    here = merge(None, final(1, run_id=TRACE, trace_id=TRACE, agent="crew"))
    assert here.usage_state == "lower_bound"


@pytest.mark.parametrize(
    "fields",
    [
        {"tokens": 5},
        {"status": "error"},
        {"run_id": "explicit"},
        {"trace_id": None},
        {"set_aside": {"repeat": 1}},
    ],
    ids=str,
)
def test_a_zero_with_a_reason_is_settled(fields: dict[str, Any]) -> None:
    """A run that somebody began, that failed, whose calls are another's or that has calls, is not suspected."""
    values = {"run_id": TRACE, "trace_id": TRACE, "agent": "crew", **fields}
    assert merge(None, final(1, values.pop("tokens", None), **values)).usage_state == "settled"


def test_calls_that_nobody_reported_make_a_lower_bound() -> None:
    """Only where nothing else was seen, and as long as nothing is known of them; both are told with the final."""
    unseen = final(1, set_aside={"uninstrumented_client": 2})
    assert merge(None, unseen).usage_state == "lower_bound"
    assert merge(None, final(1, 5, set_aside={"uninstrumented_client": 2})).usage_state == "settled"
