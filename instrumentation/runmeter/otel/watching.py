"""Client libraries imported after `instrument()`: seen when they come, so that what instruments them is switched on
then, or its absence said then.

A finder at the front of `sys.meta_path` looks at a handful of names and at nothing else. It finds nothing itself: it
asks the finders after it, and has the loader they give tell it when the module has run.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from runmeter.guard import logger, unless_the_hosts


class Watcher:
    """Calls `came(name)` once for each of the modules `names` that is imported from now on, after it has run, on the
    thread that imports it. Nothing it does can fail an import; `importlib.reload` and `find_spec` alone tell nothing.
    """

    def __init__(self, names: Iterable[str], came: Callable[[str], None]) -> None:
        self._waiting = {name for name in names if name not in sys.modules}
        self._came = came
        self._asking = threading.local()

    def start(self) -> None:
        """From now on."""
        if self._waiting and self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """No more: also for an import that is under way."""
        self._waiting = set()
        try:
            sys.meta_path.remove(self)
        except ValueError:
            return

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Another finder's answer, with a loader that tells; None for all but the few names, or for who reloads."""
        if name not in self._waiting or target is not None or getattr(self._asking, "on", False):
            return None
        self._asking.on = True
        try:
            return self._found(name, path)
        finally:
            self._asking.on = False

    def _found(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        for finder in tuple(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = None if find is None else find(name, path, None)
            if spec is not None:
                self._tell_after(spec)
                return spec
        return None

    def _tell_after(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        if loader is None or isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return  # a namespace, or a loader for all modules of a kind: no client library
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if module.__name__ == spec.name:
                self._has_run(spec.name)

        try:
            # On the one loader, whose type and whose other methods stay what tools expect of them.
            loader.exec_module = exec_module
        except Exception as error:
            unless_the_hosts(error)
            logger.debug("runmeter: the import of %s cannot be watched", spec.name, exc_info=True)

    def _has_run(self, name: str) -> None:
        try:
            # In one step, so that of two threads that import it only one tells.
            self._waiting.remove(name)
        except KeyError:
            return
        try:
            self._came(name)
        except Exception as error:
            unless_the_hosts(error)
            logger.debug("runmeter: what follows the import of %s failed", name, exc_info=True)
