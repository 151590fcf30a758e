"""Whose turn it is: portions of requests, and a lock that is had in order."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st
from sidecar_process import until

from runmeter.reading.read import Reading
from runmeter_exporter.ingest.waiting import AT_LENGTH, FEWEST, FIRST, MOST, Line, Request, Waiting


def request(spans: int, number: int = 1) -> Request:
    """With so many spans."""
    return Request([Reading(number, span, None) for span in range(1, spans + 1)])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 1_500), min_size=1, max_size=8),
    seconds=st.lists(st.sampled_from([0.0, 0.1, 1.0]), min_size=1, max_size=5),
)
def test_every_span_has_its_turn_once(sizes: list[int], seconds: list[float]) -> None:
    """In the order of its request, in portions that are never larger than may be."""
    waiting = Waiting()
    requests = [request(size, number) for number, size in enumerate(sizes, 1)]
    for each in requests:
        waiting.append(each)
    had: dict[Request, list[Reading]] = {each: [] for each in requests}
    turn = 0
    while portions := waiting.next():
        spans = sum(len(some) for _, some in portions)
        assert 0 < spans <= MOST
        for each, some in portions:
            had[each] += some
        assert waiting.size == sum(each.size for each in requests if each.left)
        waiting.took(spans, seconds[turn % len(seconds)])
        turn += 1
    assert all(had[each] == each.readings for each in requests)
    assert not waiting


def test_a_small_request_waits_for_no_large_one() -> None:
    """It goes with the next portion; and the large one is not kept by any number of small ones."""
    waiting = Waiting()
    large = request(50_000)
    waiting.append(large)
    assert [(each, len(some)) for each, some in waiting.next()] == [(large, FIRST)]
    small = [request(1, number) for number in range(2, 2_000)]
    for each in small:
        waiting.append(each)
    shares = {each: len(some) for each, some in waiting.next()}
    assert shares[large] == FIRST // 2
    assert sum(each in shares for each in small) == FIRST // 2


def test_portions_are_cut_by_how_long_they_take() -> None:
    """What held its locks for too long is halved or more at once, and grows again when it was quick."""
    waiting = Waiting()
    waiting.append(request(100_000))

    def taken(seconds: float) -> int:
        (_, some), = waiting.next()
        waiting.took(len(some), seconds)
        return len(some)

    assert [taken(4 * AT_LENGTH), taken(0.9 * AT_LENGTH), taken(0.1), taken(100.0)] == [FIRST] + [FIRST // 4] * 3
    assert [taken(0.01), taken(0.01), taken(0.01)] == [FEWEST, 2 * FEWEST, 4 * FEWEST]
    waiting.failed(8 * FEWEST)  # not within the deadline, perhaps
    assert taken(0.1) == 4 * FEWEST


def test_who_has_left_the_line_is_not_taken() -> None:
    """Neither whole nor, where it had begun, the rest."""
    waiting = Waiting()
    first, second = request(3_000), request(5)
    waiting.append(first)
    waiting.append(second)
    waiting.next()
    waiting.drop(first)
    waiting.drop(first)
    assert waiting.size == len(waiting) == 0
    assert waiting.next() == []


def test_who_lets_go_and_asks_again_waits_for_the_others() -> None:
    """The lock is had in the order in which it was asked for."""
    line = Line()
    order: list[str] = []

    def other() -> None:
        with line:
            order.append("other")

    with line:
        thread = threading.Thread(target=other)
        thread.start()
        until(lambda: line._behind, "the other is in line")
    with line:
        order.append("again")
    thread.join()
    assert order == ["other", "again"]
