"""Recorders across `fork`, and out of processes that leave without the interpreter's own exit."""

from __future__ import annotations

import os
import sys
import threading
from typing import Protocol
from weakref import WeakSet

HOLD_STILL = 0.5
"""Seconds that a fork waits, at most, for a transaction under way."""


class Forkable(Protocol):
    """What a recorder does around a fork."""

    def hold_still(self, timeout: float) -> bool: ...
    def go_on(self) -> None: ...
    def after_fork(self) -> None: ...
    def flush(self, timeout: float = ...) -> bool: ...
    def shutdown(self, timeout: float = ...) -> bool: ...


_recorders: WeakSet[Forkable] = WeakSet()
_still: list[Forkable] = []
_kept: list[object] = []
_hooked = False


def watch(recorder: Forkable) -> None:
    """Look after a recorder for as long as it lives."""
    global _hooked
    _recorders.add(recorder)
    if not _hooked and hasattr(os, "register_at_fork"):
        _hooked = True
        os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def keep(thing: object) -> None:
    """Keep something of the parent's for ever: closing its connections here would close them there."""
    if thing is not None:
        _kept.append(thing)


def leave_with_multiprocessing(recorder: Forkable) -> None:
    """In a `multiprocessing` child: write at its end, since it leaves by `os._exit` and never runs `atexit`."""
    util, process = sys.modules.get("multiprocessing.util"), sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _leave, args=(recorder,), exitpriority=-1000)


def _leave(recorder: Forkable) -> None:
    # Other threads are only joined after this; what they still do is then the writer thread's, as long as it lives.
    here = (threading.current_thread(), threading.main_thread())
    if any(not thread.daemon and thread not in here for thread in threading.enumerate()):
        recorder.flush()
    else:
        recorder.shutdown()


def _before() -> None:
    _still[:] = [recorder for recorder in tuple(_recorders) if recorder.hold_still(HOLD_STILL)]


def _after_in_parent() -> None:
    while _still:
        _still.pop().go_on()


def _after_in_child() -> None:
    _still.clear()
    for recorder in tuple(_recorders):
        recorder.after_fork()
