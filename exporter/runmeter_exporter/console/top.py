"""`runmeter top`: runs that work right now, what burns most first. Over REST, so against any host."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import click
from rich.live import Live
from rich.table import Table

from runmeter_exporter.console import tables

WINDOW = 15.0
"""Seconds that a burn rate looks back: long enough to smooth single calls, short enough to be now."""
PAGES = 4
"""Of 500 runs each; beyond, the table says that there are more."""


class Look(NamedTuple):
    """What the sidecar said at one moment."""

    at: float
    """Monotonic seconds."""
    runs: Mapping[str, Mapping[str, Any]]
    more: bool


class Line(NamedTuple):
    """One active run as `top` shows it; also its `--json`."""

    run_id: str
    thread_id: str | None
    agent: str | None
    service: str | None
    model: str | None
    status: str
    age_seconds: float
    llm_call_count: int
    total_tokens: int
    tokens_per_second: float
    cost_usd: float | None
    usd_per_hour: float | None
    lead_agent_tokens: int
    subagent_tokens: int
    middleware_tokens: int


def lines(looks: Sequence[Look], now: datetime) -> list[Line]:
    """The latest look as lines, rates since the first look in the window that knew the run; what burns most first."""
    latest = looks[-1]
    made = []
    for run_id, run in latest.runs.items():
        first = next(look for look in looks if run_id in look.runs)
        seconds, before = latest.at - first.at, first.runs[run_id]
        tokens, cost = run["total_tokens"] - before["total_tokens"], run["cost_usd"]
        # A repeat recognised late may take active usage back; a burn rate below nothing would only confuse.
        rate = max(0.0, tokens / seconds) if seconds > 0 else 0.0
        spent = None if cost is None else max(0.0, cost - (before["cost_usd"] or 0.0))
        hourly = None if spent is None else spent / seconds * 3600 if seconds > 0 else 0.0
        age = (now - datetime.fromisoformat(run["created_at"])).total_seconds()
        made.append(Line(
            run_id, run["thread_id"], run["agent"], run["service"], run["model_name"], run["status"], max(0.0, age),
            run["llm_call_count"], run["total_tokens"], rate, cost, hourly,
            run["lead_agent_tokens"], run["subagent_tokens"], run["middleware_tokens"],
        ))  # fmt: skip
    return sorted(made, key=lambda line: (-line.tokens_per_second, -line.total_tokens, line.run_id))


def fetch(url: str, token: str | None, timeout: float = 10.0) -> tuple[dict[str, Mapping[str, Any]], bool]:
    """Every active run by id, and whether there are more than `top` reads. Raises OSError or ValueError."""
    found: dict[str, Mapping[str, Any]] = {}
    more = False
    for status in ("running", "pending"):
        cursor: str | None = ""
        for _ in range(PAGES):
            query = {"status": status, "limit": "500"} | ({"cursor": cursor} if cursor else {})
            request = urllib.request.Request(f"{url.rstrip('/')}/api/runs?{urllib.parse.urlencode(query)}")
            if token:
                request.add_header("Authorization", f"Bearer {token}")
            with urllib.request.urlopen(request, timeout=timeout) as response:
                page = json.load(response)
            found |= {run["run_id"]: run for run in page["runs"]}
            cursor = page.get("next_cursor")
            if not cursor:
                break
        more = more or bool(cursor)
    return found, more


def table(shown: Sequence[Line], *, rows: int, note: str) -> Table:
    """The first `rows` lines and a sum over all of them."""
    columns = ("run", "thread", "agent", "model", "age", "calls", "tokens", "tokens/s", "cost", "USD/h",
               "lead", "sub", "middle")  # fmt: skip
    hidden = f"{len(shown) - rows} more not shown  " if len(shown) > rows else ""
    made = Table(box=None, pad_edge=False, header_style="bold", caption=hidden + note, caption_justify="left")
    for index, name in enumerate(columns):
        narrow = 13 if name == "run" else None
        made.add_column(name, justify="left" if index < 4 else "right", no_wrap=True, max_width=narrow)
    for line in shown[:rows]:
        made.add_row(
            *map(tables.plain, (line.run_id, line.thread_id or "", line.agent or line.service or "", line.model or "")),
            age(line.age_seconds), tables.count(line.llm_call_count), tables.count(line.total_tokens),
            f"{line.tokens_per_second:,.0f}", tables.money(line.cost_usd), tables.money(line.usd_per_hour),
            *[share(part, line.total_tokens) for part in line[-3:]],
        )  # fmt: skip
    made.add_section()
    made.add_row(
        f"{len(shown)} active", "", "", "", "", tables.count(sum(x.llm_call_count for x in shown)),
        tables.count(sum(x.total_tokens for x in shown)), f"{sum(x.tokens_per_second for x in shown):,.0f}",
        tables.money(_sum(x.cost_usd for x in shown)), tables.money(_sum(x.usd_per_hour for x in shown)),
        style="bold",
    )  # fmt: skip
    return made


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def age(seconds: float) -> str:
    """`42s`, `3m10s`, `2h05m`, `3d04h`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def share(part: int, total: int) -> str:
    """A part as a percentage."""
    return f"{100 * part / total:.0f}%" if total else "-"


class Watch:
    """Looks at a sidecar again and again and remembers what a burn rate needs."""

    def __init__(self, url: str, token: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._url, self._token, self._clock = url, token, clock
        self._looks: deque[Look] = deque()
        self.problem: str | None = None

    def look(self) -> list[Line]:
        """One look; when the sidecar is away, the last lines known and `problem`."""
        try:
            found, more = fetch(self._url, self._token)
        except (OSError, ValueError, KeyError) as error:
            self.problem = _sentence(self._url, error)
        else:
            now = self._clock()
            self._looks.append(Look(now, found, more))
            while self._looks[0].at < now - WINDOW and len(self._looks) > 2:
                self._looks.popleft()
            self.problem = "more runs are active than top reads" if more else None
        return lines(self._looks, datetime.now(UTC)) if self._looks else []


def _sentence(url: str, error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        hint = "; set RUNMETER_READ_TOKEN or --read-token" if error.code in (401, 403) else ""
        return f"{url} answers {error.code} {error.reason}{hint}"
    reason = getattr(error, "reason", None) or error
    return f"{url} does not answer as a sidecar ({reason}); is `runmeter serve` running there?"


def top(
    url: str, *, token: str | None = None, interval: float = 2.0, once: bool = False, as_json: bool = False,
    stop: threading.Event | None = None, news: Callable[[], Sequence[str]] = tuple,
) -> int:  # fmt: skip
    """Show active runs until `stop` is set or Ctrl-C; with `once`, after two looks `interval` seconds apart.

    `news` gives lines to be said above the table since it was asked last.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise click.UsageError(f"--url {url!r} is not an http:// or https:// address")
    stop, watch = stop or threading.Event(), Watch(url, token)
    try:
        if once:
            return _once(watch, interval, as_json, stop)
        if sys.stdout.isatty():
            _live(watch, url, interval, stop, news)
        else:
            _plain(watch, interval, stop, news)
    except KeyboardInterrupt:
        pass
    return 0


def _once(watch: Watch, interval: float, as_json: bool, stop: threading.Event) -> int:
    watch.look()
    if watch.problem is None:
        stop.wait(interval)
    shown = watch.look()
    if watch.problem and not shown:
        raise click.ClickException(watch.problem)
    if as_json:
        click.echo(json.dumps([line._asdict() for line in shown], indent=2, ensure_ascii=False))
    else:
        tables.console().print(table(shown, rows=len(shown), note=watch.problem or ""))
    return 0


def _live(
    watch: Watch, url: str, interval: float, stop: threading.Event, news: Callable[[], Sequence[str]]
) -> None:
    out = tables.console()
    # Refreshed by us, once a look: rich's own refresh thread would cost more than everything else here.
    with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
        while not stop.is_set():
            shown = watch.look()
            for line in news():
                live.console.print(line)
            note = watch.problem or f"{url}  every {interval:g}s  Ctrl-C leaves"
            live.update(table(shown, rows=max(1, out.height - 8), note=note), refresh=True)
            stop.wait(interval)


def _plain(watch: Watch, interval: float, stop: threading.Event, news: Callable[[], Sequence[str]]) -> None:
    """Where there is no terminal: a line a look and a line for each of the ten that burn most."""
    while not stop.is_set():
        shown = watch.look()
        for new in news():
            click.echo(new)
        stamp = datetime.now(UTC).strftime("%H:%M:%SZ")
        tokens, rate = sum(x.total_tokens for x in shown), sum(x.tokens_per_second for x in shown)
        text = watch.problem or f"{len(shown)} active, {tokens:,} tokens, {rate:,.0f} tokens/s"
        click.echo(f"{stamp} {text}")
        for line in shown[:10]:
            who = tables.plain(f"{line.run_id} {line.thread_id or '-'}")
            click.echo(
                f"{stamp}   {who} {line.total_tokens:,} tokens"
                f" {line.tokens_per_second:,.0f} tokens/s {tables.money(line.cost_usd)} {age(line.age_seconds)}"
            )
        sys.stdout.flush()
        stop.wait(interval)
