"""What a total of zero, or one that is too low, comes from, in sentences that say what to do. Pure, over a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_ASK_OPENAI = 'OpenAI reports the usage of a stream only when asked: stream_options={"include_usage": True}'
_ASK_LANGCHAIN = "a streaming ChatOpenAI asks for usage when told so: stream_usage=True"
WITHOUT_USAGE: tuple[tuple[str, str], ...] = (
    ("langchain", _ASK_LANGCHAIN),
    ("langsmith", _ASK_LANGCHAIN),
    ("langgraph", _ASK_LANGCHAIN),
    ("litellm", 'litellm reports the usage of a stream only when asked: stream_options={"include_usage": True}'),
    ("openai", _ASK_OPENAI),
)
"""Part of a scope's name → how its library gets the usage of a call; what a client gives up halfway has none."""
NO_CALLS: tuple[tuple[str, str], ...] = (
    (
        "opentelemetry.instrumentation.genai.openai_agents",
        "it makes no spans of model calls, the one of the client below does: "
        "pip install opentelemetry-instrumentation-genai-openai",
    ),
    ("litellm", "inside a span of yours it makes none of its own: set USE_OTEL_LITELLM_REQUEST_SPAN=true"),
)
"""Beginning of a scope's name → why it may come without calls (versions as of November 2026)."""
REFUSED: Mapping[str, str] = {
    "400": "they are not what they say they are; is the sender's protocol http/protobuf or http/json?",
    "401": 'the sender needs the ingest token: OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer TOKEN"',
    "404": "the path is /v1/traces: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://HOST:4318/v1/traces",
    "413": "send smaller ones: OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "415": "send OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf",
    "421": "name the host that the sender uses: runmeter serve --allowed-host NAME",
}
"""HTTP status of the OTLP door → what to do."""
SEND = (
    "in the agent's process call runmeter.instrument(), or start it with `runmeter exec -- CMD`, with "
    "RUNMETER_DATABASE_URL naming this store; from elsewhere send to `runmeter serve`: "
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://HOST:4318/v1/traces OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
)
INSTRUMENT = (
    "run `runmeter doctor` where the agent runs to see what nothing instruments, or "
    'pip install "runmeter[openai]" (or anthropic, langchain) there'
)

UNSEEN: Mapping[str, str] = {
    "uninstrumented_client": "calls went through a client that nothing instruments, so their runs are lower bounds "
    f"(set aside as uninstrumented_client): {INSTRUMENT}",
    "no_calls_seen": "agents succeeded without one model call being seen, so their runs are lower bounds (set aside as "
    "no_calls_seen): their instrumentation makes no spans of calls, the one of the client below does",
}
"""Reason for setting aside → what it means for whoever wonders about a zero."""


def advice(report: Mapping[str, Any]) -> list[str]:
    """Sentences about a store's report (`doctor.store_report`), none where there is nothing to explain."""
    counts = {(line["what"], line["label"]): line["count"] for line in report["counts"]}
    said = [] if report["llm_call_count"] or report["llm_call_failures"] else [_nothing_counted(report, counts)]
    if said:
        for row in report["scopes"]:
            said += [f"{row['scope']}: {why}" for begins, why in NO_CALLS if row["scope"].startswith(begins)]
    for row in report["scopes"]:
        missing = row["calls_without_usage"]
        if missing:
            why = next((why for part, why in WITHOUT_USAGE if part in row["scope"]), None)
            said.append(
                f"{row['scope']}: {missing} of {row['calls_counted']} calls came without usage, the total is too low"
                + (f"; {why}" if why else "; streams may have to ask for it, and abandoned ones have none")
            )
    said += [why for reason, why in UNSEEN.items() if report.get("set_aside", {}).get(reason)]
    for (what, code), count in sorted(counts.items()):
        if what == "ingest_requests" and code[:1] == "4":
            todo = f": {REFUSED[code]}" if code in REFUSED else ""
            said.append(f"OTLP requests were refused, {count} times with {code}{todo}")
    return said


def _nothing_counted(report: Mapping[str, Any], counts: Mapping[tuple[str, str], int]) -> str:
    scopes: Sequence[Mapping[str, Any]] = report["scopes"]
    active = report["active_runs"]
    if active:
        return f"nothing is settled yet; active runs: {active}, they count when they have closed"
    if scopes:
        names = ", ".join(row["scope"] for row in scopes[:5]) + (", …" if len(scopes) > 5 else "")
        return f"spans came from {names}, but none was a model call or carried usage: {INSTRUMENT}"
    taken = counts.get(("ingest_spans", ""), 0)
    if taken:
        return f"spans came by OTLP ({taken}), but none from an instrumentation of model calls: {INSTRUMENT}"
    if report["runs"]:
        return f"runs came ({report['runs']}), but no span of a model call: {INSTRUMENT}"
    return f"no spans came at all: {SEND}"
