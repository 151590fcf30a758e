"""PgBouncer in transaction mode between runmeter and PostgreSQL: nothing fails, and everything adds up."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from chaos_kit import Nursery
from pgbouncer_process import PgBouncer, pgbouncer
from runs_kit import snapshot
from sidecar_process import Sidecar, until
from sqlalchemy import text
from test_ingest_kill import Senders

from runmeter_exporter.store import RunStore, StoreUnavailable

__all__ = ["pgbouncer"]


@pytest.fixture
def pooled(pgbouncer: PgBouncer, postgres_url: str) -> Callable[..., str]:
    """The URL of a fresh database behind PgBouncer; the argument is what follows its name."""
    name = postgres_url.split("/")[3].partition("?")[0]
    return lambda parameters="": pgbouncer.url(name, parameters)


@pytest.mark.parametrize("parameters", ["", "?prepare_threshold=0"])
def test_writers_meet_on_few_connections(
    parameters: str, pooled: Callable[..., str], open_stores: Callable[..., RunStore]
) -> None:
    """Five stores write and read at once on two servers: no statement is looked for where it was not prepared."""
    stores = [open_stores(pooled(parameters), pool_size=2) for _ in range(5)]
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            for revision in range(1, 9):
                stores[number].write([snapshot(f"run-{number}", status="running", revision=revision)])
                stores[number].usage(include_active=True)
            stores[number].write([snapshot(f"run-{number}", revision=9)])
        except Exception as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (stores[0].usage()["total_runs"], stores[0].verify()) == (5, [])


def test_a_pooler_is_noticed_and_a_server_too(
    pooled: Callable[..., str], postgres_url: str, open_stores: Callable[..., Any]
) -> None:
    """Behind the one nothing is prepared unless the URL says so; on the other, statements that come again are."""
    prepared = text("SELECT count(*) FROM pg_prepared_statements WHERE statement NOT LIKE '%pg_prepared%'")
    counts = []
    for url in (pooled(), postgres_url, pooled("?prepare_threshold=1")):
        store = open_stores(url, pool_size=1)
        with store.engine.connect() as connection:
            for _ in range(9):
                connection.execute(text("SELECT 1"))
            counts.append(connection.execute(prepared).scalar_one())
    assert counts == [0, 1, 1]


def test_what_a_pooler_does_not_pass_on_is_said_by_it(
    pooled: Callable[..., str], open_stores: Callable[..., RunStore]
) -> None:
    """PgBouncer refuses `options`; the message has its words, and nobody waits for the deadline."""
    with pytest.raises(StoreUnavailable, match="unsupported startup parameter: options"):
        open_stores(pooled("?options=-c%20work_mem%3D8MB")).usage()


@pytest.mark.chaos
def test_both_doors_and_every_command_through_a_pooler(
    pooled: Callable[..., str], nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """Three agents, a sidecar with four senders, `verify`, `top` and `runs` share two connections; sums are exact."""
    url = pooled()
    agents = nursery(url, 0.05)
    with Sidecar(url, "--grace", "1s") as sidecar:
        senders = Senders(sidecar.otlp_url)
        try:
            for number in range(3):
                agents.start(f"run-{number}")
            agents.wait(lambda: len(agents.acks) == 3)
            agents.go_on(500)
            with senders.changed:
                assert senders.changed.wait_for(lambda: senders.acknowledged >= 200, 60)
            top = _command("top", "--once", "--database-url", url)
        finally:
            tokens = senders.finish()
        calls = agents.finish()
        store = open_stores(url)
        until(lambda: store.usage()["total_input_tokens"] == tokens + 10 * calls, "everything is settled")
        assert "run-0" in top
        assert sidecar.get("/api/usage")["total_input_tokens"] == tokens + 10 * calls
    _command("verify", "--database-url", url)
    assert "run-2" in _command("runs", "--database-url", url, "--limit", "500")
    assert agents.said() == ""
    assert not any("cannot" in line or "Traceback" in line for line in sidecar.lines)


def _command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "runmeter.launch.main", *words], capture_output=True, text=True,
                          timeout=60)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
