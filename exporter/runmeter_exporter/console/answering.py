"""What all commands that read a store do alike: open it, say which it is, show what it answers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from runmeter_exporter.store import RunStore


LONGEST_LINE = 700
"""Characters."""


def say(text: str) -> None:
    """One line on stderr, cut where somebody's value is endless; stdout belongs to the answer."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(line) > LONGEST_LINE:
        line = f"{line[: LONGEST_LINE // 2]} … {line[-LONGEST_LINE // 2 :]}"
    click.echo(f"runmeter: {line}", err=True)


@contextmanager
def opened(url: str | None) -> Iterator[RunStore]:
    """The store, said by name, its errors as one line. Where there is none, none is made."""
    try:
        from runmeter_exporter.store import StoreError, open_store
    except ImportError as missing:
        raise click.ClickException(str(missing)) from None
    try:
        if url and url.startswith("memory:"):
            raise StoreError(f"{url} is in the memory of the process that writes it; name a file or a PostgreSQL")
        store = open_store(url, create=False)
    except (StoreError, ImportError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None
    try:
        say(f"store {store.url_for_humans}")
        yield store
    except (StoreError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None
    finally:
        store.dispose()


def show(answer: Any, parts: Sequence[Any] | None) -> None:
    """JSON when `parts` is None, else the tables."""
    if parts is None:
        echo_json(answer)
        return
    from runmeter_exporter.console import tables

    out = tables.console()
    for part in parts:
        out.print(part)
    if isinstance(answer, dict) and answer.get("next_cursor"):
        say(f"more: --cursor {answer['next_cursor']}")


def echo_json(answer: Any) -> None:
    """JSON on stdout, escaped where stdout cannot say it otherwise."""
    text = json.dumps(answer, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(answer, indent=2)
    click.echo(text)
