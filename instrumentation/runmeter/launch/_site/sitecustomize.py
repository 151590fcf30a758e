"""Found by a Python that `runmeter exec` starts: counts its calls, then lets any other sitecustomize have its turn."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path


def _others() -> None:
    here = Path(__file__).resolve().parent
    paths = [path for path in sys.path if Path(path or ".").resolve() != here]
    spec = PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


def _start() -> None:
    # A Python without runmeter (another environment's, started by the program) just runs.
    try:
        from runmeter.launch.auto import start
    except ImportError:
        return
    start()


_others()
_start()
