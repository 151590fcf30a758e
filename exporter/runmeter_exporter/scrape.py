"""`/metrics`: one reading of the store, rendered once, whoever asks; and never an error where numbers are known.

The store is read in a thread of its own, so that a database that hangs costs a scrape its deadline and not its
answer: what was known last is served with `runmeter_store_up 0` and its age. Scrapes that come while a reading is
under way share it, its rendering, and the compressed copy of that.
"""

from __future__ import annotations

import gzip
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.exposition import choose_encoder, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from runmeter_exporter.families import Announcer, about_this_answer, families
from runmeter_exporter.totals.answers import Scrape
from runmeter_exporter.totals.questions import boolean

logger = logging.getLogger(__name__)

DEFAULT_TIMEOUT = 10.0
"""Seconds, Prometheus' own default, for whoever sends no `X-Prometheus-Scrape-Timeout-Seconds`."""
LONGEST_TIMEOUT = 60.0
"""Seconds; no request keeps a server thread longer, whatever its header says."""
LEEWAY = 0.5
"""Seconds of a scrape's timeout kept for rendering and sending (a quarter of it where it is below two)."""
LARGEST = 100
"""Active runs with series of their own; the rest are summed under `other`."""



class Scrapable(Protocol):
    """What a scrape needs of a store."""

    def scrape(self, *, include_active: bool = ..., largest: int = ...) -> Scrape:
        """Everything `/metrics` shows; raises where the store does not answer."""


class StoreCollector(Collector):
    """The store's totals as a collector for any `prometheus_client` registry, read anew on each collect.

    Where the store cannot answer, `runmeter_store_up 0` stands alone: counters that are not known are left out, since
    a zero would read as a reset. What a sidecar does beyond that (deadlines, last known totals) is `Scraper`'s.
    """

    def __init__(self, store: Scrapable, *, include_active: bool = False, largest: int = LARGEST) -> None:
        self._store, self._include_active, self._largest = store, include_active, largest

    def collect(self) -> Iterable[Metric]:
        """All families of one reading, then those about the reading itself."""
        started = time.perf_counter()
        try:
            scrape = self._store.scrape(include_active=self._include_active, largest=self._largest)
        except Exception as error:
            logger.warning("the store did not answer a scrape: %s", error)
            yield from about_this_answer(up=False, age=None, seconds=time.perf_counter() - started)
            return
        yield from families(scrape, include_active=self._include_active)
        yield from about_this_answer(up=True, age=0.0, seconds=time.perf_counter() - started)


class _Answer:
    """One answer of the store, and what was already rendered from it."""

    def __init__(self, scrape: Scrape, answered_at: float, seconds: float) -> None:
        self.scrape, self.answered_at, self.seconds = scrape, answered_at, seconds
        self.lock = threading.Lock()
        self.pages: dict[tuple[str, bool], bytes] = {}
        self.zipped: dict[tuple[str, bool], bytes] = {}


class _Flight:
    """A reading under way. Waiting for it has a deadline; reading has not, so there is one thread, not one a scrape."""

    def __init__(self, started: float) -> None:
        self.started, self.done = started, threading.Event()
        self.reading: _Answer | None = None


class Scraper:
    """Answers `/metrics` for a store; safe to call from any number of threads.

    `clock` counts seconds and never goes back. `largest` bounds the series that carry run and thread ids.
    """

    def __init__(
        self, store: Scrapable, *, clock: Callable[[], float] = time.monotonic, largest: int = LARGEST
    ) -> None:
        self._store, self._clock, self._largest = store, clock, largest
        self._lock = threading.Lock()
        self._flights: dict[bool, _Flight] = {}
        self._known: dict[bool, _Answer] = {}
        self._announcers = {False: Announcer(), True: Announcer()}
        self._away = False

    def handle(self, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
        """Headers and body of the answer to `GET /metrics`; always a 200. ValueError for an `include_active` that is
        neither true nor false: a scrape job that silently lacks half its series would be noticed too late."""
        wanted = query.get("include_active") or "false"
        include_active = boolean(wanted)
        if include_active is None:
            raise ValueError(f"include_active is {wanted[:40]!r}; it must be true or false")
        lowered = {name.lower(): value for name, value in headers.items()}
        timeout = _seconds(lowered.get("x-prometheus-scrape-timeout-seconds"))
        # Whoever sends no timeout is no scraper, and is shown the numbers of new series at once (see `Announcer`).
        return self._answer(
            include_active,
            lowered.get("accept", ""),
            lowered.get("accept-encoding", ""),
            timeout or DEFAULT_TIMEOUT,
            announce=timeout is not None,
        )

    def _answer(
        self, include_active: bool, accept: str, accept_encoding: str, timeout: float, *, announce: bool
    ) -> tuple[dict[str, str], bytes]:
        encode, content_type = _negotiate(accept)
        gzipped = _takes_gzip(accept_encoding)
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        if gzipped:
            headers["Content-Encoding"] = "gzip"

        hold = timeout / 2 if announce else None
        flight = self._join(include_active)
        # Counted from the flight's start: during an outage only the first scrape waits, those after it are quick.
        flight.done.wait(max(0.0, timeout - min(LEEWAY, timeout / 4) - (self._clock() - flight.started)))

        reading = flight.reading
        if reading is None:
            page = self._last_known(include_active, flight, encode, hold)
            return headers, _gzip(page) if gzipped else page
        key = (content_type, announce)
        with reading.lock:  # whoever comes second finds it rendered
            if key not in reading.pages:
                about = about_this_answer(up=True, age=0.0, seconds=reading.seconds)
                reading.pages[key] = encode(_Families([*self._totals(reading, include_active, hold), *about]))
            if not gzipped:
                return headers, reading.pages[key]
            if key not in reading.zipped:
                reading.zipped[key] = _gzip(reading.pages[key])
            return headers, reading.zipped[key]

    def _join(self, include_active: bool) -> _Flight:
        """The reading under way, or a new one."""
        with self._lock:
            flight = self._flights.get(include_active)
            if flight is None:
                flight = _Flight(self._clock())
                reader = threading.Thread(
                    target=self._read, args=(include_active, flight), name="runmeter-scrape", daemon=True
                )
                try:
                    reader.start()
                except RuntimeError as error:  # no thread to be had: this scrape shows what is known, the next tries
                    logger.warning("no thread to read the store in: %s", error)
                    flight.done.set()
                else:
                    self._flights[include_active] = flight
            return flight

    def _read(self, include_active: bool, flight: _Flight) -> None:
        reading = None
        try:
            scrape = self._store.scrape(include_active=include_active, largest=self._largest)
            now = self._clock()
            reading = _Answer(scrape, now, now - flight.started)
        except Exception as error:
            if not self._away:  # said once, not at every scrape of an outage
                logger.warning("the store did not answer a scrape; the last known totals are served: %s", error)
        with self._lock:
            self._away = reading is None
            del self._flights[include_active]
            if reading is not None:
                self._known[include_active] = flight.reading = reading
        flight.done.set()

    def _last_known(
        self, include_active: bool, flight: _Flight, encode: Callable[[Collector], bytes], hold: float | None
    ) -> bytes:
        """What the store said last, and how long ago; without any counter where it never said anything."""
        now = self._clock()
        with self._lock:
            # Never the other kind's: its `other` series may hold what this kind shows apart.
            reading = self._known.get(include_active)
        age = None if reading is None else now - reading.answered_at
        about = about_this_answer(up=False, age=age, seconds=now - flight.started)
        return encode(_Families([*(self._totals(reading, include_active, hold) if reading else ()), *about]))

    def _totals(self, reading: _Answer, include_active: bool, hold: float | None) -> list[Metric]:
        shown = families(reading.scrape, include_active=include_active)
        if hold is not None:
            with self._lock:
                self._announcers[include_active].announce(shown, self._clock(), hold)
        return shown


class _Families(Collector):
    """Families as the encoders of prometheus_client take them: as something that collects."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _negotiate(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    try:
        return choose_encoder(accept)
    except (TypeError, ValueError):  # a version that is no version
        return generate_latest, CONTENT_TYPE_PLAIN_0_0_4


def _seconds(header: str | None) -> float | None:
    """A scrape's timeout as its header says it; None without a usable one."""
    try:
        seconds = float(header or "nan")
    except ValueError:
        return None
    return min(seconds, LONGEST_TIMEOUT) if math.isfinite(seconds) and seconds > 0 else None


def _takes_gzip(accept_encoding: str) -> bool:
    for offer in accept_encoding.lower().split(","):
        name, _, quality = offer.partition(";")
        if name.strip() == "gzip":
            return quality.replace(" ", "") not in {"q=0", "q=0.0", "q=0.00", "q=0.000"}
    return False


def _gzip(page: bytes) -> bytes:
    # Level 1 is fifteen times cheaper than rendering; a higher one costs more than the network it saves.
    return gzip.compress(page, compresslevel=1, mtime=0)
