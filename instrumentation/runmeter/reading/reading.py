"""What one ended span says, free of content, and how a ledger keeps it."""

from __future__ import annotations

import json
from typing import Final, NamedTuple

from runmeter.reading.operations import CHAT
from runmeter.reading.roles import PLAIN, WHOLE
from runmeter.usage import Usage


class Reading(NamedTuple):
    """What one ended span says. Ids are integers, times nanoseconds since the epoch, counts inclusive."""

    trace_id: int
    span_id: int
    parent_id: int | None = None
    parent_is_remote: bool = False
    role: int = PLAIN
    """A `Role`."""
    scope: str = ""
    resource_key: str = ""
    """Equal for spans of one resource (process); opaque."""
    started_at: int = 0
    ended_at: int = 0
    failed: bool = False
    usage: Usage | None = None
    """The five token counts, or None where the span reports none; `calls` and the rest are the Settler's."""
    response_id: str | None = None
    provider: str | None = None
    model: str | None = None
    agent: str | None = None
    """The agent in force here, where the span names one."""
    thread_id: str | None = None
    run_id: str | None = None
    source_id: str | None = None
    user_id: str | None = None
    service: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    caller: str | None = None
    """An explicit caller."""
    cost_nanousd: int | None = None
    """What the instrumentation says the call cost."""
    messages: int | None = None
    retries: int = 0
    """Failed attempts inside the call that left no span of their own."""
    is_run_root: bool = False
    run_status: str | None = None
    stop_reason: str | None = None
    stream_log: bool = False
    """A log-type span with the usage of a stream whose call span ended when the stream began (Logfire)."""
    lone_aggregate: bool = True
    """Usage on this agent or aggregate may count where no call is known below it."""
    rejected: tuple[str, ...] = ()
    """Why something on the span was not taken: `negative`, `too_large`, `malformed`, `unreadable`."""
    tells: int = WHOLE
    """What of a call the span tells: `WHOLE`, `REREAD` or `BEGINNING`."""
    # New fields come last and have a default: what an older runmeter packed is read as well.
    operation: str = CHAT
    """Of a call: the conventions' name of what was asked of the model."""
    request_model: str | None = None
    """The model that was asked for, where the span says that it is that one."""
    error: str | None = None
    """Of a failed call: the kind of error, where the span names it."""
    first_chunk: float | None = None
    """Of a streamed call: seconds until its first chunk came, where the span says so."""

    @property
    def key(self) -> tuple[int, int]:
        """(trace id, span id)."""
        return self.trace_id, self.span_id

    @property
    def matters(self) -> bool:
        """False where the span is nothing but a link between its parent and its children."""
        return self.role != PLAIN or self[10:19] != _BARE[10:19] or self[20:29] != _BARE[20:29] or bool(self.rejected)

    def pack(self) -> str:
        """Everything but defaults as compact text, for a ledger; `unpack` gives an equal reading."""
        if not self.matters:
            return json.dumps((_VERSION, self.trace_id, self.span_id, self.parent_id, int(self.parent_is_remote)))
        pairs = enumerate(zip(self, _BARE, strict=True))
        rest = {index: value for index, (value, bare) in pairs if index > 3 and value != bare}
        return json.dumps(
            (_VERSION, self.trace_id, self.span_id, self.parent_id, int(self.parent_is_remote), rest),
            separators=(",", ":"),
        )

    @classmethod
    def unpack(cls, packed: str | bytes) -> Reading:
        """The reading that was packed. ValueError for text of another version."""
        version, trace_id, span_id, parent_id, remote, *rest = json.loads(packed)
        if version != _VERSION:
            raise ValueError(f"a reading packed as version {version!r}; this runmeter reads version {_VERSION}")
        values = list(_BARE)
        values[:4] = trace_id, span_id, parent_id, bool(remote)
        for index, value in rest[0].items() if rest else ():
            values[int(index)] = value
        reading = cls._make(values)
        return reading._replace(
            usage=None if reading.usage is None else Usage(*reading.usage),
            tags=tuple((key, value) for key, value in reading.tags),
            rejected=tuple(reading.rejected),
        )


_BARE: Final = Reading(0, 0)
_VERSION: Final = 1
