"""`Server`: a WSGI application on a port, behind waitress with limits that survive hostile clients.

No TLS: put a proxy in front of anything that leaves the machine.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from waitress import wasyncore  # type: ignore[import-untyped]
from waitress.adjustments import Adjustments  # type: ignore[import-untyped]

from runmeter_exporter.http.listener import Listener

BODY_LIMIT = 20 * 2**20
"""Bytes of a request's body; the OpenTelemetry Collector's own limit."""
HEADER_LIMIT = 32 * 2**10
"""Bytes of the request line and headers; ids of 256 characters take 3 kB when each is percent-encoded."""
MEMORY_PER_BODY = 128 * 2**10
"""Bytes of a body kept in memory; more of it waits in a temporary file."""
LANES: Mapping[tuple[str, ...], int] = {("/-/healthy",): 1, ("/-/ready", "/metrics"): 3}
"""Threads that answer these paths and nothing else: a store that hangs may hold every other thread until its deadline,
and must not look like a dead process or a gap in the scrape."""

logger = logging.getLogger("runmeter.http")


class ListenError(OSError):
    """The address cannot be listened on; the text says why and what to do."""


class Server:
    """Serves `app` from threads of its own; constructed, it already listens; `start()` begins to answer.

    `threads` requests are answered at once besides those of `lanes`, and `connection_limit` clients may be connected.
    A client that neither sends nor reads is disconnected after `idle_timeout` seconds, and a request must arrive
    within `request_timeout`.
    `on_refused(status)` is called for requests that never reach `app` (too large, malformed, too slow).
    """

    def __init__(
        self,
        app: Any,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        threads: int = 8,
        connection_limit: int = 1000,
        body_limit: int = BODY_LIMIT,
        header_limit: int = HEADER_LIMIT,
        idle_timeout: float = 20.0,
        request_timeout: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        on_refused: Callable[[int], None] = lambda status: None,
        lanes: Mapping[tuple[str, ...], int] = LANES,
    ) -> None:
        """Raises `ListenError`. An empty `host`, `0.0.0.0` or `::` is every address of the machine; port 0 any port."""
        self._clock = clock
        sock = _listen(host, port)
        adjustments = Adjustments(
            threads=threads,
            connection_limit=_affordable(connection_limit),
            max_request_body_size=body_limit + 1,  # waitress refuses what is equal
            max_request_header_size=header_limit,
            inbuf_overflow=MEMORY_PER_BODY,
            ident="",
            log_socket_errors=False,
            clear_untrusted_proxy_headers=True,
            asyncore_use_poll=True,
        )
        # Requests that wait for a worker are not news; the default handler would print each to stderr.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)
        self._listener = Listener(
            app,
            sock,
            adjustments,
            idle_timeout=idle_timeout,
            request_timeout=request_timeout,
            clock=clock,
            on_refused=on_refused,
            lanes=lanes,
        )
        self.address: tuple[str, int] = sock.getsockname()[:2]
        """Host and port really listened on."""
        self._deadline: float | None = None
        self._drained = False
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def url(self) -> str:
        """The address as a URL that a client on this machine can use."""
        host, port = self.address
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def connections(self) -> int:
        """Clients connected at the moment."""
        return len(self._listener.active_channels)

    def start(self) -> Server:
        """Begin to answer; returns at once."""
        with self._lock:
            if self._thread is None and not self._closed:
                self._listener.start_workers()
                name = f"runmeter-http-{self.address[1]}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
        return self

    def stop(self, timeout: float = 5.0) -> bool:
        """Accept no more, answer what was accepted, then close; True when all of it was answered within `timeout` s.

        Idempotent. Requests that are still arriving are waited for, idle connections are not.
        """
        with self._lock:
            if self._closed:
                return self._drained
            self._closed = True
            if self._thread is None:
                self._listener.close()
                self._drained = True
                return True
            self._deadline = self._clock() + timeout
            self._listener.pull_trigger()
            self._thread.join(timeout + 10)
            return self._drained

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        listener = self._listener
        while self._deadline is None:
            self._turn(min(1.0, listener.sweep_every))
        listener.stop_accepting()
        self._turn(0)  # read what has already come, also from those just accepted
        while True:
            for connection in list(listener.active_channels.values()):
                if connection.idle:
                    connection.refused = False
                    connection.handle_close()
            left = self._deadline - self._clock()
            self._drained = not listener.active_channels
            if self._drained or left <= 0:
                break
            self._turn(min(0.1, left))
        listener.stop_workers(max(0.0, min(left, 1.0)))
        if not self._drained:
            logger.warning("stopped with %d connections not answered in time", len(listener.active_channels))
        for connection in list(listener.active_channels.values()):
            connection.cancel()
            connection.refused = False
            connection.handle_close()
        listener.close()

    def _turn(self, timeout: float) -> None:
        try:
            wasyncore.loop(timeout=timeout, use_poll=True, map=self._listener._map, count=1)
        except Exception:  # one broken connection must not end the others' service
            logger.exception("error in the loop that reads from clients")


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; for a name with several addresses the first IPv4 one, else the first."""
    where = f"{host or '0.0.0.0'}:{port}"
    if not 0 <= port <= 65535:  # getaddrinfo would take it modulo 65536
        raise ListenError(f"cannot listen on {where}: ports go from 0 to 65535")
    try:
        found = socket.getaddrinfo(
            {"": "0.0.0.0", "*": "0.0.0.0"}.get(host, host), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise ListenError(f"cannot listen on {where}: {host!r} is no name or address ({error})") from None
    family, kind, proto, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    sock = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` means every address, as people expect of it, also where the system's default says otherwise.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        sock.bind(address)
        sock.listen(1024)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            why = "another program listens there. Stop it, or choose another port (0 takes any free one)"
        elif error.errno == errno.EACCES:
            why = "that needs privileges. Choose a port from 1024 on (0 takes any free one)"
        elif error.errno == errno.EADDRNOTAVAIL:
            why = "this machine has no such address. Use 127.0.0.1, or 0.0.0.0 for all it has"
        else:
            why = str(error)
        raise ListenError(f"cannot listen on {where}: {why}") from None
    return sock


def _affordable(connections: int) -> int:
    """As many of `connections` as this process may have descriptors for, after asking for enough.

    A connection takes one, another for a large body; half of what there is stays for a second server and the store.
    """
    try:
        import resource
    except ImportError:
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * connections + 256
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        except (OSError, ValueError):
            soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == unlimited or soft >= wanted:
        return connections
    return max(16, (soft - 64) // 4)
