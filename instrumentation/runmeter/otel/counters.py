"""Settled calls as OpenTelemetry counters, with the names of the GenAI semantic conventions.

Added up in memory and *observed* when somebody collects: four `counter.add` cost more than everything else that
happens to a call. No id is ever an attribute, label values are granted first come, for good, up to a cap, the rest is
`other`; what is observed is a high-water mark, so a repeat recognised late never makes a counter fall: later growth
pays it off. The histograms beside them are in `distributions.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from operator import add, sub
from typing import NamedTuple
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from runmeter.otel.distributions import FULL, Distributions
from runmeter.reading import semconv
from runmeter.reading.operations import EMBEDDINGS, WELL_KNOWN
from runmeter.sink import RunInfo
from runmeter.spans import Call, Change

OTHER = "other"
KINDS = ("lead_agent", "subagent", "middleware")
LIMIT = 100
"""Models, of a provider and an operation, with series of their own; OpenTelemetry keeps 2,000 attribute sets an
instrument."""
VALUE_LIMIT = 128
SCHEMA_URL = "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev"
"""That of the GenAI conventions' own repository, as its manifest has it on main: nothing of it is released yet, and the
schemas of the released conventions (1.44.0 and before) know none of these instruments."""
UNKNOWN_MODALITY = {"gen_ai.token.modality": "unknown"}
"""The conventions require the attribute on every counter of tokens, and have this value for tokens of which nobody says
what they were: without it the sum over modalities would not be the total."""

# Indices into Usage. A failed call is recorded as 0, which an observed series does by existing.
_GENAI = (
    ("gen_ai.client.inference.usage.input_tokens", 0, "Tokens sent, cached ones included."),
    ("gen_ai.client.inference.usage.output_tokens", 1, "Tokens generated, reasoning included."),
    ("gen_ai.client.inference.usage.cache_read.input_tokens", 2, "Input tokens served from the provider's cache."),
    ("gen_ai.client.inference.usage.cache_write.input_tokens", 3, "Input tokens written to the provider's cache."),
    ("gen_ai.client.inference.usage.reasoning.output_tokens", 4, "Output tokens spent on reasoning."),
)
_OURS = (
    ("runmeter.client.calls", 5, "{call}", "Model calls the provider answered."),
    ("runmeter.client.failures", 6, "{call}", "Attempts that failed."),
    ("runmeter.client.calls_without_usage", 7, "{call}", "Answered calls whose usage nobody reported."),
    ("runmeter.client.messages", 8, "{message}", "Messages, one per answered call unless the source states a number."),
)
_WIDTH = 9
"""The first fields of `Usage`; those after them are money, which is priced elsewhere."""
_KNOWN_LIMIT = 1024
"""Models with a caller's full name whose series are found at once."""


class _Key(NamedTuple):
    operation: str
    provider: str
    request_model: str | None
    model: str
    caller: str


class _Sums:
    """What is counted under one set of labels."""

    __slots__ = ("embeddings", "labels", "marks", "sums")

    def __init__(self, key: _Key) -> None:
        self.sums = [0] * _WIDTH
        self.marks = [0] * _WIDTH
        """The most that was observed."""
        self.embeddings = key.operation == EMBEDDINGS
        self.labels = {
            semconv.OPERATION_NAME: key.operation,
            semconv.PROVIDER_NAME: key.provider,
            semconv.RESPONSE_MODEL: key.model,
            semconv.CALLER: key.caller,
        }
        if key.request_model is not None:
            self.labels[semconv.REQUEST_MODEL] = key.request_model


class Counters:
    """A sink whose totals any MeterProvider may read; one per provider and process, see `counters_for`."""

    def __init__(self, meter_provider: MeterProvider | None = None, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._granted: set[tuple[str, ...]] = set()
        self._series: dict[_Key, _Sums] = {}
        self._known: dict[tuple[str | None, ...], _Sums] = {}
        self._losses: dict[str, int] = {}
        self._distributions = Distributions()
        # Without a provider the API hands out proxies, which the host's provider fills whenever it comes.
        self.show_on(meter_provider)

    def show_on(self, meter_provider: MeterProvider | None) -> None:
        """Let the readers of this provider see the same totals, too. Instruments cannot be taken back."""
        meter = metrics.get_meter(semconv.SCOPE, _version(), meter_provider, SCHEMA_URL)
        for name, index, text in _GENAI:
            meter.create_observable_counter(name, [self._tokens(index)], unit="{token}", description=text)
        for name, index, unit, text in _OURS:
            meter.create_observable_counter(name, [self._ours(index)], unit=unit, description=text)
        meter.create_observable_counter(
            "runmeter.client.losses",
            [self._observe_losses],
            unit="{loss}",
            description="What was not counted, by reason.",
        )
        self._distributions.show_on(meter)

    def begin(self, run: RunInfo) -> None:
        """Runs are not told apart here."""

    def update(self, run: RunInfo) -> None:
        """Runs are not told apart here."""

    def end(self, run: RunInfo, ended_at: int) -> None:
        """Runs are not told apart here."""

    def settled(self, run: RunInfo, changes: Sequence[Change]) -> None:
        for was, now in changes:
            # In C and whole: whoever collects meanwhile sees the sums before or after.
            if was is not None:
                sums = self._series_of(was).sums
                sums[:] = map(sub, sums, was.usage)
            if now is not None:
                sums = self._series_of(now).sums
                sums[:] = map(add, sums, now.usage)
            self._distributions.settled(was, now)

    def lost(self, reason: str, count: int = 1) -> None:
        self._losses[reason] = self._losses.get(reason, 0) + count

    def spans(self, fates: Mapping[tuple[str, str], int]) -> None:
        """Spans are no metric of an agent's."""

    def flush(self, timeout: float) -> bool:
        return True

    def shutdown(self, timeout: float) -> bool:
        return True

    def after_fork(self) -> None:
        # What the parent counted is the parent's to report; the labels stay granted.
        self._known = {}
        self._series = {}
        self._losses = {}
        self._distributions.after_fork()

    def _series_of(self, call: Call) -> _Sums:
        known = (call[0], call[1], call[2], call[6], call[7])
        found = self._known.get(known)
        if found is not None:
            return found
        key = self._key(call)
        series = self._series.get(key) or self._series.setdefault(key, _Sums(key))
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[known] = series
        return series

    def _key(self, call: Call) -> _Key:
        kind = call.caller.partition(":")[0]
        caller = kind if kind in KINDS else OTHER
        asked = call.request_model
        key = _Key(
            call.operation[:VALUE_LIMIT],
            call.provider[:VALUE_LIMIT],
            None if asked is None else asked[:VALUE_LIMIT],
            call.model[:VALUE_LIMIT],
            caller,
        )
        named = (key.operation, key.provider, key.request_model or "", key.model)
        if named not in self._granted:
            if len(self._granted) >= self._limit:
                return _Key(key.operation if key.operation in WELL_KNOWN else OTHER, OTHER, OTHER, OTHER, caller)
            self._granted.add(named)
        return key

    def _tokens(self, index: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for series in list(self._series.values()):
                if not series.embeddings:
                    yield Observation(_high(series, index), {**series.labels, **UNKNOWN_MODALITY})

        return observe

    def _ours(self, index: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for series in list(self._series.values()):
                yield Observation(_high(series, index), {**series.labels})

        return observe

    def _observe_losses(self, options: CallbackOptions) -> Iterable[Observation]:
        for call in self._distributions.take():
            self._distributions.record(call, self._series_of(call).labels)
        losses = dict(self._losses)
        if self._distributions.dropped:
            losses[FULL] = self._distributions.dropped
        for reason, count in losses.items():
            yield Observation(count, {"reason": reason})


def _high(series: _Sums, index: int) -> int:
    """What is shown of a sum: it never falls."""
    most = series.marks[index] = max(series.marks[index], series.sums[index])
    return most


def _version() -> str:
    try:
        return version("runmeter")
    except PackageNotFoundError:  # a copy of the sources on the path
        return ""


_lock = threading.Lock()
_global: Counters | None = None
_by_provider: WeakKeyDictionary[MeterProvider, Counters] = WeakKeyDictionary()


def counters_for(meter_provider: MeterProvider | None = None) -> Counters:
    """The process's counters on this provider (None: the global one, also one that the host sets later).

    Instruments cannot be taken back from a meter, so whoever instruments again goes on with the totals there are.
    """
    global _global
    with _lock:
        if meter_provider is None:
            if _global is None:
                _global = Counters()
            return _global
        found = _by_provider.get(meter_provider)
        if found is None:
            found = _by_provider[meter_provider] = Counters(meter_provider)
        return found
