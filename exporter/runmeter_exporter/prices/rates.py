"""What one model costs, in whole numbers: a call's tokens in, nano-dollars out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from runmeter.usage import Usage

SCALE = 10**9
"""Unit prices are kept in billionths of a nano-dollar, so that any price with up to twelve decimals is exact."""

_PER_TOKEN = Decimal(1000 * SCALE)  # 1 USD per million tokens is 1,000 nano-dollars a token
_PER_REQUEST = Decimal(10**9 * SCALE)

FIELDS = ("input", "output", "cache_read", "cache_write", "reasoning", "request")
"""Names of unit prices, in the order of `Tier`: USD per million tokens, and `request` in USD per call."""


class Tier(NamedTuple):
    """Unit prices, in 1/SCALE nano-dollars, that hold for calls with more than `above` input tokens."""

    above: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int
    request: int

    @classmethod
    def of(cls, above: int, usd: Mapping[str, Decimal]) -> Tier:
        """From US dollars; cached input without a price costs what input does, reasoning what output does."""
        whole = usd["input"]
        generated = usd["output"]
        return cls(
            above,
            _units(whole),
            _units(generated),
            _units(usd.get("cache_read", whole)),
            _units(usd.get("cache_write", whole)),
            _units(usd.get("reasoning", generated)),
            int(usd.get("request", Decimal(0)) * _PER_REQUEST),
        )


def _units(usd_per_million: Decimal) -> int:
    return int(usd_per_million * _PER_TOKEN)


class Rates:
    """The prices of one model: the tier with the highest `above` that a call's input exceeds prices the whole call.

    That "cliff" is how Anthropic, Google and OpenAI bill long contexts, and how genai-prices reads them.
    """

    __slots__ = ("_base", "_longer")

    def __init__(self, tiers: Sequence[Tier]) -> None:
        ordered = sorted(tiers, reverse=True)
        self._longer = ordered[:-1]
        self._base = ordered[-1]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rates) and (self._base, self._longer) == (other._base, other._longer)

    __hash__ = None  # type: ignore[assignment]

    def cost_nanousd(self, usage: Usage) -> int:
        """Nano-dollars of one call, rounded half to even."""
        tier = self._base
        for longer in self._longer:
            if usage.input_tokens > longer.above:
                tier = longer
                break
        _, whole, generated, cache_read, cache_write, reasoning, request = tier
        # Inclusive counts: what is left of input and output after their parts; a reporter whose parts exceed the whole
        # is taken at its word for the parts.
        plain = max(0, usage.input_tokens - usage.cache_read_tokens - usage.cache_write_tokens)
        spoken = max(0, usage.output_tokens - usage.reasoning_tokens)
        units = (
            plain * whole
            + usage.cache_read_tokens * cache_read
            + usage.cache_write_tokens * cache_write
            + spoken * generated
            + usage.reasoning_tokens * reasoning
            + request
        )
        cost, rest = divmod(units, SCALE)
        if rest * 2 > SCALE or (rest * 2 == SCALE and cost % 2):
            cost += 1
        return cost
