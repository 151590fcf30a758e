"""`runmeter grafana`: dashboards, rules, scrape job, compose file and manifests, out of the package into a folder.

In a checkout they are in `grafana/`; a wheel has them beside this package, and they are the same files but for two
lines: an image is built from the package index there, not from sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import click

import runmeter_exporter

SHIPPED = (
    "Dockerfile", "compose.yaml", "prometheus.yml", "dashboards", "kubernetes", "provisioning", "rules",
)  # fmt: skip
"""What of `grafana/` is in the wheel, as pyproject.toml has it, too."""


def folder() -> Path:
    """Where the files are: in the installed package, or in the checkout that it is imported from."""
    package = Path(runmeter_exporter.__file__).parent
    for found in (package / "grafana", package.parent.parent / "grafana"):
        if (found / "compose.yaml").is_file():
            return found
    raise click.ClickException(
        f"the dashboards are missing from this installation (neither in {package} nor beside it)"
    )


def files() -> Mapping[str, str]:
    """Path in the folder, and what is in it."""
    source, found = folder(), {}
    for path in sorted(_all(source)):
        found[path.relative_to(source).as_posix()] = path.read_text("utf-8")
    found["Dockerfile"] = from_an_index(found["Dockerfile"])
    found["compose.yaml"] = found["compose.yaml"].replace("grafana/compose.yaml", "compose.yaml").replace(
        "build: {context: .., dockerfile: grafana/Dockerfile}", "build: ."
    )  # fmt: skip
    return found


def _all(source: Path) -> Iterator[Path]:
    for name in SHIPPED:
        path = source / name
        yield from (one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]


def from_an_index(dockerfile: str) -> str:
    """The image of this very version, from the package index that pip is set up for, without a checkout."""
    text = dockerfile.replace("docker build -f grafana/Dockerfile -t runmeter .", "docker build -t runmeter .")
    text = re.sub(r"^(?:WORKDIR /src|COPY (?!--from).*)\n", "", text, flags=re.M)
    return text.replace("'.[all]'", f"'runmeter[all]=={version('runmeter')}'")


@click.command("grafana")
@click.option("--write", "target", type=click.Path(file_okay=False, path_type=Path), help="Write them to this folder.")
@click.option("--overwrite", is_flag=True, help="Also replace files there that differ.")
@click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
def grafana(target: Path | None, overwrite: bool, as_json: bool) -> None:
    """Dashboards, Prometheus rules and scrape job, compose file and Kubernetes manifests, into a folder of yours."""
    shipped = files()
    if target is None:
        click.echo(json.dumps(list(shipped)) if as_json else "\n".join(shipped))
        if not as_json:
            click.echo("runmeter: runmeter grafana --write DIR puts them into a folder", err=True)
        return
    try:
        there = {name: _read(target / name) for name in shipped}
        differ = [name for name, text in there.items() if text is not None and text != shipped[name]]
        if differ and not overwrite:
            raise click.ClickException(
                f"{target} has {', '.join(differ)} with other content than this version's; nothing was written. "
                "--overwrite replaces them, or name another folder"
            )
        written = [name for name in shipped if there[name] != shipped[name]]
        for name in written:
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shipped[name], "utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write to {error.filename or target}: {error.strerror or error}") from None
    if as_json:
        click.echo(json.dumps({"folder": str(target), "written": written, "replaced": differ}))
        return
    click.echo(f"{len(written)} files written to {target}, {len(shipped) - len(written)} were there already")
    for name in differ:
        click.echo(f"replaced {name}")
    click.echo(
        f"all together: docker compose -f {target / 'compose.yaml'} up    then Grafana is at http://127.0.0.1:3000"
    )


def _read(path: Path) -> str | None:
    """What is there; an undecodable file is certainly another one."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
