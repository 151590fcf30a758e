"""Private names of others: one that goes away in a minor release costs a feature and a line, never the counting.

Every such name is found by a scan of the source, so that a new one is tried by itself: a program runs on an
OpenTelemetry whose source says another name everywhere.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from provider import Provider

from runmeter_exporter import open_store

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for folder in ("instrumentation", "exporter") for path in (ROOT / folder).rglob("*.py"))
COSTS = {
    "_TRACER_PROVIDER_SET_ONCE": "keeps the first TracerProvider",
    "do_once": "keeps the first TracerProvider",
    "_tracers": "does not name the tracers",
}
"""What is lost with a name, as the line says it; without the others nothing is lost but time."""

TUPLES = ("_replace", "_asdict", "_fields")
"""Python's own, of named tuples: private by their look only."""

PROGRAM = """
import re, sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader

GONE = re.compile(rb"\\b" + sys.argv[1].encode() + rb"\\b")
renamed = 0

class Renamed(SourceFileLoader):
    def get_code(self, fullname):
        global renamed
        source = self.get_data(self.get_filename(fullname))
        changed, number = GONE.subn(sys.argv[1].encode() + b"_of_another_release", source)
        renamed += number
        return self.source_to_code(changed, self.path)

class Finder(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "opentelemetry":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Renamed(spec.loader.name, spec.loader.path)
        return spec

sys.meta_path.insert(0, Finder())
import openai
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
import runmeter

early = None
if sys.argv[2] == "host":
    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
runmeter.instrument(count_unsampled=True)
with runmeter.run(thread_id="t") as run:
    runmeter.record_usage(provider="p", model="m", input_tokens=3, output_tokens=4)
    openai.OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
    with trace.get_tracer("a").start_as_current_span("chat m", attributes={
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "p", "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 20}):
        pass
print(run.usage.calls, run.usage.total_tokens, renamed)
"""


def private_names() -> list[str]:
    """Private names that our source asks of other objects: attributes of what is not `self`, and words given to
    getattr, hasattr and setattr."""
    found = set(COSTS)
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
                found |= {str(one.value) for one in node.args if isinstance(one, ast.Constant)}
    private = {name for name in found if re.fullmatch(r"_[A-Za-z]\w*", name)}
    return sorted(private - set(TUPLES) | set(COSTS))


def test_nothing_private_is_imported_at_the_top() -> None:
    """An import that fails takes everything with it: a private one stands inside a function that can do without."""
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [part for alias in node.names for part in alias.name.split(".")]
            if names and names[0] not in ("runmeter", "runmeter_exporter", "__future__"):
                private = [name for name in names if name.startswith("_")]
                assert not private, f"{path.name} line {node.lineno}: {private}"


def test_the_scan_finds_what_is_there() -> None:
    """The names that we know of are among them."""
    known = {"_dict", "_attributes", "_tracers", "_TRACER_PROVIDER_SET_ONCE", "_is_instrumented_by_opentelemetry"}
    assert known <= set(private_names())


@pytest.mark.parametrize("host", ["host", "no host"])
@pytest.mark.parametrize("name", private_names())
def test_counting_goes_on_without(name: str, host: str, tmp_path: Path) -> None:
    """With it gone from OpenTelemetry, and its instrumentation of a real client, every call is counted and stored."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    with Provider() as provider:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RUNMETER_", "OTEL_"))}
        environment |= {"RUNMETER_DATABASE_URL": url, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": provider.openai_url}
        done = subprocess.run([sys.executable, "-c", PROGRAM, name, host], env=environment, capture_output=True,
                              text=True, timeout=100, check=False)  # fmt: skip
        truth = provider.truth()
    assert done.returncode == 0, done.stderr
    calls, tokens, renamed = map(int, done.stdout.split())
    expected = 3, 37 + truth["input_tokens"] + truth["output_tokens"]
    assert (calls, tokens) == expected, done.stderr
    store = open_store(url)
    assert store.thread_usage("t")["total_tokens"] == expected[1]
    store.dispose()
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("runmeter: ") and "OpenTelemetry" in line]
    assert len(told) <= 1, told
    if name in COSTS and renamed and told:
        assert COSTS[name] in told[0]
