"""What the sidecar remembers and lets wait stays within its bytes: real requests, a real database, Python counts."""

from __future__ import annotations

import gc
import itertools
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from otlp_requests import post
from test_ingest import Slow, call, price, span

from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading
from runmeter_exporter.cli import cli
from runmeter_exporter.ingest import fold as folding
from runmeter_exporter.ingest.cache import Cache, size_of
from runmeter_exporter.ingest.fold import RunFold
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.ingest.otlp import PROTOBUF, parse
from runmeter_exporter.ingest.otlp.reading import reading_of
from runmeter_exporter.ingest.traces import Trace
from runmeter_exporter.memory import LEAST, Memory, divided
from runmeter_exporter.store import RunStore

NOON = 1_790_000_000 * 10**9
SMALL = Memory(traces=300_000, folds=1_000_000, queue=1_000_000)
LONG = "\N{SNOWMAN}" * 200


@contextmanager
def traced() -> Iterator[Callable[[], int]]:
    """How many bytes of objects were made since, and are there still."""
    gc.collect()
    tracemalloc.start()
    try:
        yield lambda: gc.collect() * 0 + tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def readings(requests: bytes) -> list[Reading]:
    return [reading_of(span) for span in parse(requests, PROTOBUF).spans]


def caches_of(ingest: Ingest) -> tuple[Cache[str, RunFold], Cache[int, Trace]]:
    remembered = ingest._intake.remembered
    return remembered._runs, remembered._traces


def trace_of(number: int) -> bytes:
    return (number + 1).to_bytes(16)


def one_call(number: int) -> bytes:
    """A trace of one call, which is a run."""
    return call(1, trace=trace_of(number))


def long_words(number: int) -> bytes:
    """The same, and every id and name is as long as it may be."""
    words = dict.fromkeys(("gen_ai__conversation__id", "gen_ai__response__id", "gen_ai__agent__name", "user__id"), LONG)
    words = {key: f"{number}{value}" for key, value in words.items()}
    return call(1, trace=trace_of(number), gen_ai__request__model=LONG + str(number), **words)


def named_runs(number: int) -> bytes:
    """A run with a long name in each trace, of several processes that count for themselves."""
    more = {"runmeter__run__id": f"{LONG}{number}", "runmeter__source__id": f"{LONG}{number % 50}"}
    return span(1, trace=trace_of(number), scope="http") + call(2, 1, trace=trace_of(number), **more)


def plain(number: int) -> bytes:
    """A trace of none of ours."""
    return span(1, trace=trace_of(number), scope="http") + span(2, 1, trace=trace_of(number), scope="http")


def wide(number: int) -> bytes:
    """One trace of forty spans below each other, and one run of all of them."""
    at = number * 40 + 1
    chain = [call(at + step, at + step - 1 if step else None, trace=trace_of(0)) for step in range(40)]
    return b"".join(chain)


SHAPES = [(one_call, 800), (long_words, 500), (named_runs, 500), (plain, 900), (wide, 60)]


@pytest.mark.parametrize(("make", "count"), SHAPES, ids=lambda given: getattr(given, "__name__", None))
def test_what_is_remembered_stays_within_its_bytes(
    open_stores: Callable[..., RunStore], tmp_path: Path, make: Callable[[int], bytes], count: int
) -> None:
    """Much more comes than there is room for, twice: what was seen before is read again, and is let go again."""
    ingest = Ingest(open_stores(f"sqlite:///{tmp_path}/runs.db"), price=price, now=lambda: NOON, memory=SMALL)
    try:
        requests = [b"".join(map(make, range(at, min(at + 50, count)))) for at in range(0, count, 50)]
        post(ingest, requests[0])  # whatever is made once is there
        for cache in caches_of(ingest):
            cache.clear()
        with traced() as held:
            for request in requests:
                post(ingest, request)
            for round_ in range(2):
                remembered_folds, remembered_traces = caches_of(ingest)
                assert remembered_traces.bytes <= SMALL.traces
                assert remembered_folds.bytes <= SMALL.folds
                before = held()
                remembered_folds.clear()
                folds = before - held()
                before = held()
                remembered_traces.clear()
                traces = before - held()
                assert traces <= SMALL.traces, f"round {round_}"
                assert folds <= SMALL.folds, f"round {round_}"
                for request in requests:
                    post(ingest, request)
    finally:
        assert ingest.stop()


def test_the_room_is_used() -> None:
    """The estimate is not so far off that most of the memory would be left: half of it, for what is usual."""
    with traced() as held:
        made = [readings(one_call(number)) for number in range(500)]
        size, estimate = held(), sum(size_of(reading) for reading in itertools.chain(*made))
        assert size / 2 <= estimate <= 2 * size
        folds = []
        for number, members in enumerate(made):
            folds.append(RunFold(f"{number:032x}", price))
            for reading in members:
                folds[-1].add(reading)
        assert held() <= sum(fold.size() for fold in folds) <= 2 * held()


def test_a_run_remembers_no_price_of_a_span_that_it_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many calls a run has, what it keeps of each goes with the span; the totals stay, and so do the prices."""
    monkeypatch.setattr(folding, "SPAN_LIMIT", 256)
    prices = iter(range(1, 10_000))
    fold = RunFold("r", lambda call: call.usage._replace(cost_nanousd=next(prices)))
    asked = 0
    with traced() as held:
        sizes = []
        for number in range(1, 4001):
            more = {"runmeter__source__id": "s"} if number % 2 else {}
            for reading in readings(call(number, **more)):
                asked += fold.add(reading) is not None
            fold.stored(None)
            assert len(fold._fixed) + len(fold._used) <= 2 * 256
            assert len(fold._stamped) <= 2 * 256
            if number % 1000 == 0:
                sizes.append(held())
                assert held() <= fold.size()
    assert asked == 4000
    assert sizes[-1] <= 1.3 * sizes[0]
    # What is remembered still costs what it cost first, when it is taken back.
    before = fold.settler.totals.calls
    [last] = readings(call(4000))
    fold.remove(last)
    assert fold.settler.totals.calls == before - 1
    [cells] = [cells for (_, source), cells in fold._cells.items() if source == "otlp"]
    assert sum(usage.cost_nanousd for usage in cells.usage().values()) == sum(range(2, 4000, 2))


def test_the_largest_run_and_trace_have_room_in_the_least_memory() -> None:
    """Else each request would read them again."""
    usual = readings(call(1, gen_ai__conversation__id="c" * 36, gen_ai__response__id="r" * 40))[0]
    spans = folding.SPAN_LIMIT
    largest = spans * (folding._NODE + folding._FIXED + 4 * folding._GONE + size_of(usual))
    assert largest <= divided(LEAST).folds
    assert Settler(limit=folding.SPAN_LIMIT).limit == folding.SPAN_LIMIT


def test_what_waits_stays_within_its_bytes(open_stores: Callable[..., RunStore]) -> None:
    """While the store is busy, requests wait up to the bound; what is beyond is told so with both numbers."""
    slow = Slow(open_stores("memory://"))
    ingest = Ingest(slow, price=price, now=lambda: NOON, memory=SMALL)
    batch = b"".join(call(number, 1) for number in range(2, 102))
    threads: list[threading.Thread] = []
    refused: list[bytes] = []
    try:
        first = threading.Thread(target=post, args=(ingest, call(1)))
        first.start()
        threads.append(first)
        assert slow.entered.acquire(timeout=30)
        with traced() as held:
            while not refused:
                waiting = len(ingest._waiting)
                answered = threading.Event()

                def send(answered: threading.Event = answered) -> None:
                    status, _, body = ingest.handle("/v1/traces", batch, PROTOBUF, None)
                    if status == 429:
                        refused.append(body)
                    with ingest._changed:
                        answered.set()
                        ingest._changed.notify_all()

                threads.append(threading.Thread(target=send))
                threads[-1].start()
                with ingest._changed:
                    assert ingest._changed.wait_for(
                        lambda waiting=waiting, answered=answered: len(ingest._waiting) > waiting or answered.is_set(),
                        30,
                    )
            assert len(ingest._waiting) >= 3
            assert ingest._waiting.size <= SMALL.queue
            assert held() <= SMALL.queue + 100_000 * len(threads)  # a thread has a request of its own in its hands
        assert f"the limit is {SMALL.queue}".encode() in refused[0]
    finally:
        slow.gate.set()
        for thread in threads:
            thread.join(30)
        assert ingest.stop()
    assert ingest._waiting.size == 0


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("512", "'512' is no size"),
        ("64MB", "'64MB' is less than 300MB"),
        ("-1GB", "is no size"),
        ("much", "is no size"),
    ],
)
def test_a_memory_that_is_none_is_refused_in_one_line(said: str, answer: str) -> None:
    """Also from the environment."""
    for arguments, environment in ((["serve", "--memory", said], {}), (["serve"], {"RUNMETER_MEMORY": said})):
        result = CliRunner().invoke(cli, arguments, env=environment)
        assert result.exit_code == 2
        assert answer in result.output


def test_memory_is_divided_and_nothing_of_it_is_given_twice() -> None:
    """The parts are not more than the whole."""
    assert sum(divided(LEAST)) <= LEAST
    with pytest.raises(ValueError, match="1 bytes of memory are less than 300000000"):
        divided(1)
