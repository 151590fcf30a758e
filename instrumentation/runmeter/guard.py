"""What keeps the host from harm (rule 8): values from outside made safe, and complaints said once."""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Callable, Collection, Mapping
from operator import index
from types import CodeType, FunctionType, MethodType
from typing import Any, Final, ParamSpec, TypeVar

from runmeter import clean

logger = logging.getLogger("runmeter")


P = ParamSpec("P")
T = TypeVar("T")

FAULTS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What our own code can raise where it meets what it did not expect. Anything else that comes up in it is the host's:
Celery's soft time limit and its like are raised by signal handlers in whatever code runs just then."""

_said: set[str] = set()


def unless_the_hosts(error: BaseException, first: Callable[[], None] | None = None) -> None:
    """Raise the error again, after calling `first`, where a signal handler of the host's raised it inside our code;
    also where Python made another of it, as it does before 3.12 with Ctrl-C in a `__set_name__`, so in most imports."""
    handlers = {_code(signal.getsignal(number)) for number in signal.valid_signals()}
    found: BaseException | None = error
    for _ in range(8):
        if found is None:
            return
        if isinstance(found, KeyboardInterrupt) or _passed(found, handlers):
            if first is not None:
                first()
            raise found
        found = found.__cause__


def _passed(error: BaseException, codes: Collection[CodeType | None]) -> bool:
    """It came through one of these."""
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code in codes:
            return True
        at = at.tb_next
    return False


def _code(handler: object) -> CodeType | None:
    """The code that a signal handler runs, None where it is not Python's."""
    for _ in range(8):
        if isinstance(handler, functools.partial):
            handler = handler.func
        elif isinstance(handler, MethodType):
            handler = handler.__func__
        elif isinstance(handler, FunctionType):
            return handler.__code__
        elif callable(handler):
            handler = type(handler).__call__
        else:
            return None
    return None


def once(key: str, message: str, *arguments: object, level: int = logging.WARNING) -> None:
    """Log it the first time only; `key` tells complaints apart, and at most 256 are ever kept."""
    if key in _said or len(_said) >= 256:
        return
    _said.add(key)
    logger.log(level, message, *arguments)


def harmless(otherwise: T) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function whose faults are logged once and whose answer is then `otherwise`."""

    def wrap(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return function(*args, **kwargs)
            except FAULTS as fault:
                unless_the_hosts(fault)
                once(f"fault {function.__qualname__}", "runmeter: %s failed and did nothing", function.__name__)
                logger.debug("runmeter: %s failed", function.__name__, exc_info=True)
                return otherwise

        return call

    return wrap


def text(value: object) -> str | None:
    """A label: clean text to read, or None where there is nothing usable; what is no text is as it prints."""
    return clean.label(_printed(value))


def identifier(value: object) -> str | None:
    """An id as it is stored, or None where there is nothing usable; what is no text is taken as what it prints."""
    return clean.identifier(_printed(value))


def count(value: object) -> int | None:
    """A count from outside, see `clean.count`; None where it is none."""
    try:
        return clean.count(value if isinstance(value, (bool, float, str)) or value is None else index(value))  # type: ignore[arg-type]
    except Exception as error:  # whatever a value's own `__index__` raises
        unless_the_hosts(error)
        return None


def dollars(value: object) -> float | None:
    """An amount of US dollars, see `clean.dollars`; None where it is none."""
    try:
        return clean.dollars(value if isinstance(value, (bool, int, str)) or value is None else float(value))  # type: ignore[arg-type]
    except Exception as error:  # whatever a value's own `__float__` raises
        unless_the_hosts(error)
        return None


def tags(value: object) -> dict[str, str]:
    """At most 8 tags, keys and values cut to 64 characters; what is no mapping of text is left out."""
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, str] = {}
    try:
        items: list[tuple[Any, Any]] = list(value.items())
    except Exception as error:
        unless_the_hosts(error)
        once("tags", "runmeter: tags that cannot be listed were left out")
        return {}
    for key, content in items[: clean.MAX_TAGS]:
        name, words = clean.tag(_printed(key)), clean.tag(_printed(content))
        if name is not None and words is not None:
            found[name] = words
    if len(items) > clean.MAX_TAGS:
        once("tags", "runmeter: %d tags were given, %d are kept", len(items), clean.MAX_TAGS)
    return found


def _printed(value: object) -> object:
    """Text as it is, anything else as it prints."""
    if value is None or isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception as error:  # whatever a value's own `__str__` raises
        unless_the_hosts(error)
        once(f"text {type(value).__name__}", "runmeter: a value of type %s is not text and was left out", type(value))
        return None
