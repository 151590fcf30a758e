"""Import boundaries: what an agent pays for `import runmeter`, and which way the arrows point."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
INSTRUMENTATION = ROOT / "instrumentation" / "runmeter"


def loaded(code: str) -> set[str]:
    """The top-level modules in memory after this code, in a fresh interpreter."""
    code += "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"flask", "sqlalchemy", "prometheus_client", "werkzeug", "waitress", "rich", "click", "msgspec", "google"}


LIGHT = ["runmeter", "runmeter.launch.auto", "runmeter.launch.exec", "runmeter.launch.doctor"]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_runmeter_loads_nothing_heavy(module: str) -> None:
    """An agent imports OpenTelemetry and nothing of the store, the server or the scrape."""
    modules = loaded(f"import {module}")
    assert not modules & HEAVY
    assert "runmeter_exporter" not in modules


def test_the_base_install_needs_only_opentelemetry() -> None:
    """With every third-party package but OpenTelemetry and its own needs hidden, runs work and calls are counted."""
    code = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"sqlalchemy", "flask", "runmeter_exporter", "prometheus_client", "genai_prices",
                                      "wrapt", "openai", "anthropic", "click", "rich", "msgspec"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hide())
import runmeter
handle = runmeter.instrument()
with runmeter.run() as run:
    runmeter.record_usage(provider="p", model="m", input_tokens=1, output_tokens=2)
print(run.usage.total_tokens, handle.store, handle.shutdown())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3", "None", "True"]
    assert "pip install 'runmeter[store]'" in done.stderr


def imports(path: Path) -> set[str]:
    """Every module a file imports, at its top or inside its functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


CORE = sorted(
    path
    for path in INSTRUMENTATION.rglob("*.py")
    # The command's entry point asks for the sidecar; a hook imports its framework inside its install function.
    if path.parts[-2:] != ("launch", "main.py") and path.parent.name != "hooks"
)


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.name)
def test_instrumentation_imports_only_opentelemetry(path: Path) -> None:
    """`instrumentation` imports the standard library, OpenTelemetry and itself, never the exporter."""
    tops = {name.partition(".")[0] for name in imports(path)}
    # The agent's own scrape serves what OpenTelemetry's exporter brings with it, and imports it when asked to.
    extra = {"prometheus_client"} if path.name == "prometheus.py" else set()
    assert tops <= {*sys.stdlib_module_names, "opentelemetry", "runmeter", "__future__", *extra}


def test_the_exporter_imports_the_instrumentation_and_not_the_reverse() -> None:
    """The check above is not empty: the exporter does import runmeter."""
    exporter = ROOT / "exporter" / "runmeter_exporter"
    assert any("runmeter.spans" in imports(path) for path in exporter.rglob("*.py"))
    assert len(CORE) > 15
