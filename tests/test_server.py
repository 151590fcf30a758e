"""`Server` on real sockets: where it listens, what it refuses before the application, and how it ends."""

from __future__ import annotations

import logging
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from http_kit import PATIENCE, ask, closed, connect, read_answer, read_answers, request_bytes, send, serving

from runmeter_exporter.http.server import ListenError, Server


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answers with the body it got."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


class Gate:
    """An application that answers only once it is let through."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.entered.release()
        self.open.wait(20)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"done"]


def test_port_zero_takes_a_free_port_and_says_which() -> None:
    """The address names the port that answers."""
    with serving(echo) as server:
        assert server.address[1] > 0
        assert server.url == f"http://127.0.0.1:{server.address[1]}"
        assert ask(server, "/", "POST", body=b"hello").body == b"hello"


def test_a_taken_port_is_said_plainly() -> None:
    """The error names the address and what to do, before anything is served."""
    with serving(echo) as server, pytest.raises(ListenError) as error:
        Server(echo, *server.address)
    assert f"127.0.0.1:{server.address[1]}" in str(error.value)
    assert "another program listens there" in str(error.value)


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("no.such.host.invalid", 0, "no name or address"),
        ("192.0.2.1", 0, "no such address"),
        ("127.0.0.1", 70000, "70000"),
    ],
)
def test_an_address_that_is_not_ours_is_an_error(host: str, port: int, why: str) -> None:
    """Names that do not resolve, addresses of other machines and ports that do not exist are named in the error."""
    with pytest.raises(ListenError, match=why):
        Server(echo, host, port)


def test_ipv6_loopback_is_served() -> None:
    """`::1` is listened on, and its URL has brackets."""
    try:
        server = Server(echo, "::1")
    except ListenError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with server:
        assert server.url == f"http://[::1]:{server.address[1]}"
        assert ask(server, "/", "POST", body=b"six").body == b"six"


def test_connections_are_kept_alive() -> None:
    """Several requests go over one connection, also when they are sent before the first answer came."""
    with serving(echo) as server, connect(server) as sock:
        sock.sendall(request_bytes("/", "POST", body=b"one") + request_bytes("/", "POST", body=b"two"))
        assert [answer.body for answer in read_answers(sock, 2)] == [b"one", b"two"]
        sock.sendall(request_bytes("/", "POST", body=b"three"))
        assert read_answer(sock).body == b"three"


def test_the_server_does_not_say_what_it_is() -> None:
    """No Server header: versions are of use to attackers alone."""
    with serving(echo) as server:
        assert "Server" not in ask(server, "/").headers


def test_a_failing_application_is_a_problem_document(caplog: pytest.LogCaptureFixture) -> None:
    """What escapes from the application is answered with 500 without a word of it, and the next request is served."""

    def broken(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/broken":
            raise RuntimeError("a secret detail")
        return echo(environ, start_response)

    with serving(broken) as server, caplog.at_level(logging.CRITICAL, "waitress"):
        answer = ask(server, "/broken")
        assert answer.status == 500
        assert answer.json["status"] == 500
        assert b"secret" not in answer.body
        assert ask(server, "/fine").status == 200


def test_a_body_beyond_the_limit_is_refused_and_the_sender_reads_why() -> None:
    """A client that has sent its whole body before it reads still gets the 413: the rest is read and thrown away."""
    refused: list[int] = []
    with serving(echo, body_limit=100_000, on_refused=refused.append) as server:
        answer = ask(server, "/", "POST", body=b"x" * 5_000_000)
        assert (answer.status, answer.headers["Content-Type"]) == (413, "application/problem+json")
        assert "100000 bytes" in answer.json["detail"]
        assert ask(server, "/", "POST", body=b"x" * 100_000).status == 200
    assert refused == [413]


def test_a_chunked_body_beyond_the_limit_is_refused() -> None:
    """The limit holds for bodies that do not say how long they are."""
    chunk = b"%x\r\n%s\r\n" % (50_000, b"x" * 50_000)
    with serving(echo, body_limit=100_000) as server:
        answer = send(server, request_bytes("/", "POST", {"Transfer-Encoding": "chunked"}) + chunk * 3)
    assert answer.status == 413


def test_headers_beyond_the_limit_are_refused() -> None:
    """431, as a problem document with the limit."""
    with serving(echo, header_limit=8192) as server:
        answer = ask(server, "/", headers={"X-Long": "x" * 10_000})
    assert (answer.status, answer.json["title"]) == (431, "Request Header Fields Too Large")
    assert "8192 bytes" in answer.json["detail"]


def test_expect_continue_is_answered_only_when_the_body_is_wanted() -> None:
    """A body within the limit is asked for; one beyond it is refused before it is sent."""
    with serving(echo, body_limit=1000) as server:
        with connect(server) as sock:
            sock.sendall(request_bytes("/", "POST", {"Expect": "100-continue", "Content-Length": "3"}))
            assert sock.recv(100).startswith(b"HTTP/1.1 100 ")
            sock.sendall(b"abc")
            assert read_answer(sock).body == b"abc"
        with connect(server) as sock:
            sock.sendall(request_bytes("/", "POST", {"Expect": "100-continue", "Content-Length": "1001"}))
            assert sock.recv(13).startswith(b"HTTP/1.1 413 ")
        with connect(server) as sock:
            sock.sendall(request_bytes("/", headers={"Expect": "100-continue"}))
            assert read_answer(sock).status == 200


def test_a_request_that_does_not_arrive_in_time_gets_408() -> None:
    """A client that stops half-way is told so and disconnected, whether in the headers or in the body."""
    with serving(echo, idle_timeout=0.2) as server:
        for half in (b"GET / HTTP/1.1\r\nHost: loc", request_bytes("/", "POST", {"Content-Length": "9"}) + b"x"):
            with connect(server) as sock:
                sock.sendall(half)
                assert read_answer(sock).status == 408
                assert closed(sock)


def test_a_request_that_drips_is_cut_at_its_deadline() -> None:
    """A byte now and then does not keep a connection: the whole request has a deadline of its own."""
    with serving(echo, idle_timeout=5, request_timeout=0.3) as server, connect(server) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n")
        sock.settimeout(0.02)
        for _ in range(1000):
            try:
                sock.sendall(b"X")
                if sock.recv(12).endswith(b" 408"):
                    break
            except TimeoutError:
                continue
        else:
            pytest.fail("the connection was still open after 20 seconds of dripping")


def test_an_idle_connection_is_closed() -> None:
    """A connection without a request ends silently after the idle timeout."""
    with serving(echo, idle_timeout=0.2) as server, connect(server) as sock:
        assert closed(sock)


def test_a_request_that_waited_for_our_turn_is_not_too_late() -> None:
    """Bytes that came in time are answered, however late this process got around to read them."""
    now = [0.0]
    server = Server(echo, idle_timeout=10, clock=lambda: now[0])
    with connect(server) as whole, connect(server) as half:
        server._turn(PATIENCE)
        server._turn(0)
        assert server.connections == 2
        half.sendall(b"GET / HTTP/1.1\r\nHost: ")
        server._turn(PATIENCE)
        whole.sendall(request_bytes("/"))
        half.sendall(b"localhost\r\n\r\n")
        now[0] += 11
        with server:
            assert read_answer(whole).status == 200
            assert read_answer(half).status == 200


def test_an_answer_that_nobody_reads_frees_its_worker() -> None:
    """A client that asks for much and reads nothing is disconnected, and the only worker serves the next one."""
    written = threading.Event()

    def large(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/small":
            return [b"small"]

        def content() -> Any:
            try:
                for _ in range(64):
                    yield b"x" * 2**20
            finally:
                written.set()

        return content()

    with serving(large, threads=1, idle_timeout=0.5) as server, connect(server) as sock:
        sock.sendall(request_bytes("/large"))
        assert written.wait(PATIENCE)
        assert ask(server, "/small").body == b"small"


def test_more_clients_than_the_limit_wait_their_turn() -> None:
    """Beyond the connection limit a client is not turned away: it is served when another leaves."""
    with serving(echo, connection_limit=16) as server:
        first = [connect(server) for _ in range(16)]
        for sock in first:
            sock.sendall(request_bytes("/", "POST", body=b"in"))
            assert read_answer(sock).body == b"in"
        with connect(server) as late:
            late.sendall(request_bytes("/", "POST", body=b"late"))
            first.pop().close()
            assert read_answer(late).body == b"late"
        for sock in first:
            sock.close()


def test_probes_and_scrapes_have_workers_of_their_own() -> None:
    """When every worker waits for a store that hangs, the process is still seen to live, and scraped."""
    gate = Gate()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return gate(environ, start_response) if environ["PATH_INFO"] == "/api/usage" else echo(environ, start_response)

    with serving(app, threads=2) as server, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(ask, server, "/api/usage") for _ in range(4)]
        for _ in range(2):
            assert gate.entered.acquire(timeout=20)
        for path in ("/-/healthy", "/-/ready", "/metrics", "/metrics?include_active=true"):
            assert ask(server, path).status == 200
        gate.open.set()
        assert [one.result().body for one in waiting] == [b"done"] * 4


def test_stop_answers_what_it_accepted() -> None:
    """A request being answered when the server stops gets its whole answer, which says that the connection ends."""
    gate = Gate()
    server = Server(gate).start()
    with connect(server) as sock, ThreadPoolExecutor(1) as pool:
        sock.sendall(request_bytes("/"))
        assert gate.entered.acquire(timeout=20)
        stopping = pool.submit(server.stop, 20)
        while True:  # until nobody is let in any more
            try:
                socket.create_connection(server.address, timeout=20).close()
            except OSError:
                break
        gate.open.set()
        answer = read_answer(sock)
        assert (answer.status, answer.body, answer.headers["Connection"]) == (200, b"done", "close")
        assert stopping.result(20) is True


def test_stop_answers_requests_still_in_the_kernel() -> None:
    """Clients that had connected and sent their request before the stop are answered, though nobody had read it yet."""
    server = Server(echo).start()
    socks = [connect(server) for _ in range(60)]
    for number, sock in enumerate(socks):
        sock.sendall(request_bytes("/", "POST", body=b"%d" % number))
    assert server.stop(20) is True
    assert [read_answer(sock).body for sock in socks] == [b"%d" % number for number in range(60)]
    for sock in socks:
        sock.close()


def test_stop_waits_for_a_request_that_is_arriving() -> None:
    """Half a request is not lost: its rest is waited for."""
    server = Server(echo).start()
    with connect(server) as sock, ThreadPoolExecutor(1) as pool:
        content = request_bytes("/", "POST", body=b"all of it")
        sock.sendall(content[:-4])
        assert ask(server, "/").status == 200  # so the loop has read ours, which came before
        stopping = pool.submit(server.stop, 20)
        sock.sendall(content[-4:])
        assert read_answer(sock).body == b"all of it"
        assert stopping.result(20) is True


def test_stop_does_not_wait_for_idle_connections() -> None:
    """A client that only keeps its connection open is disconnected at once."""
    server = Server(echo).start()
    with connect(server) as sock:
        sock.sendall(request_bytes("/"))
        assert read_answer(sock).status == 200
        assert server.stop(20) is True
        assert closed(sock)


def test_stop_gives_up_at_its_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """A request that is never answered costs the timeout, and is reported."""
    gate = Gate()
    server = Server(gate).start()
    with connect(server) as sock:
        sock.sendall(request_bytes("/"))
        assert gate.entered.acquire(timeout=20)
        with caplog.at_level(logging.WARNING, "runmeter.http"):
            assert server.stop(0.2) is False
        assert "1 connections not answered in time" in caplog.text
        gate.open.set()


def test_stop_writes_to_no_descriptor_but_its_own() -> None:
    """However the stop races with the thread that it stops, the pipe that wakes it is not written to once closed: its
    number may be a database's by then."""
    for _ in range(100):
        with serving(echo, lanes={}, threads=1) as server:
            ends = [threading.Thread(target=server._listener.pull_trigger) for _ in range(3)]
            for end in ends:
                end.start()
            assert server.stop(20) is True
            for end in ends:
                end.join()
        server._listener.pull_trigger()


def test_stop_is_idempotent_and_works_before_start() -> None:
    """The port is free afterwards, however often one stops and whether or not it was started."""
    server = Server(echo)
    assert server.stop() is True
    assert server.stop() is True
    with serving(echo, port=server.address[1]) as again:
        assert ask(again, "/").status == 200
        again.stop()
        assert again.stop() is True
