"""`runmeter exec` and `runmeter doctor`: the commands of the agent's own environment, with the standard library alone.

Every other command is the sidecar's and wants its packages; these two have to work beside a client library and nothing
else. Options, variables (`RUNMETER_…`, secrets also as `…_FILE`) and errors (one line, exit code 2) are as there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

NAMES: Mapping[str, str] = {
    "exec": "Run COMMAND as one run and pass its exit code on.",
    "doctor": "What is installed here and whether it is metered; what the store has seen, counted and set aside.",
}
_DATABASE = "The store, as a SQLAlchemy URL; without one, a SQLite file of yours."


def run(arguments: Sequence[str]) -> int:
    """Run `exec …` or `doctor …` and return the exit code; what goes wrong is one line on stderr and exit code 2."""
    name, *rest = arguments
    try:
        return _exec(rest) if name == "exec" else _doctor(rest)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `runmeter doctor | head`
        sys.stderr.close()
        return 1


class _Parser(argparse.ArgumentParser):
    """Whole option names only, and errors as the other commands have them."""

    def error(self, message: str) -> NoReturn:
        print(f"runmeter: {message}", file=sys.stderr)
        raise SystemExit(2)


def _parser(name: str, usage: str) -> _Parser:
    parser = _Parser(f"runmeter {name}", usage=f"runmeter {name} {usage}", description=NAMES[name], allow_abbrev=False)
    parser.add_argument("--database-url", metavar="URL", default=_secret("RUNMETER_DATABASE_URL"),
                        help=f"{_DATABASE} [RUNMETER_DATABASE_URL, RUNMETER_DATABASE_URL_FILE]")  # fmt: skip
    return parser


def _exec(arguments: Sequence[str]) -> int:
    parser = _parser("exec", "[OPTIONS] [--] COMMAND...")
    for option, name, help in (
        ("--thread", "thread_id", "The thread that the run belongs to."),
        ("--run-id", "run_id", "An id of your own; without one, a new one."),
        ("--agent", "agent", "Name of the agent."),
        ("--user", "user_id", "Whom the run is for."),
    ):
        variable = "RUNMETER_" + option[2:].replace("-", "_").upper()
        parser.add_argument(
            option, dest=name, metavar="TEXT", default=os.environ.get(variable) or None, help=f"{help} [{variable}]"
        )
    parser.add_argument("--tag", dest="tags", action="append", type=_tag, metavar="KEY=VALUE",
                        help="Repeat for more. [RUNMETER_TAG, spaces between]")  # fmt: skip
    ours, command = _split(arguments)
    found = parser.parse_args(ours)
    if not command:
        parser.error("what is to be run? runmeter exec --thread T -- COMMAND...")
    if found.tags is None:
        try:
            found.tags = [_tag(one) for one in os.environ.get("RUNMETER_TAG", "").split()]
        except argparse.ArgumentTypeError as problem:
            parser.error(f"RUNMETER_TAG: {problem}")
    from runmeter.launch.exec import exec_command

    return exec_command(command, **{**vars(found), "tags": dict(found.tags)})


def _doctor(arguments: Sequence[str]) -> int:
    parser = _parser("doctor", "[OPTIONS]")
    parser.add_argument("--json", dest="as_json", action="store_true", help="JSON for programs.")
    found = parser.parse_args(arguments)
    # By name: the instrumentation never imports the exporter, it only starts it when asked to on the command line.
    code: int = import_module("runmeter_exporter.console.doctor").doctor(found.database_url, as_json=found.as_json)
    return code


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our options, and the program with its own: from `--` on, or from the first word that is neither an option nor
    an option's value. Every option of ours takes a value, except for help."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-"):
        word = arguments[index]
        if word == "--":
            return list(arguments[:index]), list(arguments[index + 1 :])
        index += 1 if "=" in word or word in ("-h", "--help") else 2
    return list(arguments[:index]), list(arguments[index:])


def _tag(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _secret(variable: str) -> str | None:
    """The variable, or what is in the file that `…_FILE` names."""
    value, path = os.environ.get(variable) or None, os.environ.get(f"{variable}_FILE")
    if not path:
        return value
    problem = None
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        text, problem = "", f"{variable}_FILE names {path}, which cannot be read: {error}"
    if value:
        problem = f"{variable} and {variable}_FILE are both set; keep one"
    elif not text and not problem:
        problem = f"{variable}_FILE names {path}, which is empty"
    if problem:
        print(f"runmeter: {problem}", file=sys.stderr)
        raise SystemExit(2)
    return text.splitlines()[0].strip()
