"""Who may ask: tokens, hosts and origins, as rules on headers and through a real server."""

from __future__ import annotations

import base64
import logging
import os
from pathlib import Path

import pytest
from http_kit import ask, send, serving
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from runmeter_exporter.http.access import Access, AccessError, Token, hostname, is_loopback, origin_of, require_token
from runmeter_exporter.http.problems import Problem
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.web.app import create_app, create_otlp_app


class Accepting:
    """An ingest that takes everything."""

    def handle(
        self, path: str, body: bytes, content_type: str, content_encoding: str
    ) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, b"{}"


def refused(access: Access, **headers: str) -> int | None:
    """The status that these headers are refused with, None when they pass."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items() if name != "method"}
    try:
        access.check_host(named.get("Host"))
        access.check_origin(named, headers.get("method", "POST"))
        access.check_token(named.get("Authorization"))
    except Problem as problem:
        return problem.status
    return None


# Tokens


def test_the_token_is_taken_as_bearer_and_as_basic_password() -> None:
    """Prometheus and curl can show it either way; the user name of Basic does not matter."""
    access = Access("s3cret")
    basic = base64.b64encode(b"prometheus:s3cret").decode()
    assert refused(access, host="localhost", authorization="Bearer s3cret") is None
    assert refused(access, host="localhost", authorization="bearer  s3cret") is None
    assert refused(access, host="localhost", authorization=f"Basic {basic}") is None


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "s3cret",
        "Bearer",
        "Bearer ",
        "Bearer s3cre",
        "Bearer s3cret2",
        "Bearer S3CRET",
        "Digest s3cret",
        "Basic s3cret",
        "Basic " + base64.b64encode(b"s3cret").decode(),
        "Basic " + base64.b64encode(b"s3cret:").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:s3cret").decode(),
        "Basic =",
        "Bearer \udcff\u20ac",
    ],
)
def test_anything_else_is_401_with_a_challenge(authorization: str) -> None:
    """What is not the token is refused, and the answer says how to show it but not what it is."""
    with pytest.raises(Problem) as error:
        Access("s3cret").check_token(authorization)
    assert error.value.status == 401
    assert error.value.headers["WWW-Authenticate"].startswith("Bearer")
    assert "s3cret" not in error.value.detail


@given(token=st.text(min_size=1).filter(str.strip), shown=st.text())
def test_only_the_token_is_accepted(token: str, shown: str) -> None:
    """Any text is accepted exactly when it is the token."""
    assert Token(token).accepts(token.strip())
    assert Token(token).accepts(shown) == (shown == token.strip())


def test_a_token_never_shows_itself(tmp_path: Path) -> None:
    """Neither repr nor str of a token holds it."""
    path = tmp_path / "token"
    path.write_text("s3cret")
    for token in (Token("s3cret"), Token(file=path)):
        assert "s3cret" not in f"{token!r} {token} {vars(token)}"


def test_a_token_file_may_rotate(tmp_path: Path) -> None:
    """Rewriting or replacing the file changes what is accepted at once; several lines are all in force."""
    path = tmp_path / "token"
    path.write_text("old\n")
    token = Token(file=path)
    assert token.accepts("old")
    path.write_text("old\nnewer\n")
    assert token.accepts("old")
    assert token.accepts("newer")
    replacement = tmp_path / "next"
    replacement.write_text("newest")
    os.replace(replacement, path)
    assert token.accepts("newest")
    assert not token.accepts("old")


def test_a_token_file_that_vanishes_or_empties_locks_nobody_out_and_lets_nobody_in(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last known token stays in force, and one warning says so without naming it."""
    path = tmp_path / "token"
    path.write_text("s3cret")
    token = Token(file=path)
    path.write_text("\n \n")
    assert token.accepts("s3cret")
    assert not token.accepts("")
    path.unlink()
    with caplog.at_level(logging.WARNING, "runmeter.http"):
        assert token.accepts("s3cret")
        assert token.accepts("s3cret")
    assert len(caplog.records) == 1
    assert "stays in force" in caplog.text
    assert "s3cret" not in caplog.text


def test_a_token_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    """Empty values, missing and empty files are refused at the start: they would let everybody in, or nobody."""
    (tmp_path / "empty").write_text("\n")
    for make in (
        lambda: Token(""),
        lambda: Token(" \n"),
        lambda: Token(),
        lambda: Token("a", file="b"),
        lambda: Token(file=tmp_path / "missing"),
        lambda: Token(file=tmp_path / "empty"),
    ):
        with pytest.raises(AccessError):
            make()


# Listening


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "localhost", "::1", "[::1]", "::ffff:127.0.0.1", "LOCALHOST"]
)
def test_loopback_is_open_by_default(host: str) -> None:
    """Without a token, this machine alone may be listened to."""
    require_token(host, None, "RUNMETER_READ_TOKEN")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.7", "meter.example.org", "2001:db8::1", "::ffff:10.0.0.7"]
)
def test_anything_wider_needs_a_token_or_the_words(host: str) -> None:
    """The error names the address, the variable and the flag; either of the two satisfies it."""
    with pytest.raises(AccessError) as error:
        require_token(host, None, "RUNMETER_READ_TOKEN")
    for part in (host or "0.0.0.0", "RUNMETER_READ_TOKEN", "--allow-unauthenticated"):
        assert part in str(error.value)
    require_token(host, Token("t"), "RUNMETER_READ_TOKEN")
    require_token(host, None, "RUNMETER_READ_TOKEN", allow_unauthenticated=True)


# Host


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9465", "127.0.0.1:9465", "[::1]:9465", "LocalHost", "app.localhost"]
)
def test_loopback_names_are_always_answered(host: str) -> None:
    """However this machine calls itself on loopback, with and without a port."""
    assert refused(Access(), host=host) is None


@pytest.mark.parametrize(
    "host", ["evil.example:9465", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.7", "0.0.0.0", "meter"]
)
def test_a_name_that_points_to_us_is_not_ours(host: str) -> None:
    """DNS rebinding: a foreign name is refused with 421, and told how to be allowed."""
    with pytest.raises(Problem, match="--allowed-host") as error:
        Access().check_host(host)
    assert error.value.status == 421


@pytest.mark.parametrize(
    "host",
    ["", ":", "a b", "user@localhost", "localhost:80:80", "localhost:x", "[::1", "[localhost]", "[::1]x", "ü", "a/b"],
)
def test_what_is_no_host_is_400(host: str) -> None:
    """A Host that cannot be one is a bad request."""
    with pytest.raises(Problem) as error:
        Access().check_host(host)
    assert error.value.status == 400


def test_allowed_hosts_are_answered() -> None:
    """The host listened on, names the operator added, and what is below a starred one."""
    access = Access(allowed_hosts=["10.0.0.7", "Meter.example.org", "*.svc.cluster.local"])
    for host in ("10.0.0.7:9465", "meter.example.org", "METER.example.org:443", "a.b.svc.cluster.local", "localhost"):
        assert refused(access, host=host) is None
    for host in ("10.0.0.8", "example.org", "svc.cluster.local", "evilsvc.cluster.local"):
        assert refused(access, host=host) == 421


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", ""])
def test_listening_everywhere_answers_to_every_address_but_to_no_name(listen: str) -> None:
    """Prometheus asks pods by address; only a name can be rebound."""
    access = Access(allowed_hosts=[listen])
    assert refused(access, host="10.1.2.3:9465") is None
    assert refused(access, host="[2001:db8::1]:9465") is None
    assert refused(access, host="evil.example") == 421


def test_host_may_be_absent_in_http_1_0_only() -> None:
    """Old probes leave it out; a browser never does."""
    Access().check_host(None, http_1_0=True)
    with pytest.raises(Problem, match="no Host"):
        Access().check_host(None)


@given(st.text(max_size=300))
def test_any_host_header_is_a_name_or_refused(host: str) -> None:
    """No Host, however odd, does anything but pass as a bare lower-case name or be refused."""
    name = hostname(host)
    assert name is None or (name == name.lower() and name in host.lower())
    assert isinstance(is_loopback(name or ""), bool)


# Origin


def test_a_page_of_another_origin_is_refused() -> None:
    """Also one of another port of this machine, one without a name, and one that cannot be read."""
    access = Access()
    for origin in (
        "http://evil.example", "http://localhost:3000", "https://127.0.0.1", "null", "file://", "http://[", "",
        "chrome-extension://abc", "http://localhost:9465.evil.example", "ftp://localhost:9465",
    ):  # fmt: skip
        assert refused(access, host="localhost:9465", origin=origin) == 403, origin


def test_our_own_page_is_let_in() -> None:
    """The origin that the Host names is ours, whether a proxy in front adds TLS or not."""
    for origin in ("http://localhost:9465", "https://localhost:9465", "http://LOCALHOST:9465"):
        assert refused(Access(), host="localhost:9465", origin=origin) is None


def test_an_origin_that_the_operator_allowed_is_let_in() -> None:
    """Behind a proxy that rewrites Host, the page's own name is the one that was allowed."""
    access = Access(allowed_hosts=["127.0.0.1", "meter.example.org"])
    assert refused(access, host="127.0.0.1:9465", origin="https://meter.example.org") is None
    assert refused(access, host="127.0.0.1:9465", origin="https://other.example.org") == 403
    assert refused(access, host="127.0.0.1:9465", origin="http://127.0.0.1:3000") == 403


def test_reads_of_other_sites_are_refused_but_links_may_be_followed() -> None:
    """An image or script of another page that points to us is refused; a click from it is not."""
    for site in ("cross-site", "same-site"):
        assert refused(Access(), host="localhost", method="GET", sec_fetch_site=site, sec_fetch_mode="no-cors") == 403
        assert refused(Access(), host="localhost", method="GET", sec_fetch_site=site, sec_fetch_mode="navigate") is None
        assert refused(Access(), host="localhost", method="POST", sec_fetch_site=site, sec_fetch_mode="navigate") == 403
    for site in ("same-origin", "none"):
        assert refused(Access(), host="localhost", method="GET", sec_fetch_site=site, sec_fetch_mode="cors") is None


# Pages that may read


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        ("https://app.example.org", "https://app.example.org"),
        (" HTTPS://App.Example.org:443/ ", "https://app.example.org"),
        ("http://localhost:80", "http://localhost"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_an_allowed_origin_is_kept_as_browsers_write_it(written: str, origin: str) -> None:
    """Case, a last slash and a usual port make no difference."""
    assert origin_of(written) == origin
    assert Access(allowed_origins=[written]).may_read(origin)


@pytest.mark.parametrize(
    "written",
    ["*", "null", "", "app.example.org", "https://*.example.org", "https://a.org/path", "ftp://a.org", "https://",
     "https://u@a.org", "https://a.org:", "https://a.org:x", "https://a.org?x", "file:///x", "https://a.org,https://b.org"],
)  # fmt: skip
def test_what_is_no_origin_is_a_configuration_error(written: str) -> None:
    """No wildcard and no null either: any page could then read what this machine has spent."""
    with pytest.raises(AccessError, match="not the origin of a page"):
        Access(allowed_origins=[written])


def test_an_allowed_page_reads_and_does_nothing_else() -> None:
    """GET with the headers that let it see the answer, refusals included; no POST, no credentials, no other page."""
    page = {"Origin": "https://app.example.org", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}
    token = {"Authorization": "Bearer t"}
    app = create_app(MemoryRunStore(), read_token="t", allowed_origins=["https://app.example.org"])
    with serving(app) as server:
        for target, sent, status in (
            ("/api/usage", page | token, 200),
            ("/api/usage", page, 401),
            ("/api/runs/none", page | token, 404),
            ("/api/runs?limit=0", page | token, 400),
        ):
            answer = ask(server, target, headers=sent)
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, page["Origin"]), target
            assert "Origin" in answer.headers["Vary"]
            assert "ETag" in answer.headers["Access-Control-Expose-Headers"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
        tag = ask(server, "/api/usage", headers=page | token).headers["ETag"]
        same = ask(server, "/api/usage", headers=page | token | {"If-None-Match": tag})
        assert (same.status, same.headers["Access-Control-Allow-Origin"]) == (304, page["Origin"])
        sent = page | token | {"Content-Type": "application/json"}
        assert ask(server, "/api/runs/r/end", "POST", sent, b'{"status": "error"}').status == 403
        for origin in ("https://evil.example", "https://app.example.org.evil.org", "http://app.example.org", "null"):
            answer = ask(server, "/api/usage", headers=page | token | {"Origin": origin})
            assert answer.status == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Origin" in answer.headers["Vary"]
        rebound = ask(server, "/api/usage", headers=page | token | {"Host": "evil.example"})
        assert rebound.status == 421
        assert "Access-Control-Allow-Origin" not in rebound.headers
        image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        assert ask(server, "/api/usage", headers=image | token).status == 403


def test_a_browser_that_asks_first_is_told() -> None:
    """A preflight shows no token; it is answered for reading, for a private network too, and refused for the rest."""
    app = create_app(MemoryRunStore(), read_token="t", allowed_origins=["https://app.example.org"])
    asked = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "GET"}
    more = {"Access-Control-Request-Headers": "authorization", "Access-Control-Request-Private-Network": "true"}
    with serving(app) as server:
        answer = ask(server, "/api/threads/a%2Fb/token-usage", "OPTIONS", asked | more)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["Access-Control-Allow-Origin"] == asked["Origin"]
        assert answer.headers["Access-Control-Allow-Methods"] == "GET, HEAD"
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        assert answer.headers["Access-Control-Allow-Private-Network"] == "true"
        for change in ({"Access-Control-Request-Method": "POST"}, {"Origin": "https://evil.example"}):
            refusal = ask(server, "/api/runs/r/end", "OPTIONS", asked | change)
            assert refusal.status == 403
            assert "Access-Control-Allow-Methods" not in refusal.headers


def test_no_page_may_read_by_default() -> None:
    """Without an allowed origin no answer says anything of other pages, and the ingest never does."""
    with serving(create_app(MemoryRunStore())) as server:
        answer = ask(server, "/api/usage")
        assert answer.status == 200
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        asked = {"Origin": "https://app.example.org", "Access-Control-Request-Method": "GET"}
        assert ask(server, "/api/usage", "OPTIONS", asked).status == 403


# Through a server


def test_a_web_page_cannot_post_to_a_loopback_sidecar() -> None:
    """The ingest of a sidecar without a token takes from a program and refuses a page, rebound or not."""
    with serving(create_otlp_app(Accepting())) as server:
        post = {"Content-Type": "application/json"}
        assert ask(server, "/v1/traces", "POST", post, b"{}").status == 200
        for more in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}):
            answer = ask(server, "/v1/traces", "POST", post | more, b"{}")
            assert answer.status in (403, 421)
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert "Access-Control-Allow-Origin" not in answer.headers
        assert ask(server, "/v1/traces", "OPTIONS", {"Origin": "http://evil.example"}).status == 403


def test_the_host_of_an_absolute_target_counts() -> None:
    """A request that names another host in its target than in its header is refused by it."""
    with serving(create_otlp_app(Accepting())) as server:
        assert ask(server, "http://localhost/-/ready").status == 200
        assert ask(server, "http://evil.example/v1/logs", "POST", body=b"").status == 421
        assert ask(server, "http://localhost/v1/logs", "POST", body=b"").status == 200
        assert ask(server, "http://u@localhost/v1/logs", "POST", body=b"").status == 400


def test_two_hosts_are_none() -> None:
    """Two Host headers are joined on the way and are then no host."""
    with serving(create_otlp_app(Accepting())) as server:
        raw = b"POST /v1/logs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nContent-Length: 0\r\n\r\n"
        assert send(server, raw).status == 400


def test_the_token_guards_all_but_the_probes(caplog: pytest.LogCaptureFixture) -> None:
    """Without it nothing is taken, not even an unknown path is told from a known one; it is never logged."""
    with serving(create_otlp_app(Accepting(), ingest_token="s3cret")) as server, caplog.at_level(logging.DEBUG):
        for path in ("/v1/traces", "/v1/nothing", "/"):
            assert ask(server, path, "POST", body=b"").status == 401
        assert ask(server, "/v1/traces", "POST", {"Authorization": "Bearer wrong"}, b"").status == 401
        assert ask(server, "/v1/traces", "POST", {"Authorization": "Bearer s3cret"}, b"").status == 200
        assert ask(server, "/-/healthy").status == 200
        assert ask(server, "/-/ready", headers={"Host": "evil.example"}).status == 200
    assert "s3cret" not in caplog.text
    assert "wrong" not in caplog.text


def test_the_token_goes_through_the_exporters_own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenTelemetry's exporter shows it from OTEL_EXPORTER_OTLP_HEADERS; without it nothing is taken, nor retried."""
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("tests").start_as_current_span("work") as span:
        pass
    with serving(create_otlp_app(Accepting(), ingest_token="s3cret")) as server:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.url)
        results = []
        for headers in ("", "Authorization=Bearer%20wrong", "Authorization=Bearer%20s3cret"):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
            exporter = OTLPSpanExporter()
            results.append(exporter.export([span]))  # type: ignore[list-item]
            exporter.shutdown()
    assert results == [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS]
