"""`runmeter` in an agent's environment: exec and doctor without the sidecar's packages, and what the others say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runmeter.launch import commands
from runmeter.launch import main as _main
from runmeter_exporter import cli, open_store
from runmeter_exporter.console import plain

SIDECAR = {"click", "rich", "flask", "waitress", "prometheus_client", "msgspec", "google"}
ROOT = Path(__file__).parent.parent


def runmeter(
    *arguments: str, hidden: set[str] = SIDECAR, store: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The command in a process that cannot import `hidden`."""
    code = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
sys.argv = ["runmeter", *{list(arguments)!r}]
from runmeter.launch.main import main
main()
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RUNMETER_", "OTEL_"))}
    environment |= variables
    if store is not None:
        environment["RUNMETER_DATABASE_URL"] = f"sqlite:///{store}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )


@pytest.mark.parametrize("hidden", [set(), SIDECAR], ids=["with the sidecar's packages", "without"])
def test_exec_runs_a_program_as_one_run_and_passes_its_code_on(tmp_path: Path, hidden: set[str]) -> None:
    """Options of the program stay the program's; the run is stored with thread, tags and status."""
    program = (sys.executable, "-c", "import sys; print(sys.argv[1:]); raise SystemExit(7)", "--thread", "no", "--json")
    done = runmeter("exec", "--thread", "t", "--run-id=r", "--tag", "team=a", *program,
                    hidden=hidden, store=tmp_path / "s.sqlite")  # fmt: skip
    assert (done.returncode, done.stdout) == (7, "['--thread', 'no', '--json']\n"), done.stderr
    store = open_store(f"sqlite:///{tmp_path}/s.sqlite")
    stored = store.run("r")
    store.dispose()
    assert stored is not None
    assert (stored["status"], stored["thread_id"], stored["tags"]) == ("error", "t", {"team": "a"})


def test_exec_reads_its_variables_and_a_program_begins_after_two_dashes(tmp_path: Path) -> None:
    """A variable each, tags with spaces between, the store's URL from a file; what runs below finds one URL only."""
    (tmp_path / "url").write_text(f"sqlite:///{tmp_path}/s.sqlite\n")
    shows = "import os; print(os.environ['RUNMETER_DATABASE_URL'], 'RUNMETER_DATABASE_URL_FILE' in os.environ)"
    done = runmeter(
        "exec", "--", sys.executable, "-c", shows, RUNMETER_DATABASE_URL_FILE=str(tmp_path / "url"),
        RUNMETER_RUN_ID="r", RUNMETER_AGENT="reader", RUNMETER_USER="u", RUNMETER_THREAD="t", RUNMETER_TAG="a=1 b=2",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"sqlite:///{tmp_path}/s.sqlite False\n"), done.stderr
    store = open_store(f"sqlite:///{tmp_path}/s.sqlite")
    stored = store.run("r")
    store.dispose()
    assert stored is not None
    assert (stored["status"], stored["thread_id"], stored["tags"]) == ("success", "t", {"a": "1", "b": "2"})
    assert (stored["agent"], stored["user_id"]) == ("reader", "u")


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (("exec",), {}, "COMMAND"),
        (("exec", "--thread"), {}, "--thread"),
        (("exec", "--tag", "x", "true"), {}, "KEY=VALUE"),
        (("exec", "true"), {"RUNMETER_TAG": "x"}, "RUNMETER_TAG"),
        (("exec", "--nonsense", "x", "true"), {}, "--nonsense"),
        (("exec", "--thr", "x", "true"), {}, "--thr"),
        (("doctor", "nonsense"), {}, "nonsense"),
        (("doctor",), {"RUNMETER_DATABASE_URL_FILE": "/nowhere/at/all"}, "/nowhere/at/all"),
        (("doctor",), {"RUNMETER_DATABASE_URL_FILE": os.devnull}, "empty"),
        (("doctor",), {"RUNMETER_DATABASE_URL_FILE": "x", "RUNMETER_DATABASE_URL": "y"}, "both set"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(
    arguments: tuple[str, ...], variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """As for the sidecar's commands."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        commands.run(arguments)
    out, err = capsys.readouterr()
    assert (left.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err


def test_doctor_looks_at_the_store_without_the_sidecars_packages(tmp_path: Path) -> None:
    """The store's counters need SQLAlchemy alone."""
    store = open_store(f"sqlite:///{tmp_path}/s.sqlite", create=True)
    store.usage()
    store.dispose()
    done = runmeter("doctor", "--json", store=tmp_path / "s.sqlite")
    report = json.loads(done.stdout)
    assert report["store"]["llm_call_count"] == 0, report
    assert {row["subject"] for row in report["environment"]} >= {"python", "opentelemetry", "openai"}
    assert "openai" in runmeter("doctor", store=tmp_path / "s.sqlite").stdout


def test_doctor_without_the_store_extra_says_what_it_did_not_look_at(tmp_path: Path) -> None:
    """The part about the libraries is there all the same."""
    done = runmeter("doctor", hidden=SIDECAR | {"sqlalchemy"}, store=tmp_path / "s.sqlite")
    assert done.returncode == 1, done.stderr
    assert "openai" in done.stdout
    assert 'no store was looked at: a run store needs SQLAlchemy: pip install "runmeter[store]"' in done.stdout


@pytest.mark.parametrize("missing", sorted(SIDECAR))
def test_a_command_of_the_sidecars_names_the_pip_line(missing: str) -> None:
    """One line and exit code 2, whichever package is missing."""
    done = runmeter("runs", hidden={missing})
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert missing in done.stderr
    assert "pip install 'runmeter[sidecar]'" in done.stderr


def test_help_and_version_are_of_use_without_the_sidecar() -> None:
    """They say what works here, and the line that brings the rest."""
    for arguments, code in ((("--help",), 0), (("-h",), 0), ((), 2)):
        done = runmeter(*arguments)
        assert done.returncode == code
        said = done.stdout or done.stderr
        assert all(part in said for part in ("exec", "doctor", "serve", "pip install 'runmeter[sidecar]'"))
    assert runmeter("--version").stdout == runmeter("--version", hidden=set()).stdout


def test_the_command_asks_for_every_package_that_the_sidecar_imports() -> None:
    """No more and no fewer: what the `sidecar` extra names is what `runmeter` looks for, under its import names."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {line.split(">")[0].replace("-", "_") for line in [*extras["sidecar"], *extras["store"]]}
    named = {name for name in named if not name.startswith("runmeter[")}
    assert {name.replace("google.", "") for name in _main._NEEDED} == named


def test_the_sidecars_help_lists_both_and_hands_over(capsys: pytest.CaptureFixture[str]) -> None:
    """`runmeter exec --help` is the same text either way."""
    assert set(commands.NAMES) <= set(cli.cli.commands)
    for name in commands.NAMES:
        said = []
        for call in (lambda name=name: cli.main([name, "--help"]), lambda name=name: commands.run([name, "--help"])):
            with pytest.raises(SystemExit) as left:
                call()
            assert left.value.code in (0, None)
            said.append(capsys.readouterr().out)
        assert said[0] == said[1] != ""


def test_a_table_folds_text_and_never_numbers() -> None:
    """Where the terminal is narrow; whole words, every word, every digit."""
    text = "a sentence of many words that is much wider than the terminal is"
    shown = plain.table(("name", "detail", "count"), [("x", text, 1234567), ("y\x1b", "", None)], 2, fit=40)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[1].endswith("1,234,567")
    assert set(text.split()) <= set(shown.split())
    assert "\x1b" not in shown
