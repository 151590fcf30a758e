"""Importing this keeps bytecode even where none is wanted beside the sources: in the environment, for all that is run.

Hundreds of tests start a program of ours, and each would compile all that it imports: half of what the suite costs.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.dont_write_bytecode and sys.pycache_prefix is None:
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(Path(sys.prefix) / "pycache")
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest


@pytest.fixture(scope="session", autouse=True)
def only_of_what_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Bytecode of what tests made for themselves goes when they are done: another time it is in another place."""
    yield
    if sys.pycache_prefix is not None:
        made = tmp_path_factory.getbasetemp()
        shutil.rmtree(Path(sys.pycache_prefix) / made.relative_to(made.anchor), ignore_errors=True)
