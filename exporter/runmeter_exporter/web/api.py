"""The REST routes. Each reads what is asked, asks the store, and writes down its answer; the shapes are the store's."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from flask import Blueprint, Response, request

from runmeter.sink import STATUSES
from runmeter_exporter.http.problems import Problem
from runmeter_exporter.store import RunStore
from runmeter_exporter.totals.answers import dollars
from runmeter_exporter.totals.questions import ORDERS, BadQuestion
from runmeter_exporter.totals.shapes import Run, Terminal
from runmeter_exporter.web.query import CURSOR_LIMIT, ID_LIMIT, TAG_PREFIX, Query, body, text

BATCH_LIMIT = 100
"""Threads asked for at once."""
ROWS_LIMIT = 50_000
"""Rows of one answer about days: a question without a bound is refused, not cut."""
DAILY_GROUPS = ("day", "month", "service", "user_id", "agent", "provider", "model", "caller")
FILTERS = ("service", "user_id", "agent", "model")

Identifier = Annotated[str, msgspec.Meta(max_length=ID_LIMIT)]


class BatchQuestion(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/threads/token-usage:batch."""

    thread_ids: Annotated[list[Identifier], msgspec.Meta(max_length=BATCH_LIMIT)]
    include_active: bool = False


class RunEnd(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/runs/{run_id}/end."""

    status: Terminal
    stop_reason: Identifier | None = None


def json_answer(answer: Any) -> Response:
    """JSON with an ETag of its content; 304 when the client has it already."""
    content = msgspec.json.encode(answer)
    tag = hashlib.blake2b(content, digest_size=16).hexdigest()
    # Not make_conditional(): its dates and ranges would take longer than the rest of the answer.
    if "If-None-Match" in request.headers and request.if_none_match.contains_weak(tag):
        response = Response(status=304)
        del response.headers["Content-Type"]
    else:
        response = Response(content, content_type="application/json")
    response.headers["ETag"] = f'"{tag}"'
    return response


def blueprint(store: RunStore) -> Blueprint:
    """Every route under /api over `store`."""
    api = Blueprint("api", __name__)

    def query(*known: str) -> Query:
        return Query(request.query_string, known)

    def page_of_runs(*known: str, thread_id: str | None = None) -> Response:
        asked = query("status", *FILTERS, TAG_PREFIX, "from", "to", "order", "limit", "cursor", *known)
        try:
            page = store.runs(
                status=asked.choices("status", STATUSES),
                thread_id=asked.text("thread_id") if thread_id is None else thread_id,
                service=asked.text("service"),
                user_id=asked.text("user_id"),
                agent=asked.text("agent"),
                model=asked.text("model"),
                tags=asked.tags,
                start=asked.text("from"),
                end=asked.text("to"),
                order=asked.choice("order", ORDERS, "newest") or "newest",
                limit=asked.limit(),
                cursor=asked.text("cursor", CURSOR_LIMIT),
            )
        except BadQuestion as error:
            raise Problem(400, f"{error}.") from None
        return json_answer(page)

    def known_run(run_id: str, thread_id: str | None = None) -> Run:
        run = store.run(run_id)
        if run is None or (thread_id is not None and run["thread_id"] != thread_id):
            where = "" if thread_id is None else " in this thread"
            raise Problem(404, f"No run with this id is stored{where}.")
        return run

    @api.get("/api/threads")
    def threads() -> Response:
        asked = query("include_active", "limit", "cursor")
        limit, cursor = asked.limit(), asked.text("cursor", CURSOR_LIMIT)
        active = asked.flag("include_active")
        try:
            return json_answer(store.threads(include_active=active, limit=limit, cursor=cursor))
        except BadQuestion as error:
            raise Problem(400, f"{error}.") from None

    @api.get("/api/threads/<id:thread_id>/token-usage")
    def thread_usage(thread_id: str) -> Response:
        return json_answer(store.thread_usage(thread_id, include_active=query("include_active").flag("include_active")))

    @api.post("/api/threads/token-usage:batch")
    def thread_usages() -> Response:
        question = body(request.get_data(), request.mimetype, BatchQuestion)
        thread_ids = [text(thread_id, "A thread id") for thread_id in question.thread_ids]
        return json_answer(store.thread_usages(thread_ids, include_active=question.include_active))

    @api.get("/api/threads/<id:thread_id>/runs")
    def thread_runs(thread_id: str) -> Response:
        return page_of_runs(thread_id=thread_id)

    @api.get("/api/threads/<id:thread_id>/runs/<id:run_id>")
    def thread_run(thread_id: str, run_id: str) -> Response:
        return json_answer(known_run(run_id, thread_id))

    @api.get("/api/runs")
    def runs() -> Response:
        return page_of_runs("thread_id")

    @api.get("/api/runs/<id:run_id>")
    def run(run_id: str) -> Response:
        return json_answer(known_run(run_id))

    @api.post("/api/runs/<id:run_id>/end")
    def end_run(run_id: str) -> Response:
        end = body(request.get_data(), request.mimetype, RunEnd)
        reason = None if end.stop_reason is None else text(end.stop_reason, "stop_reason")
        if not store.end_run(run_id, end.status, reason):
            ended = known_run(run_id)
            raise Problem(409, f"The run is not active: its status is {ended['status']}, and an end stands.")
        return json_answer(known_run(run_id))

    @api.get("/api/usage")
    def usage() -> Response:
        return json_answer(store.usage(include_active=query("include_active").flag("include_active")))

    @api.get("/api/usage/daily")
    def usage_daily() -> Response:
        asked = query("from", "to", "group_by", "format")
        start, end = asked.day("from"), asked.day("to")
        if start and end and start > end:
            raise Problem(400, f"from ({start}) is after to ({end}).")
        group_by = asked.names("group_by", DAILY_GROUPS, TAG_PREFIX, ("day",))
        form = asked.choice("format", ("json", "csv"), "json")
        rows = store.usage_daily(start=start, end=end, group_by=group_by)
        if len(rows) > ROWS_LIMIT:
            raise Problem(
                400,
                f"The answer would have {len(rows)} rows, and at most {ROWS_LIMIT} are given at once: "
                "ask for fewer days with from and to, or group by less.",
            )
        if form == "csv":
            return _csv_answer(rows, group_by)
        return json_answer(rows)

    return api


def _csv_answer(rows: Sequence[Mapping[str, Any]], group_by: Sequence[str]) -> Response:
    columns = list(rows[0]) if rows else list(group_by)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    content = out.getvalue().encode("utf-8", "replace")
    response = Response(content, content_type="text/csv; charset=utf-8; header=present")
    response.headers["Content-Disposition"] = 'attachment; filename="usage.csv"'
    return response


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would run as a formula gets an apostrophe in front: names come from outside."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    if isinstance(value, float):
        return dollars(value)
    return "" if value is None else value
