"""Private names of others: one that goes away in a minor release costs a feature and a line, never the counting.

Every such name is found by a scan of the source, so that a new one is tried by itself: a program runs on an
OpenTelemetry whose source says another name everywhere.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
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
import os, re, sys
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

for way in ("host", "no host"):
    if child := os.fork():  # what it imports and compiles anew is most of the work, and the same for both
        if os.waitpid(child, 0)[1]:
            sys.exit(1)
        continue
    if way == "host":
        trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
    runmeter.instrument(count_unsampled=True)
    with runmeter.run(thread_id=way) as run:
        runmeter.record_usage(provider="p", model="m", input_tokens=3, output_tokens=4)
        openai.OpenAI().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": "Hello"}])
        with trace.get_tracer("a").start_as_current_span("chat m", attributes={
            "gen_ai.operation.name": "chat", "gen_ai.provider.name": "p", "gen_ai.request.model": "m",
            "gen_ai.usage.input_tokens": 10, "gen_ai.usage.output_tokens": 20}):
            pass
    print(run.usage.calls, run.usage.total_tokens, renamed)
    print("next", file=sys.stderr)
    break
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


@functools.cache
def words_of_opentelemetry() -> frozenset[str]:
    """Every word in the source of what is installed of OpenTelemetry: what is none of them, nothing renames."""
    spec = find_spec("opentelemetry")
    assert spec is not None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    texts = (path.read_text() for folder in folders for path in folder.rglob("*.py"))
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


def theirs() -> Iterator[str]:
    """Of the private names those that OpenTelemetry has, and one of those that it has not: nothing is renamed then, and
    the program is the same for each of them."""
    names = private_names()
    yield from (name for name in names if name in words_of_opentelemetry())
    yield from [name for name in names if name not in words_of_opentelemetry()][:1]


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
    assert known <= set(theirs())


@pytest.mark.parametrize("name", theirs())
def test_counting_goes_on_without(name: str, tmp_path: Path) -> None:
    """With it gone from OpenTelemetry, and its instrumentation of a real client, every call is counted and stored, with
    a provider of the host's and without."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    with Provider() as provider:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RUNMETER_", "OTEL_"))}
        environment |= {"RUNMETER_DATABASE_URL": url, "OPENAI_API_KEY": "none", "OPENAI_BASE_URL": provider.openai_url}
        done = subprocess.run([sys.executable, "-c", PROGRAM, name], env=environment, capture_output=True, text=True,
                              timeout=100, check=False)  # fmt: skip
        ledger = provider.ledger
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    store = open_store(url)
    ways = zip(("host", "no host"), ledger, done.stdout.splitlines(), done.stderr.split("next\n"), strict=False)
    for way, entry, line, told in ways:
        calls, tokens, renamed = map(int, line.split())
        expected = 3, 37 + entry.input_tokens + entry.output_tokens
        assert (calls, tokens) == expected, told
        assert store.thread_usage(way)["total_tokens"] == expected[1]
        lines = [one for one in told.splitlines() if one.startswith("runmeter: ") and "OpenTelemetry" in one]
        assert len(lines) <= 1, lines
        if name in COSTS and renamed and lines:
            assert COSTS[name] in lines[0]
    assert len(ledger) == 2
    store.dispose()
