"""The landing page: static files that hold no number, and ask the REST routes for all they show; and `about.json`, what
this sidecar serves and where it takes spans, from which the page makes the lines that a newcomer copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files

from flask import Blueprint, Response, jsonify, request

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


def blueprint(about: Mapping[str, object]) -> Blueprint:
    """`/` and what it is made of. It needs no token: it asks for one where the data does, and keeps it for the tab.

    `about` is what `about.json` says, which needs the token: `store`, its URL without a password; `by_default`, whether
    agents here find it without being told; `otlp`, the address for spans or null; `otlp_everywhere`, whether that is
    any address of this host; `otlp_token`, whether it asks for one. It may still be filled after this.
    """
    page = Blueprint("page", __name__)
    folder = files("runmeter_exporter.web") / "static"
    for path, (name, content_type) in _FILES.items():
        page.add_url_rule(path, name.replace(".", "_"), _serve((folder / name).read_bytes(), content_type))
    page.add_url_rule("/about.json", "about", lambda: jsonify(dict(about)))
    return page


def _serve(content: bytes, content_type: str) -> Callable[[], Response]:
    def view() -> Response:
        response = Response(content, content_type=content_type)
        response.headers["Content-Security-Policy"] = CONTENT_POLICY
        response.add_etag()
        response.make_conditional(request)
        return response

    return view
