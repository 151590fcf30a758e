"""Recorders across `fork`, and out of processes that leave without the interpreter's own exit."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Any, Protocol
from weakref import WeakSet

HOLD_STILL = 0.5
"""Seconds that a fork waits, at most, for a transaction under way."""


class Forkable(Protocol):
    """What a recorder does around a fork."""

    def hold_still(self, timeout: float) -> None: ...
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
        util.Finalize(None, _leave_child, args=(recorder,), exitpriority=-1000)


def leave(recorder: Forkable) -> None:
    """Write what there is and stop; the processor first, since it may still hold calls back for a moment."""
    for leaving in filter(None, (_handle(), recorder)):
        leaving.shutdown()
    _still_interrupted()


def _still_interrupted() -> None:
    # A Python that ends by Ctrl-C dies of SIGINT, so that its shell knows. CPython forgets that it should when any
    # thread evaluates source text meanwhile, as importing a database library does (`run_eval_code_obj` resets
    # `unhandled_keyboard_interrupt`); evaluating this reminds it.
    interactive = hasattr(sys, "ps1") or sys.flags.interactive or "IPython" in sys.modules
    if getattr(sys, "last_type", None) is KeyboardInterrupt and not interactive:
        with suppress(KeyboardInterrupt):
            exec("raise KeyboardInterrupt")


def _leave_child(recorder: Forkable) -> None:
    here = (threading.current_thread(), threading.main_thread())
    if any(not thread.daemon and thread not in here for thread in threading.enumerate()):
        # They are only joined after this: what they still do is written as it comes, by a writer that goes on.
        (_handle() or recorder).flush()
    else:
        leave(recorder)


def _handle() -> Any:
    """What `runmeter.instrument()` returned in this process, if it was called."""
    module = sys.modules.get("runmeter.otel.handle")
    return None if module is None else module.current()


def _before() -> None:
    for recorder in tuple(_recorders):
        _still.append(recorder)
        recorder.hold_still(HOLD_STILL)


def _after_in_parent() -> None:
    while _still:
        _still.pop().go_on()


def _after_in_child() -> None:
    _still.clear()
    for recorder in tuple(_recorders):
        recorder.after_fork()
