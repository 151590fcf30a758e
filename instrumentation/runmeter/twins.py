"""Two spans of one model call: what makes them so, within a run and across runs.

Two instrumentations of one process (a framework's and its client's) describe the same call. Where the context of one
does not reach the other, the two spans even stand in different traces, and nothing links them but what they say. A
run with such a trace of its own is no run: its calls move to the run that keeps them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, NamedTuple

from runmeter import semconv
from runmeter.call import Reading
from runmeter.dialects import AFTER_THE_FACT, CALL, OWN_IDS, RAW_SUFFIX, WEAK
from runmeter.usage import Usage

SLACK: Final = 3_000_000
"""Nanoseconds by which an inner span may stick out of the outer one: two clocks are read in two libraries."""
STREAM_SLACK: Final = 250_000_000
"""Nanoseconds between the end of a call span and the beginning of the stream that it returned."""


def agree(one: Usage | None, other: Usage | None) -> bool:
    """No contradiction: one does not know, or the input is equal (OpenLLMetry 0.62 adds 1 to the output of a streamed
    Anthropic answer), or the output is and the inputs differ by what was cached (some leave it out)."""
    if one is None or other is None or one[0] == other[0]:
        return True
    return one[1] == other[1] and abs(one[0] - other[0]) in (one[2] + one[3], other[2] + other[3], one[2], other[2])


def models_agree(one: str | None, other: str | None) -> bool:
    """The requested name of a model is the beginning of the name the provider answers with."""
    if one is None or other is None or one == other:
        return True
    one, other = one.rpartition("/")[2], other.rpartition("/")[2]
    return one.startswith(other) or other.startswith(one)


def same_id(one: Reading, other: Reading) -> bool:
    """Two spans with an equal response id speak of one call, if they overlap in time and do not contradict each other.

    Ids are not unique everywhere: Ollama draws `chatcmpl-` and a number under 1,000, and stand-ins for a provider
    answer with one id for ever. No instrumentation writes two spans of one id for one call: those are two calls.
    """
    if one.scope == other.scope:
        return one.scope == semconv.SCOPE  # record_usage(call_id=…): the caller promises that an id is a call
    gap = max(one.started_at, other.started_at) - min(one.ended_at, other.ended_at)
    return gap <= SLACK and agree(one.usage, other.usage)


def inside(one_start: int, one_end: int, other_start: int, other_end: int) -> bool:
    """One lies within the other's time."""
    return (one_start - SLACK <= other_start and other_end <= one_end + SLACK) or (
        other_start - SLACK <= one_start and one_end <= other_end + SLACK
    )


def alike(one: Reading, other: Reading) -> tuple[int, int] | None:
    """How near two spans of different runs come to being one call, as (kind, nanoseconds), the lowest the nearest; None
    where they are two calls. What says more goes before what says less: a response id, equal usage, a stream's log of
    the call that returned it, usage of a stream that broke off, a client's span that says nothing.
    """
    if one.resource_key != other.resource_key:
        return None
    apart = abs(one.started_at - other.started_at) + abs(one.ended_at - other.ended_at)
    if one.response_id is not None and other.response_id is not None:
        return (_BY_ID, apart) if one.response_id == other.response_id and same_id(one, other) else None
    if not models_agree(one.model, other.model):
        return None
    if one.scope == other.scope:
        if settles(one, other):
            return _BY_LOG, abs(one.started_at - other.ended_at)
        return (_BY_LOG, abs(other.started_at - one.ended_at)) if settles(other, one) else None
    if (one.usage is None) != (other.usage is None):
        return (_BLANK, abs(one.started_at - other.started_at)) if blank(one, other) or blank(other, one) else None
    kind = _BY_USAGE
    if one.usage is None or other.usage is None:
        if one.failed != other.failed:
            return None
    elif one.usage[:2] != other.usage[:2]:
        if not broke_off(one.usage[0], one.usage[1], other.usage[0], other.usage[1]):
            return None
        kind = _BROKE_OFF
    near = together(
        (one.started_at, one.ended_at),
        (other.started_at, other.ended_at),
        used=one.usage is not None,
        logged=one.stream_log or other.stream_log,
    )
    return (kind, apart) if near else None


_BY_ID, _BY_USAGE, _BY_LOG, _BROKE_OFF, _BLANK = range(5)


def broke_off(one_in: int, one_out: int, other_in: int, other_out: int) -> bool:
    """One stopped counting where the stream stopped: Anthropic states the input, and one token of output or none, when
    a stream begins."""
    return one_in == other_in and min(one_out, other_out) <= 1


def together(one: tuple[int, int], other: tuple[int, int], *, used: bool, logged: bool) -> bool:
    """Two spans (begin, end) with equal words lie as those of one call do: one inside the other's time. Where the words
    are usage (`used`), which two calls seldom share, lying side by side will do: LangChain calls its handlers one after
    the other, at the beginning and at the end, and a long history keeps each of them for milliseconds. And a stream's
    log (`logged`) is written when the reader has had the last chunk, later than the last chunk came.
    """
    if inside(*one, *other):
        return True
    shared = min(one[1], other[1]) - max(one[0], other[0])
    if logged:
        return shared >= -STREAM_SLACK
    return used and shared > 0 and 2 * shared >= max(one[1] - one[0], other[1] - other[0])


SAME: Final = 1
INNER: Final = 2
OUTER: Final = 3


def nested(inner: Reading, outer: Reading) -> int:
    """A call span directly under a call span of another instrumentation: SAME call, or one of them (the INNER, the
    OUTER) only repeats the other without usage; 0 where they are two calls.

    A failed attempt under a call that succeeded is an attempt of its own.
    """
    if inner.scope == outer.scope:
        return 0
    if inner.usage is not None and outer.usage is not None:
        if inner.response_id != outer.response_id and inner.response_id and outer.response_id:
            # Two ids are two calls: the last one of LiteLLM left its attributes on the span around all of them.
            # And where the provider is not OpenAI, the id that it left there is one that it made itself.
            makes_ids = outer.scope in OWN_IDS or inner.scope.endswith(RAW_SUFFIX)
            return SAME if makes_ids and inner.usage[:2] == outer.usage[:2] else 0
        return SAME if agree(inner.usage, outer.usage) else 0
    if inner.usage is None:
        if inner.failed and not outer.failed:
            return 0
        if outer.usage is not None:
            return INNER
    return OUTER


def settles(log: Reading, call: Reading) -> bool:
    """`log` is the usage of the stream that `call` returned (Logfire)."""
    return (
        log.stream_log
        and log.usage is not None
        and not call.stream_log
        and call.usage is None
        and not call.failed
        and log.scope == call.scope
        and abs(log.started_at - call.ended_at) <= STREAM_SLACK
    )


def blank(told: Reading, client: Reading) -> bool:
    """`client` is a client's span, without usage and id, of the call that `told` says more of (LiteLLM's streams)."""
    return (
        told.scope in AFTER_THE_FACT
        and told.usage is not None
        and client.scope not in AFTER_THE_FACT
        and client.usage is None
        and client.response_id is None
        and not client.failed
        and told.started_at - SLACK <= client.started_at <= told.ended_at + SLACK
    )


def twin_keys(reading: Reading) -> tuple[str, ...]:
    """Under which keys twins of this reading are found, at most two: equal text for spans that might be the same call.

    Empty for spans that are no calls. A store keeps them in indexed columns and hands what it finds within a few
    seconds to `alike`.
    """
    if reading.role != CALL and reading.role != WEAK:
        return ()
    place = reading.resource_key
    usage = reading.usage
    key = f"{place}:-" if usage is None else f"{place}:{usage[0]}"
    if usage is not None and (reading.stream_log or reading.scope in AFTER_THE_FACT):
        return key, f"{place}:-"
    if reading.response_id is not None:
        return key, f"{place}={reading.response_id}"
    return (key,)


def _nearer(rival: Reading, other: Reading, apart: tuple[int, int]) -> bool:
    """What the rival has to do with `other` is as plain as what was just found."""
    known = alike(rival, other)
    return known is not None and known[0] <= apart[0]


class RunFacts(NamedTuple):
    """What decides which of two runs keeps a call that both have."""

    run_id: str
    explicit: bool
    """Begun with `runmeter.run`, not inferred from a trace."""
    named: bool
    """Has a thread or an agent."""
    started_at: int
    ended_at: int


def keeper(one: RunFacts, other: RunFacts) -> RunFacts:
    """The run that keeps a call: explicit before implicit, then the one with a thread or an agent, then the outer one
    in time, then the lower id."""
    return min(one, other, key=lambda run: (not run.explicit, not run.named, run.started_at, -run.ended_at, run.run_id))


class TwinIndex:
    """Recent calls of this process by `twin_keys`, bounded: finds the twin of a call in another run.

    Not thread-safe; the processor holds its lock. `run` is any hashable handle of the caller's.
    """

    def __init__(self, *, limit: int = 4096, per_key: int = 16) -> None:
        self._limit = limit
        self._per_key = per_key
        self._keys: OrderedDict[str, list[tuple[Hashable, Reading]]] = OrderedDict()

    def find(self, run: Hashable, reading: Reading) -> tuple[Hashable, Reading] | None:
        """(run, reading) of the nearest twin in another run, or None. What has its twin of this instrumentation already
        is nobody else's, and what has a twin at home looks for none elsewhere, unless they share a response id."""
        found = self.find_all(run, reading)
        return found[0] if found else None

    def find_all(self, run: Hashable, reading: Reading) -> list[tuple[Hashable, Reading]]:
        """The nearest twin in another run, as `find`, and what else that run has of the same call: where one moves, all
        of them must."""
        best: tuple[int, int] | None = None
        home: tuple[int, int] | None = None
        twin: tuple[Hashable, Reading] | None = None
        near: list[tuple[tuple[int, int], Hashable, Reading]] = []
        for key in twin_keys(reading):
            entries = self._keys.get(key, ())
            for other_run, other in entries:
                apart = alike(reading, other)
                if apart is None:
                    continue
                if other_run == run:
                    home = apart if home is None else min(home, apart)
                    continue
                near.append((apart, other_run, other))
                if apart[0] != _BY_ID:
                    rivals = (known for of, known in entries if of == other_run and known.scope == reading.scope)
                    if any(known is not other and _nearer(known, other, apart) for known in rivals):
                        continue
                if best is None or apart < best:
                    best, twin = apart, (other_run, other)
        if best is None or twin is None or (best[0] != _BY_ID and home is not None and home[0] <= best[0]):
            return []
        rest = [entry for entry in near if entry[1] == twin[0] and entry[2] is not twin[1]]
        return [twin, *((of, known) for _, of, known in rest if self._with(twin[1], known, reading))]

    def _with(self, twin: Reading, known: Reading, reading: Reading) -> bool:
        """`known` speaks of the same call as `twin`, which `reading` found."""
        return known.key != twin.key and known.scope != twin.scope and alike(twin, known) is not None

    def add(self, run: Hashable, reading: Reading) -> None:
        """Remember a call. The oldest are forgotten beyond the limit."""
        for key in twin_keys(reading):
            entries = self._keys.get(key)
            if entries is None:
                self._keys[key] = [(run, reading)]
                if len(self._keys) > self._limit:
                    self._keys.popitem(last=False)
            else:
                entries.append((run, reading))
                if len(entries) > self._per_key:
                    del entries[0]
                self._keys.move_to_end(key)

    def moved(self, reading: Reading, run: Hashable) -> None:
        """The reading belongs to `run` from now on."""
        for key in twin_keys(reading):
            entries = self._keys.get(key, [])
            entries[:] = [(run if known.key == reading.key else of, known) for of, known in entries]

    def forget(self, run: Hashable) -> None:
        """The run is over and settled; nothing of it is moved any more."""
        for key in [key for key, entries in self._keys.items() if any(of == run for of, _ in entries)]:
            entries = [entry for entry in self._keys[key] if entry[0] != run]
            if entries:
                self._keys[key] = entries
            else:
                del self._keys[key]
