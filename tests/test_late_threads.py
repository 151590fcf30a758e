"""A short program's run is written though the store opens only while the process leaves: from Python 3.12 on, an
interpreter that ends starts no thread any more."""

from __future__ import annotations

import threading
from pathlib import Path

import fresh
import pytest

from runmeter_exporter import open_store

SHORT = """
import sys, threading
start = threading.Thread.start
def refuse(thread):  # what Python 3.12 does while it leaves
    if not threading.main_thread().is_alive() or thread.name in ("runmeter-deadlines", "runmeter-connect"):
        raise RuntimeError("can't create new thread at interpreter shutdown")
    start(thread)
threading.Thread.start = refuse
import runmeter
runmeter.instrument(instrumentations=False)
with runmeter.run(run_id="short", thread_id="t"):
    runmeter.record_usage(provider="p", model="m", input_tokens=3, output_tokens=4)
"""


def test_a_store_that_cannot_start_threads_is_written_all_the_same(tmp_path: Path) -> None:
    """Without the thread that watches deadlines, and without one for the connection."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    done = fresh.run(SHORT, environment={"RUNMETER_DATABASE_URL": url})
    assert (done.returncode, done.stderr) == (0, "")
    store = open_store(url)
    assert store.thread_usage("t")["total_tokens"] == 7
    store.dispose()


def test_a_postgresql_that_cannot_start_threads_is_written_all_the_same(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connections are made in threads of their own, where there may be one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    store = open_store(postgres_url, create=True)
    assert store.usage()["total_tokens"] == 0
    store.dispose()
