"""What the host's signal handlers raise inside our code reaches the host, and no call is lost unsaid for it."""

from __future__ import annotations

import functools
import gc
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fake_sink import Meter

import runmeter
from runmeter import guard
from runmeter.otel.processor import PROCESSOR

OURS = str(Path(runmeter.__file__).parent)


class SoftTimeLimitExceeded(Exception):
    """As Celery raises it: an ordinary exception, from a signal handler."""


@pytest.fixture
def meter() -> Iterator[Meter]:
    found = Meter()
    yield found
    found.close()


def handler_of(kind: type[BaseException], how: str) -> Any:
    """A signal handler that raises, in one of the shapes that handlers have."""

    def plain(number: int, frame: FrameType | None) -> None:
        raise kind("the host's time is over")

    class Task:
        def method(self, number: int, frame: FrameType | None) -> None:
            plain(number, frame)

        def __call__(self, number: int, frame: FrameType | None) -> None:
            plain(number, frame)

    def more(extra: int, number: int, frame: FrameType | None) -> None:
        plain(number, frame)

    return {"function": plain, "method": Task().method, "object": Task(), "partial": functools.partial(more, 1)}[how]


def interrupted_at(moment: int, work: Callable[[], object]) -> bool:
    """Run `work` and send ourselves a signal at one of the moments in our code at which Python looks for signals (when
    a function begins, and when one written in C returns); False where it has fewer."""
    left = moment

    def look(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left
        if event in ("call", "c_return") and left >= 0 and frame.f_code.co_filename.startswith(OURS):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                signal.raise_signal(signal.SIGUSR2)

    # What a finaliser raises reaches nobody, whoever raised it, and the collector would run some of other tests here.
    gc.collect()
    gc.disable()
    sys.setprofile(look)
    try:
        work()
    finally:
        sys.setprofile(None)
        gc.enable()
    return left < 0


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        (SoftTimeLimitExceeded, "function"),
        (SoftTimeLimitExceeded, "method"),
        (TimeoutError, "object"),
        (ValueError, "function"),
        (RuntimeError, "partial"),
        (KeyboardInterrupt, "function"),
    ],
)
def test_it_reaches_the_host_wherever_it_comes(meter: Meter, kind: type[BaseException], how: str) -> None:
    """A signal at each moment of our code in turn, while a call starts, ends and is counted: the host gets every
    exception, and each call is counted or a loss is."""
    before = signal.signal(signal.SIGUSR2, handler_of(kind, how))
    raised = made = moment = 0
    gc.collect()
    gc.freeze()  # what other tests left is not looked through again at each moment

    def call() -> None:
        nonlocal made
        span = meter.begin_call()
        made += 1  # who is interrupted before never makes it
        meter.finish(span, 1, 0)

    try:
        with runmeter.run(run_id="r"):
            hit = True
            while hit:
                try:
                    hit = interrupted_at(moment, call)
                except kind:
                    raised += 1
                moment += 1
            call()  # nothing is stuck
    finally:
        gc.unfreeze()
        signal.signal(signal.SIGUSR2, before)
    assert raised == moment - 1 > 50
    PROCESSOR.stop()
    counted = meter.sink.usage("r").calls
    lost = meter.sink.losses.get("interrupted", 0)
    assert counted < made <= counted + lost
    assert "error" not in meter.sink.losses


def test_ctrl_c_that_python_made_a_fault_of_is_the_hosts() -> None:
    """Before 3.12 it comes out of a class that is being made, so of most imports, as a RuntimeError."""

    class Interrupted:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGINT)

    @guard.harmless(None)
    def importing() -> None:
        type("Made", (), {"one": Interrupted()})

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            importing()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_fault_of_a_value_is_not_the_hosts() -> None:
    """What a value's own methods raise is kept from the host, whatever it is."""

    class Hostile:
        def __str__(self) -> str:
            raise SoftTimeLimitExceeded

    assert guard.text(Hostile()) is None
