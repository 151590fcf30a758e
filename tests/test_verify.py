"""`verify` over a store that somebody damaged: each damage is a sentence, none is a traceback."""

from __future__ import annotations

import io
import random
import sqlite3
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from otlp_files import recordings
from otlp_requests import post
from sqlalchemy import text
from test_store import final, snap

from runmeter_exporter import cli
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import RunStore, open_store
from runmeter_exporter.store.sql.schema import metadata
from runmeter_exporter.store.sql.store import SqlRunStore

COLUMNS = [(table.name, column.name) for table in metadata.sorted_tables for column in table.columns]
ODD = ["abc", "", "-1", "9e999", "NaN", b"\x00\xff", None, 1.5, -7, 2**62, "{", "[]", '{"a": 1}', "null", "[[[1]]]"]


def filled(url: str) -> SqlRunStore:
    """A store with settled, open and orphaned runs of door 1, and one of door 2 that is open."""
    store = open_store(url, create=True)
    store.write([final("done", 2, 7, tags={"a": "b"}), snap("open", 1, 3), final("alone", 1, 5, thread_id=None)])
    ingest = Ingest(store, price=lambda call: call.usage)
    post(ingest, next(recordings()).path.read_bytes())
    assert ingest.stop()
    assert isinstance(store, SqlRunStore)
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound store's file."""
    path = tmp_path_factory.mktemp("whole") / "r.db"
    store = filled(f"sqlite:///{path}")
    assert store.verify() == []
    store.dispose()
    return path


def asked(path: Path) -> tuple[int, list[str]]:
    """(exit code, lines of stdout) of `runmeter verify`."""
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as left:
        cli.main(["verify", "--database-url", f"sqlite:///{path}"])
    return int(left.value.code or 0), out.getvalue().splitlines()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(COLUMNS), value=st.sampled_from(ODD), seed=st.integers(0, 2**16))
def test_whatever_stands_in_a_column_is_no_traceback(
    place: tuple[str, str], value: Any, seed: int, whole: Path, tmp_path: Path
) -> None:
    """Any value in any column of any row: balanced, or each difference by name; and what a store holds instead of a
    number, or what it cannot read, is among them."""
    table, column = place
    path = tmp_path / f"{random.getrandbits(64):x}.db"
    path.write_bytes(whole.read_bytes())
    connection = sqlite3.connect(path)
    keys = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[5]]
    rows = connection.execute(f"SELECT {', '.join(keys)} FROM {table} ORDER BY 1").fetchall()
    kinds = {row[1]: row[2] for row in connection.execute(f"PRAGMA table_info({table})")}
    if rows:
        key = rows[seed % len(rows)]
        try:
            where = " AND ".join(f"{name} = ?" for name in keys)
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (value, *key))
            connection.commit()
        except sqlite3.IntegrityError:  # NULL where there must be something
            connection.rollback()
    held = connection.execute(f"SELECT count(*) FROM {table} WHERE typeof({column}) = 'text'").fetchone()[0]
    connection.close()
    code, said = asked(path)
    assert code in (0, 1, 2)
    if "INT" in kinds[column] and held:
        assert code == 1, said
        assert any(f"table {table}" in line and column in line for line in said), said
    path.unlink()


DAMAGES = {
    "UPDATE runs SET status = 'error' WHERE run_id = 'done'": "its status is 'error', the totals count it as 'success'",
    "UPDATE runs SET is_open = 0 WHERE run_id = 'open'": "run 'open': its usage state is 'active', and is_open is 0",
    "UPDATE runs SET is_open = 1 WHERE run_id = 'done'": "run 'done': its usage state is 'settled', and is_open is 1",
    "DELETE FROM meta WHERE name = 'horizon'": "table meta: horizon is missing, not a number",
    "DELETE FROM spans": "it is open and came as OTLP, and the ledger is empty",
    "DELETE FROM run_usage WHERE run_id = 'done'": "the totals hold",
    "DELETE FROM usage_daily": "daily usage",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_damage_is_named(damage: str, sql_url: str, open_stores: Callable[..., RunStore]) -> None:
    """What somebody changed by hand is found on either database."""
    open_stores(sql_url)
    store = filled(sql_url)
    with store.engine.begin() as connection:
        connection.execute(text(damage))
    found = store.verify()
    store.dispose()
    assert any(DAMAGES[damage] in line for line in found), found


def test_json_that_says_nothing_is_named(sqlite_url: str) -> None:
    """On either database a text may be anything."""
    store = filled(sqlite_url)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE runs SET sources = '[' WHERE run_id = 'done'"))
    found = store.verify()
    store.dispose()
    assert any("run 'done': tags, sources or set_aside cannot be read" in line for line in found), found
    assert "totals and runs were not compared: not all of them can be read" in found


@pytest.mark.parametrize("table", ["runs", "rollup", "usage_daily", "run_usage", "spans", "sources", "meta"])
def test_a_table_that_is_gone_is_one_line(table: str, whole: Path, tmp_path: Path) -> None:
    """Said by name, on stderr, and not as a traceback."""
    path = tmp_path / "r.db"
    path.write_bytes(whole.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute(f"DROP TABLE {table}")
    connection.close()
    code, said = asked(path)
    assert code in (1, 2), said
