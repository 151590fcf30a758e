"""Forks agents that record until they are killed; 300 of them cost less than ten fresh interpreters.

    python nursery.py DATABASE_URL THROTTLE

Each line on stdin, `RUN_ID THREAD_ID [CALLS]`, forks an agent with a run of its own. stdout has `RUN_ID pid PID`, then
`RUN_ID ack N` after each call that `record_usage` returned from, `RUN_ID end N` when the run was left. SIGUSR1 has an
agent leave its run after the call under way.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

import runmeter

for module in (
    "genai_prices.data", "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite",
    "runmeter.otel.counters", "runmeter.otel.clients", "runmeter.otel.providers", "runmeter.otel.record",
    "runmeter.otel.sampling", "runmeter_exporter.prices.known_prices", "runmeter_exporter.recorder",
    "runmeter_exporter.store.sql.store",
):  # fmt: skip
    importlib.import_module(module)  # once here, rather than for seconds in every child


def say(*words: object) -> None:
    """One line in one write, so that the lines of many processes never mix."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def work(url: str, throttle: float, run_id: str, thread_id: str, calls: int) -> None:
    """An agent: one run, one call after the other."""
    enough = False

    def leave(*_: object) -> None:
        nonlocal enough
        enough = True

    signal.signal(signal.SIGUSR1, leave)
    say(run_id, "pid", os.getpid())
    handle = runmeter.instrument(database_url=url, throttle=throttle, instrumentations=False)
    number = 0
    with runmeter.run(run_id=run_id, thread_id=thread_id):
        while number < calls and not enough:
            number += 1
            runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
            say(run_id, "ack", number)
    handle.shutdown(timeout=60)
    say(run_id, "end", number)


def main(url: str, throttle: str) -> None:
    """Fork an agent for each line."""
    for line in sys.stdin:
        run_id, thread_id, *calls = line.split()
        if not os.fork():
            status = 1
            try:
                work(url, float(throttle), run_id, thread_id, int(calls[0]) if calls else 10**9)
                status = 0
            finally:
                os._exit(status)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
