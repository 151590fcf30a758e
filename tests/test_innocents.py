"""Nobody waits for anybody: beside each attack on a real sidecar one who posts a span every 100 ms, one who scrapes and
asks, and an agent at door 1 are served as if they were alone, and everything settles within a minute of being due.

The bars are of seconds: a machine that is busy with something else misses them. `-s` shows how long each had to wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from sidecar_process import Sidecar
from sqlalchemy import text

from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF
from runmeter_exporter.store import RunStore

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

POST, POST_P99, READ, RECORD = 2.0, 0.5, 1.0, 1.0
"""Seconds at most: any POST, 99 of 100, any scrape or answer, any `record_usage`."""
CROWDED = 20.0
"""The same for a POST and `record_usage` while sender, sidecar and innocents share two cores, and one alone would take
all of them. The first bars are not held there yet: of 5,000 lookalikes the 99th POST of 100 took 2.1 s, of 60,000 calls
0.54 s. This one says that nobody stands still."""
SETTLED = 60.0
"""Seconds from being due until all is settled."""
GRACE = 2.0
MS = 10**6
BOTH = pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
AGENT = """
import json, sys, threading, time, runmeter
handle = runmeter.instrument(sys.argv[1], throttle=0, instrumentations=False)
leave = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), leave.set()), daemon=True).start()
waits = []
with runmeter.run(run_id="innocent agent"):
    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
    print("ready", flush=True)
    while not leave.wait(0.05):
        began = time.monotonic()
        runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
        waits.append(time.monotonic() - began)
handle.shutdown(60)
print(json.dumps(waits), flush=True)
"""


class Spans:
    """A request under construction: spans of one instrumentation."""

    def __init__(self, scope: str = "agents") -> None:
        self._request = ExportTraceServiceRequest()
        resource = self._request.resource_spans.add()
        resource.resource.attributes.add(key="service.name").value.string_value = "attack"
        self._scope = resource.scope_spans.add()
        self._scope.scope.name = scope

    def add(self, trace: int, span: int, parent: int | None, start: int, end: int, **said: str | int) -> Spans:
        """A span; `said` are its attributes, with `__` for dots."""
        made = self._scope.spans.add(
            trace_id=trace.to_bytes(16), span_id=span.to_bytes(8), parent_span_id=(parent or 0).to_bytes(8)
            if parent else b"", name="span", start_time_unix_nano=start, end_time_unix_nano=end,
        )  # fmt: skip
        for key, value in said.items():
            held = made.attributes.add(key=key.replace("__", ".")).value
            if isinstance(value, str):
                held.string_value = value
            else:
                held.int_value = value
        return self

    def call(self, trace: int, span: int, parent: int | None, start: int, lasted: int = 5 * MS, used: int = 9) -> Spans:
        """A model call of so many input tokens."""
        return self.add(
            trace, span, parent, start, start + lasted, gen_ai__operation__name="chat", gen_ai__provider__name="openai",
            gen_ai__request__model="gpt-5-mini", gen_ai__usage__input_tokens=used, gen_ai__usage__output_tokens=5,
        )  # fmt: skip

    def agent(self, trace: int, span: int, start: int, end: int, **said: str | int) -> Spans:
        """The span of a run that is over."""
        return self.add(trace, span, None, start, end, gen_ai__operation__name="invoke_agent", **said)

    @property
    def body(self) -> bytes:
        """The request."""
        return self._request.SerializeToString()


def post(url: str, body: bytes) -> int:
    """The status of one POST."""
    try:
        with urlopen(Request(url + "/v1/traces", body, {"Content-Type": PROTOBUF}), timeout=60) as answer:
            answer.read()
            return int(answer.status)
    except HTTPError as error:
        error.read()
        return error.code


def send(sidecar: Sidecar, bodies: Sequence[bytes]) -> None:
    """One request after the other, each again until it is taken, as an exporter does."""
    for body in bodies:
        while (status := post(sidecar.otlp_url, body)) != 200:
            assert status in (429, 503), status
            threading.Event().wait(0.5)


class Innocents:
    """Those who are beside an attack, and how long each had to wait."""

    TRACE = 0xA000_0000

    def __init__(self, sidecar: Sidecar) -> None:
        self._sidecar = sidecar
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(64)
        self._posts: list[Future[tuple[int, float]]] = []
        self._reads: list[tuple[str, float]] = []
        self._threads = [threading.Thread(target=work) for work in (self._post, self._read)]
        self._agent = subprocess.Popen(
            [sys.executable, "-c", AGENT, sidecar.database_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.calls = 0
        """Made through either door."""

    def __enter__(self) -> Innocents:
        assert self._agent.stdout is not None
        assert self._agent.stdout.readline() == "ready\n"
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._pool.shutdown()
        said, _ = self._agent.communicate(timeout=60)
        self._waits: list[float] = json.loads(said)
        self.calls = len(self._posts) + len(self._waits) + 1

    def _post(self) -> None:
        """Whether the one before was answered or not: who stands still makes all of them late, not only one."""
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            number = len(self._posts) + 1
            body = Spans("innocent").call(self.TRACE, number, None, time.time_ns(), used=100_000 + number).body
            self._posts.append(self._pool.submit(self._one, body, due))
            due += 0.1

    def _one(self, body: bytes, due: float) -> tuple[int, float]:
        status = post(self._sidecar.otlp_url, body)
        return status, time.monotonic() - due

    def _read(self) -> None:
        while not self._over.wait(0.1):
            for path in ("/metrics", "/api/usage", "/api/runs?limit=50"):
                began = time.monotonic()
                self._sidecar.get(path)
                self._reads.append((path, time.monotonic() - began))

    def check(self, attack: str, *, crowded: bool = False) -> None:
        """The bars."""
        posts = [job.result() for job in self._posts]
        took = sorted(seconds for _, seconds in posts)
        p99 = took[len(took) * 99 // 100]
        slowest = max(self._reads, key=lambda read: read[1])
        print(
            f"\n{attack}: {len(posts)} posts, p50 {took[len(took) // 2]:.3f} s, p99 {p99:.3f} s, longest "
            f"{took[-1]:.3f} s; longest answer {slowest[1]:.3f} s ({slowest[0]}), record_usage {max(self._waits):.3f} s"
        )
        assert {status for status, _ in posts} == {200}, attack
        assert took[-1] < (CROWDED if crowded else POST)
        assert p99 <= (CROWDED if crowded else POST_P99)
        assert slowest[1] < READ, slowest
        assert max(self._waits) < (CROWDED if crowded else RECORD)


def beside(
    url: str,
    name: str,
    attack: Callable[[Sidecar], None],
    open_stores: Callable[..., RunStore],
    *,
    crowded: bool = False,
) -> tuple[RunStore, int]:
    """Innocents beside the attack, until all of its runs are settled: the store when all have left, and how many calls
    of the attack it holds."""
    with Sidecar(url, "--grace", f"{GRACE}s") as sidecar:
        store = open_stores(url)
        with Innocents(sidecar) as innocents:
            attack(sidecar)
            due = time.monotonic() + GRACE
            while left := len(store.watch().runs) - 2:  # but for the two that are the innocents'
                assert time.monotonic() < due + SETTLED, f"{left} runs were not settled {SETTLED:g} s after being due"
                threading.Event().wait(0.25)
            print(f"\n{name}: settled {time.monotonic() - due:.1f} s after it was due")
        innocents.check(name, crowded=crowded)
        assert sidecar.stop() == 0
    assert store.verify() == []
    return store, store.usage(include_active=True)["llm_call_count"] - innocents.calls


def stored(url: str, open_stores: Callable[..., RunStore], bodies: Sequence[bytes]) -> None:
    """Requests that another sidecar took, which is no more."""
    ingest = Ingest(open_stores(url))
    for body in bodies:
        status, _, said = ingest.handle("/v1/traces", body, PROTOBUF, None)
        assert status == 200, said
    assert ingest.stop(60)


def ended_runs(count: int, now: int, first: int = 1) -> list[bytes]:
    """Requests of 1,000 runs, each an agent that made two calls."""
    bodies = []
    for start in range(first, first + count, 1_000):
        spans = Spans()
        for number in range(start, min(start + 1_000, first + count)):
            began = now - 60_000 * MS + number * MS
            spans.agent(number, 1, began, began + 40 * MS)
            spans.call(number, 2, 1, began + MS, used=number).call(number, 3, 1, began + 20 * MS, used=number)
        bodies.append(spans.body)
    return bodies


@BOTH
def test_thousands_of_runs_that_are_due_at_once(sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """5,000 runs of another sidecar, which this one finds when it starts, close in one minute."""
    stored(sql_url, open_stores, ended_runs(5_000, time.time_ns()))
    _, calls = beside(sql_url, "5,000 due", lambda sidecar: None, open_stores)
    assert calls == 10_000


def test_thousands_of_calls_that_look_alike(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Two traces in which two instrumentations tell of the same calls, which are all alike, sent by two at once."""
    count, now = 5_000, time.time_ns() - 60_000 * MS
    halves = []
    for trace, scope in ((1, "framework"), (2, "client")):
        bodies = []
        inner = MS // 10 if scope == "client" else 0
        for first in range(1, count + 1, 1_000):
            spans = Spans(scope)
            for number in range(first, first + 1_000):
                spans.call(trace, number + 1, 1, now + number * MS + inner, 5 * MS - 2 * inner)
            bodies.append(spans.body)
        end = now + (count + 10) * MS
        more = {"gen_ai__conversation__id": "attack"} if scope == "framework" else {}
        bodies.append(Spans(scope).agent(trace, 1, now + inner, end - inner, **more).body)
        halves.append(bodies)

    def attack(sidecar: Sidecar) -> None:
        with ThreadPoolExecutor(2) as senders:
            list(senders.map(lambda bodies: send(sidecar, bodies), halves))

    _, calls = beside(sqlite_url, f"{count:,} lookalikes twice", attack, open_stores, crowded=True)
    # An open fault: of calls that are equal in everything and overlap some stay apart where a portion ended between
    # their halves, 749 of 5,000 when this was written. None is lost.
    assert count <= calls < 1.5 * count


def test_one_run_of_very_many_calls(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """60,000 calls, 1,000 in a request, and then its end."""
    now = time.time_ns() - 120_000 * MS
    bodies = []
    for first in range(1, 60_001, 1_000):
        spans = Spans()
        for number in range(first, first + 1_000):
            spans.call(1, number + 1, 1, now + number * MS, used=number)
        bodies.append(spans.body)
    bodies.append(Spans().agent(1, 1, now, now + 61_000 * MS).body)
    _, calls = beside(sqlite_url, "60,000 calls", lambda sidecar: send(sidecar, bodies), open_stores, crowded=True)
    assert calls == 60_000


def test_calls_that_move_between_runs(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """3,000 calls whose 30 parents come one by one, each naming another run, and 3,000 more that follow the last."""
    now = time.time_ns() - 60_000 * MS
    bodies = []
    for first in range(0, 6_000, 1_000):
        spans = Spans()
        for number in range(first, first + 1_000):
            parent = 1 + number // 100 if number < 3_000 else 100
            spans.call(1, 1_000 + number, parent, now + number * MS, used=number)
        bodies.append(spans.body)
    for parent in [*range(1, 31), 100]:
        bodies.append(Spans().agent(1, parent, now, now + 7_000 * MS, runmeter__run__id=f"moved to {parent}").body)
    store, calls = beside(sqlite_url, "moving calls", lambda sidecar: send(sidecar, bodies), open_stores, crowded=True)
    assert calls == 6_000
    assert [store.run(f"moved to {number}")["llm_call_count"] for number in (1, 30, 100)] == [100, 100, 3_000]


def test_many_who_send_very_much(sqlite_url: str, open_stores: Callable[..., RunStore]) -> None:
    """Eight senders of 8,192 spans each at once."""
    now = time.time_ns() - 60_000 * MS
    bodies = []
    for sender in range(1, 9):
        spans = Spans()
        for number in range(8_192):
            trace, place = sender * 1_000 + number // 64, number % 64
            if place:
                spans.call(trace, place + 1, 1, now + number * MS, used=number)
            else:
                spans.agent(trace, 1, now, now + 9_000 * MS)
        bodies.append(spans.body)

    def attack(sidecar: Sidecar) -> None:
        with ThreadPoolExecutor(8) as senders:
            list(senders.map(lambda body: send(sidecar, [body]), bodies))

    _, calls = beside(sqlite_url, "8 senders of 8,192", attack, open_stores, crowded=True)
    assert calls == 8 * 8_192 * 63 // 64


@pytest.mark.parametrize("what", ["sources", "reading"])
def test_a_run_that_cannot_be_closed_holds_nobody(
    sqlite_url: str, what: str, open_stores: Callable[..., RunStore]
) -> None:
    """A row that somebody broke by hand, amid 300 runs that are due."""
    now = time.time_ns()
    stored(sqlite_url, open_stores, ended_runs(300, now))
    store = open_stores(sqlite_url)
    broken = f"{150:032x}"
    with store.engine.begin() as connection:  # type: ignore[attr-defined]
        if what == "sources":
            connection.execute(text("UPDATE runs SET sources = '{' WHERE run_id = :run_id"), {"run_id": broken})
        else:
            connection.execute(text("UPDATE spans SET reading = x'5b' WHERE trace_id = :id AND reading IS NOT NULL"),
                               {"id": (150).to_bytes(16)})  # fmt: skip
    with Sidecar(sqlite_url, "--grace", f"{GRACE}s") as sidecar:
        with Innocents(sidecar) as innocents:
            due = time.monotonic() + GRACE
            while store.usage()["total_runs"] < 299:
                assert time.monotonic() < due + SETTLED, store.usage()["total_runs"]
                threading.Event().wait(0.25)
        innocents.check(f"a broken {what}")
        assert sidecar.stop() == 0
