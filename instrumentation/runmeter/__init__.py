"""The live meter for agent runs: what an agent process imports.

    import runmeter

    runmeter.instrument()
    with runmeter.run(thread_id="conversation-1") as run:
        ...                     # every model call in here is counted once, under this run
        print(run.usage.total_tokens)

Needs only OpenTelemetry; the store it writes to comes with `pip install 'runmeter[store]'`.
"""

from __future__ import annotations

from runmeter.context import Run, caller, run, start_run
from runmeter.handle import Handle, instrument
from runmeter.record import record_usage
from runmeter.spans import Call
from runmeter.usage import Usage

__all__ = ["Call", "Handle", "Run", "Usage", "caller", "instrument", "record_usage", "run", "start_run"]
