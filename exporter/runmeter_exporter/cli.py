"""The `runmeter` command: reads options, wires the parts, prints tables or JSON. Heavy imports stay in the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from runmeter.launch import commands
from runmeter_exporter.console import reading
from runmeter_exporter.console.answering import say
from runmeter_exporter.console.grafana import grafana
from runmeter_exporter.console.migrating import migrate
from runmeter_exporter.console.options import (
    DURATION,
    Address,
    DurationType,
    SizeType,
    as_json,
    database_url,
    listener,
    secret,
    setting,
    token,
)
from runmeter_exporter.console.pruning import OLD, prune
from runmeter_exporter.memory import LEAST

_COMMANDLINE = click.core.ParameterSource.COMMANDLINE


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


for _command in (*reading.COMMANDS, prune, migrate):
    cli.add_command(_command)


@cli.command("serve")
@database_url
@listener("--listen", "REST, page and scrape; port 0 takes any free one.", "127.0.0.1:9465")
@listener("--otlp-listen", 'OTLP/HTTP; "" for none.', "127.0.0.1:4318")
@listener("--metrics-listen", "The scrape alone, on an address of its own.")
@setting("--lease", type=DurationType("1s", why=" lease"), default="30s", show_default=True,
         help="Silence after which a writer is gone.")  # fmt: skip
@setting("--grace", type=DURATION, default="15s", show_default=True, help="Wait for late spans before closing a run.")
@setting("--otlp-idle", type=DurationType("1s", why=" silence that ends a run"), default="30m", show_default=True,
         help="End a run without a span for so long.")  # fmt: skip
@setting("--retain", type=OLD, help="Prune runs older than this, hourly; the totals stay. Default: keep all.")
@setting("--memory", type=SizeType(LEAST, " in which a large run has room"), default="512MB", show_default=True,
         help="For what is remembered of traces and runs, and what waits.")  # fmt: skip
@setting("--durable", is_flag=True, help="SQLite: what this sidecar writes survives a power loss. Slower.")
@token("--read-token", "Bearer token for everything but POST /v1/* and /-/*.")
@token("--ingest-token", "Bearer token for POST /v1/*.")
@setting("--allow-unauthenticated", is_flag=True, help="Listen beyond loopback without tokens.")
@setting("--allowed-host", "allowed_hosts", multiple=True, help="A Host that requests may name; repeat for more.")
@setting("--allow-origin", "allowed_origins", multiple=True, metavar="ORIGIN",
         help="A web page's origin that may read REST (GET only); repeat for more.")  # fmt: skip
@setting("--access-log", is_flag=True, help="Log requests.")
def serve(**options: Any) -> int:
    """Run the sidecar: takes OTLP in, answers REST, is scraped by Prometheus."""
    from runmeter_exporter import serve as sidecar

    return sidecar.run(sidecar.Config(**options))


@cli.command("top")
@setting("--url", help="The sidecar's address. Without one: the store that is named, else http://127.0.0.1:9465, else "
         "the store of this host.")  # fmt: skip
@database_url
@secret("--read-token", "Bearer token of the sidecar.")
@setting("--interval", type=DurationType("500ms", why=": a look costs the sidecar work"), default="2s",
         show_default=True, help="Time between looks.")  # fmt: skip
@click.option("--once", is_flag=True, help="Two looks, then the table once.")
@as_json
@click.pass_context
def top(
    context: click.Context, url: str | None, database_url: str | None, read_token: str | None, interval: float,
    once: bool, as_json: bool,
) -> int:  # fmt: skip
    """Runs that work right now, what burns most first."""
    from runmeter_exporter.console.top import choose, top

    given = [context.get_parameter_source(name) is _COMMANDLINE for name in ("url", "database_url")]
    if all(given):
        raise click.UsageError("--url is a sidecar and --database-url a store; keep one")
    # What is said on the command line is meant, whatever the environment says.
    place = choose(url if given[0] or not given[1] else None, read_token, database_url)
    return top(place, interval=interval, once=once or as_json, as_json=as_json)


@cli.command("demo")
@listener("--listen", "REST, page and scrape; any free port if it is taken.", "127.0.0.1:9465")
@listener("--otlp-listen", "OTLP/HTTP; likewise.", "127.0.0.1:4318")
@click.option("--agents", type=click.IntRange(1, 32), default=4, show_default=True, help="Agent processes.")
@click.option("--runs", type=click.IntRange(min=1), help="Runs an agent does before it leaves; without end by default.")
@click.option("--answer-time", "seconds", type=DURATION, default="1.5s", show_default=True,
              help="How long a model takes to answer.")  # fmt: skip
@click.option("--directory", type=click.Path(file_okay=False),
              help="Keep the store here instead of a temporary folder.")  # fmt: skip
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
