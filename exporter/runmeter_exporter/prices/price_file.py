"""The operator's own prices: the TOML file that `RUNMETER_PRICES` names.

    [openai."gpt-5-mini"]           # provider, then model; US dollars per million tokens
    input = 0.25
    output = 2.00
    cache_read = 0.025              # optional; without it cached input costs what input costs
    cache_write = 0.25              # optional, the same
    reasoning = 2.00                # optional; without it reasoning costs what output costs
    request = 0.01                  # optional; US dollars per call, on top

    [anthropic."claude-sonnet-4-5"]
    input = 3
    output = 15
    tiers = [{ above = 200_000, input = 6, output = 22.5 }]   # by input tokens; prices the whole call

    [ollama."*"]                    # any model of a provider; `*` may stand anywhere in a model's name
    input = 0
    output = 0

    ["*"."in-house-7b"]             # a model, whoever serves it
    input = 0.1
    output = 0.1

The most specific line wins: a named provider before `"*"`, then a whole model name before a pattern, then the longer
pattern. A dated response model (`gpt-5-mini-2025-08-07`) finds the price of its undated name when it has none of its
own, and `provider/model` that of the model. Letter case does not matter.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from runmeter_exporter.prices.rates import FIELDS, Rates, Tier

HIGHEST_PRICE = Decimal(1_000_000)
_DECIMALS = 9
_DATED = re.compile(r"[-@:](20\d{2}-?(0[1-9]|1[0-2])-?(0[1-9]|[12]\d|3[01]))$")


class PriceFileError(ValueError):
    """The operator's price file cannot be used; the message names the file, the place, what is there and what to do."""


class PriceFile:
    """Prices by provider and model, as the operator wrote them."""

    def __init__(self, rates: Mapping[tuple[str, str], Rates], name: str = "prices") -> None:
        self.name = name
        self._whole = {key: value for key, value in rates.items() if "*" not in key[1]}
        patterns = sorted((key for key in rates if "*" in key[1]), key=lambda key: (-len(key[1]), key))
        self._patterns = [(provider, _pattern(model), rates[provider, model]) for provider, model in patterns]

    def __len__(self) -> int:
        return len(self._whole) + len(self._patterns)

    def find(self, provider: str, model: str) -> Rates | None:
        """The price of a model, or None; the module's text says which line wins."""
        named = spellings(provider.lower(), model.lower())
        anyone = [("*", name) for _, name in named]
        for wanted in (named, anyone):
            for key in wanted:
                found = self._whole.get(key)
                if found is not None:
                    return found
            for owner, pattern, rates in self._patterns:
                if any(owner == asked and pattern.fullmatch(name) for asked, name in wanted):
                    return rates
        return None

    @classmethod
    def load(cls, path: str | Path) -> PriceFile:
        """Read a price file; PriceFileError when it is missing, not TOML, or says something that is no price."""
        try:
            text = Path(path).read_bytes().decode()
            tables = tomllib.loads(text, parse_float=Decimal)
        except OSError as error:
            raise PriceFileError(f"cannot read the price file {path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise PriceFileError(f"price file {path}: not UTF-8 at byte {error.start}: {error.reason}") from error
        except tomllib.TOMLDecodeError as error:
            raise PriceFileError(f"price file {path}: not TOML: {error}") from error
        return cls.parse(tables, str(path))

    @classmethod
    def parse(cls, tables: Mapping[str, Any], name: str = "prices") -> PriceFile:
        """From the parsed tables; `name` stands in error messages."""
        rates: dict[tuple[str, str], Rates] = {}
        seen: dict[tuple[str, str], str] = {}
        for provider, models in tables.items():
            if not isinstance(models, dict):
                raise _wrong(name, provider, models, 'a table [provider."model"]')
            for model, prices in models.items():
                place = f"[{_quoted(provider)}.{_quoted(model)}]"
                if not isinstance(prices, dict):
                    raise _wrong(name, f"{_quoted(provider)}.{_quoted(model)}", prices, 'a table [provider."model"]')
                key = (provider.lower(), model.lower())
                if key in seen:
                    raise PriceFileError(f"price file {name}: {seen[key]} and {place} name the same model; keep one")
                seen[key] = place
                rates[key] = _rates(name, place, prices)
        return cls(rates, name)


def spellings(provider: str, model: str) -> list[tuple[str, str]]:
    """The (provider, model) pairs to look for, best first: as said, undated, and `provider/model` taken apart."""
    found = [(provider, model)]
    prefix, slash, rest = model.partition("/")
    if slash and prefix and rest:
        found += [(prefix, rest), (provider, rest)]
    for owner, name in tuple(found):
        undated = _DATED.sub("", name)
        if undated and undated != name:
            found.append((owner, undated))
    return found


def _pattern(model: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in re.split(r"\*+", model)), re.DOTALL)


def _rates(name: str, place: str, prices: Mapping[str, Any]) -> Rates:
    base = _prices(name, place, prices, {*FIELDS, "tiers"}, required=("input", "output"))
    tiers = [Tier.of(-1, base)]
    listed = prices.get("tiers", [])
    if not isinstance(listed, list):
        raise _wrong(name, f"{place} tiers", listed, "a list of tables { above = TOKENS, input = USD, … }")
    seen: set[int] = set()
    for number, tier in enumerate(listed, 1):
        here = f"{place} tiers, entry {number},"
        if not isinstance(tier, dict):
            raise _wrong(name, here, tier, "a table { above = TOKENS, input = USD, … }")
        above = tier.get("above")
        if not isinstance(above, int) or isinstance(above, bool) or above < 0:
            raise _wrong(name, f"{here} above", above, "a number of input tokens, 0 or more")
        if above in seen:
            raise PriceFileError(f"price file {name}: {place} has two tiers above = {above}; keep one")
        seen.add(above)
        # What a tier does not state stays as it is below the tier.
        tiers.append(Tier.of(above, base | _prices(name, here, tier, {*FIELDS, "above"})))
    return Rates(tiers)


def _prices(
    name: str, place: str, table: Mapping[str, Any], known: set[str], required: tuple[str, ...] = ()
) -> dict[str, Decimal]:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise PriceFileError(
            f"price file {name}: {place} has {_quoted(unknown[0])}, expected one of {', '.join(sorted(known))}"
        )
    found = {}
    for field in FIELDS:
        if field in table:
            found[field] = _price(name, f"{place} {field}", table[field])
        elif field in required:
            raise PriceFileError(
                f"price file {name}: {place} has no {field}; give it in US dollars per million tokens (0 is free)"
            )
    return found


def _price(name: str, place: str, value: object) -> Decimal:
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        price = Decimal(value)
        if price.is_finite() and 0 <= price <= HIGHEST_PRICE:
            exponent = price.normalize().as_tuple().exponent
            if isinstance(exponent, int) and exponent >= -_DECIMALS:
                return price
    raise _wrong(
        name, place, value, f"US dollars per million tokens from 0 to {HIGHEST_PRICE}, at most {_DECIMALS} decimals"
    )


def _wrong(name: str, place: str, value: object, expected: str) -> PriceFileError:
    shown = str(value) if isinstance(value, Decimal) else repr(value)
    return PriceFileError(f"price file {name}: {place} is {shown[:80]}, expected {expected}")


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else '"' + key.replace('"', '\\"') + '"'
