"""`runmeter serve`: puts store, ingest, HTTP, scrape and reaper together, and takes them apart again. Wiring only."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import click

from runmeter_exporter.console.options import Address
from runmeter_exporter.http.access import AccessError, Token, require_token
from runmeter_exporter.http.server import ListenError, Server
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.memory import DEFAULT, divided
from runmeter_exporter.reaper import Reaper
from runmeter_exporter.recorder.core import HEARTBEAT
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store import StoreError, StoreUnavailable, default_url, open_store
from runmeter_exporter.upgrading import PATIENCE, Upgrade
from runmeter_exporter.web.app import create_app, create_metrics_app, create_otlp_app

logger = logging.getLogger("runmeter.serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of `serve`; durations in seconds."""

    listen: Address | None
    otlp_listen: Address | None
    database_url: str | None = None
    metrics_listen: Address | None = None
    lease: float = 30.0
    grace: float = 15.0
    otlp_idle: float = 1800.0
    retain: float | None = None
    memory: int = DEFAULT
    """Bytes."""
    durable: bool = False
    read_token: str | None = None
    read_token_file: str | None = None
    ingest_token: str | None = None
    ingest_token_file: str | None = None
    allow_unauthenticated: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    access_log: bool = False


def run(config: Config, stop: threading.Event | None = None, say: Callable[[str], None] = click.echo) -> int:
    """Serve until `stop` is set, or SIGTERM or SIGINT comes; then drain and return 0.

    `say` gets a line for the store, each address and, when everything answers, `ready`. Raises click.ClickException
    for what an operator can put right: a taken port, a missing token, a store of another schema.
    """
    stopping = stop or threading.Event()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        with ExitStack() as leaving:
            if stop is None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    leaving.callback(signal.signal, number, signal.signal(number, lambda *_: stopping.set()))
            _start(config, leaving, say)
            say("runmeter: ready")
            notify("READY=1")
            stopping.wait()
            notify("STOPPING=1")
            say("runmeter: draining")
    except (AccessError, ListenError, StoreError, ImportError, ValueError) as problem:
        raise click.ClickException(str(problem)) from None
    return 0


def _start(config: Config, leaving: ExitStack, say: Callable[[str], None]) -> None:
    """Start every part; `leaving` stops them in the reverse order, so that what is asked last goes last."""
    if config.listen is None:
        raise click.UsageError("--listen is empty; give HOST:PORT (port 0 takes any free one)")
    tokens = _tokens(config)
    for address in filter(None, (config.listen, config.metrics_listen)):
        require_token(address.host, tokens["read"], "RUNMETER_READ_TOKEN", config.allow_unauthenticated)
    if config.otlp_listen is not None:
        require_token(config.otlp_listen.host, tokens["ingest"], "RUNMETER_INGEST_TOKEN", config.allow_unauthenticated)

    store = open_store(config.database_url, durable=config.durable, create=True)
    leaving.callback(store.dispose)
    say(f"runmeter: store {store.url_for_humans}")
    if config.lease <= HEARTBEAT:
        say(
            f"runmeter: the lease of {config.lease:g} s is not longer than the agents' heartbeat of {HEARTBEAT:g} s: "
            "runs in long tool calls will show as orphaned until they write again"
        )
    patience = PATIENCE
    try:
        store.runs(limit=1)
    except StoreUnavailable as problem:
        patience = 0.0
        # It may come up after us. Until then /-/ready says no, agents keep what they have, and spans are refused.
        say(f"runmeter: the store is away, serving without it until it answers ({problem})")
    upgrade = Upgrade(store, lambda added: say(f"runmeter: added to a store of an older release: {', '.join(added)}"))
    leaving.callback(upgrade.stop)
    upgrade.start(patience)
    scraper = Scraper(store)
    ingest = Ingest(store, memory=divided(config.memory))
    leaving.callback(ingest.stop)

    def listen(
        app: object, address: Address, what: str, path: str = "",
        on_refused: Callable[[int], None] = lambda status: None,
    ) -> str:  # fmt: skip
        served: object = app
        if config.access_log:
            served = AccessLog(app)
        server = Server(served, address.host, address.port, on_refused=on_refused)
        leaving.callback(server.stop)
        server.start()
        say(f"runmeter: {what} at {server.url}{path}")
        return server.url

    def hosts(address: Address) -> tuple[str, ...]:
        return (address.host, *config.allowed_hosts)

    about: dict[str, object] = {
        "store": store.url_for_humans,
        "by_default": _is_default(store.url_for_humans),
        "otlp": None,
        "otlp_everywhere": config.otlp_listen is not None and config.otlp_listen.host in ("0.0.0.0", "::"),
        "otlp_token": tokens["ingest"] is not None,
    }
    rest = create_app(
        store, scraper=scraper, read_token=tokens["read"], allowed_hosts=hosts(config.listen),
        allowed_origins=config.allowed_origins, about=about,
    )  # fmt: skip
    listen(rest, config.listen, "REST, page and scrape")
    if config.otlp_listen is not None:
        otlp = create_otlp_app(
            ingest, ingest_token=tokens["ingest"], allowed_hosts=hosts(config.otlp_listen), on_refused=ingest.refused
        )
        about["otlp"] = listen(otlp, config.otlp_listen, "OTLP/HTTP", on_refused=ingest.refused)
    if config.metrics_listen is not None:
        metrics = create_metrics_app(
            store, scraper, read_token=tokens["read"], allowed_hosts=hosts(config.metrics_listen)
        )
        listen(metrics, config.metrics_listen, "scrape alone", "/metrics")

    reaper = Reaper(
        store, lease=config.lease, grace=config.grace, otlp_idle=config.otlp_idle, retain=config.retain,
        close_otlp=ingest.close_runs,
    )  # fmt: skip
    reaper.start()
    leaving.callback(reaper.stop)


def _tokens(config: Config) -> dict[str, Token | None]:
    made: dict[str, Token | None] = {}
    for name, value, file in (
        ("read", config.read_token, config.read_token_file),
        ("ingest", config.ingest_token, config.ingest_token_file),
    ):
        if value and file:
            variable = f"RUNMETER_{name.upper()}_TOKEN"
            raise AccessError(f"{variable} and {variable}_FILE are both set; keep one")
        made[name] = Token(value, file=file) if value or file else None
    return made


class AccessLog:
    """One line a request: method, path without its query, status, milliseconds. No address, no header."""

    def __init__(self, app: object) -> None:
        self._app: Callable[..., object] = app  # type: ignore[assignment]

    def __call__(self, environ: dict[str, object], start_response: Callable[..., object]) -> object:
        started = time.perf_counter()

        def started_response(status: str, *rest: object) -> object:
            path = str(environ.get("REQUEST_URI") or environ.get("PATH_INFO")).partition("?")[0]
            took = (time.perf_counter() - started) * 1000
            logger.info("%s %s %s %.1f ms", environ.get("REQUEST_METHOD"), path, status[:3], took)
            return start_response(status, *rest)

        return self._app(environ, started_response)


def notify(state: str) -> None:
    """Tell systemd (`Type=notify`), where it asked to be told."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)
    except OSError as error:
        logger.warning("cannot notify systemd at %s: %s", path, error)


def _is_default(url: str) -> bool:
    try:
        return url == default_url()
    except StoreError:  # of a user without a home
        return False
