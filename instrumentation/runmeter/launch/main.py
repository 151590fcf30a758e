"""The `runmeter` command: runs what an agent's environment is enough for, and hands the rest over to the sidecar's, or
says which line installs that."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import NoReturn

from runmeter.launch import commands

PIP = "pip install 'runmeter[sidecar]'"
_NEEDED = ("click", "rich", "flask", "waitress", "sqlalchemy", "prometheus_client", "msgspec", "google.protobuf")


def _missing() -> str | None:
    """The first package of the `sidecar` extra that is not installed."""
    for name in _NEEDED:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:  # the parent of a dotted name
            return name
    return None


def _help() -> str:
    lines = [f"  {name:<8} {help}" for name, help in commands.NAMES.items()]
    return "\n".join(
        [
            "Usage: runmeter [OPTIONS] COMMAND [ARGS]...",
            "",
            "The live meter for agent runs: tokens, calls and money, counted once, while the run still works.",
            "",
            "Commands of an agent's environment, which are here:",
            *lines,
            "",
            "The others (serve, demo, top, runs, threads, usage …) are the sidecar's, which is not installed here:",
            f"  {PIP}",
        ]
    )


def main() -> NoReturn:
    """Entry point; exits 2 for a command of the sidecar's where that is not installed."""
    arguments = sys.argv[1:]
    if arguments and arguments[0] in commands.NAMES:
        raise SystemExit(commands.run(arguments))
    missing = _missing()
    if missing is None:
        # By name: the instrumentation never imports the exporter, it only starts it when asked to on the command line.
        import_module("runmeter_exporter.cli").main()
    if arguments in (["-h"], ["--help"]):
        print(_help())
        raise SystemExit(0)
    if arguments == ["--version"]:
        print(f"runmeter, version {version('runmeter')}")
        raise SystemExit(0)
    if not arguments:
        print(_help(), file=sys.stderr)
        raise SystemExit(2)
    print(
        f"runmeter: {arguments[0]} needs the sidecar's packages, and {missing} is not installed here. Run: {PIP}",
        file=sys.stderr,
    )
    raise SystemExit(2)


if __name__ == "__main__":
    main()
