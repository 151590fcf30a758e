"""A thread's totals through REST, whole: HTTP, store, JSON. Threads of 10 and 10,000 runs in a store of a million.

Beside the peers' shapes, over a table of as many runs with the totals in a row each, without any HTTP around them:
reading the thread's rows and adding them up in Python, and a sum in SQL over a covering index.
CPU of the whole process, server and client.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from filled import LARGE_THREAD, SMALL_SIZE, SMALL_THREAD, large_size, many, stores
from harness import Options, Row, interleaved, main
from sqlalchemy import BigInteger, Index, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from runmeter_exporter.http.server import Server
from runmeter_exporter.store import open_store
from runmeter_exporter.web.app import create_app

REQUESTS = 50
TOTALS = ("total_input_tokens", "total_output_tokens", "total_tokens", "lead_agent_tokens", "subagent_tokens",
          "middleware_tokens", "llm_call_count", "message_count")  # fmt: skip


class Base(DeclarativeBase):
    pass


class PeerRun(Base):
    """A run as a table of runs with their totals has it."""

    __tablename__ = "peer_runs"
    run_id: Mapped[str] = mapped_column(primary_key=True)
    thread_id: Mapped[str]
    assistant_id: Mapped[str]
    status: Mapped[str]
    model_name: Mapped[str]
    error: Mapped[str | None]
    created_at: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[int] = mapped_column(BigInteger)
    total_input_tokens: Mapped[int]
    total_output_tokens: Mapped[int]
    total_tokens: Mapped[int]
    lead_agent_tokens: Mapped[int]
    subagent_tokens: Mapped[int]
    middleware_tokens: Mapped[int]
    llm_call_count: Mapped[int]
    message_count: Mapped[int]


Index("peer_covering", PeerRun.thread_id, PeerRun.status, PeerRun.model_name, *(getattr(PeerRun, n) for n in TOTALS))


class Peer:
    """As many runs, the large thread's among them."""

    def __init__(self, path: Path, runs: int, large: int) -> None:
        self.engine = create_engine(f"sqlite:///{path}")
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA synchronous = OFF")
            Base.metadata.create_all(self.engine)
            db.executemany(
                f"INSERT INTO peer_runs VALUES ({', '.join('?' * 16)})",
                (
                    (f"run-{n}", LARGE_THREAD if n < large else f"thread-{n // SMALL_SIZE}", "agent", "success",
                     f"model-{n % 10}", None, n, n, 1000, 100, 1100, 1000, 100, 0, 3, 3)
                    for n in range(runs)
                ),
            )  # fmt: skip
            db.execute("ANALYZE")
        self.db = sqlite3.connect(path)

    def rows_to_python(self) -> object:
        """Objects of the thread's runs, added up by model."""
        totals: Counter[str] = Counter()
        by_model: Counter[str] = Counter()
        with Session(self.engine) as session:
            found = session.scalars(
                select(PeerRun).where(PeerRun.thread_id == LARGE_THREAD, PeerRun.status.in_(("success", "error")))
            )
            for run in found:
                by_model[run.model_name] += run.total_tokens
                for name in TOTALS:
                    totals[name] += getattr(run, name)
        return totals, by_model

    def sum_in_sql(self) -> object:
        """The same by the database, which need not leave its index for it."""
        sums = ", ".join(f"sum({name})" for name in TOTALS)
        return self.db.execute(
            f"SELECT model_name, count(*), {sums} FROM peer_runs "
            "WHERE thread_id = ? AND status IN ('success', 'error') GROUP BY model_name",
            (LARGE_THREAD,),
        ).fetchall()

    def close(self) -> None:
        """Let go of the file."""
        self.db.close()
        self.engine.dispose()


def asking(connection: HTTPConnection, path: str, times: int) -> Callable[[], object]:
    """So many requests, one after the other on one connection."""

    def ask() -> None:
        for _ in range(times):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body

    return ask


def measure(options: Options) -> Iterator[Row]:
    """Four rows, in milliseconds."""
    lots, large = many(options), large_size(options)
    times = options.of(REQUESTS, 2)
    with stores(options) as paths, tempfile.TemporaryDirectory() as folder:
        peer = Peer(Path(folder, "peer.db"), lots, large)
        store = open_store(f"sqlite:///{paths[lots]}", deadline=60)
        with Server(create_app(store)) as server:
            connection = HTTPConnection(*server.address)
            work: dict[str, Callable[[], object]] = {}
            for thread, runs in ((SMALL_THREAD, SMALL_SIZE), (LARGE_THREAD, large)):
                path = f"/api/threads/{thread}/token-usage"
                connection.request("GET", path)
                assert json.load(connection.getresponse())["total_runs"] == runs
                work[f"default {thread}"] = asking(connection, path, times)
                work[f"active {thread}"] = asking(connection, f"{path}?include_active=true", times)
            took = interleaved(work, options.of(20, 1))
            peers = interleaved({"rows": peer.rows_to_python, "sum": peer.sum_in_sql}, options.of(5, 1))
            connection.close()
        store.dispose()
        peer.close()
    answers = {name: seconds / times * 1000 for name, seconds in took.items()}
    for name, what, bar in (
        ("default", f"REST answer, thread of {large:,} runs of {lots:,} stored, CPU", 1.5),
        ("active", "the same with `include_active`", None),
    ):
        yield Row(
            what=what,
            measured=answers[f"{name} {LARGE_THREAD}"],
            unit="ms",
            peer=f"thread of {SMALL_SIZE} runs",
            beside=answers[f"{name} {SMALL_THREAD}"],
            ratio_at_most=bar,
        )
    for name, what in (("rows", "its rows to Python, no HTTP"), ("sum", "SQL sum over a covering index, no HTTP")):
        yield Row(
            what=f"the answer for {large:,} runs",
            measured=answers[f"default {LARGE_THREAD}"],
            unit="ms",
            peer=what,
            beside=peers[name] * 1000,
        )


if __name__ == "__main__":
    main(measure)
