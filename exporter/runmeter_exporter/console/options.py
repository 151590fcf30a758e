"""Options of the command line. Configuration has an environment variable each, secrets also a file; what is asked of
an answer (a thread, a status, a limit) has none: `runmeter exec` and shells set variables that nobody thinks of while
reading a table. Errors are one line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import click

from runmeter import durations

F = TypeVar("F", bound=Callable[..., Any])


class Address(NamedTuple):
    """Where to listen; port 0 takes any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class AddressType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """HOST:PORT, `[::1]:PORT`, or PORT alone for loopback; an empty string turns the listener off."""

    name = "HOST:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Address | None:
        if value is None or isinstance(value, Address):
            return value
        if not value.strip():
            return None
        host, _, port = value.strip().rpartition(":")
        if not port.isdecimal() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT with a port from 0 to 65535 (0 takes any free one)", param, ctx)
        return Address(host.strip("[]") or "127.0.0.1", int(port))


class DurationType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """`500ms`, `90s`, `15m`, `12h`, `30d`, `2w` in seconds, and not less than `floor`; `why` ends that sentence."""

    name = "DURATION"

    def __init__(self, floor: str = "0", why: str = "") -> None:
        self._floor, self._why = floor, why

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            given = durations.seconds(value)
        except ValueError as problem:
            self.fail(str(problem), param, ctx)
        if given < durations.seconds(self._floor):
            self.fail(f"{value!r} is less than {self._floor}, the least{self._why}", param, ctx)
        return given


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """`500MB`, `2GB`, `512MiB` in bytes, and not less than `floor`; `why` ends that sentence."""

    name = "SIZE"
    _UNITS: ClassVar = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

    def __init__(self, floor: int, why: str = "") -> None:
        self._floor, self._why = floor, why

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        said = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMG]I?B)", value.strip().upper())
        if said is None:
            self.fail(f"{value!r} is no size; give a number and KB, MB, GB, KiB, MiB or GiB, as in 512MB", param, ctx)
        given = int(float(said[1]) * self._UNITS[said[2]])
        if given < self._floor:
            self.fail(f"{value!r} is less than {self._floor // 10**6}MB, the least{self._why}", param, ctx)
        return given


class TagType(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """KEY=VALUE."""

    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, equals, text = value.partition("=")
        if not equals or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, text


ADDRESS = AddressType()
DURATION = DurationType()
TAG = TagType()


def setting(*names: str, **settings: Any) -> Callable[[F], F]:
    """An option that configures, with its `RUNMETER_…` variable, shown in the help."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "RUNMETER_" + long.removeprefix("--").replace("-", "_").upper()
    return click.option(*names, **{"envvar": variable, "show_envvar": True, **settings})


def secret(name: str, help: str) -> Callable[[F], F]:
    """An option whose value may also be read from a file named by `RUNMETER_…_FILE`, as containers mount secrets."""
    variable = "RUNMETER_" + name.removeprefix("--").replace("-", "_").upper()

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        path = os.environ.get(f"{variable}_FILE")
        if not path or ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.COMMANDLINE:
            return value or None
        if value:
            raise click.UsageError(f"{variable} and {variable}_FILE are both set; keep one")
        try:
            text = Path(path).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as problem:
            raise click.UsageError(f"{variable}_FILE names {path}, which cannot be read: {problem}") from None
        if not text:
            raise click.UsageError(f"{variable}_FILE names {path}, which is empty")
        return text.splitlines()[0].strip()

    return setting(name, callback=read, help=f"{help} [also {variable}_FILE]")


def token(name: str, help: str) -> Callable[[F], F]:
    """A token that a server asks for: a value, or a file that it reads anew when it changes (`access.Token`)."""

    def both(command: F) -> F:
        from_file = setting(f"{name}-file", type=click.Path(dir_okay=False), help="The same from a file; rotates.")
        return setting(name, help=help)(from_file(command))

    return both


def listener(name: str, help: str, default: str | None = None) -> Callable[[F], F]:
    """An address to listen on; an empty string, also in the environment, turns the listener off."""
    variable = "RUNMETER_" + name.removeprefix("--").replace("-", "_").upper()

    def read(ctx: click.Context, param: click.Parameter, value: Address | None) -> Address | None:
        # click takes an empty variable for an unset one.
        by_default = ctx.get_parameter_source(param.name or "") is click.core.ParameterSource.DEFAULT
        return None if by_default and os.environ.get(variable) == "" else value

    return setting(name, type=ADDRESS, default=default, show_default=default is not None, callback=read, help=help)


database_url = secret("--database-url", "The store, as a SQLAlchemy URL; without one, a SQLite file of yours.")
as_json = click.option("--json", "as_json", is_flag=True, help="JSON for programs.")
include_active = click.option("--include-active", is_flag=True, help="Add the usage of runs that still work.")
