"""The page of frameworks and what the doctor says of them are what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

LIVE = Path(__file__).parent / "live"


def test_the_page_and_the_data_are_what_was_measured() -> None:
    """Whoever measures anew makes both anew."""
    done = subprocess.run(
        [sys.executable, LIVE / "table.py", "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
