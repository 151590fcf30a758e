"""What we add to waitress's connections: errors as problem documents, time limits by a clock that never jumps, an end.

waitress buffers a whole request before it takes a worker thread, which is why it survives slow clients. These are
the attacks that it does not survive as it comes, each with a test in tests/test_http_attacks.py: a chunk that never
ends (quadratic time in the one thread that reads), a Content-Length of 5,000 digits and a target it cannot split
(a traceback and no answer), a byte now and then (a connection held for ever), an answer that nobody reads (a worker
held for ever), a refusal that the client never sees because it is still sending.
"""

from __future__ import annotations

import logging
import socket
from typing import TYPE_CHECKING, Any

from waitress.channel import HTTPChannel  # type: ignore[import-untyped]
from waitress.parser import HTTPRequestParser, ParsingError  # type: ignore[import-untyped]
from waitress.task import ErrorTask, WSGITask  # type: ignore[import-untyped]
from waitress.utilities import BadRequest, Error  # type: ignore[import-untyped]

from runmeter_exporter.http.problems import CONTENT_TYPE, document, title

if TYPE_CHECKING:
    from runmeter_exporter.http.listener import Listener

CONTROL_LIMIT = 4096
"""Bytes of a chunk's size line, or of the trailers, that may come without their end."""
LINGER = 5.0
"""Seconds for which a refused request is still read and thrown away, so that its sender gets to read the refusal."""
LINGER_BYTES = 64 * 2**20

logger = logging.getLogger("runmeter.http")


class _Refusal(Error):  # type: ignore[misc]
    def __init__(self, code: int) -> None:
        super().__init__("")
        self.code = code
        self.reason = title(code)


class Parser(HTTPRequestParser):  # type: ignore[misc]
    """A request being read, which ends in an error where waitress's would raise, wait for ever or grow."""

    def received(self, data: bytes) -> int:
        try:
            consumed = int(super().received(data))
        except OSError as error:  # a body past the memory limit goes to a temporary file
            logger.error("cannot keep a request's body in a temporary file: %s", error.strerror)
            self.error, self.completed, consumed = _Refusal(503), True, len(data)
        if self.chunked and not self.completed:
            receiver = self.body_rcv
            if max(len(receiver.control_line), len(receiver.trailer), len(receiver.chunk_end)) > CONTROL_LIMIT:
                self.error, self.completed = BadRequest(""), True
        if self.error or self.body_rcv is None:
            self.expect_continue = False  # else waitress says "continue" to what it is refusing
        return consumed

    def parse_header(self, header_plus: bytes) -> None:
        try:
            super().parse_header(header_plus)
        except ValueError as error:  # int() of too many digits, urlsplit() of a broken address
            raise ParsingError("malformed") from error


class Task(WSGITask):  # type: ignore[misc]
    """A request being answered; while the server stops, its answer says that the connection ends."""

    def build_response_header(self) -> Any:
        if self.channel.server.draining and len(self.channel.requests) <= 1:
            self.set_close_on_finish()
        return super().build_response_header()


class Refused(ErrorTask):  # type: ignore[misc]
    """A request that never reached the application, answered as a problem document; the connection ends with it."""

    def execute(self) -> None:
        code = self.request.error.code
        detail = None
        if code == 413:
            limit = self.channel.adj.max_request_body_size - 1
            detail = f"The body is larger than the {limit} bytes this server takes."
        elif code == 431:
            limit = self.channel.adj.max_request_header_size
            detail = f"The request line and headers are larger than the {limit} bytes this server takes."
        elif code == 408:
            detail = "The request did not arrive in time."
        elif code == 503:
            detail = "The server has no room to keep the request's body."
        body = document(code, detail)
        self.status = f"{code} {title(code)}"
        self.response_headers += [("Content-Type", CONTENT_TYPE), ("X-Content-Type-Options", "nosniff")]
        self.channel.refused = True
        self.channel.server.on_refused(code)
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Connection(HTTPChannel):  # type: ignore[misc]
    """One client. Methods named by waitress run in the thread that reads, but for `service`, which a worker runs."""

    parser_class = Parser
    task_class = Task
    error_task_class = Refused
    request: Any  # being read, or None
    requests: list[Any]  # read, and waiting for their turn

    def __init__(self, server: Listener, sock: Any, addr: Any, adj: Any, map: Any = None) -> None:
        self.began = self.moved = server.clock()
        self.refused = False
        self.lingering = False
        self._discarded = 0
        super().__init__(server, sock, addr, adj, map=map)

    @property
    def idle(self) -> bool:
        """Nothing read in part, nothing being answered, nothing left to send. The order matters: a worker puts its
        answer among what is left to send before it takes its request from the list."""
        return self.lingering or not (self.requests or self.total_outbufs_len or self.request is not None)

    def received(self, data: bytes) -> Any:
        self.moved = self.server.clock()
        if self.request is None:
            self.began = self.moved
        return super().received(data)

    def service(self) -> None:
        if self._has_left():
            with self.requests_lock:
                for request in self.requests:
                    request.close()
                self.requests = []
            self.will_close = True
            self.server.pull_trigger()
            return
        super().service()
        self.moved = self.server.clock()

    def _flush_some(self, do_close: bool = True) -> Any:
        sent = super()._flush_some(do_close=do_close)
        if sent:
            self.moved = self.server.clock()
        return sent

    def readable(self) -> bool:
        return self.lingering or bool(super().readable())

    def handle_read(self) -> None:
        if not self.lingering:
            super().handle_read()
            return
        try:
            self._discarded += len(self.recv(65536))
        except OSError:
            self._discarded = LINGER_BYTES + 1
        if self._discarded > LINGER_BYTES:
            super().handle_close()

    def handle_close(self) -> None:
        """Close; after a refusal only our half at first: closing while bytes still come would reset the connection,
        and the client would lose the answer that says why."""
        if self.refused and not self.lingering and self.connected and not self.total_outbufs_len:
            self.lingering, self.will_close, self.moved = True, False, self.server.clock()
            try:
                self.socket.shutdown(socket.SHUT_WR)
                return
            except OSError:
                pass
        super().handle_close()

    def overdue(self, now: float, idle: float, request: float) -> None:
        """Close, or refuse with 408, when this client has kept us waiting longer than the limits (seconds)."""
        still = now - self.moved
        if self.lingering:
            if still > min(LINGER, idle):
                super().handle_close()
        elif self.total_outbufs_len:
            if still > idle:
                self.refused = False
                self.will_close = True
                self.handle_close()  # also wakes a worker that waits to write more
        elif self.requests:
            pass  # our own turn
        elif self.request is not None:
            if now - self.began > request or (still > idle and not self._waits_for_us()):
                self._time_out()
        elif still > idle and not self._waits_for_us():
            self.will_close = True

    def _has_left(self) -> bool:
        """Whether who sent something has closed the connection while it waited for its turn: it sends it again, so what
        is done for it now is done twice. A question that is only asked is answered, since its asker may have closed
        nothing but his own half."""
        requests = self.requests
        if not requests or requests[0].error or getattr(requests[0], "command", "") != "POST":
            return False
        try:
            return not self.socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _waits_for_us(self) -> bool:
        """Whether bytes have come that we have not read: then it is we who are late, not the client. Closing now would
        reset the connection under a request that is already here."""
        try:
            return bool(self.socket.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _time_out(self) -> None:
        with self.requests_lock:
            late: Any = self.request
            self.request = None
            if late is None:
                return
            late.error, late.completed = _Refusal(408), True
            self.requests.append(late)
            self.server.add_task(self)
