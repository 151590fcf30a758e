"""What the chaos tests share: agents that say what they acknowledged, and a look at the store afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from runmeter_exporter.reaper import Reaper
from runmeter_exporter.store import RunStore

IN, OUT = 10, 5
"""Tokens of every call that the nursery's agents make."""


class Nursery:
    """`nursery.py` with an ear for what its agents acknowledge."""

    def __init__(self, url: str, throttle: float, **env: str) -> None:
        self.acks: dict[str, int] = defaultdict(int)
        self.ended: dict[str, int] = {}
        self.pids: dict[str, int] = {}
        self._heard = threading.Condition()
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `kill`
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py")), url, str(throttle)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env={**os.environ, **env},
        )
        self._ear = threading.Thread(target=self._listen, daemon=True)
        self._ear.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            run_id, word, number = line.split()
            with self._heard:
                {"ack": self.acks, "end": self.ended, "pid": self.pids}[word][run_id] = int(number)
                self._heard.notify_all()

    def start(self, run_id: str, thread_id: str = "t", calls: int | None = None) -> None:
        """Fork one agent."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{run_id} {thread_id} {calls or ''}\n")
        self.process.stdin.flush()

    def wait(self, what: Callable[[], bool], patience: float = 120) -> None:
        """Until `what` is true of what was heard."""
        with self._heard:
            assert self._heard.wait_for(what, patience), (
                f"not heard within {patience} s; {len(self.ended)} ended; they said {self.said()!r}")

    def go_on(self, calls: int = 300) -> None:
        """Until every agent has made so many calls more."""
        before = dict(self.acks)
        self.wait(lambda: all(self.acks[run_id] >= count + calls for run_id, count in before.items()))

    def signal(self, run_id: str, number: int) -> None:
        """Send a signal to one agent."""
        self.wait(lambda: run_id in self.pids)
        os.kill(self.pids[run_id], number)

    def finish(self) -> int:
        """Have all agents leave their runs, and end; the calls they made."""
        for run_id in self.pids:
            if run_id not in self.ended:
                self.signal(run_id, signal.SIGUSR1)
        self.wait(lambda: len(self.ended) == len(self.pids))
        self.close()
        return sum(self.ended.values())

    def close(self) -> None:
        """Wait for the agents to finish, then end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(120) == 0
        self._ear.join()

    def said(self) -> str:
        """All that the agents wrote to stderr so far."""
        descriptor = self._stderr.fileno()
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode()

    def kill(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                child.kill()
            self.process.kill()
        self.process.wait()
        self._ear.join()
        for file in (self.process.stdin, self.process.stdout, self._stderr):
            assert file is not None
            file.close()


@pytest.fixture
def nursery() -> Iterator[Callable[..., Nursery]]:
    """Makes nurseries: `nursery(url, throttle, **environment)`."""
    made: list[Nursery] = []

    def make(url: str, throttle: float, **env: str) -> Nursery:
        made.append(Nursery(url, throttle, **env))
        return made[-1]

    yield make
    for each in made:
        each.kill()


def reap(store: RunStore) -> None:
    """Let a lease and more pass on a clock of our own, so that every silent source's runs end."""
    now = 0.0
    reaper = Reaper(store, lease=30.0, clock=lambda: now, interval=40.0)
    for _ in range(4):
        reaper.tick()
        now += 35.0


def all_runs(store: RunStore) -> dict[str, dict[str, Any]]:
    """Every run stored, by id."""
    runs, cursor = {}, None
    while True:
        page = store.runs(limit=500, cursor=cursor)
        runs |= {run["run_id"]: run for run in page["runs"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return runs
