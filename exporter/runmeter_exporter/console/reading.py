"""The commands that read a store: runs, run, threads, thread, usage, verify. They make none, and change nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from runmeter_exporter.console.answering import echo_json, opened, show
from runmeter_exporter.console.options import TAG, as_json, database_url, include_active

ORDERS = ("newest", "oldest", "tokens", "cost")
STATUSES = ("pending", "running", "success", "error", "timeout", "interrupted")

limit = click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Lines to show.")
cursor = click.option("--cursor", help="Where the page before this one ended.")


@click.command("runs")
@database_url
@click.option("--status", type=click.Choice(STATUSES), multiple=True, help="Only runs in this state; repeat for more.")
@click.option("--thread", "thread_id", help="Only runs of this thread.")
@click.option("--service", help="Only runs of this service.")
@click.option("--user", "user_id", help="Only runs of this user.")
@click.option("--agent", help="Only runs of this agent.")
@click.option("--model", help="Only runs that used this model.")
@click.option("--tag", "tags", type=TAG, multiple=True, help="Only runs with this tag; repeat for more, all must be.")
@click.option("--from", "start", metavar="WHEN", help="Begun then or later: YYYY-MM-DD (UTC), or an RFC 3339 time.")
@click.option("--to", "end", metavar="WHEN", help="Begun before that time, or on that day or before.")
@click.option("--order", type=click.Choice(ORDERS), default="newest", show_default=True,
              help="What comes first; tokens and cost: the most.")  # fmt: skip
@limit
@cursor
@as_json
def runs(
    database_url: str | None, as_json: bool, status: Sequence[str], tags: Sequence[tuple[str, str]], **wanted: Any
) -> None:
    """Runs, newest first unless told otherwise."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.runs(status=status or None, tags=dict(tags) or None, **wanted)
    show(answer, None if as_json else [tables.runs(answer)])


@click.command("run")
@click.argument("run_id")
@database_url
@as_json
def run(run_id: str, database_url: str | None, as_json: bool) -> None:
    """One run and where its usage went. RUN_ID may be its beginning, as `runmeter top` shows it."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.run(run_id)
        if answer is None:
            found = store.runs_beginning(run_id.rstrip("…"), MOST_NAMED + 1)
            if len(found) > 1:
                raise click.ClickException(ambiguous(run_id, found))
            answer = store.run(found[0]) if found else None
    if answer is None:
        raise click.ClickException(f"no run {run_id!r} is stored, nor one that begins so")
    show(answer, None if as_json else tables.totals(f"run {answer['run_id']}", answer))


MOST_NAMED = 8
"""Runs that an ambiguous beginning names."""


def ambiguous(beginning: str, found: list[str]) -> str:
    """Which runs begin so, a few of them by name."""
    named = ", ".join(map(repr, found[:MOST_NAMED]))
    return f"several runs begin with {beginning!r}: {named}{' and more' if len(found) > MOST_NAMED else ''}"


@click.command("threads")
@database_url
@include_active
@limit
@cursor
@as_json
def threads(database_url: str | None, as_json: bool, **wanted: Any) -> None:
    """Threads by latest activity, with their settled totals, or active usage too."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.threads(**wanted)
    show(answer, None if as_json else [tables.threads(answer)])


@click.command("thread")
@click.argument("thread_id")
@database_url
@include_active
@as_json
def thread(thread_id: str, database_url: str | None, include_active: bool, as_json: bool) -> None:
    """The totals of one thread; a thread never seen has zeros."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.thread_usage(thread_id, include_active=include_active)
    kind = "settled and active" if include_active else "settled"
    show(answer, None if as_json else tables.totals(f"thread {thread_id}, {kind}", answer))


@click.command("usage")
@database_url
@click.option("--by", help="Break settled usage down, comma separated: day, month, service, user_id, agent, "
              "provider, model, caller, tag.<key>.")  # fmt: skip
@click.option("--from", "start", metavar="DAY", help="First day, YYYY-MM-DD (UTC).")
@click.option("--to", "end", metavar="DAY", help="Last day, YYYY-MM-DD (UTC).")
@include_active
@click.option("--csv", "as_csv", is_flag=True, help="CSV for spreadsheets.")
@as_json
def usage(
    database_url: str | None, by: str | None, start: str | None, end: str | None,
    include_active: bool, as_csv: bool, as_json: bool,
) -> None:  # fmt: skip
    """Everything ever counted, or who spent what by day."""
    from runmeter_exporter.console import spreadsheet, tables

    if as_csv and as_json:
        raise click.UsageError("--csv and --json are two answers; keep one")
    if by is None and not (start or end or as_csv):
        with opened(database_url) as store:
            answer = store.usage(include_active=include_active)
        kind = "settled and active" if include_active else "settled"
        return show(answer, None if as_json else tables.totals(f"everything, {kind}", answer))
    if include_active:
        raise click.UsageError("--by, --from, --to and --csv show settled usage; leave --include-active out")
    group_by = tuple(dict.fromkeys(name.strip() for name in (by or "day").split(",") if name.strip()))
    if not group_by:
        raise click.UsageError(f"--by {by!r} names nothing to group by; say --by day, for example")
    with opened(database_url) as store:
        rows = store.usage_daily(start=start, end=end, group_by=group_by)
    if as_csv:
        return spreadsheet.write(sys.stdout, rows, group_by)
    return show(rows, None if as_json else [tables.daily(rows, group_by)])


@click.command("verify")
@database_url
@as_json
def verify(database_url: str | None, as_json: bool) -> int:
    """Check that the totals equal the sum over the runs; exit 1 and each difference by name where they do not."""
    with opened(database_url) as store:
        differences = store.verify()
    if as_json:
        echo_json({"balanced": not differences, "differences": differences})
    else:
        click.echo("\n".join(differences) if differences else "balanced: every total equals the sum of its runs")
    return 1 if differences else 0


COMMANDS = (runs, run, threads, thread, usage, verify)
