"""A run knows what it has cost: `run.usage` while it works, as the writer prices it, and after its end."""

from __future__ import annotations

import json
from pathlib import Path

import fresh

from runmeter.sink import Priced, RunInfo
from runmeter.spans import Call, Change
from runmeter.usage import Usage
from runmeter_exporter.recorder.totals import RunTotals

PRICES = """
[openai."gpt-5-mini"]
input = 0.25
output = 2.00
"""
CODE = """
import json, sys, runmeter
handle = runmeter.instrument(sys.argv[1] if len(sys.argv) > 1 else None, instrumentations=False)
said = []
with runmeter.run(run_id="r") as run:
    said.append([run.usage.cost_usd, run.usage.unpriced_tokens])
    runmeter.record_usage(provider="nobody", model="unheard of", input_tokens=7)
    said.append([run.usage.cost_usd, run.usage.unpriced_tokens])
    runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=1_000_000, output_tokens=500_000)
    handle.flush(30)
    said.append([run.usage.cost_usd, run.usage.unpriced_tokens])
handle.flush(30)
runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=1_000_000, run_id="r")
handle.flush(30)
said.append([run.usage.cost_usd, run.usage.unpriced_tokens])
print(json.dumps(said))
"""


def test_a_live_run_knows_its_cost(tmp_path: Path) -> None:
    """Unpriced until the writer has looked, exact after a flush, and still right for what comes after its end."""
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    done = fresh.run(CODE, f"sqlite:///{tmp_path / 'r.db'}", environment={"RUNMETER_PRICES": str(prices)})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[None, 0], [None, 7], [1.25, 7], [1.5, 7]]


def test_where_nothing_is_stored_nothing_is_priced() -> None:
    """Unknown is not free: without a store nobody looks prices up, and the cost is None, not 0."""
    code = (
        "import runmeter\n"
        "from runmeter.otel.processor import PROCESSOR\n"
        "PROCESSOR.start(())\n"
        "with runmeter.run() as run:\n"
        "    runmeter.record_usage(provider='openai', model='gpt-5-mini', input_tokens=10, output_tokens=5)\n"
        "print(run.usage.cost_usd, run.usage.unpriced_tokens, run.usage.total_tokens)\n"
    )
    done = fresh.run(code)
    assert done.stdout.split() == ["None", "15", "15"], done.stderr


def test_what_is_taken_back_is_taken_back_at_its_price() -> None:
    """A repeat recognised late leaves the cost of what counts, also after the totals were written and begun anew."""
    run = RunInfo("r", 0)
    call = Call("p", "m", "lead_agent", Usage(10, calls=1), None, 0)

    def price(priced: Call) -> Usage:
        return priced.usage._replace(cost_nanousd=priced.usage.input_tokens * 5)

    RunTotals(run, "s", True).apply([Change(None, call), Change(None, call)], price)
    assert run.priced == Priced(100, 0, 20)
    RunTotals(run, "s+1", True, late=True).apply([Change(call, None)], price)
    assert run.priced == Priced(50, 0, 10)
