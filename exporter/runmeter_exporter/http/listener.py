"""The listening socket: who is let in, whose turn it is, and who has kept us waiting too long."""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from waitress.adjustments import Adjustments  # type: ignore[import-untyped]
from waitress.server import TcpWSGIServer  # type: ignore[import-untyped]
from waitress.task import ThreadedTaskDispatcher  # type: ignore[import-untyped]
from waitress.wasyncore import dispatcher  # type: ignore[import-untyped]

from runmeter_exporter.http.connection import Connection

CROWDED = 0.9
"""The share of the connection limit from which those who keep us waiting are sent away early."""
CROWDED_WAIT = 3.0

logger = logging.getLogger("runmeter.http")


class Listener(TcpWSGIServer):  # type: ignore[misc]
    """The listening socket and its connections, all in one thread of reading."""

    channel_class = Connection

    def __init__(
        self,
        app: Any,
        sock: socket.socket,
        adjustments: Adjustments,
        *,
        idle_timeout: float,
        request_timeout: float,
        clock: Callable[[], float],
        on_refused: Callable[[int], None],
        lanes: Mapping[tuple[str, ...], int],
    ) -> None:
        self.clock = clock
        self.on_refused = on_refused
        self.draining = False
        self.sweep_every = min(5.0, idle_timeout / 4, request_timeout / 4)
        self._idle_timeout = idle_timeout
        self._request_timeout = request_timeout
        self._next_sweep = clock()
        self._accept_again = 0.0
        self._full = False
        self._trigger_lock = threading.Lock()
        self._trigger_open = True
        self._lanes = [(paths, ThreadedTaskDispatcher(), threads) for paths, threads in lanes.items()]
        info = (sock.family, socket.SOCK_STREAM, 0, sock.getsockname())
        super().__init__(app, {}, True, sock, ThreadedTaskDispatcher(), adjustments, info, bind_socket=False)

    def readable(self) -> bool:
        """Whether to accept; asked once in every turn of the loop, so this is also where overdue clients are swept."""
        now = self.clock()
        crowded = len(self.active_channels) >= CROWDED * self.adj.connection_limit
        if now >= self._next_sweep:
            self._next_sweep = now + self.sweep_every
            wait = CROWDED_WAIT if crowded else float("inf")
            for connection in list(self.active_channels.values()):
                connection.overdue(now, min(self._idle_timeout, wait), min(self._request_timeout, wait))
        full = len(self.active_channels) >= self.adj.connection_limit
        if full and not self._full:
            logger.warning("%d connections are open, the limit; more wait until one closes", len(self.active_channels))
        self._full = full
        return bool(self.accepting) and not full and now >= self._accept_again

    def accept(self) -> Any:
        try:
            return super().accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                # Trying again at once would spin; the connection waits in the kernel meanwhile.
                logger.warning("cannot accept a connection: %s", os.strerror(error.errno))
                self._accept_again = self.clock() + 1.0
                return None
            raise

    def add_task(self, connection: Connection) -> None:
        """Give a request to a worker of its lane; called by the connection, also for errors that have no path."""
        path = getattr(connection.requests[0], "path", "")
        for paths, workers, _ in self._lanes:
            if path in paths:
                workers.add_task(connection)
                return
        self.task_dispatcher.add_task(connection)

    def start_workers(self) -> None:
        """Start the threads that answer."""
        self.task_dispatcher.set_thread_count(self.adj.threads)
        for _, workers, threads in self._lanes:
            workers.set_thread_count(threads)

    def stop_workers(self, timeout: float) -> None:
        """Tell them to end, and wait for those that are not stuck."""
        until = self.clock() + timeout
        for workers in (self.task_dispatcher, *(workers for _, workers, _ in self._lanes)):
            workers.set_thread_count(0)
            with workers.lock:
                workers.thread_exit_cv.wait_for(lambda w=workers: not w.threads, max(0.0, until - self.clock()))

    def stop_accepting(self) -> None:
        """Take what the kernel has already accepted for us, then close the listening socket."""
        self.draining = True
        for _ in range(self.adj.backlog):
            before = len(self.active_channels)
            self.handle_accept()
            if len(self.active_channels) <= before:
                break
        dispatcher.close(self)

    def pull_trigger(self) -> None:
        """Wake the thread that reads. Under a lock with `close`: a worker that outlives us, or whoever stops us, must
        not write to a descriptor that is somebody else's by now."""
        with self._trigger_lock:
            if self._trigger_open:
                super().pull_trigger()

    def close(self) -> None:
        with self._trigger_lock:
            self._trigger_open = False
            super().close()
