"""Durations have a unit, wherever somebody writes one: options, their variables, RUNMETER_THROTTLE."""

from __future__ import annotations

import logging
import re

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from runmeter import durations, guard
from runmeter.launch import auto as _auto
from runmeter_exporter import cli
from runmeter_exporter.console.options import DURATION, DurationType

DURATIONS = [
    (name, param)
    for name, command in cli.cli.commands.items()
    for param in command.params
    if isinstance(param.type, DurationType)
]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1.5m", 90), ("500ms", 0.5), ("12h", 43200), (" 30d ", 2592000), ("2 w", 1209600), ("0", 0)],
)
def test_a_duration_is_a_number_with_its_unit(text: str, seconds: float) -> None:
    """`0` needs none: it is nothing in each."""
    assert durations.seconds(text) == seconds
    assert DURATION.convert(text, None, None) == seconds


@given(st.integers(1, 10**9))
def test_a_number_alone_is_refused_and_told_what_it_may_mean(number: int) -> None:
    """30 are seconds to one and days to another."""
    with pytest.raises(ValueError, match=f"'{number}' has no unit: write {number}s for seconds, {number}d for days"):
        durations.seconds(str(number))


ODD = ("nan", "inf", "-1s", "1e9s", "9" * 400 + "s", "9" * 18 + "w", "\u0663\u0660s", "1,5h", "30M")


@given(st.text() | st.sampled_from(ODD))
def test_any_text_is_a_sane_duration_or_refused_in_a_short_line(text: str) -> None:
    """Never nan, never negative, never beyond a century, and a long text is not repeated in full."""
    refused = ""
    try:
        found = durations.seconds(text)
    except ValueError as problem:
        refused, found = str(problem), 0
    assert len(refused) < 400
    assert 0 <= found <= durations.LONGEST


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (0.5, "500ms"), (1.5, "1.5s"), (90, "90s"), (3600, "1h")])
def test_durations_are_written_as_they_are_read(seconds: float, text: str) -> None:
    """In the largest unit that divides them."""
    assert durations.written(seconds) == text
    assert durations.seconds(text) == seconds


def test_the_commands_take_durations_where_one_expects_them() -> None:
    """So that the next tests look at all of them."""
    found = {f"{name} {param.opts[0]}" for name, param in DURATIONS}
    assert found == {
        "prune --older-than", "serve --lease", "serve --grace", "serve --otlp-idle", "serve --retain",
        "top --interval", "demo --answer-time",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "param"), DURATIONS, ids=[f"{n}-{p.opts[0]}" for n, p in DURATIONS])
def test_every_option_that_takes_one_refuses_a_bare_number(name: str, param: click.Option) -> None:
    """On the command line and in its variable alike, and the default is written with its unit."""
    given = CliRunner().invoke(cli.cli, [name, param.opts[0], "30"])
    assert (given.exit_code, "30s for seconds, 30d for days" in given.output) == (2, True)
    assert param.opts[0] in given.output
    if param.envvar:
        given = CliRunner(env={str(param.envvar): "30"}).invoke(cli.cli, [name])
        assert (given.exit_code, "30s for seconds, 30d for days" in given.output) == (2, True)
    assert not isinstance(param.default, str) or re.search(r"[0-9][a-z]+$", param.default)


@pytest.mark.parametrize(
    ("arguments", "both"),
    [
        (("prune", "--older-than", "30m"), ("30m", "1h")),
        (("prune", "--older-than", "0"), ("'0'", "1h")),
        (("serve", "--retain", "10s"), ("10s", "1h")),
        (("serve", "--lease", "0s"), ("0s", "1s")),
        (("serve", "--otlp-idle", "100ms"), ("100ms", "1s")),
        (("top", "--interval", "0"), ("'0'", "500ms")),
    ],
)
def test_what_would_do_harm_is_refused_with_both_numbers(arguments: tuple[str, ...], both: tuple[str, str]) -> None:
    """Runs pruned while their writers still write, runs orphaned at once, a display that spins."""
    done = CliRunner().invoke(cli.cli, list(arguments))
    assert done.exit_code == 2
    assert all(number in done.output for number in both), done.output


@pytest.mark.parametrize(
    ("text", "seconds", "warned"),
    [(None, 1, ""), ("", 1, ""), ("0", 0, ""), ("250ms", 0.25, ""), ("5", 1, "'5' has no unit"), ("nan", 1, "'nan'")],
)
def test_the_throttle_variable_has_a_unit_and_never_ends_the_program(
    text: str | None, seconds: float, warned: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning with both numbers, and the default instead."""
    monkeypatch.setattr(guard, "_said", set(), raising=False)
    monkeypatch.delenv("RUNMETER_THROTTLE", raising=False)
    if text is not None:
        monkeypatch.setenv("RUNMETER_THROTTLE", text)
    with caplog.at_level(logging.WARNING):
        assert _auto._throttle() == seconds
    assert (warned in caplog.text) if warned else not caplog.text
