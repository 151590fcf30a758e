"""Hostile clients against a real server: each gets a clear refusal or nothing, and everybody else is served.

Memory is measured over the whole process, the attackers' side included, so the bounds are generous.
"""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.client import HTTPException
from typing import Any

import psutil
import pytest
from http_kit import Answer, ask, closed, connect, read_answer, read_answers, request_bytes, send, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs_kit import snapshot

from runmeter_exporter.http.server import Server
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.web.app import create_app, create_otlp_app

MB = 2**20


class Counting:
    """An ingest that counts bytes."""

    def __init__(self) -> None:
        self.taken = 0

    def handle(self, path: str, body: bytes, content_type: str, content_encoding: str) -> tuple[int, Any, bytes]:
        self.taken += len(body)
        return 200, {"Content-Type": "application/json"}, b"{}"


@pytest.fixture
def otlp() -> Iterator[Server]:
    with serving(create_otlp_app(Counting())) as server:
        yield server


@pytest.fixture
def rest() -> Iterator[Server]:
    store = MemoryRunStore()
    store.write([snapshot(f"r{n}", number=n) for n in range(100)])
    with serving(create_app(store, scraper=Scraper(store))) as server:
        yield server


def served(server: Server) -> bool:
    """Another client gets its answer, from the workers that the attacked path has, too."""
    return ask(server, "/nothing").status == 404


class Growth:
    """How much memory the process took, in MB, while the block ran."""

    def __enter__(self) -> Growth:
        self._process = psutil.Process()
        self._before = self._process.memory_info().rss
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = (self._process.memory_info().rss - self._before) / MB


# Requests that lie about their size


@pytest.mark.parametrize("length", [50 * 10**9, 2**63, 10**4000])
def test_an_absurd_content_length_is_refused_at_once(otlp: Server, length: int) -> None:
    """Before any of the body is sent, and without room being made for it."""
    with Growth() as growth:
        answer = send(otlp, request_bytes("/v1/traces", "POST", {"Content-Length": str(length)}) + b"x")
        assert answer.status == 413
        assert served(otlp)
    assert growth.megabytes < 50


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "1,1", "5, 5", "٣", "", "9" * 5000])
def test_a_content_length_that_is_no_number_is_refused(otlp: Server, length: str) -> None:
    """400 (413 where it is a number after all), and the bytes behind it are not taken for a request."""
    head = f"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()
    with connect(otlp) as sock:
        sock.sendall(head + b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert read_answer(sock).status in (400, 413)
        assert closed(sock)
    assert served(otlp)


def test_two_lengths_and_chunks_with_a_length_are_not_smuggled(otlp: Server) -> None:
    """A request whose end can be read in two ways is refused, or read in the one way of RFC 9112."""
    two = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 40\r\n\r\nabc"
    assert send(otlp, two).status == 400
    for coding in (b"gzip, chunked", b"identity", b"chunked, identity", b"xchunked", b"chunked\x0b"):
        head = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: " + coding + b"\r\n\r\n0\r\n\r\n"
        assert send(otlp, head).status in (400, 501)
    with connect(otlp) as sock:
        head = request_bytes("/v1/traces", "POST", {"Content-Length": "60", "Transfer-Encoding": "chunked"})
        sock.sendall(head + b"0\r\n\r\n" + request_bytes("/-/nothing"))
        assert [answer.status for answer in read_answers(sock, 2)] == [200, 404]


def test_a_header_of_a_megabyte_is_refused(otlp: Server) -> None:
    """431, whether it is one header, many, or the target; the client that has sent it all reads the refusal."""
    for content in (
        request_bytes("/-/healthy", headers={"X-Long": "x" * MB}),
        request_bytes("/-/healthy", headers={f"X-{n}": "x" * 50 for n in range(20_000)}),
        request_bytes("/" + "x" * MB),
        b"x" * MB,
    ):
        answer = send(otlp, content)
        assert (answer.status, answer.headers["Content-Type"]) == (431, "application/problem+json")
    assert served(otlp)


# Chunked junk


@pytest.mark.parametrize(
    "junk",
    [
        b"A" * (4 * MB),
        b"5;" + b"x" * (4 * MB),
        b"0\r\n" + b"X: y\r\n" * (MB // 2),
        b"3\r\nabcdef\r\n",
        b"-1\r\n",
        b"zz\r\n",
        b"1 \r\na\r\n",
        b"ffffffffffffffffffffffff\r\n" + b"x" * (24 * MB),
        b"3\r\nabc" + b"A" * (4 * MB),
    ],
    ids=[
        "no end",
        "endless extension",
        "endless trailer",
        "too long",
        "negative",
        "no hex",
        "space",
        "huge",
        "no crlf",
    ],
)
def test_chunked_junk_is_refused_before_it_is_collected(otlp: Server, junk: bytes) -> None:
    """A chunk size or trailer without an end is refused after a few kB: collecting it would take quadratic time in the
    thread that reads for everybody."""
    with Growth() as growth, connect(otlp) as sock:
        sock.sendall(request_bytes("/v1/traces", "POST", {"Transfer-Encoding": "chunked"}))
        sender = threading.Thread(target=send_all, args=(sock, junk))
        sender.start()
        assert served(otlp)
        assert read_answer(sock).status in (400, 413)
        sender.join()
    assert growth.megabytes < 60


def send_all(sock: socket.socket, content: bytes) -> None:
    """Send until the other side has had enough."""
    try:
        sock.sendall(content)
    except OSError:
        pass


# Targets


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://[ HTTP/1.1",
        b"GET http://[::1 HTTP/1.1",
        b"GET //[ HTTP/1.1",
        b"GET",
        b"/ HTTP/1.1",
        b"get / HTTP/1.1",
        b"GET / HTTP/1.1 x",
        b"GET /\x00 HTTP/1.1",
        b"GET /\xff\xfe HTTP/1.1",
        b"GET /api/runs/\xff HTTP/1.1",
        b"GET /%00%01%ff HTTP/1.1",
        b"GET " + b"/%2e%2e" * 1000 + b" HTTP/1.1",
        b"GET " + b"/" * 20_000 + b" HTTP/1.1",
        b"CONNECT evil.example:443 HTTP/1.1",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00" * 100,
    ],
)
def test_a_hostile_request_line_is_answered_with_an_error(rest: Server, line: bytes) -> None:
    """A 4xx or 5xx problem document and no traceback, and the server goes on."""
    answer = send(rest, line + b"\r\nHost: localhost\r\n\r\n")
    assert 400 <= answer.status < 600
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert b"Traceback" not in answer.body
    assert served(rest)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300), st.booleans())
def test_any_bytes_get_an_answer_or_a_closed_connection(rest: Server, junk: bytes, framed: bool) -> None:
    """Whatever is sent, as a whole request or within one, the next client is served."""
    content = b"GET /" + junk + b" HTTP/1.1\r\nHost: localhost\r\n\r\n" if framed else junk + b"\r\n\r\n"
    with connect(rest) as sock:
        sock.sendall(content)
        sock.shutdown(socket.SHUT_WR)
        received = b""
        while part := sock.recv(65536):
            received += part
    assert received == b"" or received.startswith(b"HTTP/1.")
    assert served(rest)


# Questions


def test_huge_pages_cursors_and_questions_are_refused(rest: Server) -> None:
    """400 (or 431) in a sentence, never an answer of unbounded size."""
    for path in (
        "/api/runs?limit=1000000000",
        "/api/runs?cursor=" + "A" * 20_000,
        "/api/runs?cursor=" + "W1tb" * 200,
        "/api/usage/daily?group_by=" + "tag.x," * 3000,
        "/api/runs?" + "&".join(f"a{n}=1" for n in range(3000)),
        "/api/threads/" + "%F0%9F%99%82" * 5000 + "/token-usage",
        "/api/runs?thread_id=" + "x" * 60_000,
    ):
        answer = ask(rest, path)
        assert answer.status in (400, 431), path[:60]
        assert len(answer.body) < 2000


# Many


def test_500_idle_connections_keep_nobody_out(otlp: Server) -> None:
    """A client that comes after them is served."""
    with ExitStack() as stack, Growth() as growth:
        for _ in range(500):
            stack.enter_context(connect(otlp))
        assert served(otlp)
        assert ask(otlp, "/v1/traces", "POST", body=b"x" * MB).status == 200
    assert growth.megabytes < 100


@pytest.mark.parametrize(
    "half",
    [
        b"GET / HTTP/1.1\r\nHost: local",
        request_bytes("/v1/traces", "POST", {"Content-Length": "1000000"}) + b"x" * 1000,
    ],
    ids=["headers", "body"],
)
def test_300_slow_requests_keep_nobody_out(half: bytes) -> None:
    """Workers are taken only by whole requests; the slow ones get 408 in the end."""
    with serving(create_otlp_app(Counting()), idle_timeout=2) as otlp, ExitStack() as stack:
        slow = [stack.enter_context(connect(otlp)) for _ in range(300)]
        for sock in slow:
            sock.sendall(half)
        assert served(otlp)
        assert {read_answer(sock).status for sock in slow} == {408}
        assert served(otlp)


def test_a_crowd_at_the_connection_limit_is_thinned_out() -> None:
    """When nearly all connections are taken by clients who send nothing, they are closed long before their time, so
    that somebody with a request gets in."""
    now = [0.0]
    app = create_otlp_app(Counting())
    with serving(app, connection_limit=50, idle_timeout=1000, clock=lambda: now[0]) as otlp, ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(otlp))
        late = stack.enter_context(connect(otlp))
        late.sendall(request_bytes("/-/healthy"))
        for _ in range(100):
            now[0] += 6  # past CROWDED_WAIT and the interval of sweeps, far from idle_timeout
            late.settimeout(1)
            try:
                assert read_answer(late).status == 200
                break
            except TimeoutError:
                continue
        else:
            pytest.fail("a request waited behind idle connections")


@pytest.mark.chaos
def test_chunked_junk_of_a_hundred_clients(otlp: Server) -> None:
    """A hundred at once do not slow the others to a stop nor fill the memory."""
    junk = b"A" * (20 * MB)

    def attack(_: int) -> int:
        with connect(otlp) as sock:
            sock.sendall(request_bytes("/v1/traces", "POST", {"Transfer-Encoding": "chunked"}))
            send_all(sock, junk)
            try:
                return read_answer(sock).status
            except OSError:
                return 0

    with Growth() as growth, ThreadPoolExecutor(20) as pool:
        attacks = [pool.submit(attack, n) for n in range(100)]
        while not all(one.done() for one in attacks):
            assert served(otlp)
        assert {one.result() for one in attacks} <= {0, 400}
    assert growth.megabytes < 100


@pytest.mark.chaos
def test_many_large_bodies_at_once_stay_out_of_memory() -> None:
    """200 bodies of 19 MB that never end wait in files, not in memory."""
    with Growth() as growth, serving(create_otlp_app(Counting())) as otlp, ExitStack() as stack:
        head = request_bytes("/v1/traces", "POST", {"Content-Length": str(20 * MB)})
        piece = b"x" * (2 * MB)
        for _ in range(200):
            sock = stack.enter_context(connect(otlp))
            sock.sendall(head + piece)
        assert served(otlp)
    assert growth.megabytes < 100


@pytest.mark.chaos
def test_answers_that_nobody_reads_keep_nobody_out() -> None:
    """100 clients ask for the largest page and read nothing."""
    store = MemoryRunStore()
    store.write([snapshot(f"{n:0256}", number=n) for n in range(500)])
    with Growth() as growth, serving(create_app(store), idle_timeout=2) as rest, ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect(rest.address)
            sock.sendall(request_bytes("/api/runs?limit=500"))
        assert ask(rest, "/api/usage").status == 200
    assert growth.megabytes < 150


@pytest.mark.chaos
def test_a_flood_of_distinct_threads_leaves_nothing_behind(rest: Server) -> None:
    """4,000 ids that nobody knows are answered with zeros and are not remembered."""

    def flood(part: int) -> set[int]:
        statuses = set()
        with connect(rest) as sock:
            for n in range(500):
                sock.sendall(request_bytes(f"/api/threads/{part}-{n}-{'x' * 200}/token-usage"))
                statuses.add(read_answer(sock).status)
        return statuses

    flood(99)
    with Growth() as growth, ThreadPoolExecutor(8) as pool:
        assert set().union(*pool.map(flood, range(8))) == {200}
    assert growth.megabytes < 30
    assert ask(rest, "/api/threads").json["threads"][0]["thread_id"] == "t"


def test_a_compressed_bomb_is_handed_on_as_it_came(otlp: Server) -> None:
    """The server never inflates: the ingest does, to its own limit, so 1 GB of zeros is the megabyte it came as."""
    bomb = gzip.compress(bytes(64 * MB), 9)
    with Growth() as growth:
        assert ask(otlp, "/v1/traces", "POST", {"Content-Encoding": "gzip"}, bomb).status == 200
    assert growth.megabytes < 30


def test_requests_during_shutdown_are_answered_or_refused_but_never_left_waiting(rest: Server) -> None:
    """While the server stops, each client gets a whole answer or a closed connection."""

    def client(n: int) -> Answer | None:
        try:
            return ask(rest, f"/api/runs/r{n}")
        except (OSError, HTTPException):  # the connection ended
            return None

    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(client, n % 100) for n in range(400)]
        answers[20].result()
        assert rest.stop(20) is True
        found = [one.result() for one in answers]
    assert all(answer is None or (answer.status == 200 and answer.json) for answer in found)
    assert sum(answer is not None for answer in found) >= 20
