"""What a browser is told so that pages of allowed origins may read our answers, and nothing else (`--allow-origin`)."""

from __future__ import annotations

from flask import Flask, Response, g, request

from runmeter_exporter.http.access import Access
from runmeter_exporter.http.problems import Problem

METHODS = "GET, HEAD"
HEADERS = "Authorization, If-None-Match"
"""What a page may send beyond what any page may."""
EXPOSED = "ETag, Retry-After"
MAX_AGE = 600
"""Seconds for which a browser need not ask again whether it may."""


def preflight(access: Access) -> Response | None:
    """The answer to a browser that asks whether a page may ask; it never shows a token. None for any other request."""
    origin = request.headers.get("Origin")
    if not access.may_read(origin):
        return None
    g.readable_by = origin
    wanted = request.headers.get("Access-Control-Request-Method")
    if request.method != "OPTIONS" or wanted is None:
        return None
    if wanted not in ("GET", "HEAD"):
        raise Problem(403, "A web page of another origin may read here and do nothing else.")
    response = Response(status=204)
    del response.headers["Content-Type"]
    response.headers["Access-Control-Allow-Methods"] = METHODS
    response.headers["Access-Control-Allow-Headers"] = HEADERS
    response.headers["Access-Control-Max-Age"] = str(MAX_AGE)
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        response.headers["Access-Control-Allow-Private-Network"] = "true"
    return response


def install(app: Flask, access: Access) -> None:
    """Mark every answer, errors too, for who may read it. Does nothing where no origin was allowed."""
    if not access.allowed_origins:
        return

    @app.after_request
    def mark(response: Response) -> Response:
        response.vary.add("Origin")
        origin = g.get("readable_by")
        if origin is not None:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED
        return response
