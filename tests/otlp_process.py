"""Door 2 in a process that is killed and started again at once: forked from one that has imported everything.

Run as a script it obeys lines on stdin, and repeats each when it is done: `start` when requests are taken, `kill`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path


class OtlpProcess:
    """A sidecar's OTLP door on a fixed port of loopback. Runs that have ended close at once, over and over."""

    def __init__(self, database_url: str, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._parent = subprocess.Popen(
            [sys.executable, __file__, database_url, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self) -> None:
        """Take requests from now on."""
        self._tell("start")

    def kill(self) -> None:
        """SIGKILL, whatever it is doing."""
        self._tell("kill")

    def close(self) -> None:
        """Kill it, and the process that starts it."""
        assert self._parent.stdin is not None
        self._parent.stdin.close()
        self._parent.wait(30)

    def _tell(self, word: str) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        print(word, file=self._parent.stdin, flush=True)
        answer = self._parent.stdout.readline().strip()
        assert answer == word, f"{word}: {answer}"


def _serve(database_url: str, port: int, ready: int) -> None:
    from runmeter_exporter.http.server import Server
    from runmeter_exporter.ingest.ingest import Ingest
    from runmeter_exporter.store import StoreError, open_store
    from runmeter_exporter.web.app import create_otlp_app

    store = open_store(database_url, create=True)
    ingest = Ingest(store, price=lambda call: call.usage)
    server = Server(create_otlp_app(ingest, allowed_hosts=("127.0.0.1",)), "127.0.0.1", port)
    server.start()
    os.write(ready, b"!")
    turn = threading.Event()
    while not turn.wait(0.02):
        try:
            ingest.close_runs([run.run_id for run in store.watch().runs if run.ended])
        except StoreError as error:
            print(error, file=sys.stderr)


def _obey(database_url: str, port: int) -> None:
    sys.path.insert(0, str(Path(__file__).parent))

    child = 0
    for line in sys.stdin:
        word = line.strip()
        if word == "start":
            ready, said = os.pipe()
            child = os.fork()
            if not child:
                os.close(ready)
                os.close(0)
                _serve(database_url, port, said)
            os.close(said)
            if os.read(ready, 1) != b"!":
                word = "it ended before it was ready"
            os.close(ready)
        elif child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            child = 0
        print(word, flush=True)
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


if __name__ == "__main__":
    _obey(sys.argv[1], int(sys.argv[2]))
