"""A web application whose requests are runs, for a server that forks, reloads and loses its workers."""

from __future__ import annotations

import os

from flask import Flask

import runmeter

runmeter.instrument(throttle=float(os.environ["WEB_AGENT_THROTTLE"]), instrumentations=False)
app = Flask(__name__)


@app.get("/<run_id>/<int:calls>")
def work(run_id: str, calls: int) -> str:
    """A run with so many calls."""
    with runmeter.run(run_id=run_id, thread_id="web"):
        for _ in range(calls):
            runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
    return str(os.getpid())
