"""A thousand live runs for many minutes through a real sidecar: is memory flat, are file descriptors, are sums exact?

    python tests/benchmarks/soak.py --minutes 10

Prints a line of a table each half minute, and at the end whether the sidecar's memory has reached a plateau.
Five agents on one SQLite file: two record at door 1, two export spans to the sidecar's OTLP port, and one begins its
runs with a call each and is then silent to the end, as in a very long tool call. The others make a call every few
seconds in each run, end runs and begin new ones. Meanwhile somebody scrapes, reads totals and looks at the page.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))
from sidecar_process import Sidecar, until

IN, OUT = 10, 5
SCRAPE = "/metrics?include_active=true"
ASKED = (SCRAPE, "/api/usage?include_active=true", "/api/threads?limit=50", "/")
"""Each of them every two seconds; the table has the median and the longest of half a minute."""
HALF_MINUTE = 30.0
TICK = 0.1
AGENTS = {"recorder-1": 0.25, "recorder-2": 0.25, "exporter-1": 0.2, "exporter-2": 0.2, "silent": 0.1}
"""Their shares of the live runs."""


# An agent


class Recorded:
    """A run at door 1."""

    def __init__(self, number: int) -> None:
        import runmeter

        self._run = runmeter.start_run(thread_id=f"thread-{number % 500}", agent="soak")

    def call(self) -> None:
        """One model call."""
        import runmeter

        runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=IN, output_tokens=OUT,
                              run_id=self._run.run_id)

    def end(self) -> None:
        """It is done."""
        self._run.end()


class Exported:
    """A run at door 2: a trace of its own."""

    tracer: Any = None

    def __init__(self, number: int) -> None:
        from opentelemetry import context, trace

        self._root = self.tracer.start_span("invoke_agent soak", context=context.Context(), attributes={
            "gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "soak",
            "gen_ai.conversation.id": f"thread-{number % 500}"})
        self._context = trace.set_span_in_context(self._root, context.Context())

    def call(self) -> None:
        """One model call."""
        self.tracer.start_span("chat gpt-5-mini", context=self._context, attributes={
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-5-mini",
            "gen_ai.usage.input_tokens": IN, "gen_ai.usage.output_tokens": OUT}).end()

    def end(self) -> None:
        """It is done."""
        self._root.end()


def work(kind: str, database_url: str, otlp_url: str, live: int, every: float, calls_per_run: float) -> None:
    """Keep so many runs alive, each with a call every few seconds, until stdin ends; print how many calls were made."""
    leave = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), leave.set()), daemon=True).start()
    make: type[Recorded] | type[Exported] = Exported if kind.startswith("exporter") else Recorded
    if make is Recorded:
        import runmeter

        handle = runmeter.instrument(database_url=database_url, instrumentations=False)
        finish = lambda: handle.shutdown(timeout=60)  # noqa: E731
    else:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(
            OTLPSpanExporter(f"{otlp_url}/v1/traces", timeout=60), max_queue_size=50_000))
        Exported.tracer = provider.get_tracer("soak")
        finish = provider.shutdown
    dice = random.Random(kind)
    runs: list[Recorded | Exported] = []
    begun = calls = 0
    owed = 0.0
    print("ready", flush=True)
    then = time.monotonic()
    while not leave.wait(TICK):
        while len(runs) < live and not leave.is_set():
            runs.append(make(begun))
            runs[-1].call()
            begun, calls = begun + 1, calls + 1
        if kind == "silent":
            continue
        now = time.monotonic()
        owed, then = min(owed + (now - then) * live / every, live), now
        while owed >= 1:
            owed -= 1
            which = dice.randrange(len(runs))
            runs[which].call()
            calls += 1
            if dice.random() < 1 / calls_per_run:
                runs[which].end()
                runs[which] = make(begun)
                begun += 1
    for run in runs:
        run.end()
    finish()
    print(json.dumps({"runs": begun, "calls": calls}), flush=True)


# The soak


@dataclass
class Series:
    """What one process took: (seconds, bytes resident, descriptors)."""

    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def part(self, start: float, end: float) -> tuple[float, float]:
        """Median MB and descriptors between two fractions of the time."""
        first, last = self.samples[0][0], self.samples[-1][0]
        inside = [s for s in self.samples if start <= (s[0] - first) / (last - first) <= end]
        return median(s[1] for s in inside) / 2**20, median(s[2] for s in inside)


@dataclass
class Outcome:
    """What a soak showed."""

    series: dict[str, Series]
    runs: int
    calls: int
    stored_calls: int
    orphaned: int
    live: int
    slowest_scrape: float
    plateau: str
    differences: list[str]


def soak(minutes: float, live: int = 1000, every: float = 5.0, calls_per_run: float = 12.0, lease: str = "30s",
         say: Any = print) -> Outcome:
    """Run it; times in the agents' own pace: a call every `every` seconds in each live run."""
    from runmeter_exporter import open_store

    with tempfile.TemporaryDirectory(prefix="runmeter-soak-") as folder:
        url = f"sqlite:///{folder}/store.db"
        with Sidecar(url, "--lease", lease, "--grace", "2s") as sidecar:
            agents = {}
            for name, share in AGENTS.items():
                agents[name] = subprocess.Popen(
                    [sys.executable, __file__, "--agent", name, url, sidecar.otlp_url, str(round(live * share)),
                     str(every), str(calls_per_run)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            try:
                outcome = _watch(sidecar, agents, minutes * 60, live, say)
            finally:
                for agent in agents.values():
                    if agent.poll() is None:
                        agent.kill()
                    agent.wait()
                    for pipe in (agent.stdin, agent.stdout):
                        assert pipe is not None
                        pipe.close()
            sidecar.stop()
        store = open_store(url)
        outcome.differences = store.verify()
        outcome.stored_calls = store.usage(include_active=True)["llm_call_count"]
        store.dispose()
    return outcome


def _watch(sidecar: Sidecar, agents: dict[str, subprocess.Popen[str]], seconds: float, live: int, say: Any) -> Outcome:
    for name, agent in agents.items():
        assert agent.stdout is not None
        assert agent.stdout.readline() == "ready\n", name
    until(lambda: _metric(sidecar, "runmeter_active_runs") >= live * 0.99, f"{live} runs are live")
    processes = {"sidecar": sidecar.process, **agents}
    series = {name: Series() for name in processes}
    begin = time.monotonic()
    slowest = 0.0
    lows: list[float] = []
    took: dict[str, list[float]] = {}
    said = -HALF_MINUTE
    say("| s | live | sidecar MB | agents MB | runs | spans | " + " | ".join(f"{path} ms" for path in ASKED) + " |")
    say("|---" * (6 + len(ASKED)) + "|")
    turn = threading.Event()
    while (passed := time.monotonic() - begin) < seconds:
        for path in ASKED:
            asked = time.monotonic()
            text = sidecar.get(path)
            took.setdefault(path, []).append(time.monotonic() - asked)
            if path == SCRAPE:
                lows.append(_value(text, "runmeter_active_runs"))
        slowest = max(slowest, took[SCRAPE][-1])
        for name, process in processes.items():
            seen = psutil.Process(process.pid)
            series[name].samples.append((passed, seen.memory_info().rss, seen.num_fds()))
        if passed - said >= HALF_MINUTE:
            said = passed
            held = {name: one.samples[-1][1] / 2**20 for name, one in series.items()}
            rows = _rows(sidecar.database_url)
            say(f"| {passed:.0f} | {lows[-1]:.0f} | {held.pop('sidecar'):.1f} | {sum(held.values()):.1f} | "
                + " | ".join(f"{count:,}" for count in rows) + " | "
                + " | ".join(f"{median(took[path]) * 1e3:.0f}, {max(took[path]) * 1e3:.0f}" for path in ASKED) + " |")
            took.clear()
        turn.wait(min(2.0, seconds / 20))
    orphaned = _metric(sidecar, "runmeter_orphaned_runs_total")
    told = []
    for agent in agents.values():
        assert agent.stdin is not None
        agent.stdin.close()
    for agent in agents.values():
        assert agent.stdout is not None
        told.append(json.loads(agent.stdout.readline()))
    until(lambda: _metric(sidecar, "runmeter_active_runs") == 0, "all runs are closed")
    return Outcome(series, sum(one["runs"] for one in told), sum(one["calls"] for one in told), 0, round(orphaned),
                   round(min(lows)), slowest, _plateau(series["sidecar"]), [])


def _rows(database_url: str) -> tuple[int, int]:
    """How many runs and spans are stored."""
    with closing(sqlite3.connect(f"file:{database_url.removeprefix('sqlite:///')}?mode=ro", uri=True)) as connection:
        return tuple(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("runs", "spans"))


def _plateau(series: Series) -> str:
    """Whether the last third of the time needed more memory than the middle one."""
    (middle, _), (end, _) = series.part(1 / 3, 2 / 3), series.part(2 / 3, 1.0)
    verdict = "reached" if end - middle <= max(5.0, 0.05 * middle) else "not reached"
    return f"{verdict} (median of the middle third {middle:.1f} MB, of the last {end:.1f} MB)"


def _metric(sidecar: Sidecar, name: str) -> float:
    return _value(sidecar.get(SCRAPE), name)


def _value(text: str | None, name: str) -> float:
    assert text is not None
    return float(next(line.split()[-1] for line in text.splitlines() if line.split(" ")[0].split("{")[0] == name))


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--live", type=int, default=1000, help="runs alive at any time")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two calls of a run")
    options = parser.parse_args()
    outcome = soak(options.minutes, options.live, options.every)
    print(f"\n{outcome.runs:,} runs, {outcome.calls:,} calls made, {outcome.stored_calls:,} stored; never fewer than "
          f"{outcome.live} live; slowest scrape {outcome.slowest_scrape:.2f} s; {outcome.orphaned} orphaned; "
          f"verify: {outcome.differences or 'balanced'}")
    print(f"The sidecar's plateau of memory: {outcome.plateau}")
    print("\n| process | MB after 20–30 % | 50–60 % | 90–100 % | descriptors, same times |\n|---|---|---|---|---|")
    for name, one in outcome.series.items():
        parts = [one.part(*span) for span in ((0.2, 0.3), (0.5, 0.6), (0.9, 1.0))]
        print(f"| {name} | " + " | ".join(f"{mb:.1f}" for mb, _ in parts) + " | "
              + ", ".join(f"{fds:.0f}" for _, fds in parts) + " |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--agent"]:
        _, _, kind, database_url, otlp_url, live, every, calls_per_run = sys.argv
        work(kind, database_url, otlp_url, int(live), float(every), float(calls_per_run))
    else:
        main()
