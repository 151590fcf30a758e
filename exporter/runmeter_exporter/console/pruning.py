"""`runmeter prune`: what would go is said before it goes, and a hand at a terminal is asked."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from runmeter_exporter.console.answering import opened, say
from runmeter_exporter.console.options import DurationType, as_json, database_url

if TYPE_CHECKING:
    from runmeter_exporter.totals.shapes import GrandUsage

LEAST = "1h"
OLD = DurationType(LEAST, why=" age of a run to be pruned (m is minutes)")
"""A writer that was away for a while must still find its run; and `30m` is no month."""


@click.command("prune")
@database_url
@click.option("--older-than", type=OLD, required=True,
              help=f"Closed runs last heard of longer ago than this, such as 30d; at least {LEAST}.")  # fmt: skip
@click.option("--forget-threads", is_flag=True, help="Forget the totals of threads that have no run left, too.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted; delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask. Without a terminal (cron, pipes) nobody is asked.")
@as_json
def prune(
    database_url: str | None, older_than: float, forget_threads: bool, dry_run: bool, yes: bool, as_json: bool
) -> int:
    """Delete old runs. Totals and daily usage stay: the money is spent. Asks on a terminal."""
    before = time.time_ns() - int(older_than * 1e9)
    moment = datetime.fromtimestamp(max(0, before // 10**9), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with opened(database_url) as store:
        old, stored = store.prunable(before)
        if not dry_run and not yes and old and _somebody_is_there():
            threads = " and the totals of threads left without a run" if forget_threads else ""
            question = f"delete {old:,} of {stored:,} runs{threads}, last heard of before {moment}, for good?"
            if not click.confirm(question, err=True):
                say("nothing was deleted")
                return 1
        pruned = old if dry_run else store.prune(before, forget_threads=forget_threads)
        totals = store.usage()
    kept = max(0, stored - pruned)
    if as_json:
        answer: dict[str, Any] = {"pruned_runs": pruned, "kept_runs": kept, "before": moment, "dry_run": dry_run}
        answer["totals"] = {
            "total_runs": totals["total_runs"], "total_tokens": totals["total_tokens"], "cost_usd": totals["cost_usd"],
        }  # fmt: skip
        click.echo(json.dumps(answer))
    else:
        click.echo(sentence(pruned, kept, moment, dry_run, totals))
    return 0


def _somebody_is_there() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def sentence(pruned: int, kept: int, moment: str, dry_run: bool, totals: GrandUsage) -> str:
    """What was done, or would be, and what stays."""
    from runmeter_exporter.console import tables

    done = "would delete" if dry_run else "deleted"
    stay = "would stay" if dry_run else "stay"
    cost = "" if totals["cost_usd"] is None else f", {tables.money(totals['cost_usd'])}"
    return (
        f"{done} {pruned:,} closed runs last heard of before {moment}; {kept:,} runs {stay}, and all totals: "
        f"{totals['total_runs']:,} runs, {totals['total_tokens']:,} tokens{cost}"
    )
