"""Whether two readings are one model call: the one place that says so, within a run, across runs, at both doors.

Two instrumentations of one process (a framework's and its client's) describe the same call. Where the context of one
does not reach the other, the two spans even stand in different traces, and nothing links them but what they say
(`alike`). A run with such a trace of its own is no run: its calls move to the run that keeps them (`keeper`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from runmeter.reading import semconv
from runmeter.reading.libraries import AFTER_THE_FACT, OWN_IDS, RAW_SUFFIX, WRAPS_ITSELF
from runmeter.reading.read import Reading
from runmeter.reading.roles import BEGINNING, CALL, REREAD, WEAK, WHOLE
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
    answer with one id for ever. No instrumentation writes two spans of one id for one call: those are two calls. But
    an answer that is read again is the call that gave it, and two spans that begin in the same nanosecond are the two
    that OpenLLMetry 0.62 makes of a response in the background.
    """
    if one.tells == REREAD or other.tells == REREAD:
        return agree(one.usage, other.usage)
    if one.scope == other.scope:
        if one.scope == semconv.SCOPE:
            return True  # record_usage(call_id=…): the caller promises that an id is a call
        return one.started_at == other.started_at and agree(one.usage, other.usage)
    gap = max(one.started_at, other.started_at) - min(one.ended_at, other.ended_at)
    return gap <= SLACK and agree(one.usage, other.usage)


def inside(one_start: int, one_end: int, other_start: int, other_end: int) -> bool:
    """One lies within the other's time."""
    return (one_start - SLACK <= other_start and other_end <= one_end + SLACK) or (
        other_start - SLACK <= one_start and one_end <= other_end + SLACK
    )


Likeness = tuple[int, int]
"""(kind, nanoseconds apart): the lowest is the nearest."""
BY_ID, BY_USAGE, BY_LOG, BROKE_OFF, BLANK = range(5)
"""Kinds of likeness. What says more goes before what says less: a response id, equal usage, a stream's log of the call
that returned it, usage of a stream that broke off, a client's span that says nothing."""


def alike(one: Reading, other: Reading) -> Likeness | None:
    """How near two spans that nothing links come to being one call; None where they are two calls."""
    if one.resource_key != other.resource_key:
        return None
    apart = abs(one.started_at - other.started_at) + abs(one.ended_at - other.ended_at)
    if one.response_id is not None and other.response_id is not None:
        return (BY_ID, apart) if one.response_id == other.response_id and same_id(one, other) else None
    if not models_agree(one.model, other.model):
        return None
    if one.scope == other.scope:
        if settles(one, other):
            return BY_LOG, abs(one.started_at - other.ended_at)
        return (BY_LOG, abs(other.started_at - one.ended_at)) if settles(other, one) else None
    if begins(one, other) or begins(other, one):
        return (BLANK if one.usage is None or other.usage is None else BY_USAGE), abs(one.started_at - other.started_at)
    if (one.usage is None) != (other.usage is None):
        return (BLANK, abs(one.started_at - other.started_at)) if blank(one, other) or blank(other, one) else None
    kind = BY_USAGE
    if one.usage is None or other.usage is None:
        if one.failed != other.failed:
            return None
    elif one.usage[:2] != other.usage[:2]:
        if not broke_off(one.usage[0], one.usage[1], other.usage[0], other.usage[1]):
            return None
        kind = BROKE_OFF
    near = together(
        (one.started_at, one.ended_at),
        (other.started_at, other.ended_at),
        used=one.usage is not None,
        logged=one.stream_log or other.stream_log,
    )
    return (kind, apart) if near else None


def alike_from_afar(one: Reading, other: Reading) -> Likeness | None:
    """The same of spans in two runs. There a stream that says nothing yet is no call that says its usage and no id: any
    that began soon after would do, and which of them comes first is chance."""
    told, silent = (one, other) if other.usage is None else (other, one)
    if told.usage is not None and silent.usage is None and silent.tells == BEGINNING and _known_by_time(told):
        return None
    return alike(one, other)


def _known_by_time(told: Reading) -> bool:
    return told.response_id is None and not told.stream_log and told.scope not in AFTER_THE_FACT


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
    if inner.scope == outer.scope and inner.scope not in WRAPS_ITSELF:
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
    """`client` is a client's span, without usage, of the call that `told` says more of: LiteLLM's streams, and those of
    any instrumentation that drops the usage of streams while another, which writes no ids, is at work as well: of one
    model, at one time. (What has an id is found by it, and by nothing that has none.)"""
    if told.usage is None or client.usage is not None or client.failed or client.scope in AFTER_THE_FACT:
        return False
    if told.response_id is None and told.model and client.model and not told.stream_log and told.tells == WHOLE:
        times = (told.started_at, told.ended_at), (client.started_at, client.ended_at)
        if together(*times, used=True, logged=False):
            return True
    if client.response_id is not None:
        return False
    if told.scope in AFTER_THE_FACT:
        return told.started_at - SLACK <= client.started_at <= told.ended_at + SLACK
    # A hook and LiteLLM's own callback were given the same times for the call.
    return told_again(told) is not None and told_again(told) == told_again(client)


def told_again(reading: Reading) -> str | None:
    """Under which key the spans of a call are found that several callbacks of LiteLLM made of it afterwards: it tells
    all of them the same times, to the microsecond, and of a stream some of them nothing else."""
    if reading.scope == semconv.SCOPE or (reading.scope.endswith(RAW_SUFFIX) and reading.usage is None):
        return f"{reading.resource_key}@{reading.started_at}-{reading.ended_at}"
    return None


def begins(stream: Reading, client: Reading) -> bool:
    """`stream` ended when it returned the stream of the call that `client` tells of, which began when it was read."""
    return (
        stream.tells == BEGINNING
        and client.tells != BEGINNING
        and stream.started_at - SLACK <= client.started_at <= stream.ended_at + STREAM_SLACK
        and agree(stream.usage, client.usage)
    )


def may_stand_apart(reading: Reading) -> bool:
    """Between it and another span of its call there may be `STREAM_SLACK`, and not only what two clocks differ by."""
    return reading.stream_log or reading.tells != WHOLE or reading.scope == semconv.SCOPE


def may_repeat(reading: Reading) -> bool:
    """It may tell of a call that a span of the same instrumentation tells of in another trace."""
    return (
        reading.stream_log
        or reading.tells == REREAD
        or (reading.usage is None and reading.response_id is not None and not reading.failed)
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
    if usage is not None and (reading.response_id is None or reading.stream_log or reading.scope in AFTER_THE_FACT):
        return key, f"{place}:-"
    if reading.response_id is not None:
        return key, f"{place}={reading.response_id}"
    return (key,)


class RunFacts(NamedTuple):
    """What decides which of two runs keeps a call that both have."""

    run_id: str
    explicit: bool
    """Begun with `runmeter.run`, not inferred from a trace."""
    thread_id: str | None
    agent: str | None
    started_at: int
    ended_at: int


def keeper(one: RunFacts, other: RunFacts) -> RunFacts:
    """The run that keeps a call: explicit before implicit, then the one with a thread or an agent, then the outer one
    in time, then the lower id."""
    return min(one, other, key=_rank)


def _rank(run: RunFacts) -> tuple[bool, bool, int, int, str]:
    nameless = run.thread_id is None and run.agent is None
    return not run.explicit, nameless, run.started_at, -run.ended_at, run.run_id


def may_share(one: RunFacts, other: RunFacts, kind: int) -> bool:
    """Equal numbers at the same time are chance where both runs say that they are something else."""
    if kind == BY_ID:
        return True
    if one.explicit and other.explicit:
        return False
    return one.thread_id is None or other.thread_id is None or one.thread_id == other.thread_id
