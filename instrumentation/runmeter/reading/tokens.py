"""The counts that a span reports, from its attributes or from text in one of them, and when they are none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

from runmeter import clean
from runmeter.clean import count
from runmeter.reading import semconv
from runmeter.reading.libraries import RAW_NAME, RAW_USAGE, Library
from runmeter.reading.plan import EMPTY, Shape
from runmeter.reading.roles import REREAD, WHOLE
from runmeter.usage import COUNT_LIMIT, Usage

_TEXT_LIMIT: Final = 65_536
_STREAMED: Final = ("gen_ai.request.stream", "gen_ai.request.is_stream")
_new: Final[Any] = tuple.__new__
"""Makes a named tuple of a tuple as long as it, in a third of the time that its constructor takes."""

_ASKS: Final = re.compile(r'"(?:model|input|prompt|instructions|messages|conversation|previous_response_id)"\s*:')
"""A request that asks for an answer has one of these."""
_FRAME: Final = 4
"""Tokens that a message of a chat costs beside those of its text, at least; `_FRAME_OF_ALL` come to that once."""
_FRAME_OF_ALL: Final = 3
_ANSWER_ID: Final = re.compile(r'\s*\{\s*"id"\s*:\s*"([^"\\]{1,256})"')

_TEXT_FIELDS: Final[Mapping[str, str]] = {
    "prompt_tokens": "input",
    "input_tokens": "input",
    "prompt_token_count": "input",  # Gemini
    "promptTokenCount": "input",
    "completion_tokens": "output",
    "output_tokens": "output",
    "candidates_token_count": "output",
    "candidatesTokenCount": "output",
    "cached_tokens": "cache_read",  # OpenAI
    "cache_read_input_tokens": "cache_read",  # Anthropic
    "cache_read": "cache_read",  # LangChain
    "cached_content_token_count": "cache_read",
    "cachedContentTokenCount": "cache_read",
    "cache_creation_input_tokens": "cache_write",
    "cache_creation_tokens": "cache_write",  # LiteLLM
    "cache_creation": "cache_write",  # LangChain
    "reasoning_tokens": "reasoning",
    "thinking_tokens": "reasoning",  # Anthropic
    "reasoning": "reasoning",  # LangChain
    "thoughts_token_count": "reasoning",
    "thoughtsTokenCount": "reasoning",
    "inputTokens": "input",  # Genkit
    "outputTokens": "output",
    "cachedContentTokens": "cache_read",
    "thoughtsTokens": "reasoning",
    "totalTokens": "total",
}
"""Names of counts inside a provider's own usage object."""

_PART_FIELDS: Final[Mapping[str, str]] = {
    "cache_read": "cache_read",
    "cached_tokens": "cache_read",
    "cache_creation": "cache_write",
    "cache_write_tokens": "cache_write",
    "reasoning": "reasoning",
    "reasoning_tokens": "reasoning",
}
"""Names of Langfuse's parts of the input and the output that are fields."""

_TEXT_COUNT: Final = re.compile(
    "['\"](" + "|".join(sorted(_TEXT_FIELDS, key=len, reverse=True)) + r")['\"]\s*:\s*(\d{1,13})(?![\d.eE])"
)
"""One count in JSON or repr. A name inside quoted content does not match: JSON escapes the quotes around it."""


def usage_of(
    usual: Sequence[Any],
    shape: Shape,
    dialect: Library,
    name: str,
    attributes: Mapping[str, Any],
    rejected: list[str],
) -> tuple[Usage | None, str | None, str | None]:
    """The inclusive counts, and the model and response id where only a raw answer has them."""
    given_input, given_output, cache_read, cache_write, reasoning = map(count, usual[:5], repeat(rejected))
    excludes_cache = without_cache(shape, dialect, attributes)
    excludes_reasoning = False
    model = response_id = None
    if dialect.texts:
        texts = [text for text in map(attributes.get, dialect.texts) if type(text) is str]
        if name == RAW_NAME:
            text, model, response_id = _raw_answer(attributes)
            texts += text
        if texts:
            found = _counts_in(texts, dialect.usage_begins)
            if dialect.parts:
                found |= _added_up(texts)
            if given_input is None:
                given_input = found.get("input")
                excludes_cache |= "cache_read_input_tokens" in found and "prompt_tokens" not in found
            if given_output is None:
                given_output = found.get("output")
            if not cache_read:
                cache_read = found.get("cache_read")
            if not cache_write:
                cache_write = found.get("cache_write")
            if not reasoning:
                reasoning = found.get("reasoning")
                if "total" in found:
                    excludes_reasoning = found["total"] == sum(filter(None, (given_input, given_output, reasoning)))
                else:
                    excludes_reasoning = dialect.output_excludes_reasoning and (
                        found.get("output", given_output) == given_output
                    )
    if dialect.measured and usual[2] in EMPTY and usual[4] in EMPTY and _guessed(usual[7], dialect, attributes):
        return None, model, response_id
    if dialect.makes_up and _made_up(given_input, dialect, attributes):
        return None, model, response_id
    given = (given_input, given_output, cache_read, cache_write, reasoning)
    return inclusive(given, excludes_cache, excludes_reasoning), model, response_id


def without_cache(shape: Shape, dialect: Library, attributes: Mapping[str, Any]) -> bool:
    """The input is said without what the cache has of it."""
    exclusive = dialect.exclusive_input
    return bool(exclusive and shape.input_key(attributes) in exclusive and dialect.inclusive_with not in attributes)


def inclusive(given: Iterable[int | None], excludes_cache: bool, excludes_reasoning: bool = False) -> Usage | None:
    """The counts (input, output, cache read, cache written, reasoning), each of which may be unknown, as one usage."""
    given_input, given_output, cache_read, cache_write, reasoning = given
    if not given_input and not given_output:
        return None  # a provider never answers with 0 and 0: LiteLLM writes it for "unknown"
    tokens_in, tokens_out = given_input or 0, given_output or 0
    cached, written, thought = cache_read or 0, cache_write or 0, reasoning or 0
    if excludes_cache or cached + written > tokens_in:
        tokens_in = min(tokens_in + cached + written, COUNT_LIMIT)
        written = min(written, tokens_in - cached)
    if excludes_reasoning or thought > tokens_out:
        tokens_out = min(tokens_out + thought, COUNT_LIMIT)
    usage: Usage = _new(Usage, (tokens_in, tokens_out, cached, written, thought, 0, 0, 0, 0, 0, 0))
    return usage


def _guessed(provider: Any, dialect: Library, attributes: Mapping[str, Any]) -> bool:
    """A stream of a call whose counts, without details, are the library's own."""
    if dialect.measured_provider not in (None, provider):
        return False
    return any(attributes.get(key) is True for key in _STREAMED)


def _made_up(given_input: int | None, dialect: Library, attributes: Mapping[str, Any]) -> bool:
    """The counts are the library's own: of images always, of a chat where the prompt has too few to be a provider's."""
    operation = attributes.get(semconv.OPERATION_NAME)
    if operation not in dialect.makes_up:
        return False
    if operation != "chat":
        return True
    said = attributes.get("gen_ai.input.messages")
    messages = said[:_TEXT_LIMIT].count('{"role":') if type(said) is str else 0
    return given_input is not None and given_input < _FRAME * max(1, messages) + _FRAME_OF_ALL


def _counts_in(texts: list[str], begins: str | None) -> dict[str, int]:
    """Counts by field and by the name they had; the first of a field wins."""
    found: dict[str, int] = {}
    for text in texts:
        said = text[-_TEXT_LIMIT:]
        if begins is not None:
            said = said[max(0, said.rfind(begins)) :]
        for word, digits in _TEXT_COUNT.findall(said):
            number = int(digits)
            if number <= COUNT_LIMIT:
                found.setdefault(_TEXT_FIELDS[word], number)
                found.setdefault(word, number)
    return found


_PART: Final = re.compile(r'"(input|output)(?:_(\w{1,64}))?"\s*:\s*(\d{1,13})(?![\d.eE])')


def _added_up(texts: list[str]) -> dict[str, int]:
    """Counts by field where `input` and `output` are what is left of them beside their parts."""
    said = [(side, part, int(digits)) for text in texts for side, part, digits in _PART.findall(text[-_TEXT_LIMIT:])]
    found: dict[str, int] = {}
    for whole in {side for side, part, _ in said if not part}:
        for side, part, number in said:
            if side == whole and not part.startswith("priority") and number <= COUNT_LIMIT:
                found[side] = found.get(side, 0) + number
                field = _PART_FIELDS.get(part)
                if field is not None:
                    found[field] = found.get(field, 0) + number
    return found


def _raw_answer(attributes: Mapping[str, Any]) -> tuple[list[str], str | None, str | None]:
    for key in attributes:
        if type(key) is str and RAW_USAGE.fullmatch(key):
            prefix = key[: -len("usage")]
            text = attributes[key]
            return (
                [text] if type(text) is str else [],
                clean.label(attributes.get(prefix + "model")),
                clean.identifier(attributes.get(prefix + "id")),
            )
    return [], None, None


def answer_of(dialect: Library, name: str, attributes: Mapping[str, Any]) -> tuple[str | None, int]:
    """(response id, what the span tells) of a call to OpenAI's Responses, from the JSON of its answer and request."""
    answer, request = attributes.get(dialect.answer_key or ""), attributes.get(dialect.request_key or "")
    if name != "Response" or type(answer) is not str:
        return None, WHOLE
    found = _ANSWER_ID.match(answer)
    if found is None:
        return None, WHOLE
    rereads = type(request) is str and request.startswith("{") and _ASKS.search(request[:_TEXT_LIMIT]) is None
    return clean.identifier(found[1]), REREAD if rereads else WHOLE
