"""The `prices` extra: a call is priced, offline."""

from __future__ import annotations

import socket
from decimal import Decimal
from typing import NoReturn

from wheel_kit import did, from_the_wheel


def refuse(*_: object, **__: object) -> NoReturn:
    raise AssertionError("prices went to the network")


socket.socket.connect = refuse  # type: ignore[method-assign]
socket.getaddrinfo = refuse

from genai_prices import Usage as Asked  # noqa: E402
from genai_prices import calc_price  # noqa: E402

from runmeter.usage import ZERO  # noqa: E402
from runmeter_exporter.prices import PriceBook  # noqa: E402

from_the_wheel()
for provider, model in (("openai", "gpt-5-mini"), ("anthropic", "claude-haiku-4-5")):
    usage = ZERO._replace(calls=1, input_tokens=120_000, output_tokens=4_000, cache_read_tokens=20_000)
    priced = PriceBook().price(provider, model, usage)
    asked = Asked(input_tokens=120_000, output_tokens=4_000, cache_read_tokens=20_000)
    theirs = calc_price(asked, model, provider_id=provider).total_price
    assert priced.unpriced_tokens == 0, priced
    assert Decimal(priced.cost_nanousd) / 10**9 == theirs, (priced.cost_nanousd, theirs)
    did(f"{model}: ${theirs.normalize()}, offline")
