"""What the command line does for an operator: reading makes nothing, nobody deletes unasked, no variable filters."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from runmeter.usage import Usage
from runmeter_exporter import StoreMissing, cli, open_store
from runmeter_exporter.store import RunStore, StoreUnavailable, default_url
from runmeter_exporter.totals.run import CellKey, RunSnapshot

SECOND = 10**9
DAY = 86400 * SECOND
NOW = time.time_ns()


def finished(run_id: str, days: float, cost: int = 0, **fields: Any) -> RunSnapshot:
    """A run that ended so many days ago, after 2 seconds, with 1,050 tokens."""
    started = NOW - int(days * DAY)
    usage = Usage(1000, 50, calls=2, messages=2, cost_nanousd=cost, unpriced_tokens=0 if cost else 1050)
    given = {
        "source": "s", "revision": 1, "status": "success", "final": True, "started_at": started,
        "updated_at": started + 2 * SECOND, "ended_at": started + 2 * SECOND,
        "usage_by": {CellKey("2026-11-22", "openai", f"gpt-{run_id}", "lead_agent"): usage},
    }  # fmt: skip
    return RunSnapshot(run_id=run_id, **(given | fields))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with a run of yesterday, one of 40 and one of 400 days ago."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    store = open_store(url)
    store.write([
        finished("new", 1, 300_000_000, thread_id="t", agent="boss", user_id="u-1", tags={"team": "search"}),
        finished("old", 40, 1), finished("oldest", 400, stop_reason="enough"),
    ])  # fmt: skip
    store.dispose()
    return url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        return int(left.value.code or 0), *capsys.readouterr()

    return call


Run = Callable[..., tuple[int, str, str]]
READERS = (
    ("runs",), ("run", "r"), ("threads",), ("thread", "t"), ("usage",), ("usage", "--by", "day"), ("verify",),
    ("prune", "--older-than", "30d"), ("prune", "--older-than", "30d", "--dry-run"),
)  # fmt: skip


@pytest.mark.parametrize("reader", READERS, ids=" ".join)
@pytest.mark.parametrize("there", ["nothing", "folder", "empty file"])
def test_readers_make_no_store(run: Run, reader: tuple[str, ...], there: str, tmp_path: Path) -> None:
    """A mistyped path is said, exit code 2, and nothing is made: no file, no folder, no table."""
    path = tmp_path / ("no" if there == "nothing" else "") / "typo.sqlite"
    if there == "empty file":
        path.touch()
    code, out, err = run(reader[0], "--database-url", f"sqlite:///{path}", *reader[1:])
    assert (code, out) == (2, "")
    assert f"there is no store at sqlite:///{path}" in err
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == ([path] if there == "empty file" else [])
    assert there != "empty file" or path.stat().st_size == 0


def test_readers_make_no_tables_in_a_postgresql(run: Run, postgres_url: str) -> None:
    """A database without ours is not one to make them in by looking."""
    code, _, err = run("runs", "--database-url", postgres_url)
    assert (code, "there is no store at" in err) == (2, True)
    with pytest.raises(StoreMissing):
        open_store(postgres_url).runs()


def test_before_anything_was_written_the_default_place_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what makes a store, and how to name another."""
    monkeypatch.delenv("RUNMETER_DATABASE_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    code, out, err = run("runs")
    assert (code, out) == (2, "")
    assert default_url() in err
    assert "runmeter serve" in err
    assert "--database-url" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_the_first_write_makes_a_store_and_reading_does_not(sql_url: str) -> None:
    """`open_store` in Python as on the command line; `create=True` is for who serves."""
    reader, writer = open_store(sql_url), open_store(sql_url)
    with pytest.raises(StoreMissing, match="there is no store at"):
        reader.usage()
    with pytest.raises(StoreMissing):
        open_store(sql_url, create=False).write([finished("r", 1)])
    writer.write([finished("r", 1)])
    assert reader.usage()["total_tokens"] == 1050
    reader.dispose()
    writer.dispose()


def test_a_store_taken_away_is_not_made_again_by_a_reader(url: str, tmp_path: Path) -> None:
    """Also not by a reader that had it open."""
    reader = open_store(url)
    assert reader.usage()["total_runs"] == 3
    reader.release()
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(StoreUnavailable, match="deleted or moved away"):
        reader.usage()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreMissing):
        open_store(url, create=False).usage()


def test_a_store_in_memory_is_nobody_elses(run: Run) -> None:
    """An empty table would be a lie."""
    code, _, err = run("runs", "--database-url", "memory://")
    assert (code, "memory of the process" in err) == (2, True)


def variables() -> dict[str, str]:
    """A variable for every option of every command that no configuration is."""
    found = {}
    for command in cli.cli.commands.values():
        for param in command.params:
            if isinstance(param, click.Option) and param.envvar is None:
                found |= {f"RUNMETER_{o[2:].replace('-', '_').upper()}": "1" for o in param.opts if o.startswith("--")}
    return found | {f"RUNMETER_{name}": "none-such" for name in (
        "THREAD", "THREAD_ID", "RUN_ID", "AGENT", "USER", "USER_ID", "TAG", "TAGS", "SERVICE", "MODEL", "STATUS",
        "RUNS", "ORDER", "FROM", "TO", "SINCE", "BY", "CURSOR", "RUN", "JSON", "PRUNE_OLDER_THAN",
        "RUNS_LIMIT", "USAGE_BY",
    )}  # fmt: skip


@pytest.mark.parametrize("reader", [*READERS[:1], *READERS[2:-2], ("run", "new")], ids=" ".join)
def test_no_variable_changes_an_answer(
    run: Run, url: str, reader: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `exec` sets for its children, and anything named like an option, filters nothing."""
    plain = run(reader[0], "--database-url", url, *reader[1:], "--json")
    assert plain[0] == 0
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    assert run(reader[0], "--database-url", url, *reader[1:], "--json") == plain
    assert "RUNMETER_LIMIT" in variables()


def test_only_configuration_has_variables() -> None:
    """Where the store and the sidecar are, who may, how long: by name, so that a new one is thought about."""
    found = {}
    for name, command in cli.cli.commands.items():
        found[name] = {p.envvar for p in command.params if isinstance(p, click.Option) and p.envvar}
    reading = {"RUNMETER_DATABASE_URL"}
    readers = ("runs", "run", "threads", "thread", "usage", "verify", "prune")
    assert {name: found.pop(name) for name in readers} == dict.fromkeys(readers, reading)
    assert found["top"] == {"RUNMETER_DATABASE_URL", "RUNMETER_URL", "RUNMETER_READ_TOKEN", "RUNMETER_INTERVAL"}
    assert found["demo"] == {"RUNMETER_LISTEN", "RUNMETER_OTLP_LISTEN"}
    assert found["serve"] >= {"RUNMETER_DATABASE_URL", "RUNMETER_LISTEN", "RUNMETER_LEASE", "RUNMETER_RETAIN"}


def test_a_dry_run_counts_and_deletes_nothing(run: Run, url: str) -> None:
    """And says what stays: the runs that are younger, and every total."""
    code, out, _ = run("prune", "--database-url", url, "--older-than", "30d", "--dry-run", "--forget-threads")
    assert code == 0
    assert out.startswith("would delete 2 closed runs last heard of before ")
    assert "; 1 runs would stay, and all totals: 3 runs, 3,150 tokens, $0.3000" in out
    assert len(json.loads(run("runs", "--database-url", url, "--json")[1])["runs"]) == 3


def test_a_script_is_not_asked_and_is_told_what_stays(run: Run, url: str) -> None:
    """As from cron: nobody is there to answer."""
    code, out, _ = run("prune", "--database-url", url, "--older-than", "30d", "--json")
    answer = json.loads(out)
    assert (code, answer["pruned_runs"], answer["kept_runs"], answer["dry_run"]) == (0, 2, 1, False)
    assert answer["totals"]["total_runs"] == 3
    assert "deleted 0 closed runs" in run("prune", "--database-url", url, "--older-than", "30d")[1]


@pytest.mark.parametrize(
    ("typed", "options", "code", "left"),
    [("n\n", (), 1, 3), ("\n", (), 1, 3), ("y\n", (), 0, 1), ("\x03", (), 130, 3), ("", ("--yes",), 0, 1),
     ("", ("--dry-run",), 0, 3)],
)  # fmt: skip
def test_a_hand_at_a_terminal_is_asked(typed: str, options: tuple[str, ...], code: int, left: int, url: str) -> None:
    """With what would go; the default answer is no."""
    ours, theirs = pty.openpty()
    prune = ["prune", "--database-url", url, "--older-than", "30d", *options]
    command = [sys.executable, "-m", "runmeter.launch.main", *prune]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
                               preexec_fn=lambda: _control(0))  # fmt: skip
    os.close(theirs)
    said = b""
    while typed and b"[y/N]" not in said:
        said += os.read(ours, 4096)
    os.write(ours, typed.encode())
    while True:
        # Ctrl-C between the prompt and the wait for an answer is noticed with the next key, as everywhere.
        if not select.select([ours], [], [], 2)[0]:
            os.write(ours, typed.encode())
            continue
        try:
            more = os.read(ours, 4096)
        except OSError:
            break
        if not more:
            break
        said += more
    os.close(ours)
    assert process.wait(60) == code, said.decode()
    assert not typed or b"delete 2 of 3 runs" in said
    store = open_store(url)
    assert len(store.runs()["runs"]) == left
    store.dispose()


def _control(number: int) -> None:
    """The terminal is this session's, so that Ctrl-C is a signal."""
    import fcntl
    import termios

    fcntl.ioctl(number, termios.TIOCSCTTY, 0)


def test_a_run_says_whose_it_was_when_and_how_it_ended(run: Run, url: str) -> None:
    """Agent, user, tags, thread, start, end, duration, stop reason, usage state."""
    _, out, _ = run("run", "--database-url", url, "new")
    said = {line[:16].strip(): line[16:].strip() for line in out.splitlines()}
    assert (said["agent"], said["user"], said["tags"], said["thread"]) == ("boss", "u-1", "team=search", "t")
    assert (said["duration"], said["usage state"], said["stop reason"]) == ("2s", "settled", "-")
    assert said["started"] < said["ended"]
    assert "enough" in run("run", "--database-url", url, "oldest")[1]


def test_a_run_is_found_by_its_beginning(run: Run, url: str) -> None:
    """As `top` shows it; an exact id wins, several are named, none is said."""
    assert json.loads(run("run", "--database-url", url, "n", "--json")[1])["run_id"] == "new"
    assert json.loads(run("run", "--database-url", url, "olde…", "--json")[1])["run_id"] == "oldest"
    assert json.loads(run("run", "--database-url", url, "old", "--json")[1])["run_id"] == "old"
    code, out, err = run("run", "--database-url", url, "ol")
    assert (code, out) == (2, "")
    assert "several runs begin with 'ol': 'old', 'oldest'" in err
    for nobodys in ("N", "x", "%", "_", "n%", ""):
        code, out, err = run("run", "--database-url", url, nobodys)
        assert (code, out, f"no run {nobodys!r} is stored" in err) == (2, "", True)


def test_runs_by_their_beginning_in_every_store(store: RunStore) -> None:
    """To the letter, newest first, bounded; no letter means another."""
    ids = ["abc", "abd", "ABC", "a%c", "a_c", "ab", "é1", "é2", "日本", "😀x", "zz" + "y" * 254]
    store.write([finished(one, 20 - number) for number, one in enumerate(ids)])
    assert store.runs_beginning("ab") == ["ab", "abd", "abc"]
    assert store.runs_beginning("ab", 2) == ["ab", "abd"]
    assert store.runs_beginning("A") == ["ABC"]
    assert store.runs_beginning("a%") == ["a%c"]
    assert store.runs_beginning("a_") == ["a_c"]
    assert store.runs_beginning("é") == ["é2", "é1"]
    assert store.runs_beginning("日") == ["日本"]
    assert store.runs_beginning("😀") == ["😀x"]
    assert store.runs_beginning("zzy") == [ids[-1]]
    assert store.runs_beginning("") == []
    assert store.runs_beginning("x\0'\"\\") == []


def test_what_can_be_pruned_is_counted_in_every_store(store: RunStore) -> None:
    """As `prune` removes it: closed, and older."""
    store.write([finished("a", 50), finished("b", 3), finished("c", 60, final=False, status="running", ended_at=None)])
    assert store.prunable(NOW - 30 * DAY) == (1, 3)
    assert store.prunable(-(2**70)) == (0, 3)
    assert store.prunable(2**70) == (2, 3)
    assert store.prune(NOW - 30 * DAY) == 1
    assert store.prunable(NOW - 30 * DAY) == (0, 2)


def test_usage_has_a_sum_row_and_says_what_is_unpriced(run: Run, url: str) -> None:
    """In the table; CSV and JSON are for who adds up themselves."""
    _, out, _ = run("usage", "--database-url", url, "--by", "model")
    header, *lines = [line.split() for line in out.splitlines() if line.strip()]
    assert header == ["model", "calls", "input", "output", "tokens", "unpriced", "cost"]
    assert lines[-1] == ["sum", "6", "3,000", "150", "3,150", "1,050", "$0.3000"]
    assert ["gpt-oldest", "2", "1,000", "50", "1,050", "1,050", "-"] in lines
    _, out, _ = run("usage", "--database-url", url, "--by", "model", "--csv")
    rows = {row["model"]: row["cost_usd"] for row in csv.DictReader(io.StringIO(out))}
    assert rows == {"gpt-new": "0.3", "gpt-old": "0.000000001", "gpt-oldest": ""}


def test_runs_by_what_they_were_for(run: Run, url: str) -> None:
    """Agent, model, tags, time, several states; by tokens, cost and age."""

    def found(*options: str) -> list[str]:
        code, out, err = run("runs", "--database-url", url, "--json", *options)
        assert code == 0, err
        return [one["run_id"] for one in json.loads(out)["runs"]]

    assert found("--agent", "boss") == found("--tag", "team=search") == found("--model", "gpt-new") == ["new"]
    assert found("--tag", "team=search", "--tag", "team=other") == []
    assert found("--status", "success", "--status", "error") == found() == ["new", "old", "oldest"]
    assert found("--status", "error") == []
    assert found("--order", "oldest") == ["oldest", "old", "new"]
    assert found("--order", "cost", "--limit", "2") == ["new", "old"]
    assert found("--from", "2031-01-01") == []
    assert found("--to", "2031-01-01", "--order", "tokens", "--limit", "1") != []
    assert run("runs", "--database-url", url, "--tag", "team")[0] == 2


def test_threads_with_active_usage(run: Run, url: str) -> None:
    """A thread that burns shows what it burns, when asked for."""
    store = open_store(url)
    store.write([finished("works", 0, final=False, status="running", ended_at=None, thread_id="t")])
    store.dispose()
    settled, both = (
        json.loads(run("threads", "--database-url", url, "--json", *options)[1])["threads"][0]["total_tokens"]
        for options in ((), ("--include-active",))
    )
    assert (settled, both) == (1050, 2100)


def test_an_empty_csv_still_has_its_header(run: Run, url: str) -> None:
    """A program that reads it finds the columns it knows."""
    _, out, _ = run("usage", "--database-url", url, "--csv", "--from", "2031-01-01")
    assert out.startswith("day,total_tokens,")
    assert out.count("\n") == 1


HOSTILE = ("", " ", "-", "nan", "-1", "NaN", "1e999", "9" * 300, "\x1b[2J", "😀", "%s", "'; DROP TABLE runs; --",
           "a" * 5000, "\udcff", "2026-13-01", "2026-W01-1", "../..", "日本", "\u202e", "0")  # fmt: skip
SHAPES = (
    ("runs", "--status={}"), ("runs", "--thread={}"), ("runs", "--service={}"), ("runs", "--user={}"),
    ("runs", "--agent={}"), ("runs", "--model={}"), ("runs", "--tag={}"), ("runs", "--tag=a={}"), ("runs", "--from={}"),
    ("runs", "--to={}"), ("runs", "--order={}"), ("runs", "--limit={}"), ("runs", "--cursor={}"),
    ("threads", "--limit={}"), ("threads", "--cursor={}"),
    ("run", "{}"), ("thread", "{}"), ("usage", "--by={}"), ("usage", "--from={}"), ("usage", "--to={}"),
    ("prune", "--dry-run", "--older-than={}"), ("top", "--interval={}", "--url=x"), ("top", "--url={}", "--once"),
)  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=" ".join)
@pytest.mark.parametrize("as_json", [(), ("--json",)], ids=["table", "json"])
def test_hostile_values_are_answered_or_refused_in_a_line(
    run: Run, url: str, shape: tuple[str, ...], as_json: tuple[str, ...]
) -> None:
    """Exit code 0 with an answer, or 2 with one line that is not endless; no traceback, nothing a terminal obeys."""
    for value in HOSTILE:
        arguments = [part.format(value) if "{}" in part else part for part in shape[1:]]
        place = [] if shape[0] == "top" else ["--database-url", url]
        if not arguments[-1].startswith("--"):
            arguments = ["--", *arguments]
        code, out, err = run(shape[0], *place, *as_json, *arguments)
        said = [line for line in err.splitlines() if not line.startswith(("runmeter: store ", "runmeter: more: "))]
        assert code in (0, 2), (value, err)
        assert len(said) == (1 if code == 2 else 0), (value, err)
        assert all(len(line) < 1000 for line in said), (value, err)
        assert "\x1b" not in out + err
        if code == 0 and as_json:
            json.loads(out)
