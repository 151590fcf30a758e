"""What model providers say on the wire, in one piece or as a stream.

Four wires: OpenAI chat completions (and embeddings), OpenAI responses, Anthropic messages, Gemini generateContent.
The counts that go in are inclusive, as everywhere in runmeter; each wire states them its own way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from runmeter_exporter.demo.asked import Asked


class Numbers(NamedTuple):
    """Tokens of one answer; cache tokens are part of the input, reasoning part of the output."""

    input_tokens: int
    output_tokens: int
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0


class Answer(NamedTuple):
    """What the provider decided to say."""

    id: str
    model: str
    text: str
    tool: tuple[str, str] | None
    """Name and JSON arguments of a tool call; then the text is empty."""
    numbers: Numbers


Event = tuple[bytes, bool]
"""Bytes to send, and whether they carry the usage."""


def whole(asked: Asked, answer: Answer) -> dict[str, Any]:
    """The answer as one JSON document."""
    return {
        "chat": _chat, "embeddings": _embeddings, "responses": _response, "messages": _message, "gemini": _gemini,
    }[asked.wire](answer)  # fmt: skip


def stream(asked: Asked, answer: Answer) -> Iterator[Event]:
    """The answer as server-sent events."""
    return {
        "chat": _chat_stream, "responses": _response_stream, "messages": _message_stream, "gemini": _gemini_stream,
    }[asked.wire](answer, asked.usage_wanted)  # fmt: skip


def error(asked: Asked, status: int) -> dict[str, Any]:
    """An error body as each provider words it."""
    message = f"the demonstration provider answers {status} because it was told to"
    if asked.wire == "messages":
        return {"type": "error", "error": {"type": "overloaded_error", "message": message}}
    if asked.wire == "gemini":
        return {"error": {"code": status, "message": message, "status": "UNAVAILABLE"}}
    return {"error": {"message": message, "type": "server_error", "param": None, "code": None}}


def _sse(data: Any, event: str | None = None) -> bytes:
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def _words(text: str) -> list[str]:
    return re.findall(r"\S+\s*", text) or [""]


# --- OpenAI chat completions and embeddings


def _chat_usage(n: Numbers) -> dict[str, Any]:
    return {
        "prompt_tokens": n.input_tokens, "completion_tokens": n.output_tokens,
        "total_tokens": n.input_tokens + n.output_tokens,
        "prompt_tokens_details": {"cached_tokens": n.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": n.reasoning_tokens},
    }  # fmt: skip


def _chat_call(a: Answer) -> list[dict[str, Any]] | None:
    if a.tool is None:
        return None
    function = {"name": a.tool[0], "arguments": a.tool[1]}
    return [{"id": f"call_{a.id}", "type": "function", "function": function}]


def _chat(a: Answer) -> dict[str, Any]:
    message = {"role": "assistant", "content": a.text or None, "tool_calls": _chat_call(a)}
    choice = {
        "index": 0, "logprobs": None, "finish_reason": "tool_calls" if a.tool else "stop",
        "message": {k: v for k, v in message.items() if v is not None or k == "content"},
    }  # fmt: skip
    return {
        "id": a.id, "object": "chat.completion", "created": 1_700_000_000, "model": a.model,
        "choices": [choice], "usage": _chat_usage(a.numbers),
    }  # fmt: skip


def _chat_stream(a: Answer, usage: bool) -> Iterator[Event]:
    def chunk(choices: list[Any], **more: Any) -> bytes:
        head = {"id": a.id, "object": "chat.completion.chunk", "created": 1_700_000_000, "model": a.model}
        return _sse({**head, "choices": choices, **more})

    def delta(finish: str | None = None, **fields: Any) -> list[Any]:
        return [{"index": 0, "delta": fields, "finish_reason": finish}]

    yield chunk(delta(role="assistant", content="")), False
    if calls := _chat_call(a):
        yield chunk(delta(tool_calls=[{"index": 0, **calls[0]}])), False
    for word in _words(a.text) if a.text else ():
        yield chunk(delta(content=word)), False
    yield chunk(delta("tool_calls" if a.tool else "stop")), False
    if usage:
        yield chunk([], usage=_chat_usage(a.numbers)), True
    yield _sse("[DONE]"), False


def _embeddings(a: Answer) -> dict[str, Any]:
    count = {"prompt_tokens": a.numbers.input_tokens, "total_tokens": a.numbers.input_tokens}
    data = [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}]
    return {"object": "list", "model": a.model, "data": data, "usage": count}


# --- OpenAI responses


def _response(a: Answer) -> dict[str, Any]:
    n = a.numbers
    return {
        "id": a.id, "object": "response", "created_at": 1_700_000_000, "model": a.model, "status": "completed",
        "output": [_item(a)], "parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "error": None,
        "incomplete_details": None, "instructions": None, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
        "usage": {
            "input_tokens": n.input_tokens, "output_tokens": n.output_tokens,
            "total_tokens": n.input_tokens + n.output_tokens,
            "input_tokens_details": {"cached_tokens": n.cache_read_tokens, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": n.reasoning_tokens},
        },
    }  # fmt: skip


def _item(a: Answer) -> dict[str, Any]:
    if a.tool:
        return {
            "id": f"fc_{a.id}", "type": "function_call", "status": "completed", "call_id": f"call_{a.id}",
            "name": a.tool[0], "arguments": a.tool[1],
        }  # fmt: skip
    part = {"type": "output_text", "text": a.text, "annotations": [], "logprobs": []}
    return {"id": f"msg_{a.id}", "type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _response_stream(a: Answer, _usage: bool) -> Iterator[Event]:
    number = iter(range(10_000))

    def event(kind: str, **fields: Any) -> bytes:
        return _sse({"type": kind, "sequence_number": next(number), **fields}, kind)

    item, done = _item(a), _response(a)
    begun = {**done, "status": "in_progress", "output": [], "usage": None}
    where = {"item_id": item["id"], "output_index": 0}
    yield event("response.created", response=begun), False
    blank: dict[str, Any] = {"arguments": ""} if a.tool else {"content": []}
    empty = {**item, "status": "in_progress", **blank}
    yield event("response.output_item.added", output_index=0, item=empty), False
    if a.tool:
        yield event("response.function_call_arguments.delta", delta=a.tool[1], **where), False
        yield event("response.function_call_arguments.done", arguments=a.tool[1], name=a.tool[0], **where), False
    else:
        where["content_index"] = 0
        part = item["content"][0]
        yield event("response.content_part.added", part={**part, "text": ""}, **where), False
        for word in _words(a.text):
            yield event("response.output_text.delta", delta=word, logprobs=[], **where), False
        yield event("response.output_text.done", text=a.text, logprobs=[], **where), False
        yield event("response.content_part.done", part=part, **where), False
    yield event("response.output_item.done", output_index=0, item=item), False
    yield event("response.completed", response=done), True


# --- Anthropic messages: here cache tokens stand beside the input, not in it


def _message_usage(n: Numbers) -> dict[str, int]:
    return {
        "input_tokens": n.input_tokens - n.cache_read_tokens - n.cache_write_tokens,
        "cache_read_input_tokens": n.cache_read_tokens, "cache_creation_input_tokens": n.cache_write_tokens,
        "output_tokens": n.output_tokens,
    }  # fmt: skip


def _block(a: Answer) -> dict[str, Any]:
    if a.tool:
        return {"type": "tool_use", "id": f"toolu_{a.id}", "name": a.tool[0], "input": json.loads(a.tool[1])}
    return {"type": "text", "text": a.text}


def _message(a: Answer) -> dict[str, Any]:
    return {
        "id": a.id, "type": "message", "role": "assistant", "model": a.model, "content": [_block(a)],
        "stop_reason": "tool_use" if a.tool else "end_turn", "stop_sequence": None, "usage": _message_usage(a.numbers),
    }  # fmt: skip


def _message_stream(a: Answer, _usage: bool) -> Iterator[Event]:
    def event(kind: str, **fields: Any) -> bytes:
        return _sse({"type": kind, **fields}, kind)

    usage = _message_usage(a.numbers)
    begun = {**_message(a), "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    yield event("message_start", message=begun), False
    block = {"type": "text", "text": ""} if not a.tool else {**_block(a), "input": {}}
    yield event("content_block_start", index=0, content_block=block), False
    if a.tool:
        delta = {"type": "input_json_delta", "partial_json": a.tool[1]}
        yield event("content_block_delta", index=0, delta=delta), False
    for word in _words(a.text) if a.text else ():
        yield event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}), False
    yield event("content_block_stop", index=0), False
    ending = {"stop_reason": "tool_use" if a.tool else "end_turn", "stop_sequence": None}
    yield event("message_delta", delta=ending, usage=usage), True
    yield event("message_stop"), False


# --- Gemini: thoughts stand beside the candidates


def _gemini(a: Answer) -> dict[str, Any]:
    n = a.numbers
    part = {"functionCall": {"name": a.tool[0], "args": json.loads(a.tool[1])}} if a.tool else {"text": a.text}
    return {
        "candidates": [{"index": 0, "finishReason": "STOP", "content": {"role": "model", "parts": [part]}}],
        "modelVersion": a.model, "responseId": a.id,
        "usageMetadata": {
            "promptTokenCount": n.input_tokens, "candidatesTokenCount": n.output_tokens - n.reasoning_tokens,
            "thoughtsTokenCount": n.reasoning_tokens, "cachedContentTokenCount": n.cache_read_tokens,
            "totalTokenCount": n.input_tokens + n.output_tokens,
        },
    }  # fmt: skip


def _gemini_stream(a: Answer, _usage: bool) -> Iterator[Event]:
    done = _gemini(a)
    if a.text:
        words = _words(a.text)
        for word in words[:-1]:
            content = {"role": "model", "parts": [{"text": word}]}
            begun = {k: v for k, v in done.items() if k != "usageMetadata"}
            yield _sse({**begun, "candidates": [{"index": 0, "content": content}]}), False
        done["candidates"][0]["content"]["parts"] = [{"text": words[-1]}]
    yield _sse(done), True
