"""`runmeter migrate`: a store that an older release made gets what this one adds, while agents go on writing to it."""

from __future__ import annotations

import click

from runmeter_exporter.console.answering import echo_json, opened
from runmeter_exporter.console.options import as_json, database_url


@click.command("migrate")
@click.argument("store", required=False)
@database_url
@click.option("--check", is_flag=True, help="Say what would be added, and add nothing; exit 1 if anything.")
@as_json
@click.pass_context
def migrate(context: click.Context, store: str | None, database_url: str | None, check: bool, as_json: bool) -> int:
    """Bring a store of an older release up to this one, in place. `runmeter serve` does it when it starts.

    STORE is its URL, as of --database-url. Agents of either release may go on meanwhile. Killed, it is finished by the
    next one.
    """
    if store and context.get_parameter_source("database_url") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError(f"{store} and --database-url are two stores; keep one")
    with opened(store or database_url) as found:
        steps = found.pending() if check else found.migrate()
    if as_json:
        echo_json({"to_add" if check else "added": steps})
    elif steps:
        click.echo("\n".join(f"{'to be added' if check else 'added'}: {step}" for step in steps))
    else:
        click.echo("nothing to do: the store has all that this release adds")
    return 1 if check and steps else 0
