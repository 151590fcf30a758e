"""Rule 13: a call is priced once, exactly, by the first of those who know a price."""

from __future__ import annotations

import functools
import logging
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter.prices import PriceBook, PriceFileError
from runmeter_exporter.prices.price_file import PriceFile
from runmeter_exporter.prices.rates import Rates, Tier

OWN = """
[openai."gpt-5-mini"]
input = 0.25
output = 2.00
cache_read = 0.025
tiers = [{ above = 1000, input = 0.5 }]

["openai"."gpt-*"]
input = 7
output = 7

[ollama."*"]
input = 0
output = 0

["*"."in-house-7b"]
input = 0.1
output = 0.1
request = 0.01
reasoning = 0.4
"""


@pytest.fixture
def own(tmp_path):
    """A book with the operator's prices only."""
    path = tmp_path / "prices.toml"
    path.write_text(OWN)
    return PriceBook(PriceFile.load(path), known=False)


def cost(book: PriceBook, provider: str, model: str, usage: Usage, reported: int | None = None) -> tuple[int, int]:
    priced = book.price(provider, model, usage, reported)
    assert priced._replace(cost_nanousd=0, unpriced_tokens=0) == usage
    return priced.cost_nanousd, priced.unpriced_tokens


def test_a_price_of_the_operators_own_is_exact(own):
    """Parts cost what their line says, in whole nano-dollars."""
    usage = Usage(input_tokens=1000, cache_read_tokens=400, output_tokens=10, calls=1)
    assert cost(own, "openai", "gpt-5-mini", usage) == (600 * 250 + 400 * 25 + 10 * 2000, 0)


def test_a_tier_prices_the_whole_call_and_keeps_what_it_does_not_state(own):
    """Beyond the threshold all input costs the tier's price; output and cache stay as they were."""
    usage = Usage(input_tokens=1001, cache_read_tokens=1, output_tokens=10)
    assert cost(own, "openai", "gpt-5-mini", usage) == (1000 * 500 + 25 + 10 * 2000, 0)


@pytest.mark.parametrize(
    ("provider", "model", "nanousd"),
    [
        ("openai", "gpt-5-mini-2025-08-07", 250),
        ("OpenAI", "GPT-5-Mini", 250),
        ("litellm", "openai/gpt-5-mini", 250),
        ("openai", "gpt-9", 7000),
        ("ollama", "llama4:70b", 0),
        ("vllm", "in-house-7b", 10_000_100),
        ("openai", "in-house-7b", 10_000_100),
    ],
)
def test_the_most_specific_line_wins(own, provider, model, nanousd):
    """Whole names before patterns, named providers before anyone, dated and prefixed names find their model."""
    assert cost(own, provider, model, Usage(input_tokens=1, calls=1)) == (nanousd, 0)


def test_without_a_price_the_reported_cost_counts(own):
    """What the instrumentation reported is taken where nobody states a price."""
    assert cost(own, "acme", "rocket", Usage(input_tokens=5, output_tokens=6), 1234) == (1234, 0)


def test_a_price_goes_before_the_reported_cost(own):
    """The operator's own price wins over what a library says."""
    assert cost(own, "ollama", "llama4", Usage(input_tokens=5), 999) == (0, 0)


def test_unknown_is_unpriced_and_not_free(own):
    """All tokens of a call without price are unpriced, and its cost is unknown rather than 0."""
    priced = own.price("acme", "rocket", Usage(input_tokens=5, output_tokens=6))
    assert priced.unpriced_tokens == 11
    assert priced.cost_usd is None


def test_a_reported_cost_below_nothing_is_not_believed(own):
    """A negative cost would make totals fall."""
    assert cost(own, "acme", "rocket", Usage(input_tokens=5), -1) == (0, 5)


def test_a_call_without_tokens_costs_what_was_reported(own):
    """Where no usage is known a price per token says nothing."""
    assert cost(own, "openai", "gpt-5-mini", Usage(calls=1, calls_without_usage=1), 77) == (77, 0)


@given(
    st.lists(st.decimals(0, 1000, places=9), min_size=6, max_size=6),
    st.tuples(*[st.integers(0, 10**7)] * 5),
)
def test_whole_numbers_say_what_decimals_say(prices, counts):
    """The integer arithmetic equals decimal arithmetic rounded half to even."""
    fields = ("input", "output", "cache_read", "cache_write", "reasoning", "request")
    usd = dict(zip(fields, prices, strict=True))
    read, write, plain, reasoning, spoken = counts
    usage = Usage(plain + read + write, spoken + reasoning, read, write, reasoning)
    exact = (
        plain * usd["input"]
        + read * usd["cache_read"]
        + write * usd["cache_write"]
        + spoken * usd["output"]
        + reasoning * usd["reasoning"]
    ) * 1000 + usd["request"] * 10**9
    expected = int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))
    assert Rates([Tier.of(-1, usd)]).cost_nanousd(usage) == expected


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_hostile_reporter_never_costs_less_than_nothing(tokens_in, out, read, reasoning):
    """Parts larger than the whole do not make the rest negative."""
    rates = Rates([Tier.of(-1, {"input": Decimal(3), "output": Decimal(4), "cache_read": Decimal(1)})])
    assert rates.cost_nanousd(Usage(tokens_in, out, read, 0, reasoning)) >= 0


@given(st.sampled_from(["openai", "acme", "anthropic"]), st.integers(0, 10**6), st.integers(0, 10**18))
def test_the_price_is_a_function_of_the_call(provider, tokens, ended_at):
    """The same call gets the same price from any book over the same prices, so that it can be taken back."""
    call = Call(provider, "gpt-5-mini", "lead_agent", Usage(tokens, 5, calls=1), None, ended_at)
    assert PriceBook().price_call(call) == PriceBook().price_call(call)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[openai", "not TOML: Expected ']' at the end of a table declaration"),
        ("input = 1", "input is 1, expected a table [provider."),
        ("[openai]\ngpt = 3", "openai.gpt is 3, expected a table"),
        (
            '[a."m 1"]\ninput = -1\noutput = 1',
            '[a."m 1"] input is -1, expected US dollars per million tokens from 0 to',
        ),
        ("[a.b]\ninput = 1", "[a.b] has no output; give it in US dollars per million tokens"),
        ("[a.b]\ninput = true\noutput = 1", "[a.b] input is True, expected US dollars"),
        ('[a.b]\ninput = "3"\noutput = 1', "[a.b] input is '3', expected US dollars"),
        ("[a.b]\ninput = nan\noutput = 1", "[a.b] input is NaN, expected US dollars"),
        ("[a.b]\ninput = 3e9\noutput = 1", "[a.b] input is 3E+9, expected US dollars"),
        ("[a.b]\ninput = 0.0000000001\noutput = 1", "at most 9 decimals"),
        ("[a.b]\ninput = 3\noutputs = 1", "[a.b] has outputs, expected one of cache_read"),
        ("[a.b]\ninput = 3\noutput = 1\n[A.B]\ninput = 4\noutput = 1", "[a.b] and [A.B] name the same model; keep one"),
        ("[a.b]\ninput=3\noutput=1\ntiers=3", "[a.b] tiers is 3, expected a list"),
        ("[a.b]\ninput=3\noutput=1\ntiers=[3]", "[a.b] tiers, entry 1, is 3, expected a table"),
        (
            "[a.b]\ninput=3\noutput=1\ntiers=[{input=4}]",
            "tiers, entry 1, above is None, expected a number of input tokens",
        ),
        ("[a.b]\ninput=3\noutput=1\ntiers=[{above=1},{above=1}]", "has two tiers above = 1; keep one"),
    ],
)
def test_a_broken_price_file_says_where_and_what(tmp_path, text, says):
    """The error names the file, the place, what is there and what was expected."""
    path = tmp_path / "prices.toml"
    path.write_text(text)
    with pytest.raises(PriceFileError) as caught:
        PriceFile.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_or_unreadable_price_file_is_one_clear_error(tmp_path):
    """A path that leads nowhere, and bytes that are no text, are said plainly."""
    with pytest.raises(PriceFileError, match="cannot read the price file"):
        PriceFile.load(tmp_path / "absent.toml")
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9\n")
    with pytest.raises(PriceFileError, match="not UTF-8 at byte 5"):
        PriceFile.load(tmp_path / "latin.toml")


def test_a_server_refuses_a_broken_file_and_an_agent_goes_on(tmp_path, caplog):
    """Strict raises; otherwise it is said once and the book prices without it."""
    path = tmp_path / "prices.toml"
    path.write_text("[a.b]\ninput = 'x'\noutput = 1")
    environ = {"RUNMETER_PRICES": str(path)}
    with pytest.raises(PriceFileError):
        PriceBook.from_environment(environ, strict=True)
    with caplog.at_level(logging.WARNING, logger="runmeter"):
        book = PriceBook.from_environment(environ)
        for _ in range(3):
            book.price("a", "b", Usage(input_tokens=1))
    assert len(caplog.records) == 1
    assert "[a.b] input is 'x'" in caplog.text


def test_the_example_in_the_documentation_is_a_price_file(tmp_path):
    """What the module's text shows can be used as it stands."""
    from runmeter_exporter.prices import price_file

    text = price_file.__doc__ or ""
    example = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    "))
    (tmp_path / "prices.toml").write_text(example)
    assert len(PriceFile.load(tmp_path / "prices.toml")) == 4


def test_a_flood_of_models_does_not_grow_the_book():
    """Names never seen before are forgotten again."""
    book = PriceBook()
    for number in range(3000):
        book.price("openai", f"model-{number}", Usage(input_tokens=1))
    assert len(book._remembered) <= 1024
    assert book._known is None or len(book._known._remembered) <= 1024


genai_prices = pytest.importorskip("genai_prices")
from genai_prices import Usage as TheirUsage  # noqa: E402
from genai_prices.data_snapshot import get_snapshot  # noqa: E402

from runmeter_exporter.prices.known_prices import KnownPrices  # noqa: E402


@functools.cache
def sold_by_tokens():
    """Models with prices that we know, of every provider."""
    return [
        (provider, info)
        for provider in get_snapshot().providers
        for info in provider.models
        if KnownPrices().rates(provider.id, info.id, at=0) is not None
    ]


@given(
    st.deferred(lambda: st.sampled_from(sold_by_tokens())),
    st.tuples(*[st.integers(0, 300_000)] * 5),
    st.sampled_from([1_700_000_000, 1_763_800_000, 1_763_850_000]),
)
def test_known_prices_are_those_of_genai_prices(model, counts, at):
    """Our whole numbers equal genai-prices' own answer, tiers, caches and hours included."""
    provider, info = model
    found = provider.find_model(info.id.lower(), all_providers=get_snapshot().providers)
    if found is not info:  # an id that its own provider reads as another model
        return
    when = datetime.fromtimestamp(at, UTC)
    price = info.get_prices(when)
    read, write, plain, _, spoken = counts
    total = plain + read + write
    # genai-prices counts reasoning apart only where it is priced apart.
    theirs = price.calc_price(
        TheirUsage(input_tokens=total, output_tokens=spoken, cache_read_tokens=read, cache_write_tokens=write)
    )["total_price"]
    rates = KnownPrices().rates(provider.id, info.id, at=at * 10**9)
    ours = rates.cost_nanousd(Usage(total, spoken, read, write)) if rates else None
    assert ours == int((theirs * 10**9).quantize(Decimal(1), ROUND_HALF_EVEN))


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "gpt-5-mini-2025-08-07"),
        ("azure.ai.openai", "gpt-4o"),
        ("gcp.gemini", "gemini-2.5-pro"),
        ("gcp.vertex_ai", "gemini-2.5-pro"),
        ("gcp.gen_ai", "gemini-2.5-pro"),
        ("anthropic", "claude-sonnet-4-5-20250929"),
        ("aws.bedrock", "anthropic.claude-sonnet-4-5-20250929-v1:0"),
        ("litellm", "openai/gpt-5-mini"),
        ("openrouter", "openai/gpt-5-mini"),
        ("openai", "anthropic/claude-sonnet-4-5"),
        ("unknown", "gpt-4o"),
    ],
)
def test_spellings_of_the_conventions_find_their_price(provider, model):
    """Provider names of the GenAI conventions and routers' `provider/model` are understood."""
    assert PriceBook().price(provider, model, Usage(input_tokens=1000)).cost_nanousd > 0


@pytest.mark.parametrize(("provider", "model"), [("ollama", "gpt-4o"), ("openai", "no-such-model"), ("acme", "gpt-4o")])
def test_a_price_is_not_guessed(provider, model):
    """A provider that nobody knows, or a model it does not sell, is unpriced whatever the name resembles."""
    assert PriceBook().price(provider, model, Usage(input_tokens=7)).unpriced_tokens == 7
