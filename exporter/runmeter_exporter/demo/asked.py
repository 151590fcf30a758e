"""Requests to model providers understood: four wires in one shape, and the directives in a prompt."""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """One request, whichever wire it came over."""

    wire: str
    """`chat`, `embeddings`, `responses`, `messages` or `gemini`."""
    model: str
    stream: bool
    usage_wanted: bool
    """Whether a streamed answer is to state its usage; OpenAI's chat wire states it only on request."""
    tools: frozenset[str]
    text: str
    """The last thing the user said; directives such as `[[tool look_up {}]]` are read from it."""
    rounds: int
    """Tool rounds answered since then."""


_DIRECTIVE = re.compile(r"\[\[\s*(\w+)\s*(.*?)\s*\]\]", re.S)
_GEMINI = re.compile(r"/models/([^/:]+):(generateContent|streamGenerateContent)$")


def directives(text: str) -> list[tuple[str, str]]:
    """`[[name argument]]` in a prompt, in order: how a test or the demo tells the provider what to do."""
    return _DIRECTIVE.findall(text)


def parse(path: str, body: dict[str, Any]) -> Asked | None:
    """The request in one shape; None for a path that no wire has."""
    path = path.split("?", 1)[0]
    if path.endswith("/chat/completions"):
        wanted = bool((body.get("stream_options") or {}).get("include_usage"))
        names = {t["function"]["name"] for t in body.get("tools") or () if "function" in t}
        return _asked("chat", body, _chat_turns(body.get("messages") or []), names, wanted)
    if path.endswith("/embeddings"):
        return Asked("embeddings", body.get("model", ""), False, True, frozenset(), "", 0)
    if path.endswith("/responses"):
        names = {t["name"] for t in body.get("tools") or () if "name" in t}
        return _asked("responses", body, _responses_turns(body.get("input") or ""), names, True)
    if path.endswith("/messages"):
        names = {t["name"] for t in body.get("tools") or () if "name" in t}
        return _asked("messages", body, _messages_turns(body.get("messages") or []), names, True)
    if match := _GEMINI.search(path):
        names = {f["name"] for t in body.get("tools") or () for f in t.get("functionDeclarations") or ()}
        shaped = {"model": match[1], "stream": match[2] == "streamGenerateContent"}
        return _asked("gemini", shaped, _gemini_turns(body.get("contents") or []), names, True)
    return None


def _asked(wire: str, body: dict[str, Any], turns: list[tuple[str, str]], names: set[str], wanted: bool) -> Asked:
    last = max((i for i, (who, _) in enumerate(turns) if who == "user"), default=-1)
    text = turns[last][1] if last >= 0 else ""
    rounds = sum(who == "call" for who, _ in turns[last + 1 :])
    return Asked(wire, str(body.get("model", "")), bool(body.get("stream")), wanted, frozenset(names), text, rounds)


def _text(content: Any) -> str:
    """The text of a message whose content is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content or () if isinstance(part, dict))


def _chat_turns(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        ("call", "") if m.get("tool_calls") else (m.get("role", ""), _text(m.get("content")))
        for m in messages
    ]


def _responses_turns(given: Any) -> list[tuple[str, str]]:
    if isinstance(given, str):
        return [("user", given)]
    return [
        ("call", "") if i.get("type") == "function_call" else (i.get("role", "result"), _text(i.get("content")))
        for i in given
    ]


def _messages_turns(messages: list[dict[str, Any]]) -> list[tuple[str, str]]:
    turns = []
    for m in messages:
        content = m.get("content")
        kinds = {part.get("type") for part in content} if isinstance(content, list) else set()
        who = "call" if "tool_use" in kinds else "result" if "tool_result" in kinds else m.get("role", "")
        turns.append((who, _text(content)))
    return turns


def _gemini_turns(contents: list[dict[str, Any]]) -> list[tuple[str, str]]:
    turns = []
    for content in contents:
        parts = content.get("parts") or []
        keys = {key for part in parts for key in part}
        who = "call" if "functionCall" in keys else "result" if "functionResponse" in keys else content.get("role")
        turns.append((who or "user", _text(parts)))
    return turns
