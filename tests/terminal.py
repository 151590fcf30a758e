"""A terminal for tests: a pty of some size, and the screen as somebody in front of it sees it. Knows what a simple
terminal knows; anything else that is written to it is a failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence

from rich.cells import cell_len

PATIENCE = 60.0
_PIECE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]+", re.DOTALL)


class Terminal:
    """A program in a terminal of its own, which is its controlling one: Ctrl-C and a resize reach it as signals."""

    def __init__(self, command: Sequence[str], columns: int, rows: int, env: Mapping[str, str] | None = None) -> None:
        self._ours, theirs = pty.openpty()
        self.columns, self.rows = columns, rows
        self._set_size()
        self.modes = termios.tcgetattr(theirs)
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": "", **(env or {})},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        self._theirs = theirs
        self.cursor_shown, self.other_screen = True, False
        self.screen: list[str] = [""]
        self.plain: list[str] = [""]
        """What was written to the usual screen."""
        self.pictures = 0
        self._row, self._rest = 0, ""

    def _set_size(self) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))

    def resize(self, columns: int, rows: int) -> None:
        """As a window manager does; what was drawn for another size is rubbish from here on."""
        self.columns, self.rows = columns, rows
        self.screen = ["STALE" * 50 for _ in range(rows + 5)]
        self._set_size()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def fits(self) -> bool:
        """What is on the screen was drawn for this size, all of it."""
        return len(self.screen) <= self.rows and all(cell_len(line) <= self.columns for line in self.screen)

    def signal(self, number: signal.Signals) -> None:
        """Send the program a signal."""
        self.process.send_signal(number)

    def until(self, look: Callable[[], object], what: str) -> None:
        """Read what the program writes until it is so."""
        end = time.monotonic() + PATIENCE
        while not look():
            assert time.monotonic() < end, f"{what}: not so within {PATIENCE} s; the screen: {self.screen}"
            self._read(0.05)

    def ended(self) -> int:
        """Read to the end; the exit code."""
        self.until(lambda: self.process.poll() is not None, "the program ends")
        while self._read(0.05):
            pass
        return int(self.process.returncode)

    def echoes(self) -> bool:
        """Keys are echoed and collected into lines, as a shell expects."""
        return bool(termios.tcgetattr(self._theirs)[3] & (termios.ECHO | termios.ICANON) == 10)

    def close(self) -> None:
        """End the program, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for number in (self._ours, self._theirs):
            with contextlib.suppress(OSError):
                os.close(number)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            self._take(os.read(self._ours, 65536).decode(errors="replace"))
        except OSError:
            return False
        return True

    def _take(self, text: str) -> None:
        text = self._rest + text
        cut = text.rfind("\x1b")
        # A sequence may arrive in two parts.
        whole = cut < 0 or re.match(r"\x1b\[\??[\d;]*[A-Za-z]", text[cut:])
        text, self._rest = (text, "") if whole else (text[:cut], text[cut:])
        for piece in _PIECE.finditer(text):
            private, number, letter = piece[1], piece[2], piece[3]
            if letter:
                self._obey(f"{private}{number}{letter}")
            elif piece[0] == "\n":
                self._row += 1
            elif piece[0] != "\r":
                self._put(piece[0])

    def _obey(self, order: str) -> None:
        if order in ("?25h", "?25l"):
            self.cursor_shown = order == "?25h"
        elif order in ("?1049h", "?1049l"):
            self.other_screen, self._row = order == "?1049h", 0
        elif order == "H":
            self._row = 0
            self.pictures += 1
        elif order == "K":
            pass  # `_put` writes whole lines
        elif order == "J":
            del self.screen[self._row + 1 :]
        else:
            raise AssertionError(f"a simple terminal does not know {order!r}")

    def _put(self, text: str) -> None:
        if not self.other_screen:
            self.plain.append(text)
            return
        self.screen += [""] * (self._row + 1 - len(self.screen))
        self.screen[self._row] = text
