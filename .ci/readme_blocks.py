"""README's code blocks, each with the environment that README names for it, and a way to run them there.

    python .ci/readme_blocks.py                                        lists them
    python .ci/readme_blocks.py 'runmeter[openai]' PYTHON [WORK]       runs those of one environment with its Python

A block belongs to the packages of the last `$ pip install …` line in it or above it. Python blocks run as programs; of
console blocks, the lines that start `runmeter`, `export` or `opentelemetry-instrument` do, with an `agent.py` that is
README's first program. The model provider is on loopback, the sidecar's addresses are free ones, and the store is the
default one of a home directory that is WORK. Run it with a Python that has this checkout's packages (for the provider);
only the standard library is used beside them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

README = Path(__file__).resolve().parent.parent / "README.md"
RUN = ("runmeter", "opentelemetry-instrument", "export")
PATIENCE = 120.0


class Block(NamedTuple):
    """A fenced block."""

    part: str
    """The heading above it."""
    packages: str
    """What the last pip line above it installs, as it is written: `runmeter[openai]`; empty where there is none."""
    language: str
    code: str


def blocks(text: str | None = None) -> Iterator[Block]:
    """All fenced blocks, in order. A block with a pip line of its own belongs to that one."""
    part = packages = ""
    for found in re.finditer(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", text or README.read_text("utf-8"), re.M | re.S):
        heading, language, code = found.groups()
        if heading:
            part = heading
            continue
        if language == "console":
            installs = [line[len("pip install ") :] for line in commands(code) if line.startswith("pip install ")]
            packages = " ".join(shlex.split(installs[-1])) if installs else packages
        yield Block(part, packages, language, code)


def environments() -> list[str]:
    """What is installed for the blocks that can be run, each once."""
    return list(dict.fromkeys(block.packages for block in blocks() if _runs(block)))


def _runs(block: Block) -> bool:
    if block.language != "console":
        return block.language == "python"
    return any(line.split()[0] in RUN for line in commands(block.code))


def commands(code: str) -> list[str]:
    """The lines that a reader types, without their comments."""
    return [re.sub(r"\s+# .*$", "", line[2:]) for line in code.splitlines() if line.startswith("$ ")]


def without_runmeter(code: str) -> str:
    """The same calls in a program that does not know us: the second door needs none of our code."""
    lines = [line for line in code.splitlines() if not re.match(r"import runmeter|\s*print\(", line)]
    return "\n".join(re.sub(r"with runmeter.*", "if True:", line) for line in lines) + "\n"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Runner:
    """Runs blocks with one environment's programs, in a folder of its own; a sidecar that was started stays until
    `stop`."""

    def __init__(self, python: Path, work: Path, variables: Mapping[str, str]) -> None:
        self.work, self.python = work, python
        rest, self.otlp = free_port(), free_port()
        keep = {name: os.environ[name] for name in os.environ if not name.startswith(("OTEL_", "RUNMETER_", "PYTHON"))}
        self.env = {
            **keep, "HOME": str(work), "XDG_STATE_HOME": str(work / "state"),
            "PATH": os.pathsep.join([str(python.parent), os.environ["PATH"]]),
            "RUNMETER_LISTEN": f"127.0.0.1:{rest}", "RUNMETER_OTLP_LISTEN": f"127.0.0.1:{self.otlp}",
            "RUNMETER_URL": f"http://127.0.0.1:{rest}", **variables,
        }  # fmt: skip
        self.sidecar: subprocess.Popen[str] | None = None

    def run(self, block: Block) -> str:
        """What it says on stdout; RuntimeError where a program of it fails."""
        if block.language == "python":
            return self._done([str(self.python), "-c", block.code])
        said = ""
        for line in commands(block.code) if block.language == "console" else ():
            words = shlex.split(line)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if not words or words[0] not in RUN:
                continue
            if words[:2] == ["runmeter", "serve"]:
                self.serve()
                continue
            for name, value in re.findall(r"([A-Z_]+)=(\S+)", line):
                self.env[name] = value.replace("127.0.0.1:4318", f"127.0.0.1:{self.otlp}")
            if words[0] != "export":
                said += self._done(words)
        return said

    def serve(self, *program: str) -> None:
        """Start the sidecar, of this environment or another's, and wait until it is ready."""
        command = [*(program or [str(self.python.parent / "runmeter")]), "serve"]
        self.sidecar = subprocess.Popen(command, env=self.env, cwd=self.work, stdout=subprocess.PIPE, text=True)
        assert self.sidecar.stdout is not None
        for line in self.sidecar.stdout:
            if line == "runmeter: ready\n":
                return
        raise RuntimeError(f"runmeter serve ended with {self.sidecar.wait()}")

    def counted(self) -> int:
        """Tokens that the sidecar knows of."""
        with urlopen(f"{self.env['RUNMETER_URL']}/api/usage?include_active=true", timeout=PATIENCE) as answer:
            return int(json.load(answer)["total_tokens"])

    def stop(self) -> None:
        """End the sidecar with SIGTERM; RuntimeError where it does not end well."""
        if self.sidecar is not None:
            self.sidecar.terminate()
            self.sidecar.communicate(timeout=PATIENCE)
            if self.sidecar.returncode:
                raise RuntimeError(f"runmeter serve ended with {self.sidecar.returncode}")

    def _done(self, words: list[str]) -> str:
        done = subprocess.run(words, env=self.env, cwd=self.work, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(words)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def run(packages: str, python: Path, work: Path) -> list[tuple[Block, str]]:
    """Run all blocks of one environment in order; each with what it said. RuntimeError for the first that fails."""
    from runmeter_exporter.demo.provider import Provider

    every = list(blocks())
    first = next(block for block in every if block.language == "python")
    mine = [block for block in every if block.packages == packages and _runs(block)]
    if not mine:
        raise RuntimeError(f"README has no block for {packages!r}; it has {sorted({one.packages for one in every})}")
    with Provider() as provider:
        runner = Runner(python, work, {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": provider.openai_url})
        code = first.code if "runmeter" in packages else without_runmeter(first.code)
        (work / "agent.py").write_text(code, "utf-8")
        try:
            if "runmeter" in packages:
                return [(block, runner.run(block)) for block in mine]
            runner.serve(sys.executable, "-m", "runmeter.launch.main")
            said = [(block, runner.run(block)) for block in mine]
            counted, truth = runner.counted(), provider.truth()
            if counted != truth["input_tokens"] + truth["output_tokens"]:
                raise RuntimeError(f"the sidecar counted {counted} tokens, the provider {truth}")
            return said
        finally:
            runner.stop()


def main(arguments: list[str]) -> int:
    if not arguments:
        for block in blocks():
            print(f"{block.part[:30]:<32}{block.language:<10}{block.packages}")
        return 0
    packages, python, *work = arguments
    with tempfile.TemporaryDirectory() as folder:
        try:
            for block, said in run(packages, Path(python).absolute(), Path(work[0] if work else folder)):
                print(f"-- {block.part}, {block.language}\n{said}", end="")
        except RuntimeError as problem:
            print(problem, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
