"""Door 2 as a whole: which run a span belongs to, when runs end, what is counted once, and what HTTP answers."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from otlp_requests import post

from runmeter.counting import lookalikes
from runmeter.counting.same_call import alike_from_afar
from runmeter.reading.read import Reading
from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.ingest.cache import size_of
from runmeter_exporter.ingest.ingest import REMIND_EVERY, Ingest
from runmeter_exporter.ingest.otlp import JSON, PROTOBUF, parse
from runmeter_exporter.ingest.otlp.reading import reading_of
from runmeter_exporter.memory import BY_DEFAULT
from runmeter_exporter.store import RefusedValue, RunStore, StoreUnavailable
from runmeter_exporter.totals.run import CellKey, RunSnapshot

SECOND = 10**9
NOON = 1_790_000_000 * SECOND
DAY = 24 * 3600 * SECOND
TRACE, OTHER_TRACE = bytes(range(16)), bytes(range(16, 32))
REMOTE = 0x300


def price(call: Call) -> Usage:
    """A nano-dollar a token."""
    return call.usage._replace(cost_nanousd=call.usage.total_tokens)


@pytest.fixture
def ingest_of() -> Iterator[Callable[..., Ingest]]:
    """`Ingest` over a store, stopped when the test ends."""
    made: list[Ingest] = []

    def making(store: RunStore, **options: Any) -> Ingest:
        made.append(Ingest(store, **{"price": price, "now": lambda: NOON, **options}))
        return made[-1]

    yield making
    for ingest in made:
        assert ingest.stop()


def span(
    number: int,
    parent: int | None = None,
    *,
    trace: bytes = TRACE,
    scope: str = "openai",
    at: tuple[int, int] | None = None,
    service: str = "svc",
    flags: int = 0,
    error: bool = False,
    **attributes: Any,
) -> bytes:
    """A request with one span; attributes are written with `__` for a dot."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = service
    scoped = resource.scope_spans.add()
    scoped.scope.name = scope
    began, ended = at or (number, number + 1)
    added = scoped.spans.add(
        trace_id=trace,
        span_id=number.to_bytes(8),
        parent_span_id=b"" if parent is None else parent.to_bytes(8),
        name="span",
        start_time_unix_nano=NOON + began * SECOND,
        end_time_unix_nano=NOON + ended * SECOND,
        flags=flags,
    )
    if error:
        added.status.code = added.status.STATUS_CODE_ERROR
    for key, value in attributes.items():
        stored = added.attributes.add(key=key.replace("__", ".")).value
        if isinstance(value, bool):
            stored.bool_value = value
        elif isinstance(value, int):
            stored.int_value = value
        else:
            stored.string_value = value
    return request.SerializeToString()


def call(number: int, parent: int | None = None, tokens: int = 10, **more: Any) -> bytes:
    """A request with one model call of `tokens` input tokens and one output token."""
    said = {"gen_ai__operation__name": "chat", "gen_ai__provider__name": "openai", "gen_ai__request__model": "m"}
    usage = {"gen_ai__usage__input_tokens": tokens, "gen_ai__usage__output_tokens": 1}
    return span(number, parent, **{**said, **usage, **more})


def open_ids(store: RunStore) -> list[str]:
    return sorted(run.run_id for run in store.watch().runs)


def run_of(store: RunStore, run_id: str) -> dict[str, Any]:
    found = store.run(run_id)
    assert found is not None, f"no run {run_id}; there are {open_ids(store)}"
    return found


# Which run


def test_a_trace_is_a_run_and_plain_spans_alone_are_none(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """Spans that say nothing make no run; a call makes its trace one, which begins with it and not before."""
    ingest = ingest_of(store)
    post(ingest, span(1, 9))
    post(ingest, span(2, None, trace=OTHER_TRACE))
    assert open_ids(store) == []
    post(ingest, call(3, 1, gen_ai__conversation__id="thread 1", user__id="ada"))
    assert open_ids(store) == [TRACE.hex()]
    run = run_of(store, TRACE.hex())
    assert (run["status"], run["usage_state"], run["thread_id"], run["user_id"], run["service"]) == (
        "running",
        "active",
        "thread 1",
        "ada",
        "svc",
    )
    assert (run["total_input_tokens"], run["cost_usd"]) == (10, 11e-9)
    assert run["created_at"] == "2026-09-21T14:13:23.000000Z"


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_stamped_ancestor_names_the_run_of_those_below(
    order: Sequence[int], open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """Spans below a span with a run id are in that run, however late it comes; the innermost of two has them."""
    store = open_stores("memory://")
    ingest = ingest_of(store)
    requests = [
        span(1, None, scope="runmeter", runmeter__run__id="outer", runmeter__run__root=True),
        span(2, 1, scope="runmeter", runmeter__run__id="inner", runmeter__run__root=True),
        span(3, 2),
        call(4, 3),
    ]
    for index in order:
        post(ingest, requests[index])
    assert open_ids(store) == ["inner", "outer"]
    assert run_of(store, "inner")["total_input_tokens"] == 10
    assert run_of(store, "outer")["total_input_tokens"] == 0
    ingest.close_runs(open_ids(store))
    assert store.usage()["total_input_tokens"] == 10
    assert store.verify() == []


def test_a_call_that_was_counted_stays_where_it_is(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A stamped ancestor that comes after its descendant's run has closed takes nothing out of the settled totals."""
    ingest = ingest_of(store)
    post(ingest, call(2, 1))
    ingest.close_runs([TRACE.hex()])
    post(ingest, span(1, None, runmeter__run__id="late"))
    post(ingest, call(3, 1, tokens=5))
    ingest.close_runs(open_ids(store))
    assert store.usage()["total_input_tokens"] == 15
    assert run_of(store, TRACE.hex())["total_input_tokens"] == 10
    assert run_of(store, "late")["total_input_tokens"] == 5
    assert store.verify() == []


def door_1(run_id: str = "python", *, final: bool = False, revision: int = 1, tokens: int = 100) -> RunSnapshot:
    """What a recorder in a Python process writes of a run in our trace, whose own span is 1."""
    return RunSnapshot(
        run_id=run_id,
        source="X",
        revision=revision,
        final=final,
        status="success" if final else "running",
        trace_id=TRACE.hex(),
        root_span_id=(1).to_bytes(8).hex(),
        started_at=NOON,
        updated_at=NOON + SECOND,
        ended_at=NOON + SECOND if final else None,
        usage_by={CellKey("2026-09-21", "openai", "m", "lead_agent"): Usage(tokens, 1, calls=1)},
    )


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize("recorded_first", [True, False])
def test_a_child_in_another_language_joins_the_run_recorded_in_process(
    kind: str,
    recorded_first: bool,
    request: pytest.FixtureRequest,
    open_stores: Callable[..., RunStore],
    ingest_of: Callable[..., Ingest],
) -> None:
    """Spans of the run's trace that come by OTLP alone are the run's, also where they came before it was recorded."""
    store = open_stores(request.getfixturevalue("postgres_url" if kind == "postgresql" else "sqlite_url"))
    ingest = ingest_of(store)
    if recorded_first:
        store.write([door_1()])
    post(ingest, call(5, 4, service="node"))
    if not recorded_first:
        store.write([door_1()])
    post(ingest, span(4, 1, service="node", flags=REMOTE))
    ingest.close_runs([TRACE.hex()])
    assert open_ids(store) == ["python"]
    assert run_of(store, "python")["total_input_tokens"] == 110
    assert run_of(store, "python")["status"] == "running"
    store.write([door_1(final=True, revision=2)])
    assert run_of(store, "python")["usage_state"] == "closing"
    ingest.close_runs(["python"])
    assert store.usage()["total_input_tokens"] == 110
    assert store.verify() == []


@pytest.mark.parametrize("recorded_first", [True, False])
def test_a_run_that_comes_through_both_doors_is_counted_once(
    recorded_first: bool, store: RunStore, ingest_of: Callable[..., Ingest]
) -> None:
    """Spans stamped by a source that writes to the store itself add nothing to what it writes."""
    ingest = ingest_of(store)
    stamps = {"runmeter__run__id": "python", "runmeter__source__id": "X"}
    if recorded_first:
        store.write([door_1()])
    post(ingest, call(2, 1, tokens=100, **stamps))
    post(ingest, span(1, None, scope="runmeter", runmeter__run__root=True, runmeter__run__status="success", **stamps))
    store.write([door_1(final=True, revision=2)])
    ingest.close_runs(open_ids(store))
    assert run_of(store, "python")["total_input_tokens"] == 100
    assert store.usage()["total_input_tokens"] == 100
    assert store.verify() == []


def test_a_run_recorded_into_another_store_is_counted_here_too(
    store: RunStore, ingest_of: Callable[..., Ingest]
) -> None:
    """What a source stamps as its own counts in a store that it does not write to itself."""
    stamps = {"runmeter__run__id": "python", "runmeter__source__id": "X"}
    ingest = ingest_of(store)
    post(ingest, call(2, 1, tokens=100, **stamps))
    post(ingest, call(5, 2, tokens=7, service="node"))
    post(ingest, span(1, None, scope="runmeter", runmeter__run__root=True, runmeter__run__status="success", **stamps))
    ingest.close_runs(open_ids(store))
    run = run_of(store, "python")
    assert (run["total_input_tokens"], run["status"], run["usage_state"]) == (107, "success", "settled")
    assert store.verify() == []


def test_nested_runs_through_two_sidecars_at_once(
    open_stores: Callable[..., RunStore], postgres_url: str, ingest_of: Callable[..., Ingest]
) -> None:
    """Two sidecars that each see half of every trace, at the same time, agree whose calls are whose."""
    stores = open_stores(postgres_url), open_stores(postgres_url)
    ingests = [ingest_of(store) for store in stores]
    requests: list[bytes] = []
    for number in range(1, 25):
        trace = number.to_bytes(16)
        requests += [
            span(1, None, trace=trace, runmeter__run__id=f"outer {number}", runmeter__run__root=True),
            span(2, 1, trace=trace),
            call(3, 2, tokens=1000, trace=trace),
            span(4, 2, trace=trace, runmeter__run__id=f"inner {number}", runmeter__run__root=True),
            call(5, 4, tokens=10, trace=trace),
            span(6, 4, trace=trace),
            call(7, 6, tokens=1, trace=trace),
        ]
    random.Random(1).shuffle(requests)
    with ThreadPoolExecutor(8) as senders:
        list(senders.map(lambda item: post(ingests[item[0] % 2], item[1]), enumerate(requests)))
    implicit = [run_id for run_id in open_ids(stores[0]) if len(run_id) == 32]
    ingests[1].close_runs(implicit)
    assert open_ids(stores[1]) == sorted(f"{which} {number}" for which in ("inner", "outer") for number in range(1, 25))
    ingests[0].close_runs(open_ids(stores[1]))
    for number in range(1, 25):
        assert run_of(stores[0], f"outer {number}")["total_input_tokens"] == 1000
        assert run_of(stores[0], f"inner {number}")["total_input_tokens"] == 11
    assert stores[0].usage()["total_runs"] == 48
    assert open_stores(postgres_url).verify() == []


def test_a_trace_without_end_keeps_its_calls(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit of a trace spans that only link others are let go and counted; calls still count, once."""
    monkeypatch.setattr("runmeter_exporter.ingest.intake.TRACE_LIMIT", 3)
    store = open_stores("memory://")
    ingest = ingest_of(store)
    for number in range(2, 8):
        post(ingest, span(number, 1))
    for _ in range(2):
        post(ingest, call(9, 1))
    assert store.usage(include_active=True)["llm_call_count"] == 1
    assert ingest.stop()
    assert store.scrape().counts["spans_rejected", "trace_limit"] == 3


# How a run ends


@pytest.mark.parametrize(
    ("root", "status", "reason"),
    [
        (span(1, None), "success", None),
        (span(1, None, error=True), "error", None),
        (span(1, 77, flags=REMOTE), "success", None),
        (
            span(
                1,
                77,
                scope="runmeter",
                runmeter__run__id=TRACE.hex(),
                runmeter__run__root=True,
                runmeter__run__status="timeout",
                runmeter__run__stop_reason="too slow",
            ),
            "timeout",
            "too slow",
        ),
    ],
)
def test_a_run_ends_with_its_local_root(
    root: bytes, status: str, reason: str | None, store: RunStore, ingest_of: Callable[..., Ingest]
) -> None:
    """A span without parent, or with a remote one, ends its run: with its status attribute, else by its own status."""
    ingest = ingest_of(store)
    post(ingest, call(2, 1))
    post(ingest, root)
    run = run_of(store, TRACE.hex())
    assert (run["status"], run["stop_reason"], run["usage_state"]) == (status, reason, "closing")
    assert store.watch().runs[0].otlp_root_ended
    post(ingest, call(3, 1))
    ingest.close_runs([TRACE.hex()])
    run = run_of(store, TRACE.hex())
    assert (run["status"], run["usage_state"], run["llm_call_count"]) == (status, "settled", 2)


def test_a_run_without_its_root_is_idle_when_it_closes(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A local parent that never comes leaves the run running, and `interrupted` when the reaper closes it."""
    ingest = ingest_of(store)
    post(ingest, call(2, 1))
    assert not store.watch().runs[0].otlp_root_ended
    ingest.close_runs([TRACE.hex()])
    run = run_of(store, TRACE.hex())
    assert (run["status"], run["stop_reason"], run["usage_state"]) == ("interrupted", "idle", "settled")


def test_plain_spans_keep_a_run_alive(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """Every new span of a run changes its version, by which the reaper sees that it is not idle; a repeat does not."""
    ingest = ingest_of(store)
    post(ingest, call(2, 1))
    before = store.watch().runs[0].version
    post(ingest, span(3, 1))
    after = store.watch().runs[0].version
    assert after > before
    post(ingest, span(3, 1))
    assert store.watch().runs[0].version == after


# Once


def test_what_comes_after_closing(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """After closing an aggregate of what was counted is late, another call adds at once, also after a restart."""
    first = ingest_of(store)
    post(first, call(2, 1))
    first.close_runs([TRACE.hex()])
    aggregate = span(
        1, None, gen_ai__operation__name="invoke_agent", gen_ai__usage__input_tokens=10, gen_ai__usage__output_tokens=1
    )
    for ingest in (first, ingest_of(store)):
        for request in (aggregate, call(3, 1, tokens=7), call(2, 1)):
            post(ingest, request)
        assert store.usage()["total_input_tokens"] == 17
        assert run_of(store, TRACE.hex())["set_aside"] == {"late": 1}
    assert store.verify() == []


def test_an_aggregate_minutes_later_after_a_restart(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A parent that another process takes in is still recognised as the sum of its children."""
    post(ingest_of(store), call(2, 1))
    usage = {"gen_ai__usage__input_tokens": 10, "gen_ai__usage__output_tokens": 1}
    post(ingest_of(store), span(1, None, at=(0, 900), gen_ai__operation__name="invoke_agent", **usage))
    assert store.usage(include_active=True)["total_input_tokens"] == 10


def test_twins_in_two_traces_are_one_call(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A client's span in a trace of its own repeats a framework's: that trace was no run, posted again or not."""
    ingest = ingest_of(store)
    inner = call(9, None, trace=OTHER_TRACE, scope="client", at=(12, 18))
    framework = call(2, 1, scope="framework", at=(11, 19))
    agent = span(1, None, scope="framework", at=(10, 20), gen_ai__operation__name="invoke_agent")
    for request in (inner, framework, agent):
        post(ingest, request)
        assert store.usage(include_active=True)["total_input_tokens"] == 10
    assert open_ids(store) == [TRACE.hex()]
    ingest.close_runs([OTHER_TRACE.hex()])
    post(ingest_of(store), inner)
    ingest.close_runs(open_ids(store))
    assert store.run(OTHER_TRACE.hex()) is None
    run = run_of(store, TRACE.hex())
    assert (run["total_input_tokens"], run["llm_call_count"], run["set_aside"]) == (10, 1, {"repeat": 1})
    assert store.usage()["total_runs"] == 1
    assert store.verify() == []


def test_a_twin_is_found_among_thousands_that_look_alike(
    store: RunStore, ingest_of: Callable[..., Ingest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking a call costs the same however many equal ones there are, and still joins the one that is the same."""
    compared = 0

    def counting(one: Reading, other: Reading) -> tuple[int, int] | None:
        nonlocal compared
        compared += 1
        return alike_from_afar(one, other)

    monkeypatch.setattr(lookalikes, "alike_from_afar", counting)
    ingest = ingest_of(store)
    crowd = 3000
    post(ingest, b"".join(
        call(1, None, trace=number.to_bytes(16), scope="framework", at=(2 * number, 2 * number + 1))
        for number in range(1, crowd + 1)))
    compared = 0
    post(ingest, call(9, None, trace=TRACE, scope="client", at=(crowd, crowd + 1)))
    assert compared < 100
    usage = store.usage(include_active=True)
    assert usage["llm_call_count"] == crowd
    assert store.verify() == []


def test_a_twin_of_a_settled_call_is_late(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """Where one of two traces has closed when the other brings the twin, the twin is set aside there."""
    ingest = ingest_of(store)
    post(ingest, call(9, None, trace=OTHER_TRACE, scope="client", at=(12, 18)))
    ingest.close_runs([OTHER_TRACE.hex()])
    post(ingest, call(2, 1, scope="framework", at=(11, 19)))
    ingest.close_runs([TRACE.hex()])
    assert store.usage()["total_input_tokens"] == 10
    assert store.usage()["total_runs"] == 1
    assert run_of(store, OTHER_TRACE.hex())["set_aside"] == {"late": 1}
    assert store.verify() == []


def test_calls_alike_at_other_times_or_of_other_processes_stay_two(
    store: RunStore, ingest_of: Callable[..., Ingest]
) -> None:
    """Equal usage alone joins nothing: neither at another time, nor from another service, nor in one scope."""
    ingest = ingest_of(store)
    traces = iter(bytes([number]) * 16 for number in range(1, 9))
    post(ingest, call(1, None, trace=next(traces), scope="a", at=(10, 20)))
    post(ingest, call(1, None, trace=next(traces), scope="b", at=(30, 40)))
    post(ingest, call(1, None, trace=next(traces), scope="b", at=(12, 18), service="other"))
    post(ingest, call(1, None, trace=next(traces), scope="a", at=(12, 18)))
    ingest.close_runs(open_ids(store))
    assert store.usage()["llm_call_count"] == 4
    assert store.verify() == []


def test_a_price_is_fixed_when_the_call_settles(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A sidecar that starts with other prices prices new calls by them and repeats the old price of the old ones."""
    post(ingest_of(store), call(2, 1))
    dearer = ingest_of(store, price=lambda call: call.usage._replace(cost_nanousd=1000))
    post(dearer, call(3, 1))
    assert run_of(store, TRACE.hex())["cost_usd"] == pytest.approx(1011e-9)


def test_the_ledger_forgets_what_closed_a_day_ago(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """Rows of closed runs and of no run go after the retention, those of open runs stay; so do all totals."""
    ingest = ingest_of(store)
    post(ingest, call(2, 1))
    post(ingest, call(2, 1, trace=OTHER_TRACE))
    post(ingest, span(3, None, trace=b"p" * 16))
    ingest.close_runs([TRACE.hex()])
    assert ingest.expire(NOON + DAY // 2) == 0
    assert ingest.expire(NOON + 2 * DAY) == 2
    with store.transaction() as tx:
        assert {row.trace_id for row in tx.ledger.runs([TRACE.hex(), OTHER_TRACE.hex(), (b"p" * 16).hex()])} == {
            int.from_bytes(OTHER_TRACE)
        }
    post(ingest, call(2, 1, trace=OTHER_TRACE))
    assert store.usage(include_active=True)["total_input_tokens"] == 20
    assert store.verify() == []


def test_parents_in_a_circle(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """Spans that are each other's parent, or their own, are taken and counted like others."""
    ingest = ingest_of(store)
    for request in (call(1, 2), call(2, 1, tokens=11), call(3, 3, tokens=12), span(4, 5), span(5, 4)):
        post(ingest, request)
    ingest.close_runs(open_ids(store))
    assert store.usage()["total_input_tokens"] >= 12
    assert store.verify() == []


# What HTTP answers


def test_rejected_spans_are_said_and_counted(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """The good spans of a request are taken, the bad ones are counted in the answer and in the store."""
    ingest = ingest_of(store)
    bad = call(2, 1, trace=b"short")
    status, headers, body = ingest.handle("/v1/traces", bad + call(3, 1), PROTOBUF, None)
    answer = ExportTraceServiceResponse.FromString(body).partial_success
    assert (status, headers["Content-Type"], answer.rejected_spans) == (200, PROTOBUF, 1)
    assert "1 for their trace_id" in answer.error_message
    assert ingest.stop()
    counts = store.scrape().counts
    assert counts["spans_rejected", "trace_id"] == 1
    assert counts["ingest_requests", "200"] == 1
    assert counts["ingest_spans", ""] == 1


@pytest.mark.parametrize(
    ("path", "word"), [("/v1/metrics", "OTEL_METRICS_EXPORTER"), ("/v1/logs", "OTEL_LOGS_EXPORTER")]
)
def test_other_signals_are_ignored_and_told_what_to_set(
    path: str, word: str, open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """Metrics and logs get a 200 that says what to set, so that no client retries for ever."""
    ingest = ingest_of(open_stores("memory://"))
    status, _, body = ingest.handle(path, b"whatever", JSON, None)
    assert status == 200
    assert word in json.loads(body)["partialSuccess"]["errorMessage"]


def test_bad_requests_get_a_status_in_their_own_encoding(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """400 and 415 carry a google.rpc.Status, in protobuf where protobuf was sent."""
    ingest = ingest_of(open_stores("memory://"))
    status, headers, body = ingest.handle("/v1/traces", b"\xff" * 9, PROTOBUF, None)
    assert (status, headers["Content-Type"], Status.FromString(body).code) == (400, PROTOBUF, 3)
    status, headers, body = ingest.handle("/v1/traces", b"{", JSON, None)
    assert (status, headers["Content-Type"], json.loads(body)["code"]) == (400, JSON, 3)
    status, headers, body = ingest.handle("/v1/traces", b"", "text/html", None)
    assert (status, headers["Content-Type"]) == (415, JSON)


class Slow:
    """A store whose transactions wait until they may go on, or fail as told."""

    def __init__(self, store: RunStore) -> None:
        self.store = store
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.away: Exception | None = None
        self.transactions = 0

    def transaction(self, run_ids: Sequence[str] = ()) -> Any:
        self.transactions += 1
        self.entered.release()
        assert self.gate.wait(30)
        if self.away is not None:
            raise self.away
        return self.store.transaction(run_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def test_beyond_the_queue_the_answer_is_429_and_what_waits_is_one_transaction(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """While a transaction is under way, requests wait up to the bound and go in together; more are told to retry."""
    slow = Slow(open_stores("memory://"))
    [size] = [size_of(reading_of(span)) for span in parse(call(2, 1), PROTOBUF).spans]
    ingest = ingest_of(slow, memory=BY_DEFAULT._replace(queue=3 * size))
    statuses: list[int] = []

    def send(number: int) -> threading.Thread:
        def work() -> None:
            statuses.append(ingest.handle("/v1/traces", call(number, 1), PROTOBUF, None)[0])

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    threads = [send(2)]
    assert slow.entered.acquire(timeout=30)
    for number in (3, 4, 5):
        with ingest._changed:
            waiting = len(ingest._waiting)
        threads.append(send(number))
        with ingest._changed:
            assert ingest._changed.wait_for(lambda waiting=waiting: len(ingest._waiting) > waiting, 30)
    status, headers, body = ingest.handle("/v1/traces", call(6, 1), PROTOBUF, None)
    assert (status, headers["Retry-After"]) == (429, "2")
    assert f"{3 * size} bytes of spans wait to be stored and these are {size}" in Status.FromString(body).message
    slow.gate.set()
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * 4
    assert slow.transactions == 2
    assert slow.store.usage(include_active=True)["llm_call_count"] == 4


def test_a_store_that_is_away_is_a_503_and_the_retry_counts_once(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """Nothing is acknowledged that is not stored; the same request is taken when the store is back."""
    slow = Slow(open_stores("memory://"))
    slow.gate.set()
    ingest = ingest_of(slow)
    slow.away = StoreUnavailable("the database does not answer")
    status, headers, body = ingest.handle("/v1/traces", call(2, 1), PROTOBUF, None)
    assert (status, headers["Retry-After"]) == (503, "2")
    assert "does not answer" in Status.FromString(body).message
    slow.away = None
    post(ingest, call(2, 1))
    assert slow.store.usage(include_active=True)["llm_call_count"] == 1


def test_what_cannot_be_stored_is_dropped_alone(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """One span that the database takes offence at does not take the others of its transaction with it."""
    store = open_stores("memory://")

    def picky(call: Call) -> Usage:
        if call.usage.input_tokens == 666:
            raise RefusedValue("the database takes offence at 666")
        return price(call)

    ingest = ingest_of(store, price=picky)
    status, _, body = ingest.handle(
        "/v1/traces", call(2, 1) + call(3, 1, tokens=666) + call(4, 1) + call(5, 1), PROTOBUF, None
    )
    assert (status, ExportTraceServiceResponse.FromString(body).partial_success.rejected_spans) == (200, 1)
    assert store.usage(include_active=True)["llm_call_count"] == 3
    assert ingest.stop()
    assert store.scrape().counts["spans_rejected", "content"] == 1


def test_closing_lets_requests_between(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """While hundreds of runs close, a request is taken between any two transactions; it does not wait for the last."""
    taken: list[int] = []

    def pause(seconds: float) -> None:
        if len(taken) < 3:
            request = call(9, None, trace=(500 + len(taken)).to_bytes(16))
            taken.append(ingest.handle("/v1/traces", request, PROTOBUF, None)[0])

    ingest = ingest_of(store, pause=pause)
    post(ingest, b"".join(call(1, None, trace=number.to_bytes(16)) for number in range(1, 251)))
    ingest.close_runs(open_ids(store))
    assert taken == [200] * 3
    assert (store.usage()["total_runs"], len(open_ids(store))) == (250, 3)
    assert store.verify() == []


def test_counts_are_told_again_each_day(store: RunStore, ingest_of: Callable[..., Ingest]) -> None:
    """A sidecar that nobody sends to is not forgotten: what it counted would be counted again when it goes on."""
    now = [0.0]
    ingest = ingest_of(store, clock=lambda: now[0])
    ingest.refused(413)
    beats = []
    for seconds in (1.0, 10.0, REMIND_EVERY - 1, REMIND_EVERY + 2, REMIND_EVERY + 20):
        now[0] = seconds
        with ingest._writing:
            ingest._tell()
        beats.append(ingest._beat)
    assert beats == [1, 1, 1, 2, 2]


def test_stopping_answers_what_was_accepted(
    open_stores: Callable[..., RunStore], ingest_of: Callable[..., Ingest]
) -> None:
    """A request that waits when the sidecar stops becomes durable and is answered; later ones are to come again."""
    slow = Slow(open_stores("memory://"))
    ingest = ingest_of(slow)
    statuses: list[int] = []
    sender = threading.Thread(
        target=lambda: statuses.append(ingest.handle("/v1/traces", call(2, 1), PROTOBUF, None)[0])
    )
    sender.start()
    assert slow.entered.acquire(timeout=30)
    stopper = threading.Thread(target=ingest.stop)
    stopper.start()
    with ingest._changed:
        assert ingest._changed.wait_for(lambda: ingest._stopping, 30)
    assert ingest.handle("/v1/traces", call(3, 1), PROTOBUF, None)[0] == 503
    slow.gate.set()
    sender.join(30)
    stopper.join(30)
    assert statuses == [200]
    assert slow.store.usage(include_active=True)["llm_call_count"] == 1
