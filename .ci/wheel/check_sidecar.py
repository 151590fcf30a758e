"""The `sidecar` and `all` extras: it serves, is scraped, takes OTLP, its commands answer, and SIGTERM ends it well."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from wheel_kit import BIN, did, from_the_wheel, runmeter_command

from_the_wheel()
TRACE = "11111111111111111111111111111111"


def get(path: str) -> str:
    with urllib.request.urlopen(rest + path, timeout=10) as response:
        return str(response.read().decode())


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.1)
    return found


def usage() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get("/api/usage?include_active=true"))
    return found


def attribute(key: str, value: Any) -> dict[str, Any]:
    kind = "intValue" if isinstance(value, int) else "stringValue"
    return {"key": key, "value": {kind: str(value)}}


process = subprocess.Popen(
    [BIN / "runmeter", "serve", "--listen", "127.0.0.1:0", "--otlp-listen", "127.0.0.1:0", "--grace", "1s"],
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
)  # fmt: skip
try:
    assert process.stdout is not None
    addresses = []
    for line in process.stdout:
        addresses += re.findall(r"http://[\d.]+:\d+", line)
        if line.rstrip().endswith("ready"):
            break
    rest, otlp = addresses
    assert "<html" in get("/")
    assert json.loads(get("/api/usage"))["total_tokens"] == 0
    did("serves its page and REST")

    now = time.time_ns()
    span = {
        "traceId": TRACE, "spanId": "2222222222222222", "name": "chat gpt-5-mini", "kind": 3,
        "startTimeUnixNano": str(now - 10**9), "endTimeUnixNano": str(now),
        "attributes": [
            attribute("gen_ai.operation.name", "chat"), attribute("gen_ai.provider.name", "openai"),
            attribute("gen_ai.request.model", "gpt-5-mini"), attribute("gen_ai.usage.input_tokens", 100),
            attribute("gen_ai.usage.output_tokens", 20),
        ],
    }  # fmt: skip
    body = {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "by.hand"}, "spans": [span]}]}]}
    for _ in range(2):
        request = urllib.request.Request(
            f"{otlp}/v1/traces", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status == 200
    assert usage()["total_tokens"] == 120, usage()
    did("takes OTLP in JSON, the same twice counts once")

    other, program = os.environ["CHECK_OTLP_PYTHON"], os.environ["CHECK_OTLP_PROGRAM"]
    subprocess.run([other, "-P", program, otlp], check=True, timeout=60)
    wait_for(lambda: usage()["total_tokens"] == 120 + 1100)
    did("takes OTLP in protobuf from OpenTelemetry's own exporter")

    answer = wait_for(lambda: usage()["llm_call_count"] == 2 and usage())
    assert answer["cost_usd"] == 100 * 0.25e-6 + 20 * 2e-6 + 1000 * 0.25e-6 + 100 * 2e-6, answer
    did("prices them")

    text = get("/metrics?include_active=true")
    sample = r'^runmeter_observed_tokens_total\{.*direction="input",model="gpt-5-mini".*\} 1100\.0$'
    assert re.search(sample, text, re.M), text
    did("is scraped")

    wait_for(lambda: json.loads(get("/api/usage"))["total_tokens"] == 1220)  # both runs are closed and settled
    assert json.loads(runmeter_command("usage", "--json"))["total_tokens"] == 1220
    assert len(json.loads(runmeter_command("runs", "--json"))["runs"]) == 2
    assert json.loads(runmeter_command("verify", "--json"))["balanced"] is True
    assert "gpt-5-mini" in runmeter_command("usage")
    runmeter_command("top", "--once", "--json", "--url", rest)
    report = json.loads(runmeter_command("doctor", "--json"))
    assert report["store"]["llm_call_count"] == 2, report["store"]
    runmeter_command("exec", "--run-id", "by-exec", "--", sys.executable, "-P", "-c", "pass")
    assert json.loads(runmeter_command("run", "by-exec", "--json"))["status"] == "success"
    did("usage, runs, run, verify, top, doctor, exec")

    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, process.returncode
    did("SIGTERM: exit code 0")
finally:
    process.kill()
    process.wait()
