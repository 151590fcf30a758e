"""A real server around an application, and a client that can send what no library would."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPMessage, HTTPResponse
from io import BufferedReader
from typing import Any, NamedTuple

from runmeter_exporter.http.server import Server

PATIENCE = 60.0
"""Seconds after which a test gives up waiting for an answer: a busy machine is no failure."""


class Answer(NamedTuple):
    status: int
    headers: HTTPMessage
    """Names in any case; None for one that is not there."""
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(app: Any, **limits: Any) -> Iterator[Server]:
    server = Server(app, **limits)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(server.address, timeout=PATIENCE)


def read_answer(sock: socket.socket, method: str = "GET") -> Answer:
    response = HTTPResponse(sock, method=method)
    response.begin()
    return Answer(response.status, response.headers, response.read())


class _Kept(BufferedReader):
    """Stays open, and keeps what it has read ahead, when a response is done with it."""

    def close(self) -> None:
        pass


def read_answers(sock: socket.socket, number: int) -> list[Answer]:
    """Several answers that may come in one piece."""
    stream = _Kept(socket.SocketIO(sock, "r"))

    class Source:
        def makefile(self, mode: str) -> BufferedReader:
            return stream

    return [read_answer(Source()) for _ in range(number)]  # type: ignore[arg-type]


def request_bytes(
    target: str, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> bytes:
    fields = {"Host": "localhost", **(headers or {})}
    if body is not None:
        fields.setdefault("Content-Length", str(len(body)))
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + (body or b"")


def ask(
    server: Server,
    target: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Answer:
    """One request on a connection of its own; the target goes out exactly as it is."""
    with connect(server) as sock:
        sock.sendall(request_bytes(target, method, headers, body))
        return read_answer(sock, method)


def send(server: Server, content: bytes) -> Answer:
    """Bytes as they are, and the answer to them."""
    with connect(server) as sock:
        sock.sendall(content)
        return read_answer(sock)


def closed(sock: socket.socket) -> bool:
    """Wait until the server closes its side; False when it sent something instead."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
