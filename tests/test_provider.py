"""The loopback provider, through the real OpenAI client: what it says and what its ledger says are the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import requests

from runmeter_exporter.demo.asked import directives, parse
from runmeter_exporter.demo.provider import Provider

TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture
def client(provider: Provider) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=provider.openai_url, api_key="none") as made:
        yield made


def ask(text: str) -> Any:
    return {"model": "gpt-5-mini", "messages": [{"role": "user", "content": text}]}


def test_an_answer_states_what_the_ledger_holds(provider: Provider, client: openai.OpenAI) -> None:
    """The usage in the body, cached and reasoning tokens included, equals the ledger's entry."""
    usage = client.chat.completions.create(**ask("hello")).usage
    entry = provider.ledger[0]
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (entry.input_tokens, entry.output_tokens) == (1011, 107)
    assert usage.prompt_tokens_details.cached_tokens == entry.cache_read_tokens == 65
    assert usage.completion_tokens_details.reasoning_tokens == entry.reasoning_tokens == 13


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_states_usage_only_on_request(provider: Provider, client: openai.OpenAI, wanted: bool) -> None:
    """`include_usage` decides, and the ledger knows which stream never reported."""
    options: Any = {"stream_options": {"include_usage": True}} if wanted else {}
    chunks = list(client.chat.completions.create(**ask("hello"), stream=True, **options))
    assert [c.usage.prompt_tokens for c in chunks if c.usage] == ([1011] if wanted else [])
    truth = provider.truth()
    assert (truth["calls"], truth["calls_without_usage"]) == (1, int(not wanted))
    assert truth["input_tokens"] == (1011 if wanted else 0)


def test_tool_calls_come_in_order_and_then_text(client: openai.OpenAI) -> None:
    """Each tool round since the user's last words takes the next directive; after the last one comes text."""
    messages: list[Any] = [{"role": "user", "content": '[[tool look_up {"q": "tea"}]] [[tool look_up {"q": "milk"}]]'}]
    asked = []
    for _ in range(3):
        answer = client.chat.completions.create(model="gpt-5-mini", messages=messages, tools=TOOLS).choices[0].message
        if not answer.tool_calls:
            break
        call: Any = answer.tool_calls[0]
        asked.append(call.function.arguments)
        messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": "42"}]
    assert asked == ['{"q": "tea"}', '{"q": "milk"}']
    assert answer.content


def test_a_failure_is_retried_by_the_client_and_entered_twice(provider: Provider, client: openai.OpenAI) -> None:
    """[[fail 429]] fails once; the client's own retry is a second entry."""
    client.chat.completions.create(**ask("[[fail 429]] hello"))
    assert [e.status for e in provider.ledger] == [429, 200]
    assert provider.truth()["failures"] == 1


def test_a_broken_and_an_abandoned_stream_report_nothing(provider: Provider, client: openai.OpenAI) -> None:
    """A stream that breaks off, and one that its reader closes, end before their usage."""
    options: Any = {"stream": True, "stream_options": {"include_usage": True}}
    with pytest.raises(openai.APIConnectionError):
        list(client.chat.completions.create(**ask("[[break]]"), **options))
    with client.chat.completions.create(**ask("[[hold]]"), **options) as abandoned:
        next(iter(abandoned))
    assert [e.reported for e in provider.ledger] == [False, False]


def test_responses_answer_whole_and_streamed(provider: Provider, client: openai.OpenAI) -> None:
    """The responses wire states usage in the last event of a stream."""
    whole = client.responses.create(model="gpt-5-mini", input="hello")
    events = list(client.responses.create(model="gpt-5-mini", input="hello", stream=True))
    last = events[-1]
    assert whole.usage is not None
    assert last.type == "response.completed"
    assert last.response.usage is not None
    assert [whole.usage.input_tokens, last.response.usage.input_tokens] == [e.input_tokens for e in provider.ledger]
    assert last.response.output_text == whole.output_text != ""


def test_anthropic_states_cache_beside_the_input(provider: Provider) -> None:
    """Anthropic's input leaves cached tokens out; together they are the ledger's inclusive input."""
    asked = {"model": "claude-sonnet-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
    usage = requests.post(f"{provider.url}/v1/messages", json=asked, timeout=5).json()["usage"]
    entry = provider.ledger[0]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == entry.input_tokens
    streamed = requests.post(f"{provider.url}/v1/messages", json={**asked, "stream": True}, timeout=5).text
    assert "event: message_stop" in streamed


def test_gemini_states_thoughts_beside_the_candidates(provider: Provider) -> None:
    """Gemini's candidates leave thoughts out; together they are the ledger's inclusive output."""
    asked = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
    url = f"{provider.url}/v1beta/models/gemini-3-flash:generateContent"
    usage = requests.post(url, json=asked, timeout=5).json()["usageMetadata"]
    assert usage["candidatesTokenCount"] + usage["thoughtsTokenCount"] == provider.ledger[0].output_tokens


def test_the_ledger_is_readable_over_http_and_knows_who_asked(provider: Provider, client: openai.OpenAI) -> None:
    """Run, thread and caller come from the demo's headers."""
    client.chat.completions.create(**ask("hello"), extra_headers={"x-demo-run": "r", "x-demo-thread": "t"})
    entry = requests.get(f"{provider.url}/ledger", timeout=5).json()[0]
    assert (entry["run_id"], entry["thread_id"], entry["caller"]) == ("r", "t", None)
    assert provider.truth(thread_id="t")["input_tokens"] == 1011
    assert provider.truth(thread_id="other")["calls"] == 0


def test_requests_of_every_wire_are_read_alike() -> None:
    """The last words of the user and the tool rounds since are found on each wire."""
    wires: list[tuple[str, dict[str, Any]]] = [
        ("/v1/responses", {"input": [{"role": "user", "content": "hi"}, {"type": "function_call"}]}),
        ("/v1/messages", {"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": [{"type": "tool_use"}]},
            {"role": "user", "content": [{"type": "tool_result"}]}]}),
        ("/v1beta/models/g:streamGenerateContent?alt=sse", {"contents": [
            {"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"functionCall": {}}]}]}),
    ]  # fmt: skip
    for path, body in wires:
        asked = parse(path, body)
        assert asked is not None
        assert (asked.text, asked.rounds) == ("hi", 1), path
    assert parse("/v1/nothing", {}) is None
    assert directives("[[tool a {}]] and [[break]]") == [("tool", "a {}"), ("break", "")]
