"""genai-prices' offline snapshot as unit prices; imported only where the extra `prices` is installed.

genai-prices needs some 100 µs for one call. Its prices are read once per model into our own whole numbers, which price
a call in one. The snapshot is the wheel's: nothing here updates itself, so prices change only with an upgrade.

Importing this imports the package, and with it pydantic and an HTTP client that the host may be importing as well: so
it is for the thread that the host calls us on. The prices themselves, 30,000 lines, are data: `KnownPrices` reads them
without importing anything, and so may be made on a thread of ours.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from genai_prices.data_snapshot import find_provider_by_id
from genai_prices.types import ConditionalPrice, ModelInfo, ModelPrice, Provider, TieredPrices

from runmeter_exporter.prices.rates import Rates, Tier

_REMEMBERED = 1024

_FIELDS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cache_read",
    "cache_write_mtok": "cache_write",
    "output_reasoning_mtok": "reasoning",
}

# Spellings of the GenAI semantic conventions that genai-prices does not know, or (azure) knows as somebody else.
_PROVIDERS = {
    "azure.ai.openai": ("azure", "openai"),
    "azure.ai.inference": ("azure",),
    "gcp.gen_ai": ("google",),
    "x_ai": ("x-ai",),
}
_NOBODY = frozenset({"", "unknown", "_other", "litellm"})
"""Providers that say nothing: only for these is the price guessed from the model's name alone."""

_DATA = "genai_prices.data"
READ_WITHIN = 10.0
"""Seconds that reading the data may take on a very busy machine, without bytecode at hand."""
_reading = threading.Lock()
_read_before: list[list[Provider]] = []
_SPEC = find_spec(_DATA)


def _rehearse() -> None:
    """Have everything imported that its own functions import at their first use."""
    for name in ("data_units", "decompose", "units", "validation"):
        with suppress(ImportError):  # another minor version may have other parts
            import_module(f"genai_prices.{name}")
    ModelPrice(input_mtok=Decimal(1))


_rehearse()


def _after_fork() -> None:
    global _reading
    _reading = threading.Lock()  # whoever held it is the parent's


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_Dated = list[tuple[ConditionalPrice, Rates | None]]


class KnownPrices:
    """Unit prices that genai-prices knows."""

    def __init__(self) -> None:
        self._providers = _providers()
        self._remembered: dict[tuple[str, str], Rates | _Dated | None] = {}

    def rates(self, provider: str, model: str, at: int | None = None) -> Rates | None:
        """The unit prices of a model at a time (nanoseconds since the epoch), or None where they are not known."""
        key = (provider, model)
        try:
            found = self._remembered[key]
        except KeyError:
            found = self._look_up(provider.lower().strip(), model.lower())
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = found
        return _at(found, at) if isinstance(found, list) else found

    def _look_up(self, provider: str, model: str) -> Rates | _Dated | None:
        # Not `DataSnapshot.find_provider_model`: its caches keep every name they were ever asked for.
        for owner, name in self._candidates(provider, model):
            info = owner.find_model(name, all_providers=self._providers)
            if info is not None:
                return _read(info)
        return None

    def _candidates(self, provider: str, model: str) -> list[tuple[Provider, str]]:
        found = []
        for name in _PROVIDERS.get(provider, () if provider in _NOBODY else (provider,)):
            owner = find_provider_by_id(self._providers, name)
            if owner is not None:
                found.append((owner, model))
        prefix, slash, rest = model.partition("/")
        if slash and prefix and rest:  # a router's spelling, `provider/model`
            owner = find_provider_by_id(self._providers, prefix)
            if owner is not None and (found or provider in _NOBODY):
                found.append((owner, rest))
        if provider in _NOBODY:
            match = [
                owner
                for owner in self._providers
                if owner.model_match is not None and owner.model_match.is_match(model)
            ]
            found += [(owner, model) for owner in match[:1]]
        return found


def _providers() -> list[Provider]:
    """The snapshot, read once a process by whoever is first; who comes meanwhile waits for no longer than a reading."""
    if not _read_before:
        lock = _reading
        locked = lock.acquire(timeout=READ_WITHIN)
        try:
            if not _read_before:
                _read_before.append(_read_snapshot())
        finally:
            if locked:
                lock.release()
    return _read_before[0]


def _read_snapshot() -> list[Provider]:
    """As the host has imported it, else read as data, which puts nothing where the host could meet it."""
    found: list[Provider] | None = getattr(sys.modules.get(_DATA), "providers", None)
    if found is not None:
        return found
    if _SPEC is None or _SPEC.loader is None or (code := _SPEC.loader.get_code(_DATA)) is None:  # type: ignore[attr-defined]
        raise ImportError("genai-prices has no data that this runmeter can read")
    names: dict[str, Any] = {"__name__": _DATA, "__package__": "genai_prices"}
    exec(code, names)
    read: list[Provider] = names["providers"]
    return read


def _read(info: ModelInfo) -> Rates | _Dated | None:
    if isinstance(info.prices, ModelPrice):
        return _rates(info.prices)
    dated = [(price, _rates(price.prices)) for price in info.prices]
    return dated or None


def _at(dated: _Dated, at: int | None) -> Rates | None:
    """The last price whose condition holds, else the first one (genai-prices' own rule)."""
    if at is not None:
        when = _moment(at)
        for price, rates in reversed(dated):
            if price.constraint is None or price.constraint.active(when):
                return rates
    return dated[0][1]


def _moment(at: int) -> datetime:
    try:
        return datetime.fromtimestamp(at / 1e9, UTC)
    except (OverflowError, ValueError, OSError):
        return datetime.fromtimestamp(0, UTC)


def _rates(price: ModelPrice) -> Rates | None:
    """Token prices of a model; None where it is not sold by tokens that we count (audio, pages, characters)."""
    stated = {ours: price.__dict__.get(theirs) for theirs, ours in _FIELDS.items()}
    if stated["input"] is None and stated["output"] is None:
        return None
    thresholds = {-1}
    for value in stated.values():
        if isinstance(value, TieredPrices):
            thresholds.update(tier.start for tier in value.tiers)
    per_request = price.__dict__.get("requests_kcount")
    tiers = []
    for above in sorted(thresholds):
        usd = {field: _value(value, above) for field, value in stated.items() if value is not None}
        usd.setdefault("input", Decimal(0))
        usd.setdefault("output", Decimal(0))
        if per_request is not None:
            usd["request"] = _value(per_request, above) / 1000
        tiers.append(Tier.of(above, usd))
    return Rates(tiers)


def _value(value: Decimal | TieredPrices, above: int) -> Decimal:
    """The price that holds just above a number of input tokens."""
    if isinstance(value, Decimal):
        return value
    found = value.base
    for tier in value.tiers:
        if above >= tier.start:
            found = tier.price
    return found
