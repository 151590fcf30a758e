"""The primary is killed and its standby promoted, under working agents and a sidecar that takes spans."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from chaos_kit import Nursery, all_runs, reap
from postgres_pair import a_pair
from sidecar_process import Sidecar, until
from test_chaos_stores import Postgres, postgres
from test_ingest_kill import Senders

from runmeter_exporter.store import RunStore

__all__ = ["postgres"]
pytestmark = [pytest.mark.chaos, pytest.mark.timeout(200)]


def test_what_a_synchronous_standby_has_is_everything(
    nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """Two agents and four senders go on over the change of servers; every call and every token is there, once."""
    with a_pair(synchronous=True) as pair, Sidecar(pair.url, "--grace", "1s") as sidecar:
        agents = nursery(pair.url, 0.05)
        senders = Senders(sidecar.otlp_url)
        try:
            for number in range(2):
                agents.start(f"run-{number}")
            agents.wait(lambda: len(agents.acks) == 2)
            agents.go_on(300)
            _more(senders, 50)
            pair.fail_over()
            agents.go_on(300)
            _more(senders, 50)
        finally:
            tokens = senders.finish()
        calls = agents.finish()
        store = open_stores(pair.url)
        until(lambda: store.usage()["total_input_tokens"] >= tokens + 10 * calls, "everything is settled")
        assert (store.usage()["total_input_tokens"], store.usage()["lower_bound_runs"]) == (tokens + 10 * calls, 0)
        assert store.verify() == []


def test_a_server_that_did_not_wait_for_its_disk(
    postgres: Postgres, nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """With `synchronous_commit=off` a server that is killed forgets its last commits; agents write them again."""
    url = f"{postgres.url}&options=-c%20synchronous_commit%3Doff"
    agents = nursery(url, 0.05)
    for number in range(3):
        agents.start(f"run-{number}")
    until(lambda: len(open_stores(url).runs()["runs"]) == 3, "the runs are stored")
    agents.go_on()
    with postgres.killed():
        agents.go_on()
    calls = agents.finish()
    usage = open_stores(url).usage()
    assert (usage["llm_call_count"], usage["lower_bound_runs"], usage["total_runs"]) == (calls, 0, 3)
    assert open_stores(url).verify() == []


def _more(senders: Senders, requests: int) -> None:
    with senders.changed:
        enough = senders.acknowledged + requests
        assert senders.changed.wait_for(lambda: senders.acknowledged >= enough, 60)


def test_what_a_standby_never_got_is_written_again_or_said_to_be_missing(
    nursery: Callable[..., Nursery], open_stores: Callable[..., RunStore]
) -> None:
    """Replication stalls, the primary goes on confirming, and dies: runs that go on are complete, one that had ended is
    a lower bound, and so are those that the sidecar had taken spans of; what never was is in no total, and verified."""
    with a_pair(synchronous=False) as pair, Sidecar(pair.url, "--grace", "1s", "--otlp-idle", "5s") as sidecar:
        agents = nursery(pair.url, 0.05)
        senders = Senders(sidecar.otlp_url)
        try:
            for name in ("on-0", "on-1", "ended"):
                agents.start(name)
            agents.wait(lambda: len(agents.acks) == 3)
            agents.go_on(200)
            _more(senders, 50)
            pair.stop_following()
            agents.go_on(200)
            agents.signal("ended", signal.SIGUSR1)
            agents.wait(lambda: "ended" in agents.ended)
            _more(senders, 50)
            pair.fail_over()
            agents.wait(lambda: all(agents.acks[name] > 500 for name in ("on-0", "on-1")))
            _more(senders, 50)
        finally:
            tokens = senders.finish()
        agents.finish()
        store = open_stores(pair.url)
        until(lambda: all_runs(store)["on-1"]["usage_state"] == "settled", "the runs are settled")
        reap(store)
        until(lambda: not store.watch().runs, "everything is closed")
        runs = all_runs(store)
        for name in ("on-0", "on-1"):
            assert (runs[name]["usage_state"], runs[name]["llm_call_count"]) == ("settled", agents.ended[name])
        assert runs["ended"]["usage_state"] == "lower_bound"
        assert runs["ended"]["llm_call_count"] <= agents.ended["ended"]
        usage = store.usage()
        assert usage["total_input_tokens"] <= tokens + 10 * sum(agents.ended.values())
        assert usage["lower_bound_runs"] >= 1
        assert store.scrape().counts["snapshots_dropped", "rewound"] >= 1
        assert store.verify() == []
        assert any("behind what it had confirmed" in line for line in sidecar.lines), sidecar.lines
        assert "behind what it had confirmed" in agents.said()
