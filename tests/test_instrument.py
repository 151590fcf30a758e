"""`instrument()`: finding or making OpenTelemetry, what it enables and says, how it is left; it never raises."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import fresh
import pytest
from provider import Provider

import runmeter
from runmeter.launch.doctor import environment_report
from runmeter.otel.clients import CLIENTS, coverage
from runmeter_exporter import open_store

QUIET = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}


def python(code: str, *arguments: str, expect: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own: the OpenTelemetry globals can be set once a process."""
    done = fresh.run(code, *arguments, environment=environment)
    assert done.returncode == expect, done.stderr
    return done


RECORD = "runmeter.record_usage(provider='openai', model='gpt-5-mini', input_tokens=10, output_tokens=5)\n"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'runs.db'}"


def answers(url: str, thread_id: str) -> dict[str, Any]:
    store = open_store(url, create=True)
    try:
        found: dict[str, Any] = store.thread_usage(thread_id, include_active=True)
        return found
    finally:
        store.dispose()


def test_a_process_without_opentelemetry(url: str) -> None:
    """Where the host has no provider one is made, with the environment's service name, and calls reach the store."""
    code = (
        "import sys, logging, runmeter; logging.basicConfig(level=logging.INFO)\n"
        "from opentelemetry import trace\n"
        "handle = runmeter.instrument(sys.argv[1], instrumentations=False)\n"
        "assert runmeter.instrument() is handle\n"
        "with runmeter.run(thread_id='t', run_id='r'):\n    " + RECORD + ""
        "print(trace.get_tracer_provider().resource.attributes['service.name'])\n"
        "print(len([p for p in trace.get_tracer_provider()._active_span_processor._span_processors]))\n"
    )
    done = python(code, url, OTEL_SERVICE_NAME="my-agent")
    assert done.stdout.split() == ["my-agent", "1"]
    assert done.stderr.count("INFO:runmeter:runmeter: writing to sqlite:///") == 1
    found = answers(url, "t")
    assert (found["total_tokens"], found["by_status"]) == (15, {"success": {"tokens": 15, "runs": 1}})
    store = open_store(url, create=True)
    assert store.run("r")["service"] == "my-agent"  # type: ignore[index]
    store.dispose()


def test_a_host_with_its_own_provider(url: str) -> None:
    """The host's provider is used, once however often it is instrumented, its exporters see the same spans."""
    code = """
import sys, runmeter
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
for _ in range(3):
    handle = runmeter.instrument(sys.argv[1], instrumentations=False)
    handle.shutdown()
handle = runmeter.instrument(sys.argv[1], instrumentations=False)
assert trace.get_tracer_provider() is provider
with runmeter.run(thread_id="t"):
    runmeter.record_usage(provider="p", model="m", input_tokens=1, output_tokens=2)
print(len(provider._active_span_processor._span_processors), [span.name for span in exporter.get_finished_spans()])
"""
    done = python(code, url)
    assert done.stdout.strip() == "2 ['chat m', 'run']"
    assert answers(url, "t")["total_tokens"] == 3


LATE_HOST = """
import sys, runmeter
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
def call(tracer, number):
    usage = {"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": number}
    with tracer.start_as_current_span(f"chat {number}", attributes=usage):
        pass
proxy = trace.get_tracer("made before anything")
handle = runmeter.instrument(sys.argv[1], instrumentations=False)
early = trace.get_tracer("opentelemetry.instrumentation.genai.openai")
exporter = InMemorySpanExporter()
with runmeter.run(thread_id="t", run_id="across"):
    call(early, 1)
    call(proxy, 2)
"""


def test_a_host_that_sets_its_provider_after_us(url: str) -> None:
    """Its spans count once, also those of tracers made before; its exporters see them all; a second one is refused."""
    code = (
        LATE_HOST
        + """
    theirs = TracerProvider(resource=Resource.create({"service.name": "theirs"}))
    theirs.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(theirs)
    assert trace.get_tracer_provider() is theirs
    for number, tracer in enumerate((early, proxy, trace.get_tracer("made later")), 4):
        call(tracer, 2 ** number)
handle.shutdown()
handle = runmeter.instrument(sys.argv[1], instrumentations=False)
with runmeter.run(thread_id="t", run_id="after"):
    call(early, 128)
trace.set_tracer_provider(TracerProvider())
assert trace.get_tracer_provider() is theirs
print([span.name for span in exporter.get_finished_spans()])
print({span.resource.attributes["service.name"] for span in exporter.get_finished_spans()})
"""
    )
    done = python(code, url)
    assert done.stdout.splitlines() == ["['chat 16', 'chat 32', 'chat 64', 'chat 128', 'run']", "{'theirs'}"]
    assert done.stderr.count("Overriding of current TracerProvider") == 1
    assert answers(url, "t")["total_tokens"] == 1 + 2 + 16 + 32 + 64 + 128
    assert answers(url, "t")["llm_call_count"] == 6
    store = open_store(url)
    assert store.run("after")["service"] == "theirs"  # type: ignore[index]
    store.dispose()


def test_a_host_that_takes_our_provider_for_its_own(url: str) -> None:
    """Once the host's exporter is on our provider that one is the host's: another is refused, as OpenTelemetry does."""
    code = (
        LATE_HOST
        + """
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(TracerProvider())
    call(early, 16)
print([span.name for span in exporter.get_finished_spans()])
"""
    )
    done = python(code, url)
    assert done.stdout.strip() == "['chat 16', 'run']"
    assert done.stderr.count("Overriding of current TracerProvider") == 1
    assert answers(url, "t")["total_tokens"] == 19


def test_a_late_host_with_a_provider_like_logfires(url: str) -> None:
    """A provider around another, that is no SDK provider itself and that cannot be hashed, is joined all the same."""
    code = (
        LATE_HOST
        + """
    from dataclasses import dataclass
    @dataclass
    class Around(trace.TracerProvider):
        inner: TracerProvider
        def get_tracer(self, *arguments, **more):
            return self.inner.get_tracer(*arguments, **more)
        def add_span_processor(self, processor):
            self.inner.add_span_processor(processor)
    theirs = Around(TracerProvider())
    theirs.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(theirs)
    call(early, 16)
for again in range(2):
    handle.shutdown()
    handle = runmeter.instrument(sys.argv[1], instrumentations=False)
call(early, 32)
print([span.name for span in exporter.get_finished_spans()])
print(len(theirs.inner._active_span_processor._span_processors))
"""
    )
    done = python(code, url)
    assert done.stdout.splitlines() == ["['chat 16', 'chat 32']", "2"], done.stderr
    assert answers(url, "t")["total_tokens"] == 19


def test_a_late_host_without_span_processors(url: str) -> None:
    """A provider that takes no processors is in force as its host wants, and we say once that it is not counted."""
    code = (
        LATE_HOST
        + """
    trace.set_tracer_provider(trace.NoOpTracerProvider())
    call(early, 16)
    assert not early.start_span("x").is_recording()
"""
    )
    assert python(code, url).stderr.count("takes no span processors") == 1
    assert answers(url, "t")["total_tokens"] == 3


def test_the_disabled_sdk(url: str) -> None:
    """OTEL_SDK_DISABLED makes everything a harmless no-op: no store, no provider, no calls."""
    code = (
        "import sys, runmeter\nfrom opentelemetry import trace\nhandle = runmeter.instrument(sys.argv[1])\n"
        "with runmeter.run(thread_id='t') as run:\n    " + RECORD + ""
        "print(handle.active, handle.flush(), handle.shutdown(), run.usage.calls)\n"
        "print(type(trace.get_tracer_provider()).__name__)\n"
    )
    done = python(code, url, OTEL_SDK_DISABLED="true")
    assert done.stdout.split() == ["False", "True", "True", "0", "ProxyTracerProvider"]
    assert not Path(url.removeprefix("sqlite:///")).exists()


def test_a_real_client_is_enabled_and_counted(url: str) -> None:
    """The installed instrumentation of the real OpenAI client is switched on; totals equal what the provider says."""
    code = """
import sys, logging, runmeter
logging.basicConfig(level=logging.INFO)
handle = runmeter.instrument(sys.argv[1])
print([(row.client.name, row.instrumentation, row.enabled) for row in handle.coverage])
from openai import OpenAI
client = OpenAI(base_url=sys.argv[2], api_key="none", max_retries=0)
ask = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
with runmeter.run(thread_id="t") as run:
    client.chat.completions.create(**ask)
    stream = client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    next(iter(stream))
for chunk in stream:
    pass
print(run.usage.total_tokens)
"""
    with Provider() as provider:
        done = python(code, url, provider.openai_url)
        truth = provider.truth()
    coverage_line, total = done.stdout.splitlines()
    assert coverage_line == "[('openai', 'opentelemetry-instrumentation-genai-openai', True)]"
    assert int(total) == truth["input_tokens"] + truth["output_tokens"]
    found = answers(url, "t")
    for key in ("input_tokens", "output_tokens"):
        assert found[f"total_{key}"] == truth[key]
    assert found["cache_read_tokens"] == truth["cache_read_tokens"]
    assert found["llm_call_count"] == truth["calls"] == 2


def test_an_uncovered_client_is_warned_about(url: str) -> None:
    """A client that is imported and that nothing instruments is named, with the line that installs what would."""
    code = (
        "import sys, openai, runmeter\nhandle = runmeter.instrument(sys.argv[1], instrumentations=False)\n"
        "runmeter.instrument()\n"
    )
    done = python(code, url)
    assert done.stderr.count("openai") >= 1
    assert done.stderr.count("pip install opentelemetry-instrumentation-genai-openai") == 1


def test_two_vendors_are_not_both_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two instrumentations of one client the first that works is on, the other is named and stays off."""
    from runmeter.otel import clients as enable

    class Found:
        def __init__(self, name: str) -> None:
            self.metadata = {"Name": name}
            self.version = "1"

    on: list[str] = []
    monkeypatch.setattr(enable, "_installed", Found)
    monkeypatch.setattr(enable, "_is_on", lambda found: found.metadata["Name"] in on)
    monkeypatch.setattr(enable, "version", lambda name: "3.0")
    broken = CLIENTS[0].instrumentations[0]

    def switch_on(found: Any, provider: object) -> bool:
        if found.metadata["Name"] == broken:
            return False
        on.append(found.metadata["Name"])
        return True

    monkeypatch.setattr(enable, "_switch_on", switch_on)
    row = enable._cover(CLIENTS[0], True, None)
    assert row is not None
    assert (row.instrumentation, row.enabled) == (CLIENTS[0].instrumentations[1], True)
    assert row.others == (broken, CLIENTS[0].instrumentations[2])
    assert on == [CLIENTS[0].instrumentations[1]]
    again = enable._cover(CLIENTS[0], True, None)
    assert again is not None
    assert again.instrumentation == CLIENTS[0].instrumentations[1]
    assert len(on) == 1


def test_a_client_that_traces_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic's SDK makes its own spans from version 2 on: nothing is switched on beside it."""
    from runmeter.otel import clients as enable

    monkeypatch.setattr(enable, "version", lambda name: "2.12.0")
    anthropic = next(client for client in CLIENTS if client.name == "anthropic")
    row = enable._cover(anthropic, True, None)
    assert row is not None
    assert (row.instrumentation, row.enabled) == ("itself", True)


def test_the_hosts_counters(url: str) -> None:
    """Counters appear in the host's own Prometheus registry, also when it sets its MeterProvider afterwards."""
    code = """
import sys, runmeter
runmeter.instrument(sys.argv[1], instrumentations=False)
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.exporter.prometheus import PrometheusMetricReader
metrics.set_meter_provider(MeterProvider([PrometheusMetricReader()]))
runmeter.record_usage(provider="openai", model="gpt-5-mini", input_tokens=10, output_tokens=5)
from prometheus_client import generate_latest
print("\\n".join(line for line in generate_latest().decode().splitlines() if "tokens_total{" in line))
"""
    shown = python(code, url).stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in shown] == ["10.0", "5.0", "0.0", "0.0", "0.0"]
    assert all('gen_ai_response_model="gpt-5-mini"' in line for line in shown)


def test_a_sampling_host_is_warned_once(url: str) -> None:
    """A host that samples is told that calls go missing; with count_unsampled they do not."""
    code = """
import sys, runmeter
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
tracer = trace.get_tracer("opentelemetry.instrumentation.genai.openai")
runmeter.instrument(sys.argv[1], count_unsampled=sys.argv[2] == "yes", instrumentations=False)
for _ in range(2):
    with runmeter.run(thread_id="t"):
        tracer.start_span("chat m", attributes={"gen_ai.operation.name": "chat", "gen_ai.usage.input_tokens": 7}).end()
"""
    assert python(code, url, "no").stderr.count("count_unsampled=True") == 2  # the sampler, and a run's dropped span
    assert answers(url, "t")["total_tokens"] == 0
    assert "count_unsampled" not in python(code, url, "yes").stderr
    assert answers(url, "t")["total_tokens"] == 14


def test_a_store_that_cannot_be_had() -> None:
    """An impossible URL is said in one line; calls are still counted, and nothing raises."""
    code = (
        "import sys, runmeter\nhandle = runmeter.instrument(sys.argv[1], instrumentations=False)\n"
        "with runmeter.run() as run:\n    " + RECORD
    )
    done = python(code + "print(run.usage.calls)", "nonsense://nowhere")
    assert done.stdout.strip() == "1"
    assert "Traceback" not in done.stderr


LEAVING = """
import sys, threading, runmeter
runmeter.instrument(sys.argv[1], throttle=60.0, instrumentations=False)
with runmeter.run(run_id="inside", thread_id="t"):
    runmeter.record_usage(provider="p", model="m", input_tokens=10, output_tokens=5)
    runmeter.record_usage(provider="p", model="m", input_tokens=10, output_tokens=5)
    {leave}
"""


@pytest.mark.parametrize(
    ("leave", "status", "reason"),
    [
        ("pass", "success", None),
        ("sys.exit(0)", "success", None),
        ("sys.exit(7)", "interrupted", "SystemExit"),
        ("raise ValueError('x')", "error", "ValueError"),
        ("raise KeyboardInterrupt", "interrupted", "KeyboardInterrupt"),
    ],
)
def test_leaving_writes_the_last_snapshot(url: str, leave: str, status: str, reason: str | None) -> None:
    """However a process is left, its final snapshot is written, and its exit code is what it would have been."""
    without = fresh.run(f"import sys\n{leave}")
    python(LEAVING.format(leave=leave), url, expect=without.returncode)
    store = open_store(url)
    run = store.run("inside")
    store.dispose()
    assert run is not None
    assert (run["total_tokens"], run["status"], run["stop_reason"]) == (30, status, reason)


def test_a_run_nobody_ends(url: str) -> None:
    """A run still open when the process leaves is interrupted, with all that had settled, and the exit code is kept."""
    code = (
        "import sys, runmeter\nrunmeter.instrument(sys.argv[1], throttle=60.0, instrumentations=False)\n"
        "run = runmeter.start_run(run_id='open', thread_id='t')\n"
        "with run.activate():\n    " + RECORD + "sys.exit(5)\n"
    )
    python(code, url, expect=5)
    store = open_store(url)
    run = store.run("open")
    store.dispose()
    assert run is not None
    assert (run["total_tokens"], run["status"], run["stop_reason"]) == (15, "interrupted", "exit")


def test_signal_handlers_are_untouched(url: str) -> None:
    """No signal handler is set or replaced."""
    code = (
        "import sys, signal, runmeter\n"
        "names = [s for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP)]\n"
        "before = [signal.getsignal(s) for s in names]\n"
        "handle = runmeter.instrument(sys.argv[1], instrumentations=False)\nwith runmeter.run():\n    "
        + RECORD
        + "handle.shutdown()\n"
        "print(before == [signal.getsignal(s) for s in names])\n"
    )
    assert python(code, url).stdout.strip() == "True"


class Thrower:
    """A value whose every conversion raises."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__

    def __int__(self) -> int:
        raise RuntimeError("no number")

    __float__ = __int__  # type: ignore[assignment]

    def __bool__(self) -> bool:
        raise RuntimeError("neither")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("equal to nothing")

    __hash__ = None  # type: ignore[assignment]


ODD: list[Any] = [
    None, "", "x", "a\0b", "\ud800", "x" * 100_000, b"bytes", 0, 1, -1, 2**63, 2**200, 1.5, math.nan, math.inf, True,
    [], {}, {"a": 1}, {1: Thrower()}, object(), Thrower(), ValueError("x"), "subagent:x", "success",
]  # fmt: skip


def test_the_public_api_never_raises(url: str) -> None:
    """10,000 calls with wrong types, throwing values, huge ones and NaN from many threads raise nothing."""
    handle = runmeter.instrument(url, throttle=0.2, instrumentations=False)
    raised: list[BaseException] = []

    def attack(seed: int) -> None:
        odd = random.Random(seed)
        pick = lambda: odd.choice(ODD)  # noqa: E731
        names = ("thread_id", "run_id", "agent", "user_id", "tags")
        counts = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens",
                  "messages", "cost_usd", "provider", "model", "call_id", "run_id", "caller", "failed")  # fmt: skip
        try:
            for _ in range(125):
                with runmeter.run(**{name: pick() for name in odd.sample(names, 3)}) as run:
                    with runmeter.caller(pick()):
                        runmeter.record_usage(**{name: pick() for name in odd.sample(counts, 6)})
                    repr(run)
                begun = runmeter.start_run(status=pick(), **{name: pick() for name in odd.sample(names, 2)})
                begun.running()
                with begun.activate():
                    runmeter.record_usage(**{name: pick() for name in odd.sample(counts, 6)})
                begun.end(pick(), pick())
                handle.flush(odd.choice([0, -1, math.nan, "x", None, Thrower()]))  # type: ignore[arg-type]
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=attack, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    for odd in (Thrower(), math.nan, -1, "x"):
        assert runmeter.instrument(odd, odd) is handle  # type: ignore[arg-type]
    assert handle.shutdown(5.0)
    store = open_store(url)
    assert store.verify() == []
    store.dispose()


def test_instrument_with_nonsense(url: str) -> None:
    """Nonsense for arguments is a warning and a handle, never an exception."""
    code = (
        "import runmeter\n"
        "for nonsense in ({'database_url': 5}, {'throttle': 'often'}, {'tracer_provider': object()}):\n"
        "    handle = runmeter.instrument(**nonsense, instrumentations=False)\n    "
        + RECORD
        + "    handle.shutdown()\n"
        "print('alive')\n"
    )
    done = python(code, RUNMETER_DATABASE_URL=url)
    assert done.stdout.strip() == "alive"
    assert "Traceback" not in done.stderr
    assert "takes no span processors" in done.stderr


def test_the_doctors_report() -> None:
    """The report names what is installed, what instruments it, and the line that adds what is missing."""
    rows = {row.subject: row for row in environment_report()}
    assert rows["openai"].state == "ok"
    assert "opentelemetry-instrumentation-genai-openai" in rows["openai"].detail
    assert rows["store"].state == "ok"
    assert rows["python"].version == ".".join(map(str, sys.version_info[:3]))
    assert json.dumps([row.as_dict() for row in rows.values()])
    assert {row.client.name for row in coverage()} <= set(rows)


def test_the_doctor_on_opentelemetrys_own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its distro assumes an exporter that is not installed it starts nothing; the remedy names all three."""
    names = ("OTEL_TRACES_EXPORTER", "OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER")
    for name in (*names, "OTEL_EXPORTER_OTLP_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)
    row = next(row for row in environment_report() if row.subject == "zero-code")
    assert row.state == "note"
    assert all(f"{name}=none" in row.remedy for name in names)
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    assert next(row for row in environment_report() if row.subject == "zero-code").state == "note"
    for name in names:
        monkeypatch.setenv(name, "none")
    assert next(row for row in environment_report() if row.subject == "zero-code").state == "ok"
