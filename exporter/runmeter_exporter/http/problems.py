"""Errors on HTTP: RFC 9457 problem documents, for every status and from every layer, and nothing inside them leaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from runmeter_exporter.store import StoreError, StoreUnavailable

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER = 2
"""Seconds after which a client may ask again when the store is away; a store that restarts takes about as long."""

logger = logging.getLogger("runmeter.http")

_DETAILS = {
    400: "The request could not be understood.",
    404: "Nothing is served at this path; /openapi.json lists what is.",
    405: "This path does not answer this method; the Allow header names those it does.",
    413: "The body is larger than this server takes.",
    431: "The request line and headers together are larger than this server takes.",
    500: "The server failed to answer; its log says why. Nothing was changed unless a later answer shows it.",
    501: "The request uses a transfer coding other than chunked.",
}


class Problem(HTTPException):
    """An answer that is an error: raise it anywhere below a view. `detail` is shown to the client as it stands.

    An HTTPException, so that Flask keeps one that the router meets until the request has been let in.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.code = self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def title(status: int) -> str:
    """The phrase that HTTP gives the status; "Error" for one that it does not know."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def document(status: int, detail: str | None = None, instance: str | None = None) -> bytes:
    """The problem document's JSON. `type` is about:blank: the status says what kind of error it is."""
    detail = detail or _DETAILS.get(status, "")
    body = {"type": "about:blank", "title": title(status), "status": status, "detail": detail}
    if instance is not None:
        body["instance"] = instance
    return msgspec.json.encode(body)


def respond(status: int, detail: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """The same as a response to the request at hand; `instance` is its path as it was sent, without the query."""
    response = Response(document(status, detail, request.path[:1024]), status, content_type=CONTENT_TYPE)
    response.headers.update(headers or {})
    return response


def install(app: Flask) -> None:
    """Make `app` answer every error, its own and the framework's, as a problem document."""

    @app.errorhandler(Problem)
    def of_ours(problem: Problem) -> Response:
        return respond(problem.status, problem.detail, problem.headers)

    @app.errorhandler(HTTPException)
    def of_the_framework(error: HTTPException) -> Response:
        status = error.code or 500
        # Its description may quote the request or our code; our sentence for the status does not.
        kept = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
        return respond(status, None, kept)

    @app.errorhandler(StoreUnavailable)
    def store_away(error: StoreUnavailable) -> Response:
        logger.warning("store unavailable while answering %s: %s", request.path[:256], type(error).__name__)
        detail = f"The store does not answer at the moment; ask again in {RETRY_AFTER} s. What it holds is safe."
        return respond(503, detail, {"Retry-After": str(RETRY_AFTER)})

    @app.errorhandler(StoreError)
    def store_refused(error: StoreError) -> Response:
        logger.error("store error while answering %s", request.path[:256], exc_info=error)
        return respond(500, "The store could not give this answer; the server's log says why.")

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        logger.error("failed to answer %s %s", request.method, request.path[:256], exc_info=error)
        return respond(500)
