"""`runmeter serve` and agents as real processes, for tests that want to see what a user sees."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds until a test gives up on a condition; never a wait by itself."""


def until(look: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """The first true answer of `look`, asked again and again; AssertionError with the last answer otherwise."""
    end = time.monotonic() + patience
    turn = threading.Event()
    answer: Any = None
    while time.monotonic() < end:
        try:
            answer = look()
        except (OSError, HTTPError) as error:
            answer = error
        else:
            if answer:
                return answer
        turn.wait(0.02)
    raise AssertionError(f"{what}: not so within {patience} s; the last answer was {answer!r}")


class Sidecar:
    """`runmeter serve` on free ports; a restart keeps the ports, so that clients find it again."""

    def __init__(self, database_url: str, *options: str, env: Mapping[str, str] | None = None) -> None:
        self.database_url = database_url
        self._options = options
        self._env = {**os.environ, **(env or {})}
        self._listen, self._otlp = "127.0.0.1:0", "127.0.0.1:0"
        self.process: subprocess.Popen[str]
        self.lines: list[str] = []

    def start(self) -> Sidecar:
        """Start and wait until it has printed its addresses and is ready."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runmeter.launch.main", "serve", "--database-url", self.database_url,
             "--listen", self._listen, "--otlp-listen", self._otlp, *self._options],
            env=self._env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        self.lines = []
        threading.Thread(target=self._read, args=(self.process,), daemon=True).start()
        self.url, self.otlp_url = until(self._addresses, "the sidecar prints its two addresses")
        self._listen, self._otlp = (url.removeprefix("http://") for url in (self.url, self.otlp_url))
        until(lambda: self.get("/-/ready") is not None, "the sidecar is ready")
        return self

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines.append(line)

    def _addresses(self) -> tuple[str, str] | None:
        assert self.process.poll() is None, "the sidecar ended: " + "".join(self.lines)
        found = list(dict.fromkeys(re.findall(r"http://[\w.\[\]:]+:\d+", "".join(self.lines))))
        return (found[0], found[1]) if len(found) >= 2 else None

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def get(self, path: str, **headers: str) -> Any:
        """The answer's JSON, or its text where it is not JSON; None for 404 and 503."""
        try:
            with urlopen(Request(self.url + path, headers=headers), timeout=30) as answer:
                body = answer.read().decode()
                return json.loads(body) if "json" in answer.headers.get("content-type", "") else body
        except HTTPError as error:
            if error.code in (404, 503):
                return None
            raise

    def __enter__(self) -> Sidecar:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()


class Agent:
    """`agent_process.py` as a process of its own."""

    def __init__(self, database_url: str, provider_url: str, run_id: str, thread_id: str, throttle: float = 0.05,
                 env: Mapping[str, str] | None = None) -> None:
        self.run_id, self.thread_id = run_id, thread_id
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("agent_process.py")), database_url, provider_url, run_id,
             thread_id, str(throttle)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})},
        )
        self._expect("ready")

    def tell(self, command: str) -> None:
        """Do one thing, and wait until it is done."""
        self.send(command)
        self._expect("done")

    def send(self, command: str) -> None:
        """Say what to do without waiting for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def end(self) -> int:
        """Leave the run and the process; the exit code."""
        self.send("end")
        self._expect("ended")
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        self.process.kill()
        self.process.wait()

    def _expect(self, word: str) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line == word, f"the agent said {line!r}, not {word!r} (exit code {self.process.poll()})"
