"""A database that forgot what it had confirmed, as a standby that had not everything: noticed, said, and counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from runs_kit import snapshot
from sqlalchemy import text

from runmeter_exporter.store import Heartbeat, StoreUnavailable
from runmeter_exporter.store.sql.reads import GRANTED

BOTH = pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)


def forget(store: Any, *statements: str) -> None:
    """Somebody takes these away, and the store's connections end."""
    with store.engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    store.release()


@BOTH
def test_what_was_forgotten_is_said_once_and_the_runs_concerned_are_lower_bounds(
    sql_url: str, open_stores: Callable[..., Any]
) -> None:
    """The next write is refused, so that nobody relies on what it remembers; then all goes on."""
    store = open_stores(sql_url)
    store.heartbeat([Heartbeat("agent", 1)])
    store.write([
        snapshot("spans", status="running", source="otlp"), snapshot("mine", status="running", source="agent"),
        snapshot("theirs", status="running", source="other"), snapshot("over", source="agent"),
    ])  # fmt: skip
    store.write([snapshot("mine", status="running", source="agent", revision=2)])
    forget(store, "UPDATE runs SET version = version - 1 WHERE run_id = 'mine'")
    with pytest.raises(StoreUnavailable, match="behind what it had confirmed"):
        store.write([snapshot("new")])
    store.write([snapshot("new")])
    states = {run["run_id"]: run["usage_state"] for run in store.runs()["runs"]}
    assert states == {"spans": "active", "mine": "lower_bound", "theirs": "active", "over": "settled", "new": "settled"}
    assert store.scrape().counts["snapshots_dropped", "rewound"] == 1

    store.write([snapshot("mine", source="agent", revision=3)])  # it was still there, and ends
    store.write([snapshot("spans", source="otlp", revision=2)])
    store.close(["spans"])
    states = {run["run_id"]: run["usage_state"] for run in store.runs()["runs"]}
    assert (states["mine"], states["spans"]) == ("settled", "lower_bound")
    assert store.verify() == []


@BOTH
def test_a_run_that_is_gone_is_missed_unless_it_was_pruned(sql_url: str, open_stores: Callable[..., Any]) -> None:
    """Somebody else's pruning is no loss, and neither is a new connection by itself."""
    store = open_stores(sql_url)
    store.write([snapshot("old"), snapshot("kept", number=100)])
    store.release()
    store.write([snapshot("more", number=200)])
    assert open_stores(sql_url).prune(snapshot("old").updated_at + 1) == 1
    store.release()
    store.write([snapshot("again", number=300)])
    forget(store, "DELETE FROM runs WHERE run_id = 'again'")
    with pytest.raises(StoreUnavailable, match="behind what it had confirmed"):
        store.write([snapshot("last", number=400)])


def test_granted_labels_are_read_again(postgres_url: str, open_stores: Callable[..., Any]) -> None:
    """A label that was granted to a run that is gone is granted anew, so that the limit holds for all."""
    store = open_stores(postgres_url)
    store.write([snapshot("one")])
    granted = text("SELECT dimension, parts FROM rollup WHERE scope = :scope ORDER BY 1, 2")

    def grants() -> list[Any]:
        with store.engine.connect() as connection:
            return list(connection.execute(granted, {"scope": GRANTED}).all())

    before = grants()
    forget(store, "DELETE FROM runs", "DELETE FROM run_usage", "DELETE FROM rollup", "DELETE FROM usage_daily")
    with pytest.raises(StoreUnavailable):
        store.write([snapshot("two")])
    store.write([snapshot("two")])
    assert grants() == before != []
    assert store.verify() == []
