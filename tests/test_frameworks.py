"""The page of frameworks and what the doctor says of them are what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runmeter.launch import doctor

LIVE = Path(__file__).parent / "live"


def test_the_page_and_the_data_are_what_was_measured() -> None:
    """Whoever measures anew makes both anew."""
    done = subprocess.run(
        [sys.executable, LIVE / "table.py", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("beside", "state", "says"),
    [
        ((), "note", "nothing that was measured"),
        (
            ("opentelemetry-instrumentation-genai-openai",),
            "missing",
            "not exact in calls, input, output, cached, reasoning",
        ),
    ],
)
def test_the_doctor_says_what_a_framework_misses(
    beside: tuple[str, ...], state: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DSPy speaks to providers past the client that is instrumented: its calls are not seen, and the remedy is said."""
    monkeypatch.setattr(doctor, "_version", lambda name: "9" if name in ("dspy", *beside) else None)
    (row,) = [row for row in doctor.environment_report() if row.subject == "DSPy"]
    assert (row.state, row.version) == (state, "9")
    assert says in row.detail
    assert "runmeter.hooks.dspy.install()" in row.remedy


def test_the_doctor_says_what_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was measured to be exact beside it, there is nothing to do."""
    there = ("openai-agents", "opentelemetry-instrumentation-genai-openai")
    monkeypatch.setattr(doctor, "_version", lambda name: "9" if name in there else None)
    (row,) = [row for row in doctor.environment_report() if row.subject == "OpenAI Agents"]
    assert (row.state, row.remedy) == ("ok", "")
    assert "exact by opentelemetry-instrumentation-genai-openai" in row.detail
