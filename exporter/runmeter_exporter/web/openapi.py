"""The contract of the REST routes as OpenAPI 3.1, served at /openapi.json; tests hold the server to it."""

from __future__ import annotations

from importlib.metadata import version

from runmeter.sink import STATUSES
from runmeter_exporter.totals.questions import ORDERS, TIME_PATTERN
from runmeter_exporter.web.api import DAILY_GROUPS, FILTERS, ROWS_LIMIT
from runmeter_exporter.web.openapi_schemas import Schema, ref, schemas, text
from runmeter_exporter.web.query import CURSOR_LIMIT, DEFAULT_PAGE, LARGEST_PAGE, TAG_LIMIT, TAG_PREFIX


def document(*, metrics: bool = True, token: bool = False, server: str = "/") -> Schema:
    """The whole document; `metrics`: /metrics is served here, `token`: requests must show one, `server`: where this is
    served, for who reads it elsewhere."""
    paths = _paths()
    if metrics:
        paths["/metrics"] = _metrics()
    described: Schema = {
        "openapi": "3.1.0",
        "info": {
            "title": "runmeter",
            "version": version("runmeter"),
            "description": "What agent runs have spent: tokens, calls, messages, money. Completed runs by default, "
            "runs that still work with `include_active`. Errors are RFC 9457 problem documents.",
        },
        "servers": [{"url": server}],
        "paths": paths,
        "components": {"schemas": schemas(), "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}] if token else [{}, {"token": []}],
    }
    return described


def _paths() -> Schema:
    thread, run = _id("thread_id"), _id("run_id")
    active = _query(
        "include_active", {"type": "boolean", "default": False}, "Add the usage of runs that work or are not closed."
    )
    page = [
        _query(
            "limit", {"type": "integer", "minimum": 1, "maximum": LARGEST_PAGE, "default": DEFAULT_PAGE}, "Page size."
        ),
        _query(
            "cursor",
            {"type": "string", "maxLength": CURSOR_LIMIT, "pattern": "^[A-Za-z0-9_-]*$"},
            "The `next_cursor` of the page before.",
        ),
    ]
    statuses = {"type": "array", "items": {"type": "string", "enum": list(STATUSES)}}
    when = {"type": "string", "maxLength": 64, "pattern": TIME_PATTERN}
    order = {"type": "string", "enum": list(ORDERS), "default": ORDERS[0]}
    tag_name = f"^{TAG_PREFIX.replace('.', '[.]')}[^\\u0000]{{1,{TAG_LIMIT}}}$"
    tags = {
        "type": "object",
        "additionalProperties": {"type": "string", "maxLength": TAG_LIMIT, "pattern": "^[^\\u0000]*$"},
        "propertyNames": {"pattern": tag_name},
        "maxProperties": 8,
    }
    filters = [
        _query("status", statuses, "Only runs of these statuses: repeated, or separated by commas."),
        *(_query(name, text(), f"Only runs of this {name.removesuffix('_id')}.") for name in FILTERS),
        _query("tags", tags, "Only runs with these tags, each a parameter of its own: `tag.team=research`."),
        _query("from", when, "Only runs that began then or later: a UTC day, or a time such as 2026-01-31T12:00:00Z."),
        _query("to", when, "Only runs that began before then, or by the end of that UTC day."),
        _query("order", order, "What comes first; `tokens` and `cost`: the most. They add up all that is asked for."),
    ]
    tag = f"{TAG_PREFIX.replace('.', '[.]')}[^,\\u0000]{{1,64}}"
    group = f"({'|'.join(DAILY_GROUPS)}|{tag})"
    daily = [
        _query("from", {"type": "string", "format": "date"}, "First UTC day."),
        _query("to", {"type": "string", "format": "date"}, "Last UTC day, included."),
        _query(
            "group_by",
            {"type": "string", "pattern": f"^{group}(,{group}){{0,15}}$", "default": "day"},
            "What to tell apart, separated by commas, none twice.",
        ),
        _query(
            "format",
            {"type": "string", "enum": ["json", "csv"], "default": "json"},
            "In CSV money is decimal, and a text that a spreadsheet would run as a formula has an apostrophe in front.",
        ),
    ]
    return {
        "/api/threads": {
            "get": _get("threads", "Threads by latest activity, with totals.", [active, *page], ref("ThreadPage")),
        },
        "/api/threads/token-usage:batch": {
            "post": _post(
                "threadUsages",
                "Totals of several threads, in the order asked.",
                [],
                ref("BatchQuestion"),
                {"type": "array", "items": ref("ThreadUsage")},
            ),
        },
        "/api/threads/{thread_id}/token-usage": {
            "get": _get(
                "threadUsage", "Totals of a thread; zeros for one never seen.", [thread, active], ref("ThreadUsage")
            ),
        },
        "/api/threads/{thread_id}/runs": {
            "get": _get("threadRuns", "Runs of a thread, newest first.", [thread, *filters, *page], ref("RunPage")),
        },
        "/api/threads/{thread_id}/runs/{run_id}": {
            "get": _get("threadRun", "A run of a thread.", [thread, run], ref("Run"), missing=True),
        },
        "/api/runs": {
            "get": _get(
                "runs",
                "Runs, newest first.",
                [_query("thread_id", text(), "Only runs of this thread."), *filters, *page],
                ref("RunPage"),
            )
        },
        "/api/runs/{run_id}": {"get": _get("run", "A run.", [run], ref("Run"), missing=True)},
        "/api/runs/{run_id}/end": {
            "post": _post(
                "endRun",
                "A supervisor ends an active run.",
                [run],
                ref("RunEnd"),
                ref("Run"),
                {"404": "No such run.", "409": "The run is not active."},
            ),
        },
        "/api/usage": {
            "get": _get(
                "usage", "Totals over everything ever stored, pruned runs included.", [active], ref("GrandUsage")
            ),
        },
        "/api/usage/daily": {
            "get": _get(
                "usageDaily",
                f"Settled usage by day; an answer of more than {ROWS_LIMIT} rows is refused.",
                daily,
                {"type": "array", "items": ref("DailyUsage")},
                other={"text/csv": {"schema": {"type": "string"}}},
            ),
        },
        "/openapi.json": {"get": _get("contract", "This document.", [], {"type": "object"})},
        "/-/healthy": {"get": _probe("healthy", "The process answers; the store is not asked.")},
        "/-/ready": {"get": _probe("ready", "The store answers, too.")},
    }


def _id(name: str) -> Schema:
    described = "Percent-encoded, a slash as %2F."
    schema = {**text(), "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": described, "schema": schema}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def _get(
    name: str,
    summary: str,
    parameters: list[Schema],
    answer: Schema,
    *,
    missing: bool = False,
    other: Schema | None = None,
) -> Schema:
    etag = {"ETag": {"description": "Send it as If-None-Match.", "schema": {"type": "string"}}}
    content = {"application/json": {"schema": answer}, **(other or {})}
    responses: Schema = {
        "200": {"description": "The answer.", "headers": etag, "content": content},
        "304": {"description": "As before."},
        **({"404": _problem("No such run.")} if missing else {}),
        **_refusals(),
    }
    return {"operationId": name, "summary": summary, "parameters": parameters, "responses": responses}


def _post(
    name: str,
    summary: str,
    parameters: list[Schema],
    question: Schema,
    answer: Schema,
    also: dict[str, str] | None = None,
) -> Schema:
    return {
        "operationId": name,
        "summary": summary,
        "parameters": parameters,
        "requestBody": {"required": True, "content": {"application/json": {"schema": question}}},
        "responses": {
            "200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}},
            **{status: _problem(why) for status, why in (also or {}).items()},
            "413": _problem("The body is too large."),
            "415": _problem("The body is not application/json."),
            **_refusals(),
        },
    }


def _probe(name: str, summary: str) -> Schema:
    return {
        "operationId": name,
        "summary": summary,
        "security": [],
        "responses": {
            "200": {"description": "Yes.", "content": {"text/plain": {"schema": {"type": "string"}}}},
            "503": _problem("Not now."),
        },
    }


def _metrics() -> Schema:
    known = {"type": "boolean", "default": False}
    active = _query("include_active", known, "Add gauges and burn counters of active runs.")
    exposition = {kind: {"schema": {"type": "string"}} for kind in ("text/plain", "application/openmetrics-text")}
    return {
        "get": {
            "operationId": "metrics",
            "summary": "Prometheus exposition.",
            "parameters": [active],
            "responses": {"200": {"description": "All families.", "content": exposition}, **_refusals()},
        }
    }


def _refusals() -> Schema:
    return {
        "400": _problem("The request asks for something that cannot be."),
        "401": _problem("The token is missing or not in force."),
        "403": _problem("A page of another origin asked."),
        "421": _problem("The Host is not one of this server's."),
        "503": _problem("The store does not answer; Retry-After says when to ask again."),
        "default": _problem("Any other error."),
    }


def _problem(description: str) -> Schema:
    return {"description": description, "content": {"application/problem+json": {"schema": ref("Problem")}}}
