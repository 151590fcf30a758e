"""A model provider on loopback that costs nothing and keeps its own ledger.

A real HTTP server: the demo's agents and the tests talk to it through the real client libraries, and what it says it
returned is the truth that runmeter's totals are compared with. What it answers is steered from the prompt, so that
any framework can be driven through any path:

    [[tool look_up {"q": "tea"}]]   answer with this tool call (one a round, in order), then with text
    [[fail 429]]  [[fail 500 2]]    answer the first time (the first two times) with this status
    [[break]]                       a stream breaks off before its usage
    [[hold]]                        a stream stays open after its first event until the client has gone
"""

from __future__ import annotations

import json
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from runmeter_exporter.demo.asked import Asked, directives, parse
from runmeter_exporter.demo.wire import Answer, Numbers, error, stream, whole

SAYING = "Meters that run while you watch are worth more than bills that come when the money is spent."


@dataclass(slots=True)
class Entry:
    """One request as the provider saw it."""

    number: int
    wire: str
    model: str
    status: int
    streamed: bool
    run_id: str | None
    """From the request's `x-demo-run` header, as are thread and caller; None where the client sends none."""
    thread_id: str | None
    caller: str | None
    response_id: str
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    reported: bool = False
    """The bytes that state the usage were sent. A stream that nobody asked for its usage never reports it."""


def decodable(number: int, _asked: Asked) -> Numbers:
    """Counts that give away which call is missing or doubled in a wrong sum."""
    i = (number - 1) % 900 + 1
    return Numbers(1000 * i + 11, 100 * i + 7, 64 * i + 1, 0, 10 * i + 3)


class Provider:
    """The server; `with Provider() as provider: OpenAI(base_url=provider.openai_url, api_key="none")`."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        numbers: Callable[[int, Asked], Numbers] = decodable,
        seconds: float = 0.0,
    ) -> None:
        """`seconds` is how long an answer takes (a stream spreads its events over it); port 0 takes any."""
        self._numbers = numbers
        self._seconds = seconds
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._failed: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._server = _Server((host, port), _Handler)
        self._server.provider = self
        self._thread: threading.Thread | None = None
        self.url = f"http://{host}:{self._server.server_address[1]}"
        self.openai_url = f"{self.url}/v1"

    def __enter__(self) -> Provider:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Provider:
        """Answer from a thread of its own."""
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(0.05,), name="demo-provider", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop listening and let go of clients that wait; idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()

    @property
    def ledger(self) -> Sequence[Entry]:
        """Every request so far, in the order they came."""
        with self._lock:
            return tuple(self._entries)

    def truth(self, **where: str | None) -> dict[str, int]:
        """What the answers whose fields equal `where` add up to; tokens only where they were really reported."""
        answers = [e for e in self.ledger if all(getattr(e, key) == value for key, value in where.items())]
        told = [e for e in answers if e.status == 200 and e.reported]
        kinds = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens")
        return {kind: sum(getattr(e, kind) for e in told) for kind in kinds} | {
            "calls": sum(e.status == 200 for e in answers),
            "failures": sum(e.status != 200 for e in answers),
            "calls_without_usage": sum(e.status == 200 and not e.reported for e in answers),
        }

    # --- used by the handler

    def decide(self, asked: Asked, headers: Any) -> tuple[Entry, Answer]:
        """Enter the request into the ledger and say what it gets."""
        told = directives(asked.text)
        status = 200
        with self._lock:
            number = len(self._entries) + 1
            for name, argument in told:
                if name == "fail":
                    code, _, times = argument.partition(" ")
                    if self._failed[asked.text] < int(times or 1):
                        self._failed[asked.text] += 1
                        status = int(code)
            numbers = self._numbers(number, asked) if status == 200 else Numbers(0, 0)
            if asked.wire == "embeddings":
                numbers = Numbers(numbers.input_tokens, 0)
            prefix = {"chat": "chatcmpl-", "responses": "resp_", "messages": "msg_"}.get(asked.wire, "answer-")
            entry = Entry(
                number, asked.wire, asked.model, status, asked.stream, headers.get("x-demo-run"),
                headers.get("x-demo-thread"), headers.get("x-demo-caller"), f"{prefix}{number:06d}", *numbers,
            )  # fmt: skip
            self._entries.append(entry)
        calls = [argument for name, argument in told if name == "tool"]
        tool = None
        if asked.rounds < len(calls):
            name, _, arguments = calls[asked.rounds].partition(" ")
            if name in asked.tools:
                tool = (name, arguments or "{}")
        return entry, Answer(entry.response_id, asked.model, "" if tool else SAYING, tool, numbers)

    def take_time(self, share: float = 1.0) -> None:
        """A share of the time that one answer takes; shorter when the provider stops."""
        if self._seconds:
            self._stopping.wait(self._seconds * share)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    provider: Provider

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is not news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal belongs to `runmeter top`."""

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/ledger":
            self._json(200, [asdict(entry) for entry in self.server.provider.ledger])
        else:
            self._json(404, {"error": {"message": f"no route {self.path}; GET /ledger lists every answer given"}})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        asked = parse(self.path, body)
        if asked is None:
            return self._json(404, {"error": {"message": f"no route {self.path}"}})
        provider = self.server.provider
        entry, answer = provider.decide(asked, self.headers)
        if entry.status != 200:
            return self._json(entry.status, error(asked, entry.status))
        if asked.stream:
            return self._stream(asked, answer, entry)
        provider.take_time()
        # Entered before the bytes go out: whoever has read the answer finds it in the ledger.
        entry.reported = True
        return self._json(200, whole(asked, answer))

    def _json(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status >= 400:
            # Understood by the OpenAI and Anthropic clients: their retries need not take seconds.
            self.send_header("retry-after-ms", "20")
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, asked: Asked, answer: Answer, entry: Entry) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        told = {name for name, _ in directives(asked.text)}
        events = list(stream(asked, answer))
        for index, (data, has_usage) in enumerate(events):
            if held := index == 1 and "hold" in told:
                self._wait_until_client_left()
            if held or (has_usage and "break" in told) or self.server.provider.stopping:
                self.close_connection = True  # without the last chunk: the client sees the stream break
                return
            entry.reported = entry.reported or has_usage
            try:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            except OSError:
                entry.reported = False
                self.close_connection = True
                return
            self.server.provider.take_time(1 / len(events))
        self.wfile.write(b"0\r\n\r\n")

    def _wait_until_client_left(self, seconds: float = 10.0) -> None:
        """A connection whose client has closed it becomes readable, with nothing in it."""
        deadline = time.monotonic() + seconds
        while not self.server.provider.stopping and time.monotonic() < deadline:
            if select.select([self.connection], [], [], 0.05)[0]:
                return
