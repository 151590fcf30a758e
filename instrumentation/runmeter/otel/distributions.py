"""Settled calls as the histograms of the GenAI semantic conventions: tokens and duration of each operation.

A histogram cannot be observed, only recorded, and recording costs 15 to 50 µs a call: more than the agent's thread may
pay. So settled calls wait here, and are recorded when somebody collects, inside an observable instrument's callback,
on the thread that collects. That is safe in opentelemetry-sdk 1.41 and 1.45: a reader calls all callbacks before it
reads any value, under a lock of its provider that recording does not take; so what waited is in that same collection,
and other readers find it in their next one.

What is recorded cannot be taken back. A call that turns out to be a repeat, or to have used something else, is put
right while it waits; afterwards the histograms keep what they have, and only the counters follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple
from weakref import ref

from opentelemetry.metrics import Histogram, Meter

from runmeter.reading import semconv
from runmeter.reading.operations import EMBEDDINGS, SUMMARIES
from runmeter.spans import UNNAMED, Call

WAITING_LIMIT: Final = 2048
"""Calls that wait to be recorded, less than a megabyte of them; 34 a second where somebody asks every minute."""
FULL: Final = "histogram_full"
"""Reason of a loss: more calls than that between two collections. The counters have them, the histograms do not."""
TOKEN_BUCKETS: Final = tuple(4**power for power in range(14))
SECOND_BUCKETS: Final = tuple(2**power / 100 for power in range(14))
ERROR_LIMIT: Final = 50
"""Kinds of error with series of their own."""

_NANO: Final = 1e9
_CALLS, _FAILURES, _WITHOUT = 5, 6, 7
"""Indices into `Usage`."""


class _Histograms(NamedTuple):
    """Those of one provider."""

    input_tokens: Histogram
    output_tokens: Histogram
    duration: Histogram
    first_chunk: Histogram
    embeddings_tokens: Histogram
    embeddings_duration: Histogram


class Distributions:
    """Calls until they are recorded, and where to record them."""

    def __init__(self, limit: int = WAITING_LIMIT) -> None:
        self.dropped = 0
        """Calls that found no room."""
        self._limit = limit
        # By their times, and of two calls with the same times the second by identity.
        self._waiting: dict[tuple[int, int] | int, Call] = {}
        self._errors: set[str] = set()
        self._shown: list[tuple[ref[Histogram], ...]] = []

    def show_on(self, meter: Meter) -> None:
        """Record what comes on this provider, too."""
        made = _Histograms(
            _tokens(meter, "gen_ai.client.inference.operation.input_tokens", "Tokens sent in one operation."),
            _tokens(meter, "gen_ai.client.inference.operation.output_tokens", "Tokens generated in one operation."),
            _seconds(meter, "gen_ai.client.inference.duration", "How long one operation took."),
            _seconds(meter, "gen_ai.client.inference.time_to_first_chunk", "How long a stream's first chunk took."),
            _tokens(meter, "gen_ai.client.embeddings.operation.input_tokens", "Tokens sent in one embeddings call."),
            _seconds(meter, "gen_ai.client.embeddings.duration", "How long one embeddings call took."),
        )
        # The meter keeps its instruments; a provider that is gone takes them along.
        self._shown.append(tuple(ref(histogram) for histogram in made))

    def settled(self, was: Call | None, now: Call | None) -> None:
        """`now` waits in the place of `was`. What has been recorded, or had no room, is not recorded anew."""
        waiting = self._waiting
        if was is not None and waiting.pop(id(was), None) is None:
            times = was[5], was[8]
            if waiting.get(times) != was:
                return
            del waiting[times]
        if now is None:
            return
        if len(waiting) < self._limit:
            times = now[5], now[8]
            waiting[id(now) if times in waiting else times] = now
        else:
            self.dropped += 1

    def take(self) -> list[Call]:
        """The operations that wait; they wait no longer. Any number of threads may take at the same time."""
        taken = []
        waiting = self._waiting
        for _ in range(len(waiting)):
            try:
                _, call = waiting.popitem()
            except KeyError:  # another reader, or a correction, was quicker
                break
            if call.operation not in SUMMARIES and (call.usage[_CALLS] or call.usage[_FAILURES]):
                taken.append(call)
        return taken

    def record(self, call: Call, labels: Mapping[str, str]) -> None:
        """Record one operation on all providers; `labels` are those of its counters."""
        attributes = dict(labels)
        if call.error is not None:
            attributes[semconv.ERROR_TYPE] = self._error(call.error)
        seconds = (call.ended_at - call.started_at) / _NANO if call.started_at > 0 else None
        usage = call.usage
        gone = False
        for shown in self._shown:
            found = [reference() for reference in shown]
            alive = [histogram for histogram in found if histogram is not None]
            if len(alive) < len(found):
                gone = True
                continue
            histograms = _Histograms(*alive)
            if call.operation == EMBEDDINGS:
                if usage[_CALLS] and not usage[_WITHOUT]:
                    # By the conventions, not of one that failed, and without the kind of error of one that broke off.
                    histograms.embeddings_tokens.record(usage[0], dict(labels))
                if seconds is not None:
                    histograms.embeddings_duration.record(seconds, attributes)
                continue
            # By the conventions 0 where the operation failed, or its answer did not say.
            histograms.input_tokens.record(usage[0], attributes)
            histograms.output_tokens.record(usage[1], attributes)
            if seconds is not None:
                histograms.duration.record(seconds, attributes)
            if call.first_chunk is not None:
                histograms.first_chunk.record(call.first_chunk, dict(labels))  # by the conventions, without the error
        if gone:
            self._shown = [shown for shown in self._shown if all(reference() is not None for reference in shown)]

    def after_fork(self) -> None:
        """What waits is the parent's to report."""
        self._waiting = {}
        self.dropped = 0

    def _error(self, error: str) -> str:
        if error in self._errors:
            return error
        if len(self._errors) >= ERROR_LIMIT:
            return UNNAMED
        self._errors.add(error)
        return error


def _tokens(meter: Meter, name: str, text: str) -> Histogram:
    return meter.create_histogram(name, "{token}", text, explicit_bucket_boundaries_advisory=TOKEN_BUCKETS)


def _seconds(meter: Meter, name: str, text: str) -> Histogram:
    return meter.create_histogram(name, "s", text, explicit_bucket_boundaries_advisory=SECOND_BUCKETS)
