"""The `prometheus` extra: an agent's own scrape, by one argument and by one variable, without a store."""

from __future__ import annotations

import re

from wheel_kit import did, from_the_wheel, python

PROGRAM = """
import urllib.request
import runmeter
handle = runmeter.instrument({argument})
with runmeter.run(thread_id="t"):
    runmeter.record_usage(provider="acme", model="large", input_tokens=1200, output_tokens=80, call_id="one")
    with runmeter.caller("subagent:reader"):
        runmeter.record_usage(provider="acme", model="large", input_tokens=10, output_tokens=1, call_id="two")
url = handle.prometheus if "://" in handle.prometheus else f"http://{{handle.prometheus}}/metrics"
print(urllib.request.urlopen(url, timeout=10).read().decode())
"""

from_the_wheel()
for how, argument, variables in (
    ("instrument(prometheus=…)", 'prometheus="127.0.0.1:0"', {}),
    ("RUNMETER_PROMETHEUS_LISTEN", "", {"RUNMETER_PROMETHEUS_LISTEN": "127.0.0.1:0"}),
):
    text = python(PROGRAM.format(argument=argument), **variables)
    for caller, tokens in (("lead_agent", 1200), ("subagent", 10)):
        pattern = rf'^\w*input_tokens\w*\{{[^}}]*caller\w*="{caller}"[^}}]*\}} {tokens}(\.0)?$'
        assert re.search(pattern, text, re.M), f"no sample of {caller} with {tokens}:\n{text}"
    did(f"{how}: tokens by caller are scraped")
