"""What the recorder costs and keeps: a call in the agent's thread and in the writer's, writes, staleness, memory.

    python tests/benchmarks/bench_recorder.py [SECONDS]

Ratios against a floor in the same run: adding a call to series, run and model under a lock ("floor"), and four OTel
`counter.add` (the peer's shape). CPU microseconds, medians of interleaved rounds. The load runs for real, by default
ten seconds a row, against SQLite with WAL; staleness is measured from a call to the commit that holds it, and its bar
is the throttle's interval + 0.2 s at the 99th percentile.
"""

from __future__ import annotations

import gc
import statistics
import sys
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.core import RecorderCore
from runmeter_exporter.prices import PriceBook
from runmeter_exporter.recorder import Recorder
from runmeter_exporter.run import RunSnapshot
from runmeter_exporter.store import RunStore, WriteResult, open_store
from runmeter_exporter.totals import End

ROUNDS, CALLS = 20, 2000
USAGE = Usage(1200, 310, 1024, 0, 128, 1, messages=1)
INTERVAL = 1.0


def call(at: int) -> Call:
    """A priced model's call."""
    return Call("openai", "gpt-5-mini", "lead_agent", USAGE, None, at)


class Nowhere:
    """A store that costs nothing, so that only the recorder is measured."""

    url_for_humans = "nowhere"

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        return WriteResult(len(snapshots))

    def heartbeat(self, beats: object) -> None: ...
    def release(self) -> None: ...
    def dispose(self) -> None: ...


def per_call() -> None:
    """CPU of one settled call: the agent's thread, then the writer's."""
    now = time.time_ns()
    change = [Change(None, call(now))]
    run = RunInfo("r", now)
    recorder = Recorder(Nowhere, throttle=INTERVAL)  # type: ignore[arg-type]
    recorder.settled(run, change)
    recorder.flush(10)
    core = RecorderCore("s", throttle=INTERVAL, price=PriceBook().price_call)
    core.settled(run, change, 0.0)
    core.take(0.0)
    lock, series, runs, models, dirty = threading.Lock(), {}, {}, {}, set()  # type: ignore[var-annotated]
    provider = MeterProvider([InMemoryMetricReader()])
    counters = [provider.get_meter("bench").create_counter(f"c{number}") for number in range(4)]
    attributes = {"a": "chat", "b": "openai", "c": "gpt-5-mini", "d": "input", "e": "lead_agent"}

    def floor() -> None:
        with lock:
            for table in (series, runs, models):
                table["k"] = table.get("k", 0) + 1
            dirty.add("k")

    def otel() -> None:
        for counter in counters:
            counter.add(1, attributes)

    work: dict[str, Callable[[], object]] = {
        "floor: three dicts under a lock": floor,
        "OTel counter.add x 4": otel,
        "recorder, the agent's thread": lambda: recorder.settled(run, change),
        "recorder, the writer's thread (priced)": lambda: core.settled(run, change, 0.1),
    }
    took: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, doing in work.items():
            gc.collect()
            started = time.thread_time_ns()
            for _ in range(CALLS):
                doing()
            took[name].append((time.thread_time_ns() - started) / CALLS / 1000)
            recorder.flush(10)
    recorder.shutdown()
    peer = statistics.median(took["OTel counter.add x 4"])
    print("one settled call, CPU us in its thread")
    for name, values in took.items():
        middle = statistics.median(values)
        print(f"  {name:42} {middle:7.2f}   {middle / peer:5.2f} x counter.add x 4")


class Timed:
    """A real store that notes when each of its commits returned, and what it held."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.url_for_humans = store.url_for_humans
        self.commits: list[float] = []
        self.rows = 0
        self.staleness: list[float] = []
        self.waiting: dict[str, list[tuple[int, float]]] = {}
        self.lock = threading.Lock()

    def write(self, snapshots: Sequence[RunSnapshot]) -> WriteResult:
        result = self._store.write(snapshots)
        now = time.monotonic()
        self.commits.append(now)
        self.rows += len(snapshots)
        with self.lock:
            for snapshot in snapshots:
                calls = sum(usage.calls for usage in (snapshot.usage_by or {}).values())
                waiting = self.waiting.get(snapshot.run_id, [])
                while waiting and waiting[0][0] <= calls:
                    self.staleness.append(now - waiting.pop(0)[1])
        return result

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def under_load(runs: int, rate: float, seconds: float) -> None:
    """Calls at a rate over so many live runs: transactions a second and how old what the store shows is."""
    with tempfile.TemporaryDirectory() as folder:
        store = Timed(open_store(f"sqlite:///{Path(folder) / 'bench.db'}"))
        store.runs(limit=1)  # type: ignore[operator]
        recorder = Recorder(lambda: store, throttle=INTERVAL)  # type: ignore[arg-type,return-value]
        infos = [RunInfo(f"run-{number}", time.time_ns(), thread_id=f"t{number % 50}") for number in range(runs)]
        made = [0] * runs
        for info in infos:
            recorder.begin(info)
        recorder.flush(30)
        store.commits.clear()
        store.rows = 0
        cpu, started, number = time.process_time(), time.monotonic(), 0
        while (now := time.monotonic()) < started + seconds:
            while number < (now - started) * rate:
                which = number % runs
                made[which] += 1
                with store.lock:
                    store.waiting.setdefault(f"run-{which}", []).append((made[which], now))
                recorder.settled(infos[which], [Change(None, call(time.time_ns()))])
                number += 1
            time.sleep(0.001)
        spent = time.process_time() - cpu
        commits, rows = len(store.commits), store.rows
        recorder.shutdown(30)
        old = sorted(store.staleness)
        p99 = old[int(len(old) * 0.99)] if old else float("nan")
        print(
            f"  {runs:6} runs {rate:7.0f} calls/s: {commits / seconds:5.1f} transactions/s, "
            f"{rows / seconds:5.0f} rows/s, "
            f"staleness p50 {statistics.median(old):.2f} s, p99 {p99:.2f} s (bar {INTERVAL + 0.2:.1f}), "
            f"process CPU {spent / seconds * 100:.0f} %"
        )
        store.dispose()  # type: ignore[operator]


def memory(runs: int = 1000) -> None:
    """Bytes of an active run, and what an ended one leaves."""
    core = RecorderCore("s", throttle=INTERVAL, price=lambda one: one.usage)
    gc.collect()
    tracemalloc.start()
    empty = tracemalloc.get_traced_memory()[0]
    infos = [RunInfo(f"run-{number}", 0, thread_id="t") for number in range(runs)]
    for step, info in ((step, info) for step in range(10) for info in infos):
        one = Call("openai", f"model-{step % 3}", "lead_agent", USAGE, None, 10**18 + step)
        core.settled(info, [Change(None, one)], float(step))
    core.take(100.0)
    core.wrote(100.0)
    gc.collect()
    live = tracemalloc.get_traced_memory()[0] - empty
    for info in infos:
        core.end(info, End(10**18, "success", None), 200.0)
    core.take(300.0)
    core.wrote(300.0)
    infos.clear()
    del info
    gc.collect()
    left = tracemalloc.get_traced_memory()[0] - empty
    tracemalloc.stop()
    print("memory, bytes")
    print(f"  an active run of three models {live / runs:7.0f} (bar 4,096)")
    print(f"  left of an ended run          {left / runs:7.0f}")


def main(seconds: float = 10.0) -> None:
    per_call()
    print(f"under load, throttle {INTERVAL:g} s, SQLite, {seconds:g} s a row")
    for runs, rate in ((1, 1.0), (1, 1000.0), (1000, 1.0), (1000, 1000.0)):
        under_load(runs, rate, seconds)
    memory()


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
