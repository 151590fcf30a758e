"""Rule 13: a call is priced once, before its first write, and never silently again.

A price of the operator's own (`RUNMETER_PRICES`, see `price_file`), else genai-prices' offline snapshot (extra
`prices`), else the cost that the instrumentation reported, else the call is *unpriced*: unknown is not free.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.prices.price_file import PriceFile, PriceFileError
from runmeter_exporter.prices.rates import Rates

if TYPE_CHECKING:
    from runmeter_exporter.prices.known_prices import KnownPrices

__all__ = ["PRICES_VARIABLE", "PriceBook", "PriceFileError"]

PRICES_VARIABLE = "RUNMETER_PRICES"
_REMEMBERED = 1024
"""Models whose price is kept at hand; a flood of distinct names starts the memory over instead of growing it."""

_log = logging.getLogger("runmeter")


class PriceBook:
    """Prices calls: the same call gets the same price however often it is asked for, so that it can be taken back."""

    def __init__(self, own: PriceFile | None = None, *, known: bool = True) -> None:
        """`own`: the operator's prices. `known`: use genai-prices where it is installed.

        Imports it, so make the book where the host expects imports; its data is read by `prepare` or when needed.
        """
        self._own = own
        self._known: KnownPrices | None = None
        self._make_known = _importing() if known else None
        self._remembered: dict[tuple[str, str], Rates | None] = {}

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, *, strict: bool = False) -> PriceBook:
        """The book with the prices that `RUNMETER_PRICES` names.

        A file that cannot be used raises PriceFileError when `strict` (a server that would bill wrongly should not
        start); an agent only says so once and goes on without it.
        """
        path = environ.get(PRICES_VARIABLE, "").strip()
        if not path:
            return cls()
        try:
            return cls(PriceFile.load(path))
        except PriceFileError as error:
            if strict:
                raise
            _log.warning("runmeter: %s; going on without it", error)
            return cls()

    def prepare(self) -> None:
        """Read the prices that there are (a quarter of a second of work), so that the first call need not wait."""
        self._open_known()

    def price(
        self,
        provider: str,
        model: str,
        usage: Usage,
        reported_cost_nanousd: int | None = None,
        *,
        at: int | None = None,
    ) -> Usage:
        """`usage` with `cost_nanousd` or `unpriced_tokens` filled in.

        `at` is when the call ended, in nanoseconds since the epoch: some prices have a start date or cheap hours.
        Without it the standing price counts, so that the answer does not depend on when the question is asked.
        """
        tokens = usage.input_tokens + usage.output_tokens
        if tokens:
            rates = self.rates(provider, model, at)
            if rates is not None:
                return usage._replace(cost_nanousd=rates.cost_nanousd(usage), unpriced_tokens=0)
        if reported_cost_nanousd is not None and reported_cost_nanousd >= 0:
            return usage._replace(cost_nanousd=reported_cost_nanousd, unpriced_tokens=0)
        return usage._replace(cost_nanousd=0, unpriced_tokens=tokens)

    def price_call(self, call: Call) -> Usage:
        """The usage of `call`, priced; a function of the call alone."""
        return self.price(call.provider, call.model, call.usage, call.reported_cost_nanousd, at=call.ended_at)

    def rates(self, provider: str, model: str, at: int | None = None) -> Rates | None:
        """The unit prices of a model at a time, or None where nobody states any."""
        key = (provider, model)
        try:
            found = self._remembered[key]
        except KeyError:
            found = self._own.find(provider, model) if self._own is not None else None
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        if found is not None:
            return found
        known = self._known or self._open_known()
        return known.rates(provider, model, at) if known is not None else None

    def _open_known(self) -> KnownPrices | None:
        make = self._make_known
        if self._known is None and make is not None:
            try:
                self._known = make()
            except Exception as error:
                self._make_known = None
                _log.warning("runmeter: genai-prices cannot be read, its prices are not used: %r", error)
        return self._known


def _importing() -> Callable[[], KnownPrices] | None:
    """What reads genai-prices' data, or None where it is not installed."""
    try:
        from runmeter_exporter.prices.known_prices import KnownPrices
    except ImportError:
        return None
    except Exception as error:
        _log.warning("runmeter: genai-prices cannot be imported, its prices are not used: %r", error)
        return None
    return KnownPrices
