"""An agent process's own scrape, asked by a real Prometheus (Debian's; skipped where there is none) and by hand."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fresh
import pytest
from prometheus_process import Prometheus
from provider import Provider
from sidecar_process import until

from runmeter.otel.prometheus import Address, parse

AGENT = """
import sys
{first}
from openai import OpenAI
import runmeter
client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
def ask():
    client.chat.completions.create(model="gpt-5-mini", messages=[{{"role": "user", "content": "hello"}}])
ask()
with runmeter.caller("subagent:reader"):
    ask()
    ask()
print("asked", flush=True)
sys.stdin.read()
"""
ARGUMENT = """
import runmeter
runmeter.instrument(prometheus="127.0.0.1:{port}")
"""
HOST = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
metrics.set_meter_provider(MeterProvider())
"""
"""A host that has set a MeterProvider, to which no reader can be added."""
TOKENS = "gen_ai_client_inference_usage_{direction}_tokens_total"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def agent(provider: Provider, store: str, port: int, how: str) -> Iterator[None]:
    """An agent that has made three calls, two of them by a subagent, and stays."""
    python, first = [sys.executable, "-c"], ""
    environment = {**os.environ, "RUNMETER_DATABASE_URL": store}
    for name in ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"):
        environment[name] = "none"
    tool = str(Path(sys.executable).with_name("opentelemetry-instrument"))
    if how.startswith("opentelemetry-instrument"):
        python = [tool, *python]
    elif how.startswith("runmeter exec"):
        python = [sys.executable, "-m", "runmeter.launch.main", "exec", "--", *python]
    if how == "argument":
        first = ARGUMENT.format(port=port)
    elif how == "argument after the host":
        first = HOST + ARGUMENT.format(port=port)
    elif how.endswith("OTEL_METRICS_EXPORTER"):
        environment |= {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port)}
    else:
        environment["RUNMETER_PROMETHEUS_LISTEN"] = f"127.0.0.1:{port}"
    with subprocess.Popen(
        [*python, AGENT.format(first=first), provider.openai_url], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "asked\n", how
            yield
        finally:
            process.stdin.close()
            assert process.wait(60) == 0


WAYS = (
    "argument",
    "argument after the host",
    "runmeter exec, RUNMETER_PROMETHEUS_LISTEN",
    "runmeter exec, OTEL_METRICS_EXPORTER",
    "opentelemetry-instrument, RUNMETER_PROMETHEUS_LISTEN",
    "opentelemetry-instrument, OTEL_METRICS_EXPORTER",
)


@pytest.mark.prometheus
@pytest.mark.parametrize("how", WAYS)
def test_prometheus_sees_an_agents_tokens_by_caller(tmp_path: Path, how: str) -> None:
    """However the scrape is asked for, the tokens are in Prometheus, by caller, and are those of the provider."""
    port = free_port()
    folder = tmp_path / "prometheus"
    folder.mkdir()
    job = {"job_name": "agents", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    with (
        Prometheus(folder, {"scrape_configs": [job]}) as prometheus,
        Provider() as provider,
        agent(provider, f"sqlite:///{tmp_path}/store.db", port, how),
    ):
        truth = provider.truth()
        for direction in ("input", "output"):
            name = TOKENS.format(direction=direction)
            until(lambda name=name, told=truth[f"{direction}_tokens"]: prometheus.number(f"sum({name})") == told,
                  f"all of {name} is scraped")
            by = {one["metric"]["runmeter_caller"]: float(one["value"][1])
                  for one in prometheus.ask(f'sum by (runmeter_caller) ({name}{{gen_ai_provider_name="openai"}})')}
            assert set(by) == {"lead_agent", "subagent"}
            assert sum(by.values()) == truth[f"{direction}_tokens"]
        assert prometheus.number('runmeter_client_calls_total{runmeter_caller="subagent"}') == 2


RECORD = 'runmeter.record_usage(provider="p", model="m", input_tokens=10, output_tokens=5)\n'
SCRAPED = """
from urllib.request import urlopen
def shown(url):
    lines = urlopen(url, timeout=10).read().decode().splitlines()
    return [line.rpartition(" ")[2] for line in lines if line.startswith("gen_ai_client_inference_usage_input")]
"""


def run(code: str, url: str, **environment: str) -> tuple[list[str], str]:
    """What a program in a process of its own says, and its stderr."""
    done = fresh.run("import os, sys, runmeter\n" + SCRAPED + code, url, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def test_a_taken_port_is_said_and_harms_nothing(url: str) -> None:
    """Calls are counted and stored, the handle says that there is no scrape, and one line says why and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code = f"handle = runmeter.instrument(sys.argv[1], prometheus={port}, instrumentations=False)\n"
        code += "with runmeter.run() as run:\n    " + RECORD + "print(run.usage.calls, handle.prometheus)\n"
        said, err = run(code, url)
        assert said == ["1 None"]
        [line] = [line for line in err.splitlines() if "Address already in use" in line]
        assert f"prometheus={port}" in line
        assert "port 0" in line
        said, err = run(code.replace(f"prometheus={port}, ", ""), url, OTEL_METRICS_EXPORTER="prometheus",
                        OTEL_EXPORTER_PROMETHEUS_PORT=str(port))  # fmt: skip
        assert said == ["1 None"]
        assert "OTEL_METRICS_EXPORTER=prometheus: cannot listen there (Address already in use)" in err


@pytest.mark.parametrize("asked", ["'nonsense'", "'127.0.0.1:99999'", "-1", "'nowhere.invalid:0'"])
def test_an_impossible_address_is_said_and_harms_nothing(url: str, asked: str) -> None:
    """Nothing raises in the host."""
    code = f"handle = runmeter.instrument(sys.argv[1], prometheus={asked}, instrumentations=False)\n"
    said, err = run(code + RECORD + "print(handle.active, handle.prometheus)", url)
    assert said == ["True None"]
    assert f"instrument(prometheus={asked})" in err
    assert "Traceback" not in err


def test_the_line_to_install_it_is_named(url: str) -> None:
    """Without the extra, calls are counted all the same."""
    code = "sys.modules['opentelemetry.exporter.prometheus'] = None\n"
    code += "handle = runmeter.instrument(sys.argv[1], instrumentations=False)\nprint(handle.active, handle.prometheus)"
    said, err = run(code, url, RUNMETER_PROMETHEUS_LISTEN="127.0.0.1:0")
    assert said == ["True None"]
    assert "pip install 'runmeter[prometheus]'" in err


def test_the_hosts_own_providers_keep_their_readers_and_our_counters(url: str) -> None:
    """One set before, one set after: both show the same totals as the scrape, and neither is replaced or refused."""
    code = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
handle = None
if sys.argv[2:] == ["after"]:
    handle = runmeter.instrument(sys.argv[1], prometheus=0, instrumentations=False)
reader = InMemoryMetricReader()
metrics.set_meter_provider(theirs := MeterProvider([reader]))
handle = handle or runmeter.instrument(sys.argv[1], prometheus=0, instrumentations=False)
{RECORD}
[data] = [m for r in reader.get_metrics_data().resource_metrics for s in r.scope_metrics for m in s.metrics
          if m.name == "gen_ai.client.inference.usage.input_tokens"]
print(metrics.get_meter_provider() is theirs, data.data.data_points[0].value, shown(handle.prometheus))
""".replace("{RECORD}", RECORD)
    for when in ("before", "after"):
        done = fresh.run("import sys, runmeter\n" + SCRAPED + code, url, when)
        assert done.stdout == "True 10 ['10.0']\n", done.stderr
        assert "Overriding" not in done.stderr


def test_without_counters_of_the_hosts_there_is_still_a_scrape(url: str) -> None:
    """`otel_metrics=False` keeps ours out of the host's provider, and no more than that."""
    code = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
handle = runmeter.instrument(sys.argv[1], otel_metrics=False, prometheus=0, instrumentations=False)
{RECORD}
print(reader.get_metrics_data(), shown(handle.prometheus))
""".replace("{RECORD}", RECORD)
    said, err = run(code, url)
    assert said == ["None ['10.0']"], err


def test_a_forked_child_does_not_hold_the_port(url: str) -> None:
    """The child counts its own, has no scrape and no socket of its parent's; the parent's scrape goes on, and once it
    is stopped the port is free although the child lives."""
    code = """
handle = runmeter.instrument(sys.argv[1], prometheus=0, instrumentations=False)
{RECORD}
port = int(handle.prometheus.split(":")[2].split("/")[0])
(ready, tell), (wait, leave) = os.pipe(), os.pipe()
if not (child := os.fork()):
    os.close(leave)
    {RECORD}
    os.write(tell, str(handle.prometheus).encode())
    os.read(wait, 1)
    os._exit(0)
print(os.read(ready, 9).decode(), shown(handle.prometheus))
handle.shutdown()
again = runmeter.instrument(sys.argv[1], prometheus=port, instrumentations=False)
print(shown(again.prometheus))
os.close(leave)
print(os.waitpid(child, 0)[1], flush=True)
""".replace("{RECORD}", RECORD.strip())
    said, err = run(code, url)
    assert said == ["None ['10.0']", "['10.0']", "0"], err


def test_a_scrape_imports_nothing_on_its_threads(url: str) -> None:
    """What any kind of scrape needs is in memory when `instrument()` returns."""
    code = """
import threading
late = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is not threading.main_thread():
            late.append(name)
handle = runmeter.instrument(sys.argv[1], prometheus=True, instrumentations=False)
{RECORD}
sys.meta_path.insert(0, Finder())
from urllib.request import Request, urlopen
for headers in ({}, {"Accept": "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"},
                {"Accept": "text/plain; version=1.0.0", "Accept-Encoding": "gzip"}):
    urlopen(Request(handle.prometheus, headers=headers), timeout=10).read()
print([name for name in late if name.partition(".")[0] not in sys.stdlib_module_names])
"""
    said, err = run(code.replace("{RECORD}", RECORD).replace("prometheus=True", "prometheus='127.0.0.1:0'"), url)
    assert said == ["[]"], err


def test_addresses() -> None:
    """True and a bare port are loopback's; nothing is nothing."""
    assert parse(True) == ("127.0.0.1", 9464)
    assert parse(9000) == parse("9000") == parse(":9000") == ("127.0.0.1", 9000)
    assert parse("[::1]:9") == ("::1", 9)
    assert Address("::1", 9).url == "http://[::1]:9/metrics"
    for nothing in (None, False, "", " "):
        assert parse(nothing) is None


def test_the_handle_says_what_was_done(url: str) -> None:
    """`print(runmeter.instrument())` says the store, the libraries and the scrape in one line, and stderr has nothing;
    the same line is logged at info level."""
    code = "handle = runmeter.instrument(sys.argv[1], prometheus=0, instrumentations=False)\nprint(handle)\n"
    said, err = run(code + "print(handle.describe() in repr(handle))\nhandle.shutdown()\nprint(handle)", url)
    line = r"runmeter: writing to sqlite:///\S+; counting calls of .+; counters at http://\S+/metrics"
    assert re.fullmatch(line, said[0])
    assert said[1:] == ["True", "runmeter: nothing is counted"]
    assert err == ""
    said, err = run("import logging\nlogging.basicConfig(level='INFO')\n" + code, url)
    assert said[0] in err


def test_every_hook_is_reachable_from_runmeter() -> None:
    """`runmeter.hooks.NAME.install` works after `import runmeter` alone, which does not load hooks."""
    folder = Path(__file__).parent.parent / "instrumentation/runmeter/hooks"
    names = sorted(path.stem for path in folder.glob("*.py") if "\ndef install(" in path.read_text())
    assert "langchain" in names
    code = "import sys, runmeter\nassert 'runmeter.hooks' not in sys.modules\n"
    code += "".join(f"assert callable(runmeter.hooks.{name}.install)\n" for name in names)
    code += "try: runmeter.hooks.nonsense\nexcept AttributeError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "no hook 'nonsense'" in done.stdout
