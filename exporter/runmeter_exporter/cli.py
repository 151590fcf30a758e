"""The `runmeter` command: reads options, wires the parts, prints tables or JSON. Heavy imports stay in the commands."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import click

from runmeter import commands
from runmeter_exporter.console.grafana import grafana
from runmeter_exporter.console.options import (
    DURATION,
    Address,
    as_json,
    database_url,
    include_active,
    listener,
    option,
    secret,
    token,
)

if TYPE_CHECKING:
    from runmeter_exporter.store import RunStore


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="runmeter")
def cli() -> None:
    """The live meter for agent runs: tokens, calls and money, counted once, while the run still works."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command; what goes wrong is one line on stderr and exit code 2."""
    try:
        code = cli.main(arguments and list(arguments), prog_name="runmeter", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as request:
        click.echo(request.format_message(), err=True)
        code = 2
    except click.ClickException as error:
        say(error.format_message())
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # `runmeter runs | head`
        sys.stderr.close()
        code = 1
    raise SystemExit(code if isinstance(code, int) else 0)


def say(text: str) -> None:
    """One line on stderr; stdout belongs to the answer."""
    click.echo("runmeter: " + " ".join("".join(c if c.isprintable() else " " for c in text).split()), err=True)


@contextmanager
def opened(url: str | None) -> Iterator[RunStore]:
    """The store, said by name, its errors as one line."""
    try:
        from runmeter_exporter.store import StoreError, open_store
    except ImportError as missing:
        raise click.ClickException(str(missing)) from None
    try:
        store = open_store(url)
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
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    from runmeter_exporter.console import tables

    out = tables.console()
    for part in parts:
        out.print(part)
    if isinstance(answer, dict) and answer.get("next_cursor"):
        say(f"more: --cursor {answer['next_cursor']}")


limit = option("--limit", type=click.IntRange(1, 500), default=50, show_default=True, help="Lines to show.")
cursor = option("--cursor", help="Where the page before this one ended.")


@cli.command("runs")
@database_url
@option("--status", type=click.Choice(["pending", "running", "success", "error", "timeout", "interrupted"]))
@option("--thread", "thread_id", help="Only runs of this thread.")
@option("--service", help="Only runs of this service.")
@option("--user", "user_id", help="Only runs of this user.")
@limit
@cursor
@as_json
def runs(database_url: str | None, as_json: bool, **wanted: Any) -> None:
    """Runs, newest first."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.runs(**wanted)
    show(answer, None if as_json else [tables.runs(answer)])


@cli.command("run")
@click.argument("run_id")
@database_url
@as_json
def run(run_id: str, database_url: str | None, as_json: bool) -> None:
    """One run and where its usage went."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.run(run_id)
    if answer is None:
        raise click.ClickException(f"no run {run_id!r} is stored")
    show(answer, None if as_json else tables.totals(f"run {run_id}", answer))


@cli.command("threads")
@database_url
@limit
@cursor
@as_json
def threads(database_url: str | None, as_json: bool, **wanted: Any) -> None:
    """Threads by latest activity, with their settled totals."""
    from runmeter_exporter.console import tables

    with opened(database_url) as store:
        answer = store.threads(**wanted)
    show(answer, None if as_json else [tables.threads(answer)])


@cli.command("thread")
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


@cli.command("usage")
@database_url
@option("--by", help="Break settled usage down, comma separated: day, service, user_id, agent, provider, model, "
        "caller, tag.<key>.")  # fmt: skip
@option("--from", "start", metavar="DAY", help="First day, YYYY-MM-DD (UTC).")
@option("--to", "end", metavar="DAY", help="Last day, YYYY-MM-DD (UTC).")
@include_active
@click.option("--csv", "as_csv", is_flag=True, help="CSV for spreadsheets.")
@as_json
def usage(
    database_url: str | None, by: str | None, start: str | None, end: str | None,
    include_active: bool, as_csv: bool, as_json: bool,
) -> None:  # fmt: skip
    """Everything ever counted, or who spent what by day."""
    from runmeter_exporter.console import tables

    if by is None and not (start or end or as_csv):
        with opened(database_url) as store:
            answer = store.usage(include_active=include_active)
        kind = "settled and active" if include_active else "settled"
        return show(answer, None if as_json else tables.totals(f"everything, {kind}", answer))
    if include_active:
        raise click.UsageError("--by, --from, --to and --csv show settled usage; leave --include-active out")
    group_by = tuple(name.strip() for name in (by or "day").split(",") if name.strip())
    with opened(database_url) as store:
        rows = store.usage_daily(start=start, end=end, group_by=group_by)
    if as_csv:
        writer = csv.DictWriter(sys.stdout, fieldnames=list(rows[0]) if rows else list(group_by), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _spreadsheet_safe(value) for key, value in row.items()} for row in rows)
        return None
    return show(rows, None if as_json else [tables.daily(rows, group_by)])


def _spreadsheet_safe(value: Any) -> Any:
    """Names come from outside, and a spreadsheet runs what begins like a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


@cli.command("verify")
@database_url
@as_json
def verify(database_url: str | None, as_json: bool) -> int:
    """Check that the totals equal the sum over the runs; exit 1 and each difference by name where they do not."""
    with opened(database_url) as store:
        differences = store.verify()
    if as_json:
        click.echo(json.dumps({"balanced": not differences, "differences": differences}))
    else:
        click.echo("\n".join(differences) if differences else "balanced: every total equals the sum of its runs")
    return 1 if differences else 0


@cli.command("prune")
@database_url
@option("--older-than", type=DURATION, required=True, help="Runs that ended longer ago than this, such as 30d.")
@option("--forget-threads", is_flag=True, help="Forget the totals of threads that have no run left, too.")
@as_json
def prune(database_url: str | None, older_than: float, forget_threads: bool, as_json: bool) -> None:
    """Delete old runs. Totals and daily usage stay: the money is spent."""
    before = time.time_ns() - int(older_than * 1e9)
    with opened(database_url) as store:
        deleted = store.prune(before, forget_threads=forget_threads)
    click.echo(json.dumps({"pruned_runs": deleted}) if as_json else f"pruned {deleted} runs; the totals keep them")


@cli.command("serve")
@database_url
@listener("--listen", "REST, page and scrape; port 0 takes any free one.", "127.0.0.1:9465")
@listener("--otlp-listen", 'OTLP/HTTP; "" for none.', "127.0.0.1:4318")
@listener("--metrics-listen", "The scrape alone, on an address of its own.")
@option("--lease", type=DURATION, default="30s", show_default=True, help="Silence after which a writer is gone.")
@option("--grace", type=DURATION, default="15s", show_default=True, help="Wait for late spans before closing a run.")
@option("--otlp-idle", type=DURATION, default="30m", show_default=True, help="End a run without a span for so long.")
@option("--retain", type=DURATION, help="Prune runs older than this, hourly; the totals stay. Default: keep all.")
@option("--durable", is_flag=True, help="SQLite: what this sidecar writes survives a power loss. Slower.")
@token("--read-token", "Bearer token for everything but POST /v1/* and /-/*.")
@token("--ingest-token", "Bearer token for POST /v1/*.")
@option("--allow-unauthenticated", is_flag=True, help="Listen beyond loopback without tokens.")
@option("--allowed-host", "allowed_hosts", multiple=True, help="A Host that requests may name; repeat for more.")
@option("--allow-origin", "allowed_origins", multiple=True, metavar="ORIGIN",
        help="A web page's origin that may read REST (GET only); repeat for more.")  # fmt: skip
@option("--access-log", is_flag=True, help="Log requests.")
def serve(**options: Any) -> int:
    """Run the sidecar: takes OTLP in, answers REST, is scraped by Prometheus."""
    from runmeter_exporter import serve as sidecar

    return sidecar.run(sidecar.Config(**options))


@cli.command("top")
@option("--url", default="http://127.0.0.1:9465", show_default=True, help="The sidecar's address.")
@secret("--read-token", "Bearer token of the sidecar.")
@option("--interval", type=DURATION, default="2s", show_default=True, help="Time between looks.")
@option("--once", is_flag=True, help="Two looks, then the table once.")
@as_json
def top(url: str, read_token: str | None, interval: float, once: bool, as_json: bool) -> int:
    """Runs that work right now, what burns most first."""
    from runmeter_exporter.console.top import top

    return top(url, token=read_token, interval=interval, once=once or as_json, as_json=as_json)


@cli.command("demo")
@listener("--listen", "REST, page and scrape; any free port if it is taken.", "127.0.0.1:9465")
@listener("--otlp-listen", "OTLP/HTTP; likewise.", "127.0.0.1:4318")
@option("--agents", type=click.IntRange(1, 32), default=4, show_default=True, help="Agent processes.")
@option("--runs", type=click.IntRange(min=1), help="Runs an agent does before it leaves; without end by default.")
@option("--seconds", type=DURATION, default="1.5s", show_default=True, help="How long a model takes to answer.")
@option("--directory", type=click.Path(file_okay=False), help="Keep the store here instead of a temporary folder.")
def demo(listen: Address | None, otlp_listen: Address | None, **options: Any) -> int:
    """A sidecar and a small fleet of agents that spend imaginary money, until Ctrl-C."""
    from runmeter_exporter.demo.fleet import demo

    return demo(listen or Address("127.0.0.1", 0), otlp_listen, **options)


cli.add_command(grafana)


def _agents(name: str) -> None:
    """A command of the agent's environment, which works without the sidecar's packages: listed here, run there."""
    settings = {"allow_interspersed_args": False, "ignore_unknown_options": True, "help_option_names": []}

    @cli.command(name, help=commands.NAMES[name], context_settings=settings)
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def command(arguments: tuple[str, ...]) -> int:
        return commands.run([name, *arguments])


for name in commands.NAMES:
    _agents(name)
