"""`Serial`: one thing at a time, also when work comes on the thread that is at work, fails or is interrupted."""

from __future__ import annotations

import threading

import pytest

from runmeter.otel.serial import Serial


def test_work_inside_work_waits_for_it() -> None:
    """What comes on the thread that is at work is done right after, in the order in which it came."""
    done: list[str] = []
    serial = Serial(done.append)

    def outer() -> None:
        serial.do(done.append, "first inside")
        serial.do(done.append, "second inside")
        done.append("outside")

    serial.do(outer)
    assert done == ["outside", "first inside", "second inside"]


def test_a_fault_is_told_and_stops_nothing() -> None:
    """Work that fails is told by its name and raises nothing; what waits behind it is still done."""
    faults: list[str] = []
    done: list[str] = []
    serial = Serial(faults.append)

    def fails(deeper: bool) -> None:
        if deeper:
            serial.do(fails, False)
            serial.do(done.append, "behind")
        raise RuntimeError

    serial.do(fails, True)
    assert (faults, done) == (["fails", "fails"], ["behind"])


@pytest.mark.parametrize("waiting", [False, True])
def test_an_interrupt_goes_on_and_locks_nobody_out(waiting: bool) -> None:
    """A KeyboardInterrupt in the midst of work, or of what waits behind it, is the host's; others can work again."""
    done: list[str] = []
    serial = Serial(done.append)

    def interrupted() -> None:
        raise KeyboardInterrupt

    def with_one_waiting() -> None:
        serial.do(interrupted)

    with pytest.raises(KeyboardInterrupt):
        serial.do(with_one_waiting if waiting else interrupted)
    serial.do(done.append, "here")
    other = threading.Thread(target=serial.do, args=(done.append, "on another thread"))
    other.start()
    other.join(10)
    assert done == ["here", "on another thread"]
