"""The agent's own scrape: this process's counters over HTTP, for a Prometheus that asks agents themselves.

A MeterProvider takes its readers when it is made, and a process has one global provider. Ours is therefore a second
one that holds our instruments and nothing else: it works beside a provider that the host has set or sets later, whose
other readers go on showing the same counters. Everything is imported and tried out on the thread that calls `start`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

from opentelemetry.sdk.resources import Resource

from runmeter.guard import logger, once
from runmeter.otel.counters import Counters

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricReader

PIP = "pip install 'runmeter[prometheus]'"
VARIABLE = "RUNMETER_PROMETHEUS_LISTEN"
DEFAULT = ("127.0.0.1", 9464)
"""The port that OpenTelemetry gives to Prometheus exporters."""
_OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Address(NamedTuple):
    """Where to listen; port 0 takes any free one."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """As Prometheus asks for it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


class ScrapePort:
    """A listener that shows a registry until `stop`; a forked child has none, the port stays its parent's."""

    def __init__(self, address: Address, registry: Any, leave: Callable[[], object] = lambda: None) -> None:
        """`leave()` is called at the end. Raises OSError for an address that cannot be had."""
        from prometheus_client import start_http_server
        from prometheus_client.exposition import choose_encoder

        # What a scrape needs is imported here, not on the thread that answers it.
        for accept in ("", _OPENMETRICS):
            choose_encoder(accept)[0](registry)
        self._leave = leave
        self._server: Any
        self._server, self._thread = start_http_server(address.port, address.host, registry)
        host, port = self._server.server_address[:2]
        self.url: str | None = Address(str(host), int(port)).url
        """Where it is scraped; None once it is not."""
        _open.add(self)

    def stop(self) -> None:
        """Free the port, at once."""
        if self.url is None:
            return
        self.url = None
        # The server looks at its flag twice a second only; a socket that is shut wakes it.
        threading.Thread(target=self._server.shutdown, name="runmeter-scrape-stop", daemon=True).start()
        with suppress(OSError):
            self._server.socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(1.0)
        self._server.server_close()
        self._leave()

    def after_fork(self) -> None:
        """In the child: let go of the listening socket, on which nobody would answer once the parent is gone."""
        self.url = None
        with suppress(OSError):
            self._server.socket.close()


def start(asked: object, counters: Counters) -> ScrapePort | None:
    """The scrape of our counters that `asked` (of `instrument`) or the variable wants, or None. Never raises: what is
    wrong is said once."""
    said = f"instrument(prometheus={asked!r})"
    if asked is None:
        asked, said = os.environ.get(VARIABLE), f"{VARIABLE}={os.environ.get(VARIABLE)}"

    def serve(address: Address) -> ScrapePort:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from opentelemetry.sdk.metrics import MeterProvider
        from prometheus_client import CollectorRegistry

        registry = CollectorRegistry()  # prometheus_client's own is the host's
        provider = MeterProvider(
            [PrometheusMetricReader(registry=registry)], resource=Resource.create(), shutdown_on_exit=False
        )
        try:
            counters.show_on(provider)
            return ScrapePort(address, registry, provider.shutdown)
        except BaseException:
            provider.shutdown()
            raise

    return _tried(serve, asked, said)


def reader_of_the_environment() -> tuple[MetricReader | None, ScrapePort | None]:
    """What `OTEL_METRICS_EXPORTER=prometheus` asks for: a reader for the process's provider, and its scrape at
    OTEL_EXPORTER_PROMETHEUS_HOST and _PORT. The reader is there also where the port is taken."""
    readers: list[MetricReader] = []
    host = os.environ.get("OTEL_EXPORTER_PROMETHEUS_HOST") or DEFAULT[0]
    port = os.environ.get("OTEL_EXPORTER_PROMETHEUS_PORT") or DEFAULT[1]

    def serve(address: Address) -> ScrapePort:
        from opentelemetry.exporter.prometheus import PrometheusMetricReader
        from prometheus_client import REGISTRY

        scrape = ScrapePort(address, REGISTRY)
        readers.append(PrometheusMetricReader())
        return scrape

    scrape = _tried(serve, f"{host}:{port}", "OTEL_METRICS_EXPORTER=prometheus")
    return next(iter(readers), None), scrape


def _tried(serve: Callable[[Address], ScrapePort], asked: object, said: str) -> ScrapePort | None:
    address = None
    try:
        address = parse(asked)
        if address is None:
            return None
        scrape = serve(address)
    except ImportError as error:
        once("prometheus", "runmeter: %s needs a package that is not installed (%s): %s", said, error, PIP)
    except ValueError as error:
        once("prometheus", "runmeter: %s: %s; nothing is scraped", said, error)
    except (OSError, OverflowError) as error:
        once(
            "prometheus",
            "runmeter: %s: cannot listen there (%s), so nothing is scraped here; everything else goes on. Each process "
            "needs a port of its own (port 0 takes any free one); `runmeter serve` shows all of a host at one address",
            said,
            getattr(error, "strerror", None) or error,
        )
    else:
        logger.info("runmeter: Prometheus finds this process's counters at %s", scrape.url)
        return scrape
    return None


def parse(asked: object) -> Address | None:
    """`True`, a port, `HOST:PORT`, `[::1]:PORT`, `:PORT` or `PORT`; nothing, False and an empty string are none.

    Raises ValueError with what would be right."""
    if asked is None or asked is False:
        return None
    if asked is True:
        return Address(*DEFAULT)
    text = str(asked).strip()
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 0 to 65535")
    return Address(host.strip("[]") or DEFAULT[0], int(port))


_open: WeakSet[ScrapePort] = WeakSet()


def _after_fork() -> None:
    for scrape in list(_open):
        scrape.after_fork()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
