"""What `import runmeter` costs an agent's start, beside the import of the SDK that it stands on.

With the bytecode of both at hand, as it is from the second start on: a checkout under PYTHONDONTWRITEBYTECODE would be
compiled at every import, and installed packages not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from harness import Options, Row, interleaved, main

OURS, PEER = "runmeter", "opentelemetry.sdk.trace"
PROGRAM = "import time; began = time.process_time(); import {}; print(time.process_time() - began)"


def importing(module: str, bytecode: str) -> float:
    """CPU milliseconds in a new interpreter, its own start not counted; compiled modules are kept in `bytecode`."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    command = [sys.executable, "-c", PROGRAM.format(module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def measure(options: Options) -> Iterator[Row]:
    """One row."""
    with tempfile.TemporaryDirectory() as bytecode:
        took = interleaved({OURS: OURS, PEER: PEER}, options.of(25, 1), lambda module: importing(module, bytecode))
    yield Row(
        what="`import runmeter`, CPU",
        measured=took[OURS],
        unit="ms",
        peer=f"`import {PEER}`",
        beside=took[PEER],
        ratio_at_most=1.3,
    )


if __name__ == "__main__":
    main(measure)
