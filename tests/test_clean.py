"""The one cleaner: total, idempotent, and two ids stay two."""

from __future__ import annotations

import enum
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runmeter import clean
from runmeter.usage import COUNT_LIMIT

TEXT = st.text(alphabet=st.characters(exclude_categories=()), max_size=400) | st.text(
    alphabet="a\x00\ud800 \n~", max_size=300
)
ANYTHING: st.SearchStrategy[Any] = (
    TEXT | st.integers() | st.floats() | st.booleans() | st.none() | st.binary() | st.lists(st.integers(), max_size=2)
)


@given(ANYTHING)
def test_what_was_cleaned_once_passes_unchanged(value: Any) -> None:
    """Idempotent: text within its bound, in what any database takes, and the same again when cleaned again."""
    for cleaned, again, limit in (
        (clean.identifier(value), clean.identifier, clean.ID_LIMIT),
        (clean.label(value), clean.label, clean.LABEL_LIMIT),
        (clean.tag(value), clean.tag, clean.TAG_LIMIT),
    ):
        if cleaned is not None:
            assert 0 < len(cleaned) <= limit
            cleaned.encode()
            assert "\0" not in cleaned
            assert again(cleaned) == cleaned


@given(TEXT, TEXT)
def test_two_ids_stay_two(one: str, other: str) -> None:
    """Whatever cannot be kept whole is told apart by a digest of the whole."""
    if one != other and clean.identifier(one) is not None:
        assert clean.identifier(one) != clean.identifier(other)


def test_an_id_keeps_what_it_can() -> None:
    """Short clean ids, spaces and line ends included, are what they were; a long one keeps its head."""
    assert clean.identifier("tail\n") == "tail\n"
    assert clean.identifier("a/b c") == "a/b c"
    assert clean.identifier(7) == "7"
    assert clean.identifier("  ") == "  "
    assert clean.identifier("") is clean.identifier(True) is clean.identifier(b"x") is None
    one, other = clean.identifier("t" * 333 + "1"), clean.identifier("t" * 333 + "2")
    assert one is not None
    assert other is not None
    assert one != other
    assert len(one) == len(other) == clean.ID_LIMIT
    assert one.startswith("t" * (clean.ID_LIMIT - 17) + "~")
    assert str(clean.identifier("a\0b")).startswith("ab~")


def test_a_label_is_for_reading() -> None:
    """Space around it goes, and it is cut; an enumeration's member is what it holds."""
    assert clean.label("tail\n") == "tail"
    assert clean.label(" \x00 gpt\ud800 ") == "gpt"
    assert clean.label("m" * 1000) == "m" * clean.LABEL_LIMIT
    assert clean.label(enum.StrEnum("Model", [("ONE", "one")]).ONE) == "one"
    assert clean.tag("v" * 100) == "v" * clean.TAG_LIMIT


@pytest.mark.parametrize("value", [12, "12", 12.0, "12.0", " 12 ", "1.2e1", "+12"])
def test_a_count_reads_the_same_however_it_is_written(value: Any) -> None:
    """Whole numbers, also as text or as a double."""
    rejected: list[str] = []
    assert clean.count(value, rejected) == 12
    assert rejected == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((value, "malformed") for value in (True, False, 1.7, "1.7", "$2", "1_000", "٣", "0x10", "nan", "many")),
        *((value, "malformed") for value in (math.nan, math.inf, (1,), {}, b"7", object())),
        *((value, "negative") for value in (-1, "-1", -1.0, "-" + "9" * 30)),
        *((value, "too_large") for value in (COUNT_LIMIT + 1, "9" * 5000, 1e300, "1e300", 2**70)),
    ],
)
def test_what_is_no_count_says_why(value: Any, reason: str) -> None:
    """Nothing is rounded, guessed or capped."""
    rejected: list[str] = []
    assert clean.count(value, rejected) is None
    assert rejected == [reason]
    assert clean.count(value) is None


def test_nothing_said_is_no_fault() -> None:
    """An absent value is absent, of every kind."""
    rejected: list[str] = []
    for value in (None, ""):
        assert clean.count(value, rejected) is clean.dollars(value, rejected) is clean.cost(value, rejected) is None
        assert clean.identifier(value) is clean.label(value) is None
    assert rejected == []


def test_money_is_a_finite_amount_of_dollars() -> None:
    """Costs become whole nano-dollars, zero is unknown, and nothing negative or absurd is money."""
    assert clean.dollars("0.0046125") == 0.0046125
    assert clean.dollars(0) == 0.0
    assert clean.cost("0.0046125") == 4_612_500
    assert clean.cost(0) is None
    for value, reason in ((-1, "negative"), (1e7, "too_large"), ("$2", "malformed"), (True, "malformed")):
        rejected: list[str] = []
        assert clean.cost(value, rejected) is None
        assert rejected == [reason]


@given(ANYTHING)
def test_numbers_are_total(value: Any) -> None:
    """Whatever comes, a count is a count or None, and cleaning it again changes nothing."""
    counted = clean.count(value)
    assert counted is None or (type(counted) is int and 0 <= counted <= COUNT_LIMIT)
    assert clean.count(counted) == counted
    spent = clean.dollars(value)
    assert spent is None or 0 <= spent <= clean.COST_LIMIT
    assert clean.dollars(spent) == spent
