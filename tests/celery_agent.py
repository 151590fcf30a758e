"""A Celery application whose tasks are runs; its broker is a folder, and each task keeps a ledger of the calls that it
made. As in most projects, runmeter is set up where the module is imported, so before the pool forks."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

import runmeter

FOLDER = Path(os.environ["CELERY_AGENT_FOLDER"])
QUEUE, CONTROL = FOLDER / "queue", FOLDER / "control"
runmeter.instrument(instrumentations=False)
app = Celery(
    "agent",
    broker="filesystem://",
    broker_transport_options={
        "data_folder_in": str(QUEUE), "data_folder_out": str(QUEUE), "control_folder": str(CONTROL),
        "polling_interval": 0.05,
    },
    task_ignore_result=True,
    worker_hijack_root_logger=False,
)  # fmt: skip


@app.task
def work(run_id: str, calls: int) -> None:
    """A run with so many calls, or with as many as it can make before its time is over."""
    with Path(FOLDER, run_id).open("ab", buffering=0) as ledger, runmeter.run(run_id=run_id, thread_id="t"):
        for _ in range(calls):
            runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
            ledger.write(b".")
