"""What model calls have used, as a value that adds.

Counts are *inclusive*, as the GenAI semantic conventions and pydantic-ai have them: cache tokens are a part of
`input_tokens`, reasoning tokens a part of `output_tokens`. Providers that report them apart (Anthropic) are normalised
where spans are read, so a `Usage` never needs to know where it came from.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

COUNT_LIMIT = 2**40
"""The largest count taken from outside; more is a broken reporter, no call (a million tokens a second for 12 days)."""

_new: Final[Any] = tuple.__new__
"""Makes a `Usage` of a tuple as long as it: the constructor of a named tuple, written in Python, takes three times as
long."""


class Usage(NamedTuple):
    """A vector of counts; `Usage()` is zero, `+` adds field by field, no field is ever negative.

    A named tuple and not a dataclass: one is made and one is added for every settled call, and a tuple costs a
    quarter of a frozen dataclass.
    """

    input_tokens: int = 0
    """Tokens sent, cache reads and writes included."""
    output_tokens: int = 0
    """Tokens generated, reasoning included."""
    cache_read_tokens: int = 0
    """The part of `input_tokens` served from the provider's cache."""
    cache_write_tokens: int = 0
    """The part of `input_tokens` written to the provider's cache."""
    reasoning_tokens: int = 0
    """The part of `output_tokens` spent on reasoning."""
    calls: int = 0
    """Calls the provider answered, also those without usage."""
    failures: int = 0
    """Attempts that failed; they are not in `calls`."""
    calls_without_usage: int = 0
    """The part of `calls` whose usage nobody reported: the token counts are too low by theirs."""
    messages: int = 0
    """One per answered call, unless the source states a number."""
    cost_nanousd: int = 0
    """Billionths of a US dollar, fixed when the call settled."""
    unpriced_tokens: int = 0
    """The part of `total_tokens` that no price was known for."""

    @property
    def total_tokens(self) -> int:
        """`input_tokens + output_tokens`."""
        return self[0] + self[1]

    @property
    def cost_usd(self) -> float | None:
        """US dollars, or None when nothing in it was priced (unknown is not free)."""
        if self.cost_nanousd or self.total_tokens > self.unpriced_tokens:
            return self.cost_nanousd / 1e9
        return None

    def __add__(self, other: Usage) -> Usage:  # type: ignore[override]
        # Spelt out: this is on the hot path, and a generator over the fields takes four times as long.
        a0, a1, a2, a3, a4, a5, a6, a7, a8, a9, a10 = self
        b0, b1, b2, b3, b4, b5, b6, b7, b8, b9, b10 = other
        total: Usage = _new(
            Usage,
            (a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5, a6 + b6, a7 + b7, a8 + b8, a9 + b9, a10 + b10),
        )
        return total

    def __bool__(self) -> bool:
        return any(self)

    def exceeding(self, held: Usage) -> Usage:
        """Field by field, what of this goes beyond `held`, and never less than nothing (rule 6)."""
        return Usage(*[max(0, mine - theirs) for mine, theirs in zip(self, held, strict=True)])

    def at_least(self, other: Usage) -> Usage:
        """Field by field the larger one: a high-water mark."""
        return Usage(*map(max, self, other))


ZERO = Usage()
