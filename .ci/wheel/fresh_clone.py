"""`make run` as in the README: from a fresh clone until a total has risen, ended with Ctrl-C, nothing left running."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
import uuid
from pathlib import Path

SECONDS = 300


def make_run(root: Path, folder: Path, python: Path, environment: dict[str, str]) -> str:
    """What was seen; AssertionError with what make said where it did not come up."""
    subprocess.run(["git", "clone", "--quiet", str(root), str(folder)], check=True)
    mark = uuid.uuid4().hex
    log = folder.with_suffix(".log")
    began = time.monotonic()
    with log.open("w") as output:
        # A group of its own, whose members all get Ctrl-C, as those of a terminal do.
        make = subprocess.Popen(
            ["make", "run", f"PYTHON={python}"], cwd=folder, env=environment | {"FRESH_CLONE": mark},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            first_line = rest = total = None
            while not total:
                said = log.read_text()
                if said and first_line is None:
                    first_line = time.monotonic() - began
                assert make.poll() is None, f"make run ended with exit code {make.returncode}:\n{said}"
                assert time.monotonic() - began < SECONDS, f"no total has risen within {SECONDS} s:\n{said}"
                if rest is None and (found := re.search(r"page, REST (http://\S+)", said)):
                    rest = found[1]
                with contextlib.suppress(OSError):
                    total = rest and _tokens(rest)
                time.sleep(0.05)
            risen = time.monotonic() - began
            while (now := _tokens(str(rest))) <= total:
                assert time.monotonic() - began < SECONDS, f"the total stays {now}"
                time.sleep(0.2)
            os.killpg(make.pid, signal.SIGINT)
            make.wait(60)
            said = log.read_text()
            assert "Traceback" not in said, said
            deadline = time.monotonic() + 10
            while left := _marked(mark):
                assert time.monotonic() < deadline, f"still running after Ctrl-C: {left}"
                time.sleep(0.1)
        finally:
            for pid in _marked(mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            make.wait()
    return f"first line after {first_line:.1f} s, first total after {risen:.1f} s, it rises; Ctrl-C leaves no process"


def _tokens(rest: str) -> int:
    with urllib.request.urlopen(f"{rest}/api/usage?include_active=true", timeout=10) as response:
        return int(json.load(response)["total_tokens"])


def _marked(mark: str) -> list[int]:
    """Processes that were started below ours, by their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"FRESH_CLONE={mark}".encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
