"""Every recording through door 2, in pieces, in any order, again and again, gives what the provider answered."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest
from doors import Counted, door2, unpriced
from otlp_files import Recording, recordings
from otlp_requests import apart, difference, post, usage_of
from test_otlp import as_json
from test_recordings import CANNOT, wrong

from runmeter_exporter.http.server import Server
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import JSON, PROTOBUF
from runmeter_exporter.store import RunStore
from runmeter_exporter.web.app import create_otlp_app

CASES = {recording.name: recording for recording in recordings()}
Open = Callable[..., RunStore]


@pytest.fixture
def ingest_of() -> Iterator[Callable[[RunStore], Ingest]]:
    """`Ingest` over a store, stopped when the test ends."""
    made: list[Ingest] = []

    def making(store: RunStore) -> Ingest:
        made.append(Ingest(store, price=unpriced))
        return made[-1]

    yield making
    for ingest in made:
        assert ingest.stop()


def judge(recording: Recording, told: tuple[Counted, Counted], how: str) -> None:
    """The answers equal the truth while runs are active and when they have settled, but for what cannot be right."""
    expected, reason = CANNOT.get(recording.name, ("", ""))
    for when, got in zip(("live", "settled"), told, strict=True):
        found = ", ".join(wrong(recording, got))
        assert found == expected, f"{recording.name}, {how}, {when}: wrong: {found}; {reason} ({got.totals})"


def arrangements(request: bytes) -> dict[str, list[bytes]]:
    """The same spans as they may arrive."""
    pieces = apart(request)
    shuffled = list(pieces)
    random.Random(len(request)).shuffle(shuffled)
    return {
        "as one request": [request],
        "one span a request": pieces,
        "reversed": pieces[::-1],
        "shuffled": shuffled,
        "everything twice": [request, *pieces, request],
    }


@pytest.mark.parametrize("name", CASES)
def test_a_recording_however_it_arrives(name: str, open_stores: Open, ingest_of: Callable[[RunStore], Ingest]) -> None:
    """One request, a request for each span, reversed, shuffled, all of it twice: the truth each time."""
    recording = CASES[name]
    for how, requests in arrangements(recording.path.read_bytes()).items():
        store = open_stores("memory://")
        ingest = ingest_of(store)

        def send(_: int, request: bytes, ingest: Ingest = ingest) -> Ingest:
            post(ingest, request)
            return ingest

        judge(recording, door2(store, requests, send), how)
        assert store.verify() == []


def test_every_recording_over_http(open_stores: Open, sqlite_url: str, ingest_of: Callable[[RunStore], Ingest]) -> None:
    """Posted to a running server over one connection, as protobuf and as JSON, gzipped, deflated and as they are."""
    store = open_stores(sqlite_url)
    ingest = ingest_of(store)
    server = Server(create_otlp_app(ingest, allowed_hosts=("127.0.0.1",)), "127.0.0.1", 0)
    server.start()
    encode = {"gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}
    ways = itertools.cycle(itertools.product((PROTOBUF, JSON), encode))
    connection = HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    for recording, (content_type, encoding) in zip(CASES.values(), ways, strict=False):

        def send(_: int, request: bytes, content_type: str = content_type, encoding: str = encoding) -> Ingest:
            body = encode[encoding](as_json(request) if content_type == JSON else request)
            headers = {"Content-Type": content_type, "Content-Encoding": encoding}
            connection.request("POST", "/v1/traces", body, headers)
            answer = connection.getresponse()
            assert (answer.status, answer.headers["Content-Type"]) == (200, content_type)
            assert answer.read() == (b"{}" if content_type == JSON else b"")
            return ingest

        answers = door2(store, [recording.path.read_bytes()], send)
        judge(recording, answers, f"{content_type}, {encoding}")
    connection.close()
    server.stop()
    assert store.verify() == []


def test_every_recording_with_a_restart_between_any_two_requests(
    open_stores: Open, sqlite_url: str, ingest_of: Callable[[RunStore], Ingest]
) -> None:
    """A sidecar that starts anew for each request knows from the ledger all that the one before it knew."""
    store = open_stores(sqlite_url)
    for recording in CASES.values():
        requests = apart(recording.path.read_bytes())
        random.Random(len(requests)).shuffle(requests)

        def send(_: int, request: bytes) -> Ingest:
            ingest = ingest_of(store)  # remembers nothing of the one before
            post(ingest, request)
            assert ingest.stop()
            return ingest

        judge(recording, door2(store, requests, send), "restarted")
    assert store.verify() == []


def test_two_sidecars_take_alternate_requests(
    open_stores: Open, postgres_url: str, ingest_of: Callable[[RunStore], Ingest]
) -> None:
    """Two sidecars on one PostgreSQL, each with half of every trace, are one service."""
    stores = open_stores(postgres_url), open_stores(postgres_url)
    ingests = [ingest_of(store) for store in stores]
    for recording in CASES.values():

        def send(number: int, request: bytes) -> Ingest:
            post(ingests[number % 2], request)
            return ingests[(number + 1) % 2]

        answers = door2(stores[0], apart(recording.path.read_bytes())[::-1], send)
        judge(recording, answers, "two sidecars")
    assert stores[0].verify() == []


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_eight_concurrent_senders(open_stores: Open, sql_url: str, ingest_of: Callable[[RunStore], Ingest]) -> None:
    """Eight senders post the spans of many recordings at once through two sidecars, each span twice, in any order."""
    stores = open_stores(sql_url), open_stores(sql_url)
    ingests = [ingest_of(store) for store in stores]
    chosen = [case for name, case in sorted(CASES.items()) if name not in CANNOT][::6]
    requests = [request for case in chosen for request in apart(case.path.read_bytes())] * 2
    random.Random(8).shuffle(requests)
    with ThreadPoolExecutor(8) as senders:
        list(senders.map(lambda item: post(ingests[item[0] % 2], item[1]), enumerate(requests)))
    ingests[0].close_runs([run.run_id for run in stores[1].watch().runs])
    total = usage_of(stores[0].usage())
    calls = sum(case.truth["llm_calls"] + case.truth.get("embedding_calls", 0) for case in chosen)
    tokens = sum(case.truth["input_tokens"] + case.truth.get("embedding_input_tokens", 0) for case in chosen)
    assert (total.calls, total.input_tokens) == (calls, tokens)
    assert total.output_tokens == sum(case.truth["output_tokens"] for case in chosen)
    assert stores[0].verify() == []


@pytest.mark.parametrize("name", CASES)
def test_a_grace_that_runs_out_in_the_middle(
    name: str, open_stores: Open, ingest_of: Callable[[RunStore], Ingest]
) -> None:
    """However often the runs close between two requests, settled totals never fall, and never exceed the truth."""
    recording = CASES[name]
    store = open_stores("memory://")
    ingest = ingest_of(store)
    settled = usage_of(store.usage())
    for request in apart(recording.path.read_bytes()):
        post(ingest, request)
        ingest.close_runs([run.run_id for run in store.watch().runs])
        now = usage_of(store.usage())
        difference(now, settled)
        settled = now
    truth = recording.truth
    if not CANNOT.get(name):
        assert settled.input_tokens <= truth["input_tokens"] + truth.get("embedding_input_tokens", 0)
        assert settled.output_tokens <= truth["output_tokens"]
    assert store.verify() == []


def test_mutated_requests_harm_nothing(
    open_stores: Open, sqlite_url: str, ingest_of: Callable[[RunStore], Ingest]
) -> None:
    """Whatever is done to requests, they are taken or refused as bad, and what was stored before stays as it was."""
    store = open_stores(sqlite_url)
    ingest = ingest_of(store)
    cases = [case for case in CASES.values() if case.path.stat().st_size]
    kept = cases[0].path.read_bytes()
    post(ingest, kept)
    ids = [run.run_id for run in store.watch().runs]
    ingest.close_runs(ids)
    before = [store.run(run_id) for run_id in ids]
    draw = random.Random(4)
    statuses = set()
    for _ in range(600):
        body = bytearray(draw.choice(cases[1:]).path.read_bytes())
        for _ in range(draw.randrange(1, 9)):
            at = draw.randrange(len(body))
            body[at : at + draw.choice((0, 1, 9))] = draw.randbytes(draw.choice((0, 1, 4)))
        statuses.add(ingest.handle("/v1/traces", bytes(body), PROTOBUF, draw.choice((None, None, None, "gzip")))[0])
    assert statuses == {200, 400}
    ingest.close_runs([run.run_id for run in store.watch().runs])
    assert [store.run(run_id) for run_id in ids] == before
    assert store.verify() == []
