"""Database URLs: they open exactly what they name, or are refused with one line, and never show a secret."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from runmeter_exporter import cli
from runmeter_exporter.store import RunStore, StoreError, default_url, open_store
from runmeter_exporter.store.sql.dialects import dialect_of
from runmeter_exporter.store.urls import PREPARE_UNSAID, postgres_place, shown, sqlite_path, sqlite_url

LIBPQ = {
    "user", "password", "host", "port", "dbname", "connect_timeout", "sslmode", "application_name", "options",
    "target_session_attrs", "keepalives", "passfile", "sslpassword", "hostaddr",
}  # fmt: skip

names = st.text(st.characters(blacklist_characters="/\0"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..", ":memory:"))
escaped = st.lists(st.sampled_from(["%", "?", "#", "%20", "%3F", "%25", "a", " ", "ü", "=", "&", ":memory:"]),
                   min_size=1).map("".join)  # fmt: skip


@given(names | escaped)
def test_any_file_name_makes_the_way_through_a_url(name: str) -> None:
    """`sqlite_url` and back is the same name, also behind a folder."""
    assert sqlite_path(sqlite_url(f"/srv/{name}")) == f"/srv/{name}"


@given(names | escaped)
def test_a_name_written_into_a_url_as_it_is_names_that_file_or_is_refused(name: str) -> None:
    """Nobody is sent to another file in silence: only %25, %3F and %23 are read as escapes."""
    escapes = {escape.upper() for escape in re.findall("%[0-9A-Fa-f]{2}", name)}
    if "?" in name or escapes - {"%25", "%3F", "%23"}:
        with pytest.raises(StoreError) as refused:
            sqlite_path(f"sqlite:////srv/{name}")
        assert len(str(refused.value).splitlines()) == 1
    elif not escapes:
        assert sqlite_path(f"sqlite:////srv/{name}") == f"/srv/{name}"
    else:
        assert sqlite_path(f"sqlite:////srv/{name}") == f"/srv/{unquote(name)}"


@pytest.mark.parametrize(
    "name",
    ["what?.db", "no#1.db", "100%.db", "a%20b.db", "a b.db", "größe ☃.db", "a%3Fb?c#d.db", "x?mode=ro", "file:x"],
)
def test_exactly_that_file_is_opened(tmp_path: Path, name: str, open_stores: Callable[..., RunStore]) -> None:
    """Nothing else appears beside it but SQLite's own two, and the URL that is shown opens it again."""
    store = open_stores(sqlite_url(tmp_path / name))
    store.usage()
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}-wal", f"{name}-shm"} == {name}
    open_stores(store.url_for_humans, create=False).usage()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:///a?b.db", "%3F"),
        ("sqlite:///a.db?timeout=5", "no parameters"),
        ("sqlite:///a.db?", "no parameters"),
        ("sqlite:///a%20b.db", "%2520"),
        ("sqlite:///a\0b.db", "NUL"),
        ("sqlite://a/b.db", "three slashes"),
        ("sqlite:///:memory:", "memory://"),
    ],
)
def test_a_sqlite_url_that_names_no_file_or_two_is_refused(url: str, says: str) -> None:
    """With a line that says how to write it."""
    with pytest.raises(StoreError, match=re.escape(says)) as refused:
        dialect_of(url)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.skipif("sys.platform in ('win32', 'darwin')", reason="the state directory is elsewhere")
def test_the_default_store_may_stand_in_any_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The URL of the default names the file in the user's state directory, however that is called."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "50%25 ?#"))
    assert sqlite_path(default_url()) == str(tmp_path / "50%25 ?#" / "runmeter" / "runmeter.db")


@pytest.mark.parametrize(
    ("rest", "keywords", "threshold"),
    [
        ("db/x", {"host": "db", "dbname": "x"}, PREPARE_UNSAID),
        ("", {}, PREPARE_UNSAID),
        ("u@/x?host=/run/pg", {"user": "u", "dbname": "x", "host": "/run/pg"}, PREPARE_UNSAID),
        ("u@%2Frun%2Fpg/x", {"user": "u", "dbname": "x", "host": "/run/pg"}, PREPARE_UNSAID),
        ("u:p%40%2F%3F%25@db:1/x", {"user": "u", "password": "p@/?%", "host": "db", "port": "1", "dbname": "x"},
         PREPARE_UNSAID),
        ("a:1,b:2,c/x", {"host": "a,b,c", "port": "1,2,", "dbname": "x"}, PREPARE_UNSAID),
        ("[::1]:5,b/x", {"host": "::1,b", "port": "5,", "dbname": "x"}, PREPARE_UNSAID),
        ("/x?host=a:1&host=b&target_session_attrs=read-write",
         {"host": "a,b", "port": "1,", "dbname": "x", "target_session_attrs": "read-write"}, PREPARE_UNSAID),
        ("db/x?prepare_threshold=0", {"host": "db", "dbname": "x"}, None),
        ("db/x?prepare_threshold=none", {"host": "db", "dbname": "x"}, None),
        ("db/x?prepare_threshold=3", {"host": "db", "dbname": "x"}, 3),
        ("db/x?connect_timeout=3&sslmode=require", {"host": "db", "dbname": "x", "connect_timeout": 3,
                                                    "sslmode": "require"}, PREPARE_UNSAID),
        ("db/x?application_name=my%20app&options=-c%20work_mem%3D8MB",
         {"host": "db", "dbname": "x", "application_name": "my app", "options": "-c work_mem=8MB"}, PREPARE_UNSAID),
        ("db/x?user=me@corp", {"host": "db", "dbname": "x", "user": "me@corp"}, PREPARE_UNSAID),
    ],
)  # fmt: skip
def test_what_a_postgresql_url_says(rest: str, keywords: dict[str, object], threshold: int | None) -> None:
    """As libpq's keywords, numbers as numbers; hosts as libpq or as SQLAlchemy writes several."""
    assert postgres_place(f"postgresql://{rest}", LIBPQ) == (keywords, threshold)


@pytest.mark.parametrize(
    ("rest", "says"),
    [
        ("db/x?color=red", "'color'"),
        ("db/x?autocommit=1", "'autocommit'"),
        ("db/x?prepare_threshold=soon", "prepare_threshold=soon"),
        ("db/x?connect_timeout=3s", "connect_timeout=3s"),
        ("db/x?sslmode=on", "sslmode=on"),
        ("db/x?target_session_attrs=writable", "read-write"),
        ("db/x?sslmode=require&sslmode=disable", "sslmode twice"),
        ("db:port/x", "65535"),
        ("db:99999/x", "65535"),
        ("db%FF/x", "UTF-8"),
        ("u:p@ss@db/x", "%40"),
    ],
)
def test_a_postgresql_url_that_is_wrong_is_refused_with_one_line(
    rest: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python a StoreError, on the command line one line and exit code 2: nothing is tried, nothing tried again."""
    with pytest.raises(StoreError, match=re.escape(says)):
        open_store(f"postgresql://{rest}")
    with pytest.raises(SystemExit) as left:
        cli.main(["runs", "--database-url", f"postgresql://{rest}"])
    err = capsys.readouterr().err
    assert (left.value.code, len(err.splitlines())) == (2, 1)
    assert says in err


secrets = st.text(st.sampled_from("Zq@/?#%:&= [],"), max_size=6).map(lambda inner: f"S3C{inner}RET")


@given(secrets, st.sampled_from([
    "postgresql://u:{}@db/x", "postgresql://u:{}@db/x?color=red", "postgresql://u:{}@db:port/x",
    "postgresql+psycopg://u:{}@a,b/x?sslmode=on", "postgresql://db/x?user=u&password={}", "postgresql://db/x?sslpassword={}",
    "postgresql://u:{}@db/x?connect_timeout=x", "mysql://u:{}@db/x", "postgresql://db/x?%70assword={}&x=y",
]), st.booleans())  # fmt: skip
def test_a_secret_is_in_no_message(secret: str, form: str, encoded: bool) -> None:
    """Whether the URL is right or wrong, and whether the password is percent-encoded as it should be or not."""
    url = form.format(quote(secret, safe="") if encoded else secret)
    try:
        store = open_store(url)
    except StoreError as refused:
        said = str(refused)
    else:
        said = store.url_for_humans
        store.dispose()
    for said_of_it in (said, shown(url)):
        assert "S3C" not in said_of_it
        assert "RET" not in said_of_it


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("postgresql+psycopg://user:secret@db:5432/x?sslmode=require",
         "postgresql+psycopg://user:***@db:5432/x?sslmode=require"),
        ("postgresql://user:p@ss@db/x", "postgresql://user:***@db/x"),
        ("postgresql://u:p@a:1,b:2/x?options=a@b", "postgresql://u:***@a:1,b:2/x?options=a@b"),
        ("postgresql://db/x?user=u&password=secret&sslmode=require", "postgresql://db/x?user=u&password=***&sslmode=require"),
        ("sqlite:////var/lib/x@y:z.db", "sqlite:////var/lib/x@y:z.db"),
        ("sqlite:////var/lib/\udcff.db", "sqlite:////var/lib/\\udcff.db"),
        ("postgresql://user@db/x", "postgresql://user@db/x"),
        ("memory://", "memory://"),
    ],
)  # fmt: skip
def test_urls_are_shown_as_they_were_given_but_for_secrets(url: str, seen: str) -> None:
    """So they can be copied from a log, but for a name that no log can hold."""
    assert shown(url) == seen


def test_parameters_reach_postgresql(postgres_url: str, open_stores: Callable[..., RunStore]) -> None:
    """A real server has what the URL asked for, and a statement is prepared after as many executions as it says."""
    store = open_stores(
        f"{postgres_url}&application_name=mine&options=-c%20work_mem%3D7MB&connect_timeout=3&sslmode=prefer"
        "&target_session_attrs=read-write&prepare_threshold=0")  # fmt: skip
    for _ in range(8):
        store.usage()
    with store.engine.connect() as connection:  # type: ignore[attr-defined]
        asked = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in ("application_name", "work_mem")]
        prepared = connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one()
    assert (asked, prepared) == (["mine", "7MB"], 0)


def test_of_several_hosts_the_one_that_answers_is_used(
    postgres_url: str, open_stores: Callable[..., RunStore]
) -> None:
    """The first host has no server; the second is found in the same call."""
    socket = re.search("host=([^&]+)", postgres_url)
    assert socket is not None
    with tempfile.TemporaryDirectory() as empty:
        several = postgres_url.replace(socket[0], f"host={quote(empty)}&{socket[0]}")
        assert open_stores(several).usage()["total_runs"] == 0
