"""A terminal taken over and given back: the other screen, no cursor, no echo of keys; at the end all is as before.

Nothing of it stays in the scrollback, and no row of an earlier size stays on the screen: every picture is a whole one.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

try:
    import termios
except ImportError:  # Windows
    termios = None  # type: ignore[assignment]

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, REST = "\x1b[H", "\x1b[K", "\x1b[J"
GLANCE = 0.2
"""Seconds between two glances at the size of the terminal and the keys."""


class Screen:
    """What is drawn on; made by `taken`."""

    def __init__(self) -> None:
        self.size = shutil.get_terminal_size()

    def draw(self, lines: Sequence[str]) -> None:
        """One whole picture: lines that do not fit below are left out; they must not be wider than the terminal."""
        shown = lines[: self.size.lines]
        _write(HOME + f"{END_OF_LINE}\r\n".join(shown) + END_OF_LINE + REST)

    def wait(self, seconds: float, stop: threading.Event) -> bool:
        """Until the terminal has another size (True), `q` is pressed (KeyboardInterrupt), `stop` is set, or so long."""
        left = seconds
        while left > 0 and not stop.is_set():
            if termios is not None and _is_ours():
                if select.select([sys.stdin], [], [], min(GLANCE, left))[0]:
                    keys = os.read(sys.stdin.fileno(), 64)
                    if not keys or b"q" in keys or b"\x03" in keys:
                        raise KeyboardInterrupt
            else:
                stop.wait(min(GLANCE, left))
            left -= GLANCE
            size = shutil.get_terminal_size()
            if size != self.size:
                self.size = size
                return True
        return False


@contextmanager
def taken() -> Iterator[Screen]:
    """The terminal while the block runs; SIGTERM and SIGHUP end it as Ctrl-C does, Ctrl-Z lends it back meanwhile."""
    keys = _silence()
    _write(ENTER)
    try:
        with _signals(keys):
            yield Screen()
    finally:
        _restore(keys)
        with suppress(OSError):
            _write(LEAVE)


@contextmanager
def _signals(keys: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    def suspend(*_: object) -> None:
        _restore(keys)
        _write(LEAVE)
        os.kill(os.getpid(), signal.SIGSTOP)
        _silence()
        _write(ENTER)

    wanted: dict[str, Callable[..., None]] = {"SIGTERM": end, "SIGHUP": end, "SIGTSTP": suspend}
    before = {}
    for name, handler in wanted.items():
        number = getattr(signal, name, None)
        # A handler of somebody else's (the demo's) knows better how to end.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _silence() -> Any:
    """Keys are neither echoed nor collected into lines; what is to be restored, None where stdin is no terminal."""
    if termios is None or not _is_ours():
        return None
    before = termios.tcgetattr(sys.stdin.fileno())
    quiet = termios.tcgetattr(sys.stdin.fileno())
    quiet[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, quiet)
    return before


def _restore(keys: Any) -> None:
    if keys is not None:
        with suppress(OSError, termios.error):
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, keys)


def _is_ours() -> bool:
    try:
        return sys.stdin is not None and sys.stdin.isatty()
    except ValueError:
        return False


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
