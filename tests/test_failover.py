"""The primary is killed and its standby promoted, under working agents and a sidecar that takes spans."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from chaos_kit import Nursery
from postgres_pair import a_pair
from sidecar_process import Sidecar, until
from test_ingest_kill import Senders

from runmeter_exporter.store import RunStore

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


def _more(senders: Senders, requests: int) -> None:
    with senders.changed:
        enough = senders.acknowledged + requests
        assert senders.changed.wait_for(lambda: senders.acknowledged >= enough, 60)
