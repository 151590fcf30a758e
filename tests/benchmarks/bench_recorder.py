"""What the recorder costs and how it writes: a call in the agent's thread and in the writer's, transactions, staleness.

Transactions are counted in virtual time, with the recorder's core and throttle as they are: what matters is how many
there are, not how quick a machine is. Staleness is real time, SQLite with WAL, from a call to the commit that holds it.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import Options, Row, cpu, interleaved, main, percentile
from nowhere import Nowhere
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.prices import PriceBook
from runmeter_exporter.recorder import Recorder
from runmeter_exporter.recorder.core import HEARTBEAT, RecorderCore
from runmeter_exporter.recorder.throttle import GRID_PER_INTERVAL
from runmeter_exporter.store import RunStore, WriteResult, open_store
from runmeter_exporter.totals.run import RunSnapshot

CALLS = 2000
USAGE = Usage(1200, 310, 1024, 0, 128, 1, messages=1)
INTERVAL = 1.0
WRITE_TAKES = 0.005
"""Seconds, in virtual time."""
PEER = "OTel `counter.add` × 4"
FLOOR = "three dicts under a lock"


def settled_call(at: int) -> list[Change]:
    """A priced model's call."""
    return [Change(None, Call("openai", "gpt-5-mini", "lead_agent", USAGE, None, at))]


def per_call(options: Options) -> Iterator[Row]:
    """CPU of one settled call: the agent's thread, then the writer's."""
    change = settled_call(time.time_ns())
    run = RunInfo("r", 0)
    recorder = Recorder(Nowhere, throttle=INTERVAL)  # type: ignore[arg-type]
    recorder.settled(run, change)
    core = RecorderCore("s", throttle=INTERVAL, price=PriceBook().price_call)
    core.settled(run, change, 0.0)
    core.take(0.0)
    lock, tables, dirty = threading.Lock(), ({"k": 0}, {"k": 0}, {"k": 0}), set()
    meter = MeterProvider([InMemoryMetricReader()]).get_meter("bench")
    counters = [meter.create_counter(f"c{number}") for number in range(4)]
    attributes = {"a": "chat", "b": "openai", "c": "gpt-5-mini", "d": "input", "e": "lead_agent"}

    def floor() -> None:
        with lock:
            for table in tables:
                table["k"] += 1
            dirty.add("k")

    def otel() -> None:
        for counter in counters:
            counter.add(1, attributes)

    def often(doing: Callable[[], object]) -> float:
        took = cpu(lambda: [doing() for _ in range(CALLS)], of_thread=True) / CALLS * 1e6
        recorder.flush(10)
        return took

    ours, writers = "recorder, a call in the agent's thread, CPU", "recorder, a call priced in the writer's thread, CPU"
    took = interleaved(
        {
            ours: lambda: recorder.settled(run, change),
            writers: lambda: core.settled(run, change, 0.1),
            PEER: otel,
            FLOOR: floor,
        },
        options.of(20, 1),
        often,
    )
    recorder.shutdown()
    yield Row(what=ours, measured=took[ours], unit="µs", peer=FLOOR, beside=took[FLOOR])
    yield Row(what=writers, measured=took[writers], unit="µs", peer=PEER, beside=took[PEER])


def transactions(runs: int, rate: float, seconds: float) -> float:
    """Transactions a second of so many live runs with so many calls a second in all, in virtual time."""
    core = RecorderCore("s", throttle=INTERVAL, price=lambda one: one.usage)
    infos = [RunInfo(f"run-{number}", 0) for number in range(runs)]
    for info in infos:
        core.begin(info, 0.0)
    change = settled_call(0)
    now, made, count = 0.0, 0, 0
    while now < seconds:
        due = core.next_due()
        if due is None or due > made / rate:
            now = max(now, made / rate)
            core.settled(infos[made % runs], change, now)
            made += 1
            continue
        now = max(now, due)
        beats, snapshots = core.work(now)
        count += bool(beats or snapshots)
        if now < INTERVAL:
            count = 0  # the runs' beginning
        now += WRITE_TAKES
        if beats:
            core.told(now, beats)
        else:
            core.wrote(now)
    return count / (seconds - INTERVAL)


def counted(options: Options) -> Iterator[Row]:
    """One interval bounds them, whatever the load."""
    seconds = options.of(60, 3)
    beside = transactions(1, 1, seconds)
    for load, runs, rate, writes in (
        ("1 run, 1,000 calls/s", 1, 1000, 1),
        ("1,000 runs, 1 call/s", 1000, 1, 1),
        ("1,000 runs, 1,000 calls/s", 1000, 1000, GRID_PER_INTERVAL),
    ):
        yield Row(
            what=f"transactions, {load}",
            measured=transactions(runs, rate, seconds),
            unit="/s",
            peer="1 run, 1 call/s",
            beside=beside,
            at_most=(writes + 0.1) / INTERVAL + 1 / HEARTBEAT,
        )


class Timed:
    """A real store that notes how old each call was when the commit that holds it returned."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.staleness: list[float] = []
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self.lock = threading.Lock()

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        result = self._store.write(snapshots)
        now = time.monotonic()
        with self.lock:
            for snapshot in snapshots:
                calls = sum(usage.calls for usage in (snapshot.usage_by or {}).values())
                waiting = self.waiting.get(snapshot.run_id, [])
                while waiting and waiting[0][0] <= calls:
                    self.staleness.append(now - waiting.pop(0)[1])
        return result

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def staleness(runs: int, rate: float, seconds: float) -> list[float]:
    """Seconds that the calls of so many live runs waited to be in the store."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(f"sqlite:///{Path(folder) / 'bench.db'}", create=True)
        store.runs(limit=1)
        timed = Timed(store)
        recorder = Recorder(lambda: timed, throttle=INTERVAL)  # type: ignore[arg-type,return-value]
        infos = [RunInfo(f"run-{number}", time.time_ns(), thread_id=f"t{number % 50}") for number in range(runs)]
        for info in infos:
            recorder.begin(info)
        recorder.flush(30)
        made = 0
        turn = threading.Event()
        started = time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            while made < (now - started) * rate:
                which, made = made % runs, made + 1
                with timed.lock:
                    waiting = timed.waiting.setdefault(f"run-{which}", [])
                    waiting.append(((made - 1) // runs + 1, now))
                recorder.settled(infos[which], settled_call(time.time_ns()))
            turn.wait(0.001)
        recorder.shutdown(30)
        store.dispose()
        return timed.staleness


def measure(options: Options) -> Iterator[Row]:
    """What a call costs, how many writes, how old what the store shows is."""
    yield from per_call(options)
    yield from counted(options)
    runs = options.of(1000, 20)
    old = staleness(runs, runs, options.of(20, 1))
    yield Row(
        what=f"staleness p99, {runs:,} live runs, {runs:,} calls/s",
        measured=percentile(old, 0.99),
        unit="s",
        peer="their median",
        beside=statistics.median(old),
        at_most=INTERVAL + 0.2,
    )


if __name__ == "__main__":
    main(measure)
