"""Which stored calls are compared with those that arrive, however many look alike."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from runmeter.reading.read import Reading, Role
from runmeter.usage import Usage
from runmeter_exporter.ingest import sharing
from runmeter_exporter.ingest.sharing import alike
from runmeter_exporter.store import open_store
from runmeter_exporter.store.ledger_row import row_of, twin_names

NEAREST = 2
kinds = st.tuples(st.integers(1, 3), st.integers(1, 60))
"""(what a call used, by which twins are found; when it ended)"""


def reading(trace: int, number: int, used: int, ended: int) -> Reading:
    """A call."""
    return Reading(trace, number, None, started_at=ended - 1, ended_at=ended, role=Role.CALL, usage=Usage(used, 1))


@given(stored=st.lists(kinds, max_size=60), arriving=st.lists(kinds, min_size=1, max_size=12))
def test_the_nearest_are_always_among_them(stored: list[tuple[int, int]], arriving: list[tuple[int, int]]) -> None:
    """Of each key those that ended just before and after each call; and nothing that shares no key with any."""
    store = open_store("memory://")
    known = [reading(1, number, *kind) for number, kind in enumerate(stored, 1)]
    calls = [reading(2, number, *kind) for number, kind in enumerate(arriving, 1)]
    with patch.multiple(sharing, ROOM=3, NEAREST=NEAREST, NEAR=40), store.transaction() as tx:
        tx.ledger.insert([row_of(one, "r", 0, 0, None) for one in known])
        found = {row.key for row in alike(tx, calls)}
    names = {name for call in calls for name in twin_names(call)}
    assert found <= {one.key for one in known if names & set(twin_names(one))}
    for call in calls:
        same = [one for one in known if twin_names(one) == twin_names(call) and abs(one.ended_at - call.ended_at) <= 40]
        for side in ([one for one in same if one.ended_at <= call.ended_at],
                     [one for one in same if one.ended_at > call.ended_at]):  # fmt: skip
            apart = sorted(abs(one.ended_at - call.ended_at) for one in side if one.key in found)
            assert apart[:NEAREST] == sorted(abs(one.ended_at - call.ended_at) for one in side)[:NEAREST]
