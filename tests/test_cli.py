"""The command line: what each command prints, and that wrong use is one line and exit code 2."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from runmeter.usage import Usage
from runmeter_exporter import cli, open_store
from runmeter_exporter.console import options, tables
from runmeter_exporter.totals.run import CellKey, RunSnapshot

SECOND = 10**9
DAY = 86400 * SECOND
NOW = 1_795_348_800 * SECOND  # 2026-11-22T12:00:00Z


def snapshot(run_id: str, **fields: Any) -> RunSnapshot:
    given = {
        "source": "s", "revision": 1, "status": "running", "started_at": NOW, "updated_at": NOW + SECOND,
        "usage_by": {CellKey("2026-11-22", "openai", "gpt-5", "lead_agent"): Usage(1000, 50, calls=2, messages=2)},
    }  # fmt: skip
    return RunSnapshot(run_id=run_id, **(given | fields))


def ended(run_id: str, **fields: Any) -> RunSnapshot:
    return snapshot(run_id, **({"final": True, "status": "success", "ended_at": NOW + 2 * SECOND} | fields))


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with a settled run, an old one of a user, and one that still works."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    store = open_store(url)
    old = {CellKey("2026-01-02", "anthropic", "claude-sonnet-5", "subagent:x"): Usage(20, 10, calls=1)}
    store.write([
        ended("done", thread_id="t/1", agent="boss", service="api"),
        ended("old", thread_id="t/1", user_id="=cmd", started_at=NOW - 400 * DAY, updated_at=NOW - 399 * DAY,
              ended_at=NOW - 399 * DAY, usage_by=old),
        snapshot("works", thread_id="t/1"),
    ])  # fmt: skip
    store.dispose()
    return url


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: str, store: bool = True) -> tuple[int, str, str]:
        given = [arguments[0], *(["--database-url", url] if store else []), *arguments[1:]] if arguments else []
        with pytest.raises(SystemExit) as left:
            cli.main(given)
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return call


Run = Callable[..., tuple[int, str, str]]


def test_runs_are_listed_for_people_and_for_programs(run: Run, url: str) -> None:
    """A table names them; --json is REST's answer; stderr says which store; stdout holds nothing else."""
    code, table, said = run("runs")
    assert (code, "done" in table, "1,000" in table) == (0, True, True)
    assert said == f"runmeter: store {url}\n"
    answer = json.loads(run("runs", "--json")[1])
    assert [r["run_id"] for r in answer["runs"]] == ["works", "done", "old"]
    assert [r["run_id"] for r in json.loads(run("runs", "--json", "--status", "running")[1])["runs"]] == ["works"]
    assert [r["run_id"] for r in json.loads(run("runs", "--json", "--user", "=cmd")[1])["runs"]] == ["old"]
    page = run("runs", "--limit", "1")[1]
    assert "works" in page
    assert "old" not in page


def test_a_next_page_is_one_option_away(run: Run) -> None:
    """The cursor that is printed continues the list."""
    _, _, said = run("runs", "--limit", "2")
    cursor = said.split("--cursor ")[1].strip()
    assert [r["run_id"] for r in json.loads(run("runs", "--json", "--cursor", cursor)[1])["runs"]] == ["old"]


def test_a_thread_is_settled_by_default_and_active_on_request(run: Run) -> None:
    """--include-active adds the run that still works."""
    assert json.loads(run("thread", "t/1", "--json")[1])["total_tokens"] == 1080
    assert json.loads(run("thread", "t/1", "--json", "--include-active")[1])["total_tokens"] == 2130
    code, text, _ = run("thread", "t/1")
    assert (code, "1,080" in text, "settled" in text) == (0, True, True)


def test_one_run_and_a_run_nobody_knows(run: Run) -> None:
    """Exit 2 and a sentence for an unknown id."""
    assert json.loads(run("run", "done", "--json")[1])["agent"] == "boss"
    code, out, err = run("run", "nope")
    assert (code, out) == (2, "")
    assert "no run 'nope'" in err


def test_threads_are_listed(run: Run) -> None:
    """With totals and how many runs still work."""
    [thread] = json.loads(run("threads", "--json")[1])["threads"]
    assert (thread["thread_id"], thread["total_tokens"]) == ("t/1", 1080)
    assert "t/1" in run("threads")[1]


def test_usage_is_a_total_or_a_breakdown(run: Run) -> None:
    """Without --by the grand totals; with it a line for each group, as table, JSON and CSV alike."""
    assert json.loads(run("usage", "--json")[1])["total_tokens"] == 1080
    rows = json.loads(run("usage", "--json", "--by", "day,model")[1])
    assert {(r["day"], r["model"]) for r in rows} == {("2026-11-22", "gpt-5"), ("2026-01-02", "claude-sonnet-5")}
    assert "claude-sonnet-5" in run("usage", "--by", "day,model")[1]
    assert "gpt-5" in run("usage", "--by", "tag.team,caller,service,agent,provider,model")[1]
    table = list(csv.DictReader(io.StringIO(run("usage", "--csv", "--by", "day,model")[1])))
    assert [{**r, "total_tokens": int(r["total_tokens"])}["total_tokens"] for r in table] == [
        r["total_tokens"] for r in rows
    ]
    assert [r["day"] for r in json.loads(run("usage", "--json", "--by", "day", "--from", "2026-11-01")[1])] == [
        "2026-11-22"
    ]


def test_a_spreadsheet_gets_no_formula(run: Run) -> None:
    """A user id that begins like a formula is quoted in CSV, and only there."""
    assert "'=cmd" in run("usage", "--csv", "--by", "user_id")[1]
    assert {r["user_id"] for r in json.loads(run("usage", "--json", "--by", "user_id")[1])} == {"=cmd", None}


def test_prune_keeps_the_totals_and_verify_balances(run: Run) -> None:
    """Old runs go, what they spent stays."""
    assert run("verify")[:2] == (0, "balanced: every total equals the sum of its runs\n")
    assert json.loads(run("prune", "--older-than", "30d", "--json")[1])["pruned_runs"] == 1
    assert json.loads(run("usage", "--json")[1])["total_tokens"] == 1080
    assert json.loads(run("verify", "--json")[1]) == {"balanced": True, "differences": []}


def test_verify_names_differences_and_exits_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that does not balance is not exit code 0."""
    from runmeter_exporter.store.sql.store import SqlRunStore

    monkeypatch.setattr(SqlRunStore, "verify", lambda self: ["total: 5 stored, 6 summed"])
    assert run("verify")[:2] == (1, "total: 5 stored, 6 summed\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("nonsense",), "nonsense"),
        (("runs", "--limit", "0"), "0"),
        (("runs", "--status", "done"), "done"),
        (("runs", "--cursor", "zzz"), "cursor"),
        (("usage", "--by", "colour"), "colour"),
        (("usage", "--by", "day", "--include-active"), "settled"),
        (("usage", "--from", "yesterday"), "yesterday"),
        (("prune",), "--older-than"),
        (("prune", "--older-than", "a while"), "a while"),
        (("thread",), "THREAD_ID"),
        (("exec",), "COMMAND"),
        (("top", "--url", "localhost"), "--url"),
        (("top", "--url", "http://127.0.0.1:1", "--once"), "runmeter serve"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run: Run, arguments: tuple[str, ...], says: str) -> None:
    """What was wrong is in the line, and nothing is on stdout."""
    code, out, err = run(*arguments, store=False)
    lines = [line for line in err.splitlines() if not line.startswith("runmeter: store ")]
    assert (code, out) == (2, "")
    assert len(lines) == 1, err
    assert says in lines[0]


def test_without_a_command_the_help_is_shown(run: Run) -> None:
    """And the exit code says that nothing was done."""
    code, _, err = run(store=False)
    assert code == 2
    assert "top" in err


def test_a_store_of_another_kind_or_nowhere_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """No traceback for an unknown URL or a file that is no database."""
    (tmp_path / "no.db").write_text("this is not a database, and it is long enough to be seen as none" * 20)
    for url in ("oracle://x", "nonsense", f"sqlite:///{tmp_path}/no.db"):
        with pytest.raises(SystemExit) as left:
            cli.main(["runs", "--database-url", url])
        err = capsys.readouterr().err
        assert left.value.code == 2
        assert "Traceback" not in err
        assert 1 <= len(err.splitlines()) <= 2


def test_names_from_outside_cannot_speak_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences and markup in ids are shown, not obeyed."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    store = open_store(url)
    store.write([ended("\x1b[2Jevil", thread_id="[red]x[/red]", agent=":smile:")])
    store.dispose()
    with pytest.raises(SystemExit):
        cli.main(["runs", "--database-url", url])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "[red]x[/red]" in out
    assert ":smile:" in out


def test_every_command_and_option_says_what_it_does() -> None:
    """Nobody has to guess from a name."""
    for name, command in cli.cli.commands.items():
        assert command.help, name
        for param in command.params:
            if isinstance(param, click.Option):
                assert param.help, f"{name} {param.name}"


@given(st.text())
def test_options_take_any_text_or_refuse_it_in_a_sentence(text: str) -> None:
    """No value makes an option fail in another way than by a usage error."""
    for kind in (options.ADDRESS, options.TAG):
        refused = None
        try:
            kind.convert(text, None, None)
        except click.BadParameter as error:
            refused = error.format_message()
        assert refused is None or repr(text) in refused


@pytest.mark.parametrize(
    ("text", "address"),
    [("9465", ("127.0.0.1", 9465)), (":0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("h:1", ("h", 1)), ("", None)],
)
def test_addresses(text: str, address: tuple[str, int] | None) -> None:
    """Loopback unless said otherwise; brackets around IPv6; nothing for off."""
    assert options.ADDRESS.convert(text, None, None) == address


@click.command()
@options.secret("--database-url", "x")
@options.listener("--otlp-listen", "x", "127.0.0.1:4318")
def echo(database_url: str | None, otlp_listen: object) -> None:
    click.echo(f"{database_url} {otlp_listen}")


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    """The command line wins, both variables at once are refused, a missing or empty file is said."""
    file = tmp_path / "secret"
    file.write_text("sqlite:///from-file\n")
    variable = {"RUNMETER_DATABASE_URL_FILE": str(file)}

    def said(*arguments: str, **env: str) -> tuple[int, str]:
        done = CliRunner(env=env).invoke(echo, list(arguments))
        return done.exit_code, done.output

    assert said(**variable)[1].startswith("sqlite:///from-file ")
    assert said("--database-url", "sqlite:///here", **variable)[1].startswith("sqlite:///here ")
    assert said(RUNMETER_DATABASE_URL="sqlite:///env")[1].startswith("sqlite:///env ")
    assert "both set" in said(RUNMETER_DATABASE_URL="sqlite:///env", **variable)[1]
    assert said(RUNMETER_DATABASE_URL_FILE=str(tmp_path / "none"))[0] == 2
    file.write_text("\n")
    assert "empty" in said(**variable)[1]


def test_an_empty_listen_variable_turns_the_listener_off() -> None:
    """As an empty option does; click alone would take the default."""
    assert CliRunner(env={"RUNMETER_OTLP_LISTEN": ""}).invoke(echo, []).output == "None None\n"
    assert CliRunner().invoke(echo, ["--otlp-listen", ""]).output == "None None\n"
    assert CliRunner().invoke(echo, []).output == "None 127.0.0.1:4318\n"


def test_help_starts_quickly_without_the_heavy_packages() -> None:
    """`runmeter --help` loads neither Flask nor SQLAlchemy nor rich's live display."""
    code = (
        "import sys\nfrom runmeter_exporter import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('flask', 'sqlalchemy', 'waitress', 'rich.live') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"


def test_doctor_shows_the_environment_and_the_stores_counters(run: Run) -> None:
    """What is installed, what meters it, and what was counted."""
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code in (0, 1)
    assert {row["subject"] for row in report["environment"]} >= {"python", "opentelemetry", "openai"}
    assert report["store"]["llm_call_count"] == 3
    assert report["store"]["active_runs"] == 1
    assert "openai" in run("doctor")[1]


def test_numbers_are_readable() -> None:
    """Thousands apart, cents where they matter, a dash for what has no price."""
    assert (tables.count(1234567), tables.money(None), tables.money(0.00123), tables.money(1234.5)) == (
        "1,234,567", "-", "$0.0012", "$1,234.50",
    )  # fmt: skip
    assert tables.when("2026-11-22T12:00:00.123456Z") == "2026-11-22 12:00:00Z"


def test_a_store_whose_folder_cannot_be_made_is_one_line_and_exit_2(run: Run, tmp_path: Path) -> None:
    """No traceback: which file, why, and which option names another."""
    (tmp_path / "taken").write_text("no folder")
    code, out, said = run("runs", "--database-url", f"sqlite:///{tmp_path}/taken/store.sqlite", store=False)
    assert (code, out) == (2, "")
    assert f"{tmp_path}/taken/store.sqlite" in said.splitlines()[-1]
    assert "--database-url" in said.splitlines()[-1]
