"""The applications as a whole: errors from every layer, headers, probes, and who is asked for what."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from http_kit import ask, send, serving
from runs_kit import snapshot

from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store import SchemaMismatch, StoreUnavailable
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.web.app import create_app, create_metrics_app, create_otlp_app

PROBLEM = "application/problem+json"


class Failing(MemoryRunStore):
    """A store whose every answer is an error."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error
        self.asked = 0

    def _reading(self) -> Any:
        self.asked += 1
        raise self.error


class Recording:
    """An ingest that remembers what it was given."""

    def __init__(self, answer: tuple[int, Any, bytes] = (200, {"Content-Type": "application/json"}, b"{}")) -> None:
        self.given: list[tuple[str, bytes, str, str]] = []
        self.answer = answer

    def handle(self, path: str, body: bytes, content_type: str, content_encoding: str) -> tuple[int, Any, bytes]:
        self.given.append((path, body, content_type, content_encoding))
        return self.answer


# Errors


@pytest.mark.parametrize(
    ("method", "target", "status", "allow"),
    [
        ("GET", "/nothing", 404, None),
        ("GET", "/api", 404, None),
        ("GET", "//api/usage", 404, None),
        ("GET", "/api/usage/../usage", 404, None),
        ("GET", "/static/page.js", 404, None),
        ("GET", "/metrics", 404, None),
        ("POST", "/api/usage", 405, {"GET", "HEAD"}),
        ("DELETE", "/api/runs/r", 405, {"GET", "HEAD"}),
        ("GET", "/api/runs/r/end", 405, {"POST"}),
        ("OPTIONS", "/api/runs", 405, {"GET", "HEAD"}),
        ("TRACE", "/", 405, {"GET", "HEAD"}),
        ("OPTIONS", "*", 404, None),
        ("GET", "api/usage", 404, None),
        ("GET", "/api/runs/%ZZ%2", 404, None),
    ],
)
def test_every_refusal_is_a_problem_document(method: str, target: str, status: int, allow: set[str] | None) -> None:
    """With type, title, status, detail and the path as it was sent; 405 names the methods."""
    with serving(create_app(MemoryRunStore())) as server:
        answer = ask(server, target, method)
    assert (answer.status, answer.headers["Content-Type"]) == (status, PROBLEM)
    assert set(answer.json) == {"type", "title", "status", "detail", "instance"}
    assert answer.json["status"] == status
    if allow is not None:
        assert set(answer.headers["Allow"].split(", ")) == allow


def test_a_store_that_is_away_is_503_with_a_time_to_come_back() -> None:
    """Every route that asks the store says so; nothing of the database's own words gets out."""
    store = Failing(StoreUnavailable("could not connect to postgresql://meter:hunter2@db.internal"))
    with serving(create_app(store)) as server:
        for path in ("/api/usage", "/api/runs", "/api/threads/t/token-usage", "/api/usage/daily", "/-/ready"):
            answer = ask(server, path)
            assert (answer.status, answer.headers["Content-Type"]) == (503, PROBLEM)
            assert int(answer.headers["Retry-After"]) > 0
            assert b"hunter2" not in answer.body
            assert b"db.internal" not in answer.body
        assert ask(server, "/-/healthy").status == 200


@pytest.mark.parametrize(
    "error", [SchemaMismatch("schema 7 at /home/me/x.db"), RuntimeError("secret"), KeyError("secret")]
)
def test_an_unexpected_error_is_500_and_says_nothing_but_to_the_log(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The traceback goes to the log, the client gets a sentence."""
    with serving(create_app(Failing(error))) as server, caplog.at_level(logging.ERROR, "runmeter.http"):
        answer = ask(server, "/api/usage", headers={"Authorization": "Bearer t0ken"})
    assert (answer.status, answer.headers["Content-Type"]) == (500, PROBLEM)
    assert b"secret" not in answer.body
    assert b"/home" not in answer.body
    assert str(error) in caplog.text
    assert "t0ken" not in caplog.text


def test_a_body_beyond_the_limit_of_rest_is_413() -> None:
    """REST takes far less than the server does: a question is small."""
    with serving(create_app(MemoryRunStore())) as server:
        headers = {"Content-Type": "application/json"}
        answer = ask(server, "/api/threads/token-usage:batch", "POST", headers, b" " * (2**20 + 1))
        assert (answer.status, answer.headers["Content-Type"]) == (413, PROBLEM)


def test_http_1_0_without_a_host_is_answered() -> None:
    """As old load balancers probe; HTTP/1.1 without one is a bad request."""
    with serving(create_app(MemoryRunStore())) as server:
        assert send(server, b"GET /api/usage HTTP/1.0\r\n\r\n").status == 200
        assert send(server, b"GET /api/usage HTTP/1.1\r\n\r\n").status == 400


# Headers


def test_no_answer_can_be_framed_sniffed_or_read_by_other_sites() -> None:
    """Errors included; and nothing is kept by caches that are not asked again."""
    with serving(create_app(MemoryRunStore(), scraper=Scraper(MemoryRunStore()))) as server:
        for path in ("/", "/page.js", "/api/usage", "/api/none", "/metrics", "/openapi.json", "/-/healthy"):
            headers = ask(server, path).headers
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert headers["X-Frame-Options"] == "DENY"
            assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in headers
            assert headers["Cache-Control"] == "private, no-cache"


def test_head_answers_as_get_without_the_body() -> None:
    """Same status, same ETag, same length."""
    with serving(create_app(MemoryRunStore())) as server:
        get, head = ask(server, "/api/usage"), ask(server, "/api/usage", "HEAD")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["ETag"] == get.headers["ETag"]


# Tokens


def test_the_read_token_guards_every_number() -> None:
    """REST, scrape and contract need it; probes and the page's shell, which holds no number, do not."""
    store = MemoryRunStore()
    store.write([snapshot("r")])
    app = create_app(store, scraper=Scraper(store), read_token="s3cret")
    with serving(app) as server:
        for path in ("/api/usage", "/api/runs/r", "/api/runs/%FF", "/metrics", "/openapi.json", "/nothing"):
            answer = ask(server, path)
            assert (answer.status, answer.headers["Content-Type"]) == (401, PROBLEM), path
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        for path in ("/", "/page.js", "/page.css", "/icon.svg", "/-/healthy", "/-/ready"):
            assert ask(server, path).status == 200, path
        shown = {"Authorization": "Bearer s3cret"}
        for path in ("/api/usage", "/api/runs/r", "/metrics", "/openapi.json"):
            assert ask(server, path, headers=shown).status == 200, path


# Probes


def test_liveness_never_asks_the_store_and_readiness_asks_once_a_second() -> None:
    """However many probes come; a store that comes back is seen after that second."""
    now = [100.0]
    store = Failing(StoreUnavailable("away"))
    client = create_app(store, clock=lambda: now[0]).test_client()
    assert client.get("/-/healthy").status_code == 200
    assert store.asked == 0
    assert [client.get("/-/ready").status_code for _ in range(50)] == [503] * 50
    assert store.asked == 1
    store._reading = super(Failing, store)._reading  # type: ignore[method-assign]
    assert client.get("/-/ready").status_code == 503
    now[0] += 1.0
    assert client.get("/-/ready").status_code == 200


def test_probes_do_not_queue_behind_one_that_waits_for_the_store() -> None:
    """A second readiness probe gets the last known answer while the first still waits."""
    asked, free = threading.Event(), threading.Event()

    class Hanging(MemoryRunStore):
        def _reading(self) -> Any:
            asked.set()
            free.wait(20)
            return super()._reading()

    with serving(create_app(Hanging())) as server, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, server, "/-/ready")
        assert asked.wait(20)
        assert ask(server, "/-/ready").status == 503
        free.set()
        assert first.result().status == 200
        assert ask(server, "/-/ready").status == 200


# Scrape


class Page:
    """A scraper that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Mapping[str, str], Mapping[str, str]]] = []

    def handle(self, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        self.asked.append((query, headers))
        if query.get("include_active") == "perhaps":
            raise ValueError("include_active is 'perhaps'; it must be true or false")
        return {"Content-Type": "text/plain; version=0.0.4", "Vary": "Accept"}, b"runmeter_store_up 1\n"


def test_metrics_hands_query_and_headers_to_the_scraper() -> None:
    """What it answers goes out as it is; a query it cannot take is a 400."""
    page = Page()
    with serving(create_app(MemoryRunStore(), scraper=page)) as server:
        sent = {"X-Prometheus-Scrape-Timeout-Seconds": "7.5", "Accept": "text/plain"}
        answer = ask(server, "/metrics?include_active=true", headers=sent)
        assert (answer.status, answer.body) == (200, b"runmeter_store_up 1\n")
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4"
        assert answer.headers["Vary"] == "Accept"
        query, headers = page.asked[0]
        assert query["include_active"] == "true"
        assert headers["X-Prometheus-Scrape-Timeout-Seconds"] == "7.5"
        assert ask(server, "/metrics?include_active=perhaps").status == 400


def test_a_listener_for_metrics_alone_serves_nothing_else() -> None:
    """The scrape and the probes; REST and page are not there."""
    store = MemoryRunStore()
    with serving(create_metrics_app(store, Scraper(store))) as server:
        assert b"runmeter_store_up" in ask(server, "/metrics").body
        assert ask(server, "/-/ready").status == 200
        for path in ("/", "/api/usage", "/openapi.json"):
            assert ask(server, path).status == 404


# OTLP


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/metrics", "/v1/logs"])
def test_what_is_posted_goes_to_the_ingest_as_it_came(path: str) -> None:
    """Body, type and encoding untouched; status, headers and body of its answer go back."""
    ingest = Recording((429, [("Content-Type", "application/x-protobuf"), ("Retry-After", "3")], b"\x08\x08"))
    with serving(create_otlp_app(ingest)) as server:
        headers = {"Content-Type": "application/x-protobuf; v=1", "Content-Encoding": "gzip"}
        answer = ask(server, path, "POST", headers, b"\x1f\x8bzipped")
        assert (answer.status, answer.body) == (429, b"\x08\x08")
        assert answer.headers["Content-Type"] == "application/x-protobuf"
        assert answer.headers["Retry-After"] == "3"
    assert ingest.given == [(path, b"\x1f\x8bzipped", "application/x-protobuf; v=1", "gzip")]


def test_chunked_posts_arrive_whole() -> None:
    """A sender that does not know the length of its body in advance is served alike."""
    ingest = Recording()
    with serving(create_otlp_app(ingest)) as server:
        head = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        assert send(server, head + b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n").status == 200
    assert ingest.given[0][1] == b"abcdefg"


def test_the_two_doors_are_apart() -> None:
    """The ingest answers no question and the reading side takes no span."""
    with serving(create_otlp_app(Recording())) as server:
        assert ask(server, "/api/usage").status == 404
        assert ask(server, "/v1/traces").status == 405
        assert ask(server, "/-/ready").status == 200
    with serving(create_app(MemoryRunStore())) as server:
        assert ask(server, "/v1/traces", "POST", body=b"").status == 404


def test_an_ingest_that_fails_harms_no_other_request(caplog: pytest.LogCaptureFixture) -> None:
    """500, or 503 with Retry-After where the store is away; the next post is served."""

    class Broken(Recording):
        def handle(self, path: str, body: bytes, content_type: str, content_encoding: str) -> tuple[int, Any, bytes]:
            if body == b"away":
                raise StoreUnavailable("away")
            if body == b"bug":
                raise RuntimeError("a bug")
            return super().handle(path, body, content_type, content_encoding)

    with serving(create_otlp_app(Broken())) as server, caplog.at_level(logging.CRITICAL, "runmeter.http"):
        away = ask(server, "/v1/traces", "POST", body=b"away")
        assert (away.status, away.headers["Retry-After"]) == (503, "2")
        assert ask(server, "/v1/traces", "POST", body=b"bug").status == 500
        assert ask(server, "/v1/traces", "POST", body=b"fine").status == 200


def test_what_never_reaches_the_ingest_is_counted_once() -> None:
    """By the application or by the server before it; what the ingest answers itself, it counts itself."""
    refused: list[int] = []
    app = create_otlp_app(Recording((400, {}, b"")), ingest_token="t", body_limit=100, on_refused=refused.append)
    with serving(app, body_limit=1000, on_refused=refused.append) as server:
        shown = {"Authorization": "Bearer t"}
        assert ask(server, "/v1/traces", "POST", shown, b"bad").status == 400
        assert ask(server, "/-/healthy").status == 200
        assert refused == []
        assert ask(server, "/v1/traces", "POST", body=b"x").status == 401
        assert ask(server, "/v1/traces", "POST", shown, b"x" * 101).status == 413
        assert ask(server, "/v1/traces", "POST", shown, b"x" * 1001).status == 413
        assert ask(server, "/v1/traces", "POST", shown | {"Host": "evil.example"}, b"x").status == 421
        assert ask(server, "/v1/nothing", "POST", shown, b"x").status == 404
    assert refused == [401, 413, 413, 421, 404]


def test_reading_goes_on_while_the_ingest_is_busy() -> None:
    """Every worker of the ingest waits for its store, and the other listener answers."""
    free = threading.Event()

    class Stuck(Recording):
        def handle(self, path: str, body: bytes, content_type: str, content_encoding: str) -> tuple[int, Any, bytes]:
            free.wait(20)
            return super().handle(path, body, content_type, content_encoding)

    ingest = Stuck()
    with serving(create_otlp_app(ingest), threads=2) as otlp, serving(create_app(MemoryRunStore())) as rest:
        senders = [threading.Thread(target=ask, args=(otlp, "/v1/traces", "POST", {}, b"x")) for _ in range(4)]
        for sender in senders:
            sender.start()
        assert ask(rest, "/api/usage").status == 200
        free.set()
        for sender in senders:
            sender.join()
    assert len(ingest.given) == 4
