"""Settled calls as OpenTelemetry counters, with the names of the GenAI semantic conventions.

Added up in memory and *observed* when somebody collects: four `counter.add` cost more than everything else that
happens to a call. No id is ever an attribute, label values are granted first come, for good, up to a cap, the rest is
`other`; what is observed is a high-water mark, so a repeat recognised late never makes a counter fall: later growth
pays it off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import add, sub
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

from runmeter.sink import RunInfo
from runmeter.spans import Call, Change

OTHER = "other"
KINDS = ("lead_agent", "subagent", "middleware")
LIMIT = 100
"""Pairs of provider and model with series of their own; OpenTelemetry keeps 2,000 attribute sets an instrument."""
VALUE_LIMIT = 128

# Indices into Usage. The spec (semantic-conventions-genai, main, November 2026) requires the modality attribute and
# allows `unknown`; a failed call is recorded as 0, which an observed series does by existing.
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
"""Pairs of a model and a caller's full name whose sums are found at once."""

_Key = tuple[str, str, str]


class Counters:
    """A sink whose totals any MeterProvider may read; one per provider and process, see `counters_for`."""

    def __init__(self, meter_provider: MeterProvider | None = None, *, limit: int = LIMIT) -> None:
        self._limit = limit
        self._granted: set[tuple[str, str]] = set()
        self._sums: dict[_Key, list[int]] = {}
        self._marks: dict[_Key, list[int]] = {}
        self._known: dict[tuple[str, str, str], list[int]] = {}
        self._losses: dict[str, int] = {}
        # Without a provider the API hands out proxies, which the host's provider fills whenever it comes.
        self.show_on(meter_provider)

    def show_on(self, meter_provider: MeterProvider | None) -> None:
        """Let the readers of this provider see the same totals, too. Instruments cannot be taken back."""
        meter = metrics.get_meter("runmeter", meter_provider=meter_provider)
        for name, index, text in _GENAI:
            meter.create_observable_counter(name, [self._tokens(index)], unit="{token}", description=text)
        for name, index, unit, text in _OURS:
            meter.create_observable_counter(name, [self._by_caller(index)], unit=unit, description=text)
        meter.create_observable_counter(
            "runmeter.client.losses",
            [self._observe_losses],
            unit="{loss}",
            description="What was not counted, by reason.",
        )

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
                sums = self._sums_of(was)
                sums[:] = map(sub, sums, was.usage)
            if now is not None:
                sums = self._sums_of(now)
                sums[:] = map(add, sums, now.usage)

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
        self._sums = {}
        self._marks = {}
        self._losses = {}

    def _sums_of(self, call: Call) -> list[int]:
        found = self._known.get(call[:3])
        if found is not None:
            return found
        key = self._key(call)
        sums = self._sums.get(key)
        if sums is None:
            self._marks[key] = [0] * _WIDTH
            sums = self._sums[key] = [0] * _WIDTH
        if len(self._known) >= _KNOWN_LIMIT:
            self._known.clear()
        self._known[call[:3]] = sums
        return sums

    def _key(self, call: Call) -> _Key:
        kind = call.caller.partition(":")[0]
        pair = (call.provider[:VALUE_LIMIT], call.model[:VALUE_LIMIT])
        if pair not in self._granted:
            if len(self._granted) >= self._limit:
                pair = (OTHER, OTHER)
            else:
                self._granted.add(pair)
        return (*pair, kind if kind in KINDS else OTHER)

    def _high(self, index: int) -> list[tuple[_Key, int]]:
        out = []
        for key, sums in list(self._sums.items()):
            marks = self._marks[key]
            marks[index] = max(marks[index], sums[index])
            out.append((key, marks[index]))
        return out

    def _tokens(self, index: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
        by_caller = self._by_caller(index)

        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for one in by_caller(options):
                yield Observation(one.value, {**(one.attributes or {}), "gen_ai.token.modality": "unknown"})

        return observe

    def _by_caller(self, index: int) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            for (provider, model, kind), value in self._high(index):
                labels = {"gen_ai.provider.name": provider, "gen_ai.response.model": model, "runmeter.caller": kind}
                yield Observation(value, labels)

        return observe

    def _observe_losses(self, options: CallbackOptions) -> Iterable[Observation]:
        for reason, count in list(self._losses.items()):
            yield Observation(count, {"reason": reason})


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
