"""Every benchmark, each in a process of its own, and one table of all: `make bench`, or

    python tests/benchmarks/run.py [--only store,scrape] [--quick] [--mlflow PYTHON]

The first full run makes a store of a million runs in the temporary directory, and later ones find it there.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from os import cpu_count, getloadavg
from pathlib import Path

from harness import Row, note, parser, show

HERE = Path(__file__).parent
BENCHMARKS = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def measured(name: str, options: list[str]) -> list[Row]:
    """The rows of one benchmark; CalledProcessError where it fails."""
    command = [sys.executable, str(HERE / f"bench_{name}.py"), "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [Row(**json.loads(line)) for line in done.stdout.splitlines()]


def main() -> int:
    """0 when every benchmark ran to its end, whatever it measured."""
    options = parser(__doc__)
    options.add_argument("--only", metavar="NAMES", help="of " + ", ".join(BENCHMARKS))
    given = options.parse_args()
    names = given.only.split(",") if given.only else BENCHMARKS
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        options.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    passed = ["--quick"] if given.quick else []
    passed += ["--mlflow", given.mlflow] if given.mlflow else []
    note(f"Python {platform.python_version()}, {cpu_count()} cores, load {getloadavg()[0]:.1f}")
    rows, failed = [], []
    for name in names:
        began = time.monotonic()
        try:
            rows += measured(name, passed)
        except subprocess.CalledProcessError as problem:
            failed.append(name)
            note(f"{name} failed with exit code {problem.returncode}")
        else:
            note(f"{name}: {time.monotonic() - began:.0f} s, load {getloadavg()[0]:.1f}")
    show(rows, given.json)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
