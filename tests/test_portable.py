"""What runmeter says to PostgreSQL is also taken by what speaks its protocol, and by a pooler in transaction mode."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from otlp_files import recordings
from otlp_requests import post
from runs_kit import snapshot
from sqlalchemy import event

from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import Heartbeat
from runmeter_exporter.store.sql.schema import metadata

KEYS = {name: {column.name for column in table.primary_key} for name, table in metadata.tables.items()}
SESSION = re.compile(
    r"\b(SET|LISTEN|NOTIFY|UNLISTEN|DECLARE|PREPARE|TEMP|TEMPORARY|DISCARD)\b|advisory|SKIP LOCKED|NOWAIT"
)
"""What lives in one session of one server, or is not to be had everywhere."""


@pytest.fixture
def said(postgres_url: str, open_stores: Callable[..., Any]) -> list[str]:
    """The statements of a life: both doors write, runs end and close, all is read, pruned and forgotten."""
    store = open_stores(postgres_url)
    heard: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda _c, _d, statement, *_: heard.append(statement))
    store.heartbeat([Heartbeat("a-source", 1)])
    store.write([snapshot("one", status="running"), snapshot("two")])
    store.write([snapshot("one", revision=2), snapshot("three", status="running", source="silent")])
    store.orphan("silent")
    later = 2 * 10**18
    ingest = Ingest(store, price=lambda call: call.usage, now=lambda: later)
    try:
        for recording in list(recordings())[::20]:
            post(ingest, recording.path.read_bytes())
        ingest.close_runs([run.run_id for run in store.watch().runs])
        later += 10**16
        assert ingest.expire(later)
    finally:
        ingest.stop()
    for answer in (store.runs, store.threads, store.usage, store.usage_daily, store.scrape, store.verify):
        answer()
    store.runs(tags={"a": "b"}, model="m", order="tokens")
    assert store.prune(later, forget_threads=True)
    assert store.threads()["threads"] == []
    return heard


def test_nothing_is_said_that_only_one_server_or_session_understands(said: list[str]) -> None:
    """No session state but in a transaction; rows are locked by key; a conflict is one of a primary key."""
    assert len(set(said)) > 40
    for statement in set(said):
        words = re.sub(r"'[^']*'", "''", re.sub(r"UPDATE \w+ SET|DO UPDATE\s+SET", "", statement))
        assert not SESSION.search(words), statement
        if "FOR UPDATE" in words:
            locked = re.search(r"FROM (\w+)\s+WHERE (?:\w+\.)?(\w+) = (?:ANY \(%\(?|%)", words)
            assert locked is not None, statement
            assert {locked[2]} == KEYS[locked[1]], statement
            assert words.count("SELECT") == 1, statement
        if "ON CONFLICT (" in words:
            table = re.search(r"INSERT INTO (\w+)", words)
            target = re.search(r"ON CONFLICT \(([^)]*)\)", words)
            assert table is not None
            assert target is not None, statement
            assert set(target[1].split(", ")) == KEYS[table[1]], statement
