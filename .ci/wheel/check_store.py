"""The `store` and `postgres` extras: what is recorded is written, and open_store reads it."""

from __future__ import annotations

import json
import os
import sys

from wheel_kit import did, from_the_wheel, python, readme_program, runmeter_command

import runmeter_exporter

from_the_wheel()
kind = os.environ["RUNMETER_DATABASE_URL"].split(":")[0]
python(readme_program("record_usage("))
said = python(readme_program("open_store("))
assert said.split() == ["1280", "0"], said
did(f"README's record_usage and open_store programs, on {kind}")

store = runmeter_exporter.open_store()
[run] = store.runs()["runs"]
assert (run["run_id"], run["status"], run["user_id"], run["tags"]) == ("job-7", "success", "u-1", {"team": "search"})
assert (run["llm_call_count"], run["total_tokens"], run["cost_usd"]) == (1, 1280, None), run
assert store.verify() == []
store.dispose()
did("totals balance; without prices money is unknown")

program = "import runmeter; runmeter.record_usage(provider='p', model='m', input_tokens=5, output_tokens=1)"
runmeter_command("exec", "--thread", "exec-thread", "--", sys.executable, "-P", "-c", program)
store = runmeter_exporter.open_store()
assert store.thread_usage("exec-thread")["total_tokens"] == 6
store.dispose()
report = json.loads(runmeter_command("doctor", "--json"))
assert report["store"]["llm_call_count"] == 2, report["store"]
did("exec, doctor")
