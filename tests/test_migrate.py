"""Stores of older releases: brought up to this one in place, step by step, while others write to them."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from next_release import STEPS, become
from sidecar_process import until
from sqlalchemy import Engine, inspect, text
from stored_release import StoredRelease
from test_store import snap

from runmeter_exporter import cli
from runmeter_exporter.console.doctor import store_report
from runmeter_exporter.console.options import Address
from runmeter_exporter.serve import Config, run
from runmeter_exporter.store import Heartbeat, RunStore, StoreError, StoreUnavailable
from runmeter_exporter.store.sql import setup, steps, upgrade
from runmeter_exporter.store.sql import store as sql_store
from runmeter_exporter.store.sql.schema import metadata
from runmeter_exporter.store.sql.store import SqlRunStore
from runmeter_exporter.upgrading import Upgrade

BOTH = pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
WHAT = [step.what for step in STEPS]
LAST = STEPS[-1].number
RELEASES = ("0.1.0",)
Open = Callable[..., SqlRunStore]


def minor(engine: Engine) -> str | None:
    """What a store says of its steps."""
    with engine.connect() as connection:
        said: str | None = connection.execute(
            text("SELECT value FROM meta WHERE name = :name"), {"name": setup.MINOR}
        ).scalar()
    return said


@pytest.fixture
def next_release(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, makes this process one of the next release."""
    return lambda: become(monkeypatch.setattr)


def upgraded(engine: Engine) -> bool:
    """Whether all steps were taken, whole."""
    there = inspect(engine)
    columns = {column["name"] for column in there.get_columns("sources")}
    indexes = {index["name"] for index in there.get_indexes("sources")}
    whole = "host" in columns and "sources_host" in indexes and there.has_table("marks")
    return whole and minor(engine) == str(LAST)


def test_the_list_keeps_its_rules() -> None:
    """Numbers in order, names of what there is, nothing twice; columns that older releases need not know."""
    assert [step.number for step in steps.STEPS] == list(range(1, len(steps.STEPS) + 1))
    names = [name for step in steps.STEPS for name in step.adds]
    assert len(names) == len(set(names))
    for name in names:
        table, _, index = name.partition(":")
        table, _, column = table.partition(".")
        found = metadata.tables[table]
        assert not index or index in {one.name for one in found.indexes}
        if column:
            assert found.c[column].nullable or found.c[column].server_default is not None
            assert not found.c[column].primary_key
    for step in steps.STEPS:  # an index takes long, and would keep others from a column of the same step
        assert len(step.adds) == 1 or not any(":" in name for name in step.adds)


@BOTH
def test_a_new_store_has_every_step(sql_url: str, open_stores: Open) -> None:
    """Who makes a store makes all of it, and nothing is to be done."""
    store = open_stores(sql_url)
    store.write([snap(tokens=1)])
    assert minor(store.engine) == str(len(steps.STEPS))
    assert store.pending() == store.migrate() == []


def test_in_memory_there_is_nothing_to_do(open_stores: Callable[..., RunStore]) -> None:
    """No store in memory outlives its release."""
    store = open_stores("memory://")
    assert store.pending() == store.migrate() == []


@BOTH
def test_a_store_is_brought_up_in_place(
    sql_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """What is to be done is said, done once, and nothing that was there is touched; an older release goes on."""
    older = open_stores(sql_url)
    older.write([snap(tokens=1)])
    with older.engine.begin() as connection:  # 0.1.0 said nothing of steps
        connection.execute(text("DELETE FROM meta WHERE name = :name"), {"name": setup.MINOR})
    next_release()
    store = open_stores(sql_url, create=False)
    store.usage()
    assert minor(store.engine) is None, "who only opens a store migrates nothing"
    assert store.pending() == [step.what for step in steps.STEPS]
    assert store.verify() == []
    assert store.migrate() == [step.what for step in steps.STEPS]
    assert upgraded(store.engine)
    assert store.pending() == store.migrate() == []
    assert older.write([snap(revision=2, tokens=2)]).applied == 1
    assert store.usage(include_active=True)["total_tokens"] == 2
    assert older.verify() == store.verify() == []


def options(index: Mapping[str, Any]) -> dict[str, str]:
    """Which rows an index has, and the like."""
    return {name: str(value) for name, value in index.get("dialect_options", {}).items()}


def shape(engine: Engine) -> dict[str, Any]:
    """Every table with its columns, key and indexes, whatever their order."""
    there = inspect(engine)
    found: dict[str, Any] = {}
    for table in there.get_table_names():
        columns = {column["name"]: (str(column["type"]), column["nullable"], column["default"])
                   for column in there.get_columns(table)}  # fmt: skip
        indexes = {index["name"]: (index["column_names"], bool(index["unique"]), options(index))
                   for index in there.get_indexes(table)}  # fmt: skip
        found[table] = columns, there.get_pk_constraint(table)["constrained_columns"], indexes
    return found


@BOTH
@pytest.mark.parametrize("version", RELEASES)
@pytest.mark.parametrize("quarter", [0, 1, 2, 3])
def test_a_stored_release_is_upgraded_while_its_agents_write(
    quarter: int, version: str, sql_url: str, tmp_path: Path, open_stores: Open, next_release: Callable[[], None],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """From what it left, amid what it does: nothing fails on either side, every token is there once, and the store is
    what a new one would be. Meanwhile whoever only opens it, agent or reader, goes on with what there is."""
    older = StoredRelease(version, sql_url)
    next_release()
    agent = open_stores(sql_url, create=None)
    assert agent.usage(include_active=True)["total_tokens"] > 0
    assert agent.verify() == []
    there, failures = threading.Event(), []
    due = len(older) * quarter // 4

    def work() -> None:
        try:
            older.work(lambda number: number == due and there.set())
        except BaseException as error:
            failures.append(error)
            there.set()

    working = threading.Thread(target=work)
    working.start()
    there.wait()
    assert agent.write([snap("newer", tokens=3)]).applied == 1
    store = open_stores(sql_url, create=False)
    assert store.migrate() == [step.what for step in steps.STEPS]
    assert agent.write([snap("newer", revision=2, tokens=5)]).applied == 1
    working.join()
    assert failures == []
    assert upgraded(store.engine)
    assert shape(store.engine) == shape(another(request, open_stores, sql_url).engine)
    totals = older.totals | {"active_runs": older.totals["active_runs"] + 1}
    for reader in (agent, store):
        assert reader.verify() == []
        assert {name: reader.usage()[name] for name in totals} == totals  # type: ignore[literal-required]
        assert [run["run_id"] for run in reader.runs(status="running")["runs"]].count("newer") == 1


def another(request: pytest.FixtureRequest, open_stores: Open, url: str) -> SqlRunStore:
    """A new store of the same kind."""
    if url.startswith("sqlite"):
        store = open_stores(f"{url}.new")
    else:
        server = request.getfixturevalue("postgres_server")
        server.psql("DROP DATABASE IF EXISTS another WITH (FORCE);")
        server.psql("CREATE DATABASE another;")
        store = open_stores(server.get_uri(database="another"))
    store.usage()
    return store


@BOTH
def test_a_newer_store_is_no_mismatch(sql_url: str, open_stores: Open) -> None:
    """With more steps than this release knows it is used, and what it says of them stays."""
    newer = open_stores(sql_url)
    newer.usage()
    with newer.engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE name = :name"), {"name": setup.MINOR})
        connection.execute(text("ALTER TABLE sources ADD COLUMN later TEXT"))
        connection.execute(text("CREATE TABLE later (name TEXT PRIMARY KEY)"))
    store = open_stores(sql_url)
    store.write([snap(tokens=1)])
    assert store.pending() == store.migrate() == []
    assert store.verify() == []
    assert minor(store.engine) == "99"


@BOTH
@pytest.mark.parametrize("last", [name for step in STEPS for name in step.adds])
def test_what_was_killed_in_the_middle_is_finished(
    last: str, sql_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """A process that is killed in a step leaves nothing of it, and the next one does what is left."""
    open_stores(sql_url).write([snap(tokens=1)])
    script = Path(__file__).with_name("next_release.py")
    assert subprocess.run([sys.executable, str(script), sql_url, last], check=False).returncode == -signal.SIGKILL
    next_release()
    store = open_stores(sql_url)
    left = store.pending()
    assert left == WHAT[[step.adds for step in STEPS].index((last,)) :]
    assert not inspect(store.engine).has_table("marks")
    assert store.migrate() == left
    assert upgraded(store.engine)
    assert store.verify() == []


@BOTH
def test_what_is_there_already_is_left(sql_url: str, open_stores: Open, next_release: Callable[[], None]) -> None:
    """A database that keeps its tables out of transactions may have half of a step."""
    store = open_stores(sql_url)
    store.write([snap(tokens=1)])
    with store.engine.begin() as connection:
        connection.execute(text("CREATE TABLE marks (name TEXT PRIMARY KEY)"))
        connection.execute(text("ALTER TABLE sources ADD COLUMN host TEXT"))
    next_release()
    assert store.migrate() == WHAT
    assert upgraded(store.engine)


@BOTH
def test_several_begin_at_once(sql_url: str, open_stores: Open, next_release: Callable[[], None]) -> None:
    """Each step is taken by one of them, and all end well."""
    open_stores(sql_url).write([snap(tokens=1)])
    next_release()
    stores = [open_stores(sql_url, deadline=30) for _ in range(4)]
    together, done = threading.Barrier(len(stores)), []

    def run(store: SqlRunStore) -> None:
        store.usage()
        together.wait()
        done.extend(store.migrate())

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(WHAT)
    assert upgraded(stores[0].engine)


@BOTH
def test_it_waits_for_a_table_in_use_and_lets_others_through(
    sql_url: str, open_stores: Open, next_release: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long transaction has the table it tries in short pieces, between which others work; then it is done."""
    store = open_stores(sql_url, deadline=2)
    store.write([snap(tokens=1)])
    next_release()
    tried, freed = threading.Event(), threading.Event()

    def pause() -> None:
        tried.set()
        assert freed.wait(30)

    monkeypatch.setattr(upgrade, "_pause", pause)
    done: list[str] = []
    migrating = threading.Thread(target=lambda: done.extend(store.migrate()))
    with store.engine.connect() as other:
        if "postgres" in sql_url:
            other.execute(text("SELECT * FROM sources"))
            migrating.start()
            assert tried.wait(30)
            with store.engine.connect() as third:
                third.execute(text("SELECT * FROM sources"))
        else:
            other.execution_options(runmeter_writes=True).begin()
            migrating.start()
            assert store.usage()["total_tokens"] == 0
        other.rollback()
    freed.set()
    migrating.join()
    assert done == WHAT
    assert upgraded(store.engine)


@BOTH
def test_a_table_that_never_comes_free_is_said(
    sql_url: str, open_stores: Open, next_release: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives up in time, and the store works as before."""
    store = open_stores(sql_url, deadline=2)
    store.write([snap(tokens=1)])
    next_release()
    monkeypatch.setattr(sql_store, "MIGRATE_DEADLINE", 0.0)
    with store.engine.connect() as other:
        if "postgres" in sql_url:
            other.execute(text("SELECT * FROM sources"))
        else:
            other.execution_options(runmeter_writes=True).begin()
        with pytest.raises(StoreUnavailable, match=r"could not add 'hosts of sources'.*lock"):
            store.migrate()
        other.rollback()
    assert store.write([snap(revision=2, tokens=2)]).applied == 1
    assert store.migrate() == WHAT


def test_without_the_right_to_it_all_goes_on(
    postgres_url: str, open_stores: Open, next_release: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    """A sidecar that does not own the tables says so once and works; when the owner has done it, it knows."""
    owner = open_stores(postgres_url)
    owner.write([snap(tokens=1)])
    with owner.engine.begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS metered"))
        connection.execute(text("CREATE ROLE metered LOGIN"))
        connection.execute(text("GRANT ALL ON ALL TABLES IN SCHEMA public TO metered"))
    next_release()
    added: list[str] = []
    store = open_stores(postgres_url.replace("postgres:@", "metered:@"))
    upgrade = Upgrade(store, added.extend)
    assert [upgrade.try_once() for _ in range(2)] == [False, False]
    assert store.write([snap(revision=2, tokens=2)]).applied == 1
    [said] = [record.getMessage() for record in caplog.records]
    assert "must be owner of table sources" in said
    assert "runmeter migrate" in said
    owner.migrate()
    assert upgrade.try_once()
    assert added == []
    assert store.pending() == []
    store.dispose()
    with owner.engine.begin() as connection:
        connection.execute(text("DROP OWNED BY metered"))
        connection.execute(text("DROP ROLE metered"))


def test_a_store_that_is_away_is_upgraded_when_it_answers(
    sqlite_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """The sidecar starts at once, and tries again."""
    store = open_stores(sqlite_url)
    store.write([snap(tokens=1)])
    next_release()
    added, turns = threading.Event(), iter((True, False))

    class Away:
        migrate = store.migrate

        def pending(self) -> list[str]:
            if next(turns):
                raise StoreUnavailable("away")
            return store.pending()

    upgrade = Upgrade(Away(), lambda _: added.set(), pause=0.001)
    upgrade.start(30)
    assert added.wait(30)
    upgrade.stop()
    assert upgraded(store.engine)


@BOTH
def test_the_command_says_what_it_does(
    sql_url: str, open_stores: Open, next_release: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` says it and exits 1, without it is done, then there is nothing to do; wrong use is exit code 2."""

    def migrate(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(["migrate", *arguments])
        output = capsys.readouterr()
        return int(str(left.value)), output.out or output.err

    code, said = migrate(sql_url)
    assert code == 2
    assert "no store" in said or "is missing" in said
    store = open_stores(sql_url)
    store.write([snap(tokens=1)])
    assert migrate(sql_url, "--check") == (0, "nothing to do: the store has all that this release adds\n")
    next_release()
    all = "".join(f"to be added: {what}\n" for what in WHAT)
    assert migrate("--database-url", sql_url, "--check") == migrate(sql_url, "--check") == (1, all)
    assert "marks" in store_report(sql_url)["advice"][-1]
    assert not upgraded(store.engine)
    assert migrate(sql_url) == (0, all.replace("to be added", "added"))
    assert upgraded(store.engine)
    assert migrate(sql_url, "--json") == (0, '{\n  "added": []\n}\n')
    assert migrate(sql_url, "--database-url", sql_url)[0] == migrate("memory://")[0] == migrate("nonsense")[0] == 2
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE name = 'schema_version'"))
    for arguments in ((sql_url,), (sql_url, "--check")):
        code, said = migrate(*arguments)
        assert code == 2
        assert "schema version 99, this runmeter needs 1" in said


@BOTH
@pytest.mark.parametrize("version", RELEASES)
def test_sidecars_upgrade_a_store_when_they_start(
    version: str, sql_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """Two that start at once on what an older release left, while its agents write: each is ready with everything
    there, one of them says what it added, and nothing is lost."""
    older = StoredRelease(version, sql_url)
    next_release()
    said: list[list[str]] = [[], []]
    stopping = threading.Event()
    ready = threading.Semaphore(0)

    def serve(lines: list[str]) -> None:
        def say(line: str) -> None:
            lines.append(line)
            if line == "runmeter: ready":
                ready.release()

        patient = {"lease": 3600.0, "grace": 3600.0, "otlp_idle": 3600.0}
        run(Config(listen=Address("127.0.0.1", 0), otlp_listen=None, database_url=sql_url, **patient), stopping, say)

    threads = [threading.Thread(target=older.work), *(threading.Thread(target=serve, args=(each,)) for each in said)]
    for thread in threads:
        thread.start()
    assert all(ready.acquire(timeout=60) for _ in said)
    store = open_stores(sql_url)
    until(lambda: upgraded(store.engine), "the store is upgraded")
    threads[0].join()
    stopping.set()
    for thread in threads:
        thread.join()
    added = [line for lines in said for line in lines if "added to a store of an older release" in line]
    assert ", ".join(added).count("marks") == ", ".join(added).count("hosts of sources") == 1
    assert store.verify() == []
    assert {name: store.usage()[name] for name in older.totals} == older.totals  # type: ignore[literal-required]


@BOTH
def test_an_older_store_that_is_put_back_is_noticed(
    sql_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """Whoever misses a column that was there looks again what the store has, and goes on with that."""
    older = open_stores(sql_url)
    older.write([snap(tokens=1)])
    next_release()
    store = open_stores(sql_url)
    store.migrate()
    with store.engine.begin() as connection:
        connection.execute(text("DROP INDEX sources_host"))
        connection.execute(text("ALTER TABLE sources DROP COLUMN host"))
        connection.execute(text("DELETE FROM meta WHERE name = :name"), {"name": setup.MINOR})

    def work(rows: Any) -> int:
        if rows.minor >= LAST:
            rows._connection.execute(text("SELECT host FROM sources"))
        return int(rows.minor)

    with pytest.raises(StoreError, match="host"):
        store._write(work)
    assert store._write(work) == 0


def test_an_index_is_built_beside_those_who_write(
    postgres_url: str, open_stores: Open, next_release: Callable[[], None]
) -> None:
    """While it waits for who was there before, others write; cut short, it is taken away and built anew."""
    store = open_stores(postgres_url)
    store.heartbeat([Heartbeat("a", 1)])
    next_release()
    assert store._take(STEPS[0], until=0.0)
    failures: list[StoreError] = []

    def migrate() -> None:
        try:
            store.migrate()
        except StoreError as error:
            failures.append(error)

    waits = "wait_event_type = 'Lock' AND datname = current_database()"
    building = text(f"SELECT pid FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONC%' AND {waits}")
    valid = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('sources_host')")
    migrating = threading.Thread(target=migrate)
    with store.engine.connect() as other, store.engine.connect() as look:
        look.execution_options(isolation_level="AUTOCOMMIT")
        other.execute(text("UPDATE sources SET beat = 1"))
        migrating.start()
        pid = until(lambda: look.execute(building).scalar(), "it waits for who writes")
        look.execute(text("INSERT INTO sources SELECT 'b', service, 1, counts, 1 FROM sources WHERE source = 'a'"))
        look.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        migrating.join()
        assert look.execute(valid).scalar() is False
        other.rollback()
        assert store.migrate() == WHAT[1:]
        assert look.execute(valid).scalar() is True
    assert len(failures) == 1
    assert isinstance(failures[0], StoreUnavailable)
    assert upgraded(store.engine)
