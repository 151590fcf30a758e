"""`runmeter top`: runs that work right now, what burns most first, from a sidecar or a store."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import urllib.parse
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import click

from runmeter_exporter.console import board, screen, tables
from runmeter_exporter.console.answering import echo_json, say
from runmeter_exporter.console.looks import Lookout, Place, Sidecar, Store

DEFAULT = "http://127.0.0.1:9465"
NEWS = 3
"""Lines of news that stay on the screen."""


def choose(url: str | None, token: str | None, database_url: str | None) -> Place:
    """The sidecar that is named, else the store that is named; where nothing is, the sidecar of this host, or, where
    none answers, the store of this host."""
    if url is not None:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise click.UsageError(f"--url {url!r} is not an http:// or https:// address")
        return Sidecar(url, token)
    if database_url is not None:
        return Store(database_url)
    sidecar = Sidecar(DEFAULT, token)
    try:
        sidecar.page("pending", None)
    except (OSError, ValueError) as error:
        store = Store(None)
        watch = Lookout(store)
        watch.look()
        if not watch.answered:
            store.close()
            raise click.ClickException(f"{sidecar.sentence(error)} And {watch.problem}") from None
        say(f"no sidecar answers at {DEFAULT}; reading {store.name} instead")
        return store
    return sidecar


def top(
    place: Place | str, *, interval: float = 2.0, once: bool = False, as_json: bool = False,
    stop: threading.Event | None = None, news: Callable[[], Sequence[str]] = tuple, header: Sequence[str] = (),
) -> int:  # fmt: skip
    """Show active runs until `stop` is set, Ctrl-C or `q`; with `once`, after two looks `interval` seconds apart.

    `place` may be a sidecar's URL. `news` gives lines to be said since it was asked last; `header` stays above.
    """
    if isinstance(place, str):
        place = choose(place, None, None)
    stop, watch = stop or threading.Event(), Lookout(place)
    try:
        if once:
            return _once(watch, interval, as_json, stop)
        if sys.stdout.isatty() and os.environ.get("TERM") not in (None, "", "dumb", "unknown"):
            _live(watch, interval, stop, news, header)
        else:
            _plain(watch, interval, stop, news)
    except KeyboardInterrupt:
        pass
    finally:
        place.close()
    return 0


def _once(watch: Lookout, interval: float, as_json: bool, stop: threading.Event) -> int:
    watch.look()
    if watch.problem is None:
        stop.wait(interval)
    shown = watch.look()
    if not watch.answered:
        raise click.ClickException(watch.problem or "nothing was seen")
    if as_json:
        echo_json([line._asdict() for line in shown])
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 200
        click.echo("\n".join(board.table(shown, width=width, rows=len(shown), note=watch.problem or "")))
    return 0


def _live(
    watch: Lookout, interval: float, stop: threading.Event, news: Callable[[], Sequence[str]], header: Sequence[str]
) -> None:
    told: deque[str] = deque(maxlen=NEWS)
    every: list[str] = []
    try:
        with screen.taken() as terminal:
            terminal.draw(["runmeter top", f"looking at {watch.place.name} …"])
            while not stop.is_set():
                shown = watch.look()
                told.extend(new := list(news()))
                every = (every + new)[-100:]
                while True:
                    width, height = terminal.size
                    above = [board.cut(tables.plain(line), width) for line in (*header, *told)]
                    above = above[: max(0, height - 8)]  # the table comes first
                    note = watch.problem or f"{watch.place.name}  every {interval:g}s  Ctrl-C or q leaves"
                    rows = max(1, height - len(above) - 3)
                    terminal.draw([*above, *board.table(shown, width=width, rows=rows, note=note)])
                    if not terminal.wait(interval, stop):
                        break
    finally:
        # What was told while the other screen was shown is worth keeping.
        for line in every:
            click.echo(tables.plain(line))


def _plain(watch: Lookout, interval: float, stop: threading.Event, news: Callable[[], Sequence[str]]) -> None:
    """Where there is no terminal: a line a look and a line for each of the ten that burn most."""
    while not stop.is_set():
        shown = watch.look()
        for new in news():
            click.echo(new)
        stamp = datetime.now(UTC).strftime("%H:%M:%SZ")
        tokens, rate = sum(x.total_tokens for x in shown), sum(x.tokens_per_second or 0.0 for x in shown)
        text = watch.problem or f"{len(shown)} active, {tokens:,} tokens, {board.per_second(rate)} tokens/s"
        click.echo(f"{stamp} {text}")
        for line in shown[:10]:
            who = tables.plain(f"{line.run_id} {line.thread_id or '-'}")
            click.echo(
                f"{stamp}   {who} {line.total_tokens:,} tokens {board.per_second(line.tokens_per_second)} tokens/s"
                f" {tables.money(line.cost_usd)} {tables.age(line.age_seconds)}"
            )
        sys.stdout.flush()
        stop.wait(interval)
