"""The landing page: three static files that hold no number, and ask the REST routes for all they show."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from flask import Blueprint, Response, request

_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def blueprint() -> Blueprint:
    """`/` and what it is made of. It needs no token: it asks for one where the data does, and keeps it for the tab."""
    page = Blueprint("page", __name__)
    folder = files("runmeter_exporter.web") / "static"
    for path, (name, content_type) in _FILES.items():
        page.add_url_rule(path, name.replace(".", "_"), _serve((folder / name).read_bytes(), content_type))
    return page


def _serve(content: bytes, content_type: str) -> Callable[[], Response]:
    def view() -> Response:
        response = Response(content, content_type=content_type)
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.add_etag()
        response.make_conditional(request)
        return response

    return view
