"""What answers may be asked for: cursors, page sizes, statuses, orders, times and the spellings of yes and no."""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from runmeter.sink import STATUSES, TERMINAL
from runmeter_exporter.totals.bounds import TIME_LIMIT

LIMIT: Final = 500
"""Most rows of one page."""
YES: Final = frozenset({"true", "1", "yes", "on", "t", "y"})
NO: Final = frozenset({"false", "0", "no", "off", "f", "n"})
"""With `YES`, the usual spellings, in any case: those of pydantic, so of every FastAPI service."""
ORDERS: Final = ("newest", "oldest", "tokens", "cost")
"""How runs may be listed. `newest` and `oldest` go by when a run began, from an index; `tokens` and `cost` put the most
first, and add up every run that the question's other parts leave."""
_DAY, _CLOCK = "[0-9]{4}-[0-9]{2}-[0-9]{2}", "[0-9]{2}:[0-9]{2}"
TIME_PATTERN: Final = f"^{_DAY}(T{_CLOCK}(:[0-9]{{2}}([.][0-9]+)?)?(Z|[+-]{_CLOCK}))?$"
"""A UTC day or an RFC 3339 time; see `instant`."""
_FAR = 2**63 - 1


class BadQuestion(ValueError):
    """What was asked for cannot be; the message says what and what can, for who asked."""


class Position(NamedTuple):
    """The last row of a page in its order: its time or amount, and its id."""

    number: int
    name: str


def boolean(value: str) -> bool | None:
    """True or false as people and clients spell it, None for anything else."""
    word = value.strip().lower()
    return True if word in YES else False if word in NO else None


def encode_cursor(position: tuple[int, str], order: str | None = None) -> str:
    """An opaque mark of the last row of a page; of another `order` than the usual one it is no mark elsewhere."""
    mark = position if order is None else (*position, order)
    return urlsafe_b64encode(json.dumps(mark, separators=(",", ":")).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, order: str | None = None) -> Position | None:
    """The position a cursor stands for. ValueError for one that we never gave, or gave for another order."""
    if cursor is None:
        return None
    try:
        number, text, *rest = json.loads(urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4)))
        highest = TIME_LIMIT if order in (None, "oldest") else _FAR
        if type(number) is not int or not isinstance(text, str) or not -1 <= number <= highest:
            raise ValueError
        if rest != ([] if order is None else [order]):
            raise ValueError
        text.encode()
    except (ValueError, TypeError, RecursionError):
        raise BadQuestion(
            f"cursor {cursor[:40]!r} is not one that was given out for this order; start again without a cursor"
        ) from None
    return Position(number, text)


def check_limit(limit: int) -> int:
    """The page size, or ValueError."""
    if not 1 <= limit <= LIMIT:
        raise BadQuestion(f"limit {limit} is not between 1 and {LIMIT}")
    return limit


def check_statuses(status: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """The statuses to filter by, each once; None for any. ValueError for one that there is not."""
    if status is None:
        return None
    wanted = (status,) if isinstance(status, str) else tuple(dict.fromkeys(status))
    for one in wanted:
        if one not in STATUSES:
            raise BadQuestion(f"status {one!r} is none of {', '.join(STATUSES)}")
    return wanted


def check_order(order: str) -> str:
    """One of `ORDERS`, or ValueError."""
    if order not in ORDERS:
        raise BadQuestion(f"order {order!r} is none of {', '.join(ORDERS)}")
    return order


def check_terminal(status: str) -> str:
    """A status a run may end with, or ValueError."""
    if status not in TERMINAL:
        raise BadQuestion(f"a run cannot end as {status!r}; it ends as one of {', '.join(TERMINAL)}")
    return status


def check_span(start: str | None, end: str | None) -> tuple[int | None, int | None]:
    """The nanoseconds since the epoch from which and before which; see `instant`. ValueError where that is nothing."""
    first, last = instant(start, "from"), instant(end, "to", end=True)
    if first is not None and last is not None and first >= last:
        raise BadQuestion(f"from ({start}) is not before to ({end})")
    return first, last


def instant(value: str | None, what: str, *, end: bool = False) -> int | None:
    """A time as nanoseconds since the epoch: RFC 3339 with `Z` or an offset, or a UTC day, `YYYY-MM-DD`.

    A day stands for its beginning, or with `end` for the beginning of the next one, so that both days of a span belong
    to it. An offset whose plus sign a query turned into a space is understood. ValueError for anything else.
    """
    if value is None:
        return None
    written = value[:-6] + value[-6:].replace(" ", "+")
    try:
        if not re.fullmatch(TIME_PATTERN, written):
            raise ValueError
        if len(written) == 10:
            day = datetime.combine(date.fromisoformat(written), datetime.min.time(), UTC)
            found = day + timedelta(days=1) if end else day
        else:
            found = datetime.fromisoformat(written)
        past = found - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError):
        raise BadQuestion(
            f"{what} is {value[:64]!r}; it is a UTC day such as 2026-01-31, or a time such as 2026-01-31T12:00:00Z"
        ) from None
    return min(max((past.days * 86_400 + past.seconds) * 10**9 + past.microseconds * 1000, 0), TIME_LIMIT)


def no_such_group(group: str, known: Sequence[str]) -> str:
    """Why daily usage cannot be grouped by this."""
    if group == "hour":
        return "usage is kept by day, so it cannot be grouped by hour; group by day or month"
    if group in ("thread", "thread_id", "run", "run_id"):
        return f"usage by day does not tell {group.removesuffix('_id')}s apart; /api/threads and /api/runs do"
    return f"cannot group by {group!r}; groups are {', '.join(known)} and tag.<key>"
