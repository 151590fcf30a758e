"""Debian's PgBouncer as a process before a PostgreSQL of the test's own."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sidecar_process import until


class PgBouncer:
    """In transaction mode: each transaction may have another of its few servers."""

    def __init__(self, server: Any, servers: int) -> None:
        """`server` is pgserver's; a database has so many connections to it. The test is skipped without PgBouncer."""
        binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if not binary:
            pytest.skip("pgbouncer is not installed (apt-get install pgbouncer)")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self._folder = Path(tempfile.mkdtemp(prefix="runmeter-pgbouncer-"))
        self._folder.chmod(0o755)
        (self._folder / "ini").write_text(
            f"[databases]\n* = host={server.get_uri().partition('host=')[2]} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {servers}\nmax_client_conn = 200\n",
            "utf-8",
        )
        # It does not run as root; whom the server's socket belongs to may connect to it.
        owner = pwd.getpwuid(Path(server.pgdata).stat().st_uid).pw_name
        who = ["-u", owner] if os.getuid() == 0 else []
        with (self._folder / "log").open("w") as log:
            self.process = subprocess.Popen([binary, *who, str(self._folder / "ini")], stdout=log, stderr=log)

    def url(self, database: str, parameters: str = "") -> str:
        """Of a database behind it."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}{parameters}"

    def _answers(self) -> bool:
        assert self.process.poll() is None, (self._folder / "log").read_text()
        with socket.create_connection(("127.0.0.1", self.port), 5):
            return True

    def __enter__(self) -> PgBouncer:
        until(self._answers, "PgBouncer answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)


@pytest.fixture
def pgbouncer(postgres_server: Any) -> Iterator[PgBouncer]:
    """With two connections to each database, so that clients meet on them."""
    with PgBouncer(postgres_server, servers=2) as running:
        yield running
