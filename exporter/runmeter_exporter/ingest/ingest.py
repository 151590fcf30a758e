"""Door 2: OTLP/HTTP requests in, answers out. An answer of 200 means that what was taken is durable.

The threads of the HTTP server read requests into readings and wait; one writer thread makes what waits durable, as
much in one transaction (group commit) as takes a moment. What waits is bounded, by the time it will take: beyond it the
answer is 429.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from runmeter.reading.read import Reading
from runmeter.spans import Call
from runmeter.usage import Usage
from runmeter_exporter import scopes
from runmeter_exporter.ingest import otlp
from runmeter_exporter.ingest.admission import Admission, Busy
from runmeter_exporter.ingest.closing import close_runs, expire
from runmeter_exporter.ingest.intake import Intake
from runmeter_exporter.ingest.otlp import OtlpError
from runmeter_exporter.ingest.otlp.reading import not_ahead, reading_of
from runmeter_exporter.ingest.remembered import Large
from runmeter_exporter.ingest.waiting import Line, Portion, Request, Waiting
from runmeter_exporter.memory import BY_DEFAULT, Memory
from runmeter_exporter.prices import PriceBook
from runmeter_exporter.store import Heartbeat, RefusedValue, RunStore, StoreError, StoreUnavailable

WAIT = 30.0
"""Seconds a request waits to become durable before it is told to come again."""
RETENTION = 24 * 3600.0
"""Seconds for which the ledger remembers the spans of a closed run, and so recognises them."""
HEARTBEAT = 10.0
REMIND_EVERY = 86_400.0
"""Seconds after which counts that are as they were are told again: a source that is silent for long is forgotten."""
EXPIRE_EVERY = 600.0
RETRY_AFTER = "2"
"""Seconds until a request that was not taken may come again."""

_ONLY_TRACES = (
    "runmeter counts model calls from traces and ignored these {what}: send traces here "
    "(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT), and set {variable}=none or point it to another receiver"
)
_IGNORED = {
    "/v1/metrics": _ONLY_TRACES.format(what="metrics", variable="OTEL_METRICS_EXPORTER"),
    "/v1/logs": _ONLY_TRACES.format(what="logs", variable="OTEL_LOGS_EXPORTER"),
}

logger = logging.getLogger("runmeter.ingest")


class Ingest:
    """Door 2 over one store. Thread-safe; `stop` when the server no longer takes requests."""

    def __init__(
        self,
        store: RunStore,
        *,
        price: Callable[[Call], Usage] | None = None,
        ledger_retention: float = RETENTION,
        memory: Memory = BY_DEFAULT,
        wait: float = WAIT,
        now: Callable[[], int] = time.time_ns,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        """`price`: what a call costs (default: the operator's prices, then genai-prices). Durations are seconds.
        `memory` bounds what is remembered and what waits.

        `now` is wall time in nanoseconds, for expiry; `clock` seconds that never jump; `pause` waits so many seconds.
        PriceFileError where the operator's prices cannot be read: a server that would bill wrongly should not start.
        """
        self.source = f"sidecar:{uuid.uuid4().hex}"
        self._store = store
        self._intake = Intake(store, price or PriceBook.from_environment(strict=True).price_call, now, memory)
        self._retention = ledger_retention
        self._queue = memory.queue
        self._wait = wait
        self._now = now
        self._clock = clock
        self._pause = pause
        self._admission = Admission(clock)
        self._waiting = Waiting()
        self._stopping = False
        self._failing = False
        """Said in the log, and not over."""
        self._warming: dict[int | str, Iterator[None]] = {}
        """What is read page by page before spans of it can be taken …"""
        self._held: set[int] = set()
        """… and the traces that wait for it."""
        self._changed = threading.Condition()
        self._writing = Line()
        """Held by whoever uses the intake: the writer, or who closes and expires."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._told: Counter[tuple[str, str]] = Counter()
        self._labels = scopes.Labels()
        self._beat = 0
        self._beaten = self._expired = self._told_at = clock()
        self._thread = threading.Thread(target=self._write, name="runmeter-ingest", daemon=True)
        self._thread.start()

    # What HTTP asks.

    def handle(
        self, path: str, body: bytes, content_type: str | None, content_encoding: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        """(status, headers, body) of the answer to one POST, as the OTLP/HTTP specification has it."""
        status, headers, answer = self._handle(path, body, content_type, content_encoding)
        self._count("ingest_requests", str(status))
        return status, headers, answer

    def _handle(
        self, path: str, body: bytes, content_type: str | None, content_encoding: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        media_type = otlp.JSON
        try:
            media_type = otlp.answers_in(content_type)
            headers = {"Content-Type": media_type}
            if path in _IGNORED:
                self._count("ingest_ignored", path.rpartition("/")[2])
                return 200, headers, otlp.success(path, media_type, 0, _IGNORED[path])
            # Counting what is in a large request takes as long as storing some of it.
            self._admission.look(len(body))
            data = otlp.weighed(body, content_type, content_encoding)
            with self._admission.enter(len(data)):
                decoded = otlp.parse(data, content_type)
                rejected = Counter(decoded.rejected)
                now = self._now()
                rejected["content"] = self.submit([not_ahead(reading_of(span), now) for span in decoded.spans])
        except OtlpError as error:
            return self._failure(error.status, media_type, str(error))
        except Busy as error:
            status, headers, answer = self._failure(429, media_type, str(error))
            return status, {**headers, "Retry-After": str(error.seconds)}, answer
        except StoreError as error:
            return self._failure(503, media_type, str(error))
        rejected = +rejected
        for reason, count in rejected.items():
            self._count("spans_rejected", reason, count)
        return 200, headers, otlp.success("/v1/traces", media_type, rejected.total(), _why(rejected))

    def refused(self, status: int) -> None:
        """Count a request that was answered before it came here: no token, too large, malformed, too slow."""
        self._count("ingest_requests", str(status))

    def _failure(self, status: int, media_type: str, message: str) -> tuple[int, dict[str, str], bytes]:
        headers = {"Content-Type": media_type}
        if status in (429, 503):
            headers["Retry-After"] = RETRY_AFTER
        return status, headers, otlp.failure(status, media_type, message)

    def submit(self, readings: Sequence[Reading]) -> int:
        """Returns when the readings are durable, and how many of them could not be.

        Raises Busy where too much waits already, and StoreUnavailable where it is not known that they are: sent again,
        they are not counted again.
        """
        if not readings:
            return 0
        request = Request(readings)
        with self._changed:
            if self._stopping:
                raise StoreUnavailable("this sidecar is stopping; try again in a moment")
            size = self._waiting.size
            if self._waiting and size + request.size > self._queue:
                raise Busy(
                    f"{size} bytes of spans wait to be stored and these are {request.size}, the limit is "
                    f"{self._queue}; try again"
                )
            self._waiting.append(request)
            self._changed.notify_all()
        if not request.done.wait(self._wait):
            with self._changed:
                self._waiting.drop(request)
            raise StoreUnavailable(f"not stored within {self._wait:g} s; try again")
        if request.error is not None:
            raise request.error
        return request.refused

    # What the reaper asks.

    def close_runs(self, run_ids: Sequence[str]) -> None:
        """Close runs whose grace is over, after calls that two runs have went to one of them. Raises StoreError."""
        steps = close_runs(self._intake, run_ids)
        pause: float | None = 0.0
        while pause is not None:
            with self._writing:
                pause = next(steps, None)
                self._count_fates()
            if pause:
                self._pause(pause)

    def expire(self, now: int) -> int:
        """Forget the spans of runs that closed more than the retention before `now`; how many. Raises StoreError."""
        with self._writing:
            return expire(self._intake, now, self._retention)

    def stop(self, timeout: float = 10.0) -> bool:
        """Store and answer what was accepted, then stop; False if that took longer than `timeout` seconds."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # The writer.

    def _write(self) -> None:
        while True:
            with self._changed:
                if not self._waiting and not self._stopping and not self._warming:
                    self._changed.wait(HEARTBEAT / 4)
                portions = self._waiting.next()
                stopping = self._stopping and not portions
            if portions:
                self._store_all(portions)
            if self._warming:
                self._warm_up()
            if stopping or self._clock() - self._beaten >= HEARTBEAT:
                self._tell()
            if stopping:
                return
            if self._clock() - self._expired >= EXPIRE_EVERY:
                self._expire()

    def _store_all(self, portions: Sequence[Portion]) -> None:
        try:
            self._store_portions(portions)
        except Large as large:
            self._hold(portions, large)
            return
        except StoreError as error:
            with self._changed:
                self._waiting.failed(sum(len(some) for _, some in portions))
            self._failed(portions, error)
        except Exception as error:
            # Not what the store said of any value, so nobody's spans are to blame. But where one request is enough to
            # bring it about, the others are none the worse for having come with it.
            if len(portions) == 1:
                self._failed(portions, StoreUnavailable(f"could not be stored: {error!r}; try again"), error)
                return
            for portion in portions:
                self._store_all([portion])
            return
        for request, _ in portions:
            if not request.left:
                request.done.set()

    def _store_portions(self, portions: Sequence[Portion]) -> None:
        refused: list[Reading] = []
        readings = [reading for _, some in portions for reading in some]
        with self._writing:
            self._take(readings, refused)
            held = self._intake.held
        with self._changed:
            self._waiting.took(len(readings), held)
        if self._failing:
            self._failing = False
            logger.warning("runmeter: spans are stored again")
        dropped = set(map(id, refused))
        for request, some in portions if dropped else ():
            request.refused += sum(id(reading) in dropped for reading in some)

    def _hold(self, portions: Sequence[Portion], large: Large) -> None:
        """Something large has to be read first: who sent spans of it comes again, the others are served. What else is
        in a request with such spans is stored all the same: it is here already when that comes again."""
        warm_up = self._intake.remembered.warm_up
        for trace_id in large.traces:
            self._warming.setdefault(trace_id, warm_up(Large(traces=[trace_id])))
        for run_id in large.runs:
            self._warming.setdefault(run_id, warm_up(Large(runs=[run_id])))
        self._held |= large.held
        free: list[Portion] = []
        for request, some in portions:
            rest = [reading for reading in some if reading.trace_id not in self._held]
            if len(rest) == len(some):
                free.append((request, some))
                continue
            if rest:
                self._store_all([(Request(rest), rest)])
            with self._changed:
                self._waiting.drop(request)
            request.error = StoreUnavailable("a large run of these spans is being read again; try again in a moment")
            request.done.set()
        if free:
            self._store_all(free)

    def _warm_up(self) -> None:
        """One page of what is large."""
        name, pages = next(iter(self._warming.items()))
        try:
            with self._writing:
                next(pages)
        except StopIteration:
            del self._warming[name]
        except Exception as error:  # whoever comes again has it begun anew
            logger.warning("runmeter: a large run could not be read for now: %s", error)
            del self._warming[name]
        if not self._warming:
            self._held.clear()

    def _failed(self, portions: Sequence[Portion], error: StoreError, why: Exception | None = None) -> None:
        """Their senders are told to come again; the log once, when it begins."""
        if not self._failing:
            self._failing = True
            logger.warning("runmeter: spans are not stored and are refused with 503 for now: %s", error, exc_info=why)
        for request, _ in portions:
            with self._changed:
                self._waiting.drop(request)
            request.error = error
            request.done.set()

    def _take(self, readings: Sequence[Reading], refused: list[Reading]) -> None:
        """Make them durable; the span with a value that the database refuses is found by halving and goes to
        `refused`. Whatever else the store raises is not the spans' fault, and is raised."""
        try:
            taken = self._intake.take(readings)
        except RefusedValue as error:
            if len(readings) == 1:
                logger.warning("runmeter: a span cannot be stored and is rejected: %s", error)
                refused.append(readings[0])
                return
            half = len(readings) // 2
            self._take(readings[:half], refused)
            self._take(readings[half:], refused)
            return
        self._count("ingest_spans", "", taken)
        self._count_fates()
        for reading in readings:
            for reason in reading.rejected:
                self._count("spans_rejected", reason)

    def _count_fates(self) -> None:
        fates, self._intake.fates = self._intake.fates, Counter()
        for (fate, scope), spans in fates.items():
            self._count(scopes.FAMILY, self._labels.label(fate, scope), spans)

    def _expire(self) -> None:
        self._expired = self._clock()
        try:
            self.expire(self._now())
        except Exception as error:  # the writer goes on whatever happens
            logger.warning("the ledger of spans could not be cut: %s", error)

    def _tell(self) -> None:
        """Pass the counts on; they are absolute, so what does not arrive arrives with the next."""
        self._beaten = self._clock()
        with self._changed:
            self._counts["spans_rejected", "trace_limit"] = self._intake.unlinked
            counts = +self._counts
        if counts == self._told and self._beaten - self._told_at < REMIND_EVERY:
            return
        self._beat += 1
        try:
            self._store.heartbeat([Heartbeat(self.source, self._beat, "runmeter", counts)])
            self._told, self._told_at = counts, self._beaten
        except Exception as error:  # the writer goes on whatever happens
            logger.warning("counts of requests could not be stored: %s", error)

    def _count(self, family: str, label: str, count: int = 1) -> None:
        if count:
            with self._changed:
                self._counts[(family, label)] += count


def _why(rejected: Counter[str]) -> str:
    if not rejected:
        return ""
    reasons = ", ".join(f"{count} for their {reason}" for reason, count in sorted(rejected.items()))
    return f"spans rejected: {reasons}; ids are 16 and 8 bytes and not zero, times from 2000 to 2199"
