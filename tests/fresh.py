"""Programs in processes of their own that need not import anything first: OpenTelemetry's globals are set once a
process, and most of a new interpreter's second goes into imports.

One interpreter imports, instruments nothing, and forks for each program, whose process then ends as any other does: by
its last line, an exception, `sys.exit` or a signal.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = (
    "runmeter", "runmeter.otel.counters", "runmeter.otel.providers", "runmeter.otel.record",
    "runmeter.launch.doctor", "runmeter.launch.exec",
    "runmeter_exporter.prices.known_prices", "runmeter_exporter.recorder", "runmeter_exporter.store.sql.store",
    "genai_prices.data", "opentelemetry.sdk.metrics.export",
    "opentelemetry.sdk.trace.export.in_memory_span_exporter", "sqlalchemy.dialects.sqlite",
)  # fmt: skip

_parent: subprocess.Popen[str] | None = None


def run(
    code: str, *arguments: str, input: str = "", environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run([sys.executable, "-c", code, *arguments])`, with `environment` added to this one's."""
    with tempfile.TemporaryDirectory() as folder:
        stdin, stdout, stderr = files = [str(Path(folder, name)) for name in ("in", "out", "err")]
        Path(stdin).write_text(input)
        program = {
            "code": code, "arguments": ["-c", *arguments], "environment": {**os.environ, **(environment or {})},
            "files": files,
        }  # fmt: skip
        parent = _started()
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(json.dumps(program) + "\n")
        parent.stdin.flush()
        exit_code = int(parent.stdout.readline())
        return subprocess.CompletedProcess(
            program["arguments"], exit_code, Path(stdout).read_text(), Path(stderr).read_text()
        )


def _started() -> subprocess.Popen[str]:
    global _parent
    if _parent is None:
        command = [sys.executable, str(Path(__file__).resolve())]
        _parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(_stop, _parent)
    return _parent


def _stop(parent: subprocess.Popen[str]) -> None:
    parent.communicate()


def _parent_of_programs() -> None:
    # A script's own folder is on its path; what these programs import is not to depend on it.
    sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]
    for module in IMPORTS:
        importlib.import_module(module)
    gc.freeze()  # or each child would look through all of it, and so copy it, to find garbage when it ends
    for line in sys.stdin:
        program = json.loads(line)
        child = os.fork()
        if not child:
            for number, (name, flags) in enumerate(zip(program["files"], ("r", "w", "w"), strict=True)):
                with open(name, flags) as file:
                    os.dup2(file.fileno(), number)
            sys.stdin = os.fdopen(0, closefd=False)
            sys.argv = program["arguments"]
            os.environ.clear()
            os.environ.update(program["environment"])
            exec(compile(program["code"], "<program>", "exec"), {"__name__": "__main__"})
            return
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _parent_of_programs()
