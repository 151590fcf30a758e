"""The Flask applications: what is read (REST, page, scrape), what is sent in (OTLP), and what stands before both."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, unquote_to_bytes

from flask import Flask, Response, g, request

from runmeter_exporter.http import cors, problems
from runmeter_exporter.http.access import Access, Token
from runmeter_exporter.http.problems import Problem
from runmeter_exporter.http.server import BODY_LIMIT
from runmeter_exporter.store import RunStore
from runmeter_exporter.web import api, openapi, page
from runmeter_exporter.web.query import IdConverter

READ_BODY_LIMIT = 2**20
"""Bytes of a REST body: a hundred ids of 256 characters, each escaped as JSON may, take a third of it."""
READY_FOR = 1.0
"""Seconds for which an answer of the store's is believed by /-/ready, which everybody may ask."""

_OPEN = frozenset({"healthy", "ready", "page.page_html", "page.page_js", "page.page_css", "page.icon_svg"})
"""Endpoints that need no token: probes, and the page's shell, which has to ask for one."""
_PROBES = frozenset({"healthy", "ready"})
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "private, no-cache",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}


class Scraper(Protocol):
    """What /metrics asks."""

    def handle(self, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the answer, whatever the store does; ValueError for a query it cannot take."""


class Ingest(Protocol):
    """What /v1/* asks."""

    def handle(
        self, path: str, body: bytes, content_type: str | None, content_encoding: str | None
    ) -> tuple[int, Mapping[str, str] | Iterable[tuple[str, str]], bytes]:
        """Status, headers and body of the answer."""


def create_app(
    store: RunStore,
    *,
    scraper: Scraper | None = None,
    read_token: Token | str | None = None,
    allowed_hosts: Iterable[str] = (),
    allowed_origins: Iterable[str] = (),
    about: Mapping[str, object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Flask:
    """REST, page, /metrics (with a `scraper`), /openapi.json and probes over `store`.

    `read_token` is asked for on everything but the probes and the page's shell. `allowed_hosts` are the host that is
    listened on and what the operator added, `allowed_origins` whose pages may read; see `Access`. `about` is for the
    page, see `page.blueprint`.
    """
    app = _app(Access(read_token, allowed_hosts, allowed_origins), READ_BODY_LIMIT)
    app.register_blueprint(api.blueprint(store))
    app.register_blueprint(page.blueprint({"store": store.url_for_humans} if about is None else about))
    document = partial(openapi.document, metrics=scraper is not None, token=read_token is not None)
    # As it was asked for: whoever reads the document elsewhere knows where this is served.
    app.add_url_rule("/openapi.json", "openapi", lambda: api.json_answer(document(server=request.host_url[:-1])))
    if scraper is not None:
        _serve_metrics(app, scraper)
    _serve_probes(app, _Readiness(store, clock))
    return app


def create_metrics_app(
    store: RunStore,
    scraper: Scraper,
    *,
    read_token: Token | str | None = None,
    allowed_hosts: Iterable[str] = (),
    clock: Callable[[], float] = time.monotonic,
) -> Flask:
    """/metrics and probes alone, for a listener that only Prometheus reaches (`--metrics-listen`)."""
    app = _app(Access(read_token, allowed_hosts), READ_BODY_LIMIT)
    _serve_metrics(app, scraper)
    _serve_probes(app, _Readiness(store, clock))
    return app


def create_otlp_app(
    ingest: Ingest,
    *,
    ingest_token: Token | str | None = None,
    allowed_hosts: Iterable[str] = (),
    body_limit: int = BODY_LIMIT,
    on_refused: Callable[[int], None] = lambda status: None,
) -> Flask:
    """POST /v1/traces, /v1/metrics and /v1/logs; served apart from the rest, so that neither starves the other.

    `on_refused(status)` is called for requests that end before the ingest has answered them, so that they are counted
    as the ingest counts its own (`Server` has the same for those that end before this application).
    """
    app = _app(Access(ingest_token, allowed_hosts), body_limit)

    def receive() -> Response:
        status, headers, body = ingest.handle(
            request.path,
            request.get_data(cache=False),
            request.headers.get("Content-Type"),
            request.headers.get("Content-Encoding"),
        )
        g.answered = True
        response = Response(body, status)
        for name, value in headers.items() if isinstance(headers, Mapping) else headers:
            response.headers[name] = value
        return response

    @app.after_request
    def count(response: Response) -> Response:
        if request.endpoint not in _PROBES and not g.get("answered"):
            on_refused(response.status_code)
        return response

    for signal in ("traces", "metrics", "logs"):
        app.add_url_rule(f"/v1/{signal}", signal, receive, methods=["POST"])
    _serve_probes(app, None)
    return app


def _app(access: Access, body_limit: int) -> Flask:
    app = Flask("runmeter", static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = body_limit
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    app.url_map.converters["id"] = IdConverter
    app.wsgi_app = _RawTarget(app.wsgi_app)  # type: ignore[method-assign]
    problems.install(app)

    @app.before_request
    def guard() -> Response | None:
        if request.endpoint not in _PROBES:
            http_1_0 = request.environ.get("SERVER_PROTOCOL") == "HTTP/1.0"
            access.check_host(request.environ.get("HTTP_HOST"), http_1_0)
            if "runmeter.authority" in request.environ:
                access.check_host(request.environ["runmeter.authority"])
            answered = cors.preflight(access)
            if answered is not None:
                return answered
            access.check_origin(dict(request.headers), request.method)
        if request.endpoint not in _OPEN:
            access.check_token(request.headers.get("Authorization"))
        return None

    cors.install(app, access)

    @app.after_request
    def harden(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


def _serve_metrics(app: Flask, scraper: Scraper) -> None:
    @app.get("/metrics")
    def metrics() -> Response:
        try:
            headers, content = scraper.handle(request.args, dict(request.headers))
        except ValueError as error:
            raise Problem(400, f"{error}.") from None
        response = Response(content)
        response.headers.update(headers)
        return response


def _serve_probes(app: Flask, readiness: _Readiness | None) -> None:
    @app.get("/-/healthy")
    def healthy() -> Response:
        return Response("ok\n", content_type="text/plain; charset=utf-8")

    @app.get("/-/ready")
    def ready() -> Response:
        if readiness is not None and not readiness.check():
            retry = str(problems.RETRY_AFTER)
            raise Problem(503, "The store does not answer at the moment.", {"Retry-After": retry})
        return Response("ready\n", content_type="text/plain; charset=utf-8")


class _Readiness:
    """Whether the store answers, asked at most once in `READY_FOR` seconds however many probes come."""

    def __init__(self, store: RunStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at = -math.inf
        self._ready = False

    def check(self) -> bool:
        # While one probe waits for the store, the others get the last answer: they must not all wait.
        if self._lock.acquire(blocking=False):
            try:
                if self._clock() - self._asked_at >= READY_FOR:
                    self._ready = self._ask()
                    self._asked_at = self._clock()
            finally:
                self._lock.release()
        return self._ready

    def _ask(self) -> bool:
        try:
            self._store.runs(limit=1)
        except Exception:
            return False
        return True


class _RawTarget:
    """Gives Flask the path as it was sent, not decoded, so that `a%2Fb` is one segment and `a/b` are two.

    Each segment is decoded and encoded again, so that `%61pi` is `api` as RFC 3986 has it; ids are decoded for good
    by `IdConverter`. waitress and werkzeug's test client give the request target as REQUEST_URI.
    """

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        target = environ.get("REQUEST_URI") or quote(environ.get("PATH_INFO", "").encode("latin-1"))
        path = target.partition("?")[0].partition("#")[0]
        if not path.startswith("/") and "://" in path:  # absolute form: "GET http://host/path"
            authority, _, rest = path.partition("://")[2].partition("/")
            environ["runmeter.authority"] = authority
            path = "/" + rest
        if not path.startswith("/") or path.startswith("//"):  # the router would make one slash of none and of many
            path = "/%2F" + path
        segments = path.encode("latin-1", "replace").split(b"/")
        environ["PATH_INFO"] = "/".join(quote(unquote_to_bytes(one), safe=":@!$&'()*+,;=-._~") for one in segments)
        return self._app(environ, start_response)
