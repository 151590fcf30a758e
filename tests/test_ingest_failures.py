"""A failing store is not the spans' fault: whatever it raises, wherever, nothing that was answered with 200 is lost."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from doors import unpriced
from otlp_requests import apart
from sqlalchemy import event, exc, text
from test_recordings import CASES

from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF
from runmeter_exporter.store import RunStore
from runmeter_exporter.store.sql.store import SqlRunStore

Open = Callable[..., SqlRunStore]
REQUEST = CASES["openinference-instrumentation-openai-agents-2.6.0/agents_handoff"].path.read_bytes()


def failures() -> Iterator[Any]:
    """Every way in which SQLAlchemy, a driver or our own code may fail that says nothing of a value."""
    for kind in (
        exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.ProgrammingError, exc.NotSupportedError,
        exc.DatabaseError,
    ):  # fmt: skip
        why = sqlite3.DatabaseError("database disk image is malformed")
        yield pytest.param(kind("INSERT", {}, why), id=kind.__name__)
    denied = psycopg.errors.InsufficientPrivilege("permission denied for table spans")
    yield pytest.param(exc.ProgrammingError("INSERT", {}, denied), id="InsufficientPrivilege")
    for kind in (
        exc.TimeoutError, exc.ResourceClosedError, exc.InvalidRequestError, exc.NoSuchTableError, exc.ArgumentError,
        exc.CompileError, exc.UnboundExecutionError, KeyError, RuntimeError, TypeError, MemoryError, OSError,
    ):  # fmt: skip
        yield pytest.param(kind("no"), id=kind.__name__)


def post(ingest: Ingest, request: bytes) -> tuple[int, str | None]:
    status, headers, _ = ingest.handle("/v1/traces", request, PROTOBUF, None)
    return status, headers.get("Retry-After")


@pytest.mark.parametrize("failure", failures())
def test_it_is_503_at_every_statement(
    failure: Exception, open_stores: Open, sqlite_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Raised at each statement in turn: come again, one line in the log when it begins and one when it is over; sent
    again, each call counts once."""
    store = open_stores(sqlite_url, create=True)
    store.usage()
    ingest = Ingest(store, price=unpriced)
    pieces = apart(REQUEST)
    left = [0]

    def fail(*_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise failure

    event.listen(store.engine, "before_cursor_execute", fail)
    refused = 0
    with caplog.at_level(logging.WARNING, "runmeter.ingest"):
        for number, piece in enumerate(pieces * 2, 1):
            left[0] = number
            status, later = post(ingest, piece)
            if status != 200:
                assert (status, later) == (503, "2")
                refused += 1
                left[0] = 0
                assert post(ingest, piece)[0] == 200
        left[0] = 0
    assert refused
    said = [record.getMessage() for record in caplog.records]
    assert sum("are not stored" in line for line in said) == sum("stored again" in line for line in said) == refused
    for piece in pieces:
        assert post(ingest, piece)[0] == 200
    assert ingest.stop()
    assert store.scrape().counts.get(("spans_rejected", "content"), 0) == 0
    assert store.usage(include_active=True)["llm_call_count"] == expected(open_stores)
    assert store.verify() == []


def expected(open_stores: Callable[..., RunStore]) -> int:
    """What the same spans come to where nothing fails."""
    store = open_stores("memory://")
    ingest = Ingest(store, price=unpriced)
    assert post(ingest, REQUEST)[0] == 200
    assert ingest.stop()
    return int(store.usage(include_active=True)["llm_call_count"])


def test_privileges_that_were_taken_away_lose_nothing(open_stores: Open, postgres_url: str) -> None:
    """A role that may not write one of the tables any more: 503 until it may again, then everything is there."""
    owner = open_stores(postgres_url, create=True)
    owner.usage()
    name = "meter_without_rights"
    with owner.engine.begin() as connection:
        connection.execute(text(f"DROP ROLE IF EXISTS {name}"))
        connection.execute(text(f"CREATE ROLE {name}"))
        connection.execute(text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}"))
    separator = "&" if "?" in postgres_url else "?"
    store = open_stores(f"{postgres_url}{separator}options=-c%20role%3D{name}")
    ingest = Ingest(store, price=unpriced)
    pieces = apart(REQUEST)
    assert post(ingest, pieces[0])[0] == 200
    for table in ("spans", "run_usage", "runs"):
        with owner.engine.begin() as connection:
            connection.execute(text(f"REVOKE ALL ON {table} FROM {name}"))
        assert [post(ingest, piece) for piece in pieces[1:]] == [(503, "2")] * len(pieces[1:])
        with owner.engine.begin() as connection:
            connection.execute(text(f"GRANT ALL ON {table} TO {name}"))
    assert {post(ingest, piece)[0] for piece in pieces} == {200}
    assert ingest.stop()
    assert owner.usage(include_active=True)["llm_call_count"] == expected(open_stores)
    store.dispose()
    with owner.engine.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {name}"))
        connection.execute(text(f"DROP ROLE {name}"))
