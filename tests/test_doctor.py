"""What became of spans by scope, from both doors into real stores, and what the doctor says of a total of zero."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_requests import post
from test_ingest import NOON, OTHER_TRACE, TRACE, call, price, span
from test_settle import runs

from runmeter.counting.settler import Settler
from runmeter.reading.read import Reading
from runmeter.reading.scopes import COUNTED, SEEN, WITHOUT_USAGE, is_genai
from runmeter_exporter import open_store, scopes
from runmeter_exporter.console.advice import advice
from runmeter_exporter.console.doctor import doctor, store_report
from runmeter_exporter.families import families
from runmeter_exporter.ingest.ingest import Ingest
from runmeter_exporter.store import RunStore
from runmeter_exporter.totals.answers import Scrape
from runmeter_exporter.totals.run import Heartbeat, RunSnapshot

OPENAI, OPENINFERENCE = "opentelemetry.instrumentation.genai.openai", "openinference.instrumentation.langchain"

# Which fate


@settings(max_examples=150, deadline=None)
@given(runs(), runs(), st.sampled_from([8, 1024]), st.data())
def test_every_call_and_every_span_set_aside_has_one_fate(
    readings: list[Reading], later: list[Reading], limit: int, data: st.DataObject
) -> None:
    """Whenever it is asked, whatever is frozen or late: calls counted and reasons add up to what the Settler says."""
    settler = Settler(limit=limit)
    calls = 0
    fates: Counter[str] = Counter()
    for number, one in enumerate([*readings, None, *later]):
        if one is None:
            settler.close()
            settler.close()
        else:
            calls += sum((now is not None) - (was is not None) for was, now in settler.add(one))
        if data.draw(st.booleans(), label=f"asked after {number}"):
            fates.update(of_fates(settler))
    fates.update(of_fates(settler))
    counted = fates.pop(COUNTED, 0) + fates.pop(WITHOUT_USAGE, 0)
    assert (counted, dict(fates)) == (calls, dict(settler.set_aside))


def of_fates(settler: Settler) -> Counter[str]:
    found: Counter[str] = Counter()
    for (fate, _, _), spans in settler.take_fates().items():
        found[fate] += spans
    return found


@pytest.mark.parametrize(
    ("scope", "expected"),
    [(OPENAI, True), ("pydantic-ai", True), ("opentelemetry.instrumentation.anthropic", True), ("ai", True),
     ("opentelemetry.instrumentation.requests", False), ("airflow", False), ("", False)],
)  # fmt: skip
def test_instrumentations_of_models_are_known_by_name(scope: str, expected: bool) -> None:
    """So that their spans are seen even where we can read nothing on them."""
    assert is_genai(scope) is expected


def test_a_source_names_fifty_scopes() -> None:
    """Spans of further ones, hostile names included, are of scope `other`; nothing is lost."""
    labels = scopes.Labels()
    counts: Counter[tuple[str, str]] = Counter()
    for number in range(200):
        counts[scopes.FAMILY, labels.label(SEEN, f"scope-{number}")] += 1
    counts[scopes.FAMILY, labels.label("repeat", "scope-7")] += 1
    rows = {row["scope"]: row for row in scopes.by_scope(counts)}
    assert (len(rows), rows["other"]["spans_seen"]) == (51, 150)
    assert rows["scope-7"]["set_aside"] == {"repeat": 1}
    assert scopes.Labels().label(SEEN, "\0 a b" + "x" * 500) == "seen a b" + "x" * 93
    assert scopes.Labels().label(SEEN, " ") == "seen (no scope)"


def test_scopes_are_no_metric() -> None:
    """Their names are the senders': whatever they choose, the exposition does not grow."""
    shown = families(Scrape(counts={(scopes.FAMILY, "seen x"): 3, ("other_family", "y"): 1}))
    losses = [sample.labels["family"] for metric in shown for sample in metric.samples if "losses" in sample.name]
    assert losses == ["other_family"]


# Door 1, in a process as a host's


def agent(url: str, work: str) -> list[dict[str, Any]]:
    """The scopes of a store to which a process wrote that did this."""
    script = f"""
import runmeter
handle = runmeter.instrument(database_url={url!r}, throttle=0.05)
from opentelemetry.trace import get_tracer
def span(scope, **attributes):
    named = {{key.replace("__", "."): value for key, value in attributes.items()}}
    return get_tracer(scope).start_as_current_span("span", attributes=named)
def call(scope, tokens=10, **more):
    usage = {{"gen_ai__usage__input_tokens": tokens, "gen_ai__usage__output_tokens": 1}} if tokens else {{}}
    said = {{"gen_ai__operation__name": "chat", "gen_ai__request__model": "m", "gen_ai__provider__name": "openai"}}
    return span(scope, **said, **usage, **more)
OPENAI, OPENINFERENCE = {OPENAI!r}, {OPENINFERENCE!r}
{work}
assert handle.shutdown(30)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    report = store_report(url)
    assert "error" not in report, report
    found: list[dict[str, Any]] = report["scopes"]
    return found


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.sqlite"


def row(scope: str, seen: int, counted: int = 0, without: int = 0, **aside: int) -> dict[str, Any]:
    return {
        "scope": scope, "spans_seen": seen, "calls_counted": counted, "calls_without_usage": without,
        "set_aside": aside,
    }  # fmt: skip


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_door_1_tells_what_became_of_spans(sql_url: str) -> None:
    """Calls, repeats of another instrumentation, agents, calls without usage, by scope; plain spans of others not."""
    found = agent(
        sql_url,
        """
with span("my.web.framework", http__route="/"):
    with span(OPENINFERENCE, openinference__span__kind="AGENT"):
        with call(OPENINFERENCE, gen_ai__response__id="a"), call(OPENAI, gen_ai__response__id="a"):
            pass
        with call(OPENAI, tokens=0):
            pass
""",
    )
    assert found == [row(OPENINFERENCE, 2, repeat=1), row(OPENAI, 2, 2, 1)]


def test_a_stream_that_outlives_its_run_has_a_fate_too(url: str) -> None:
    """It is told with the later final."""
    found = agent(
        url,
        """
with runmeter.run():
    with call(OPENAI):
        pass
    asked = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}
    stream = get_tracer(OPENAI).start_span("chat m", attributes=asked)
stream.set_attribute("gen_ai.usage.input_tokens", 7)
stream.end()
""",
    )
    assert found == [row(OPENAI, 2, 2)]


def test_spans_that_say_nothing_to_us_are_seen_where_they_should(url: str) -> None:
    """A dialect that we do not know is no silent zero: its scope is there, and the doctor says so."""
    found = agent(
        url,
        """
with span("my.web.framework", http__route="/"):
    with span("opentelemetry.instrumentation.anthropic", llm__new__tokens=7):
        pass
""",
    )
    assert found == [row("opentelemetry.instrumentation.anthropic", 1)]
    said = store_report(url)["advice"]
    assert len(said) == 1
    assert said[0].startswith("spans came from opentelemetry.instrumentation.anthropic, but none was a model call")


# Door 2, over every store


@pytest.fixture
def ingest_of() -> Iterator[Callable[[RunStore], Ingest]]:
    """`Ingest` over a store; `stop` has told everything."""
    made: list[Ingest] = []

    def making(store: RunStore) -> Ingest:
        made.append(Ingest(store, price=price, now=lambda: NOON))
        return made[-1]

    yield making
    for ingest in made:
        assert ingest.stop()


def told(store: RunStore, *ingests: Ingest) -> list[dict[str, Any]]:
    for ingest in ingests:
        assert ingest.stop()
    return scopes.by_scope(store.scrape().counts)


def test_door_2_tells_what_became_of_spans(store: RunStore, ingest_of: Callable[[RunStore], Ingest]) -> None:
    """Each span is seen once however often it comes, and counted or set aside once its run closes, late ones too."""
    ingest = ingest_of(store)
    agent = span(1, scope=OPENINFERENCE, openinference__span__kind="AGENT")
    outer = call(2, 1, scope=OPENINFERENCE, gen_ai__response__id="a")
    inner = call(3, 2, scope=OPENAI, gen_ai__response__id="a")
    blank = span(4, 1, scope=OPENAI, gen_ai__operation__name="chat", gen_ai__request__model="m")
    for request in (agent, outer, inner, inner, blank, span(5, 1, scope="web"), span(6, 1, scope=OPENAI)):
        post(ingest, request)
    ingest.close_runs([TRACE.hex()])
    ingest.close_runs([TRACE.hex()])
    post(ingest, call(7, 2, scope="litellm", gen_ai__response__id="a"))
    post(ingest, call(8, 1, scope="litellm"))
    assert told(store, ingest) == [
        row(OPENAI, 3, 2, 1),
        row("litellm", 2, 1, late=1),
        row(OPENINFERENCE, 2, repeat=1),
    ]


def test_a_sidecar_that_closes_what_another_took_tells_the_same(
    store: RunStore, ingest_of: Callable[[RunStore], Ingest]
) -> None:
    """It reads the ledger; a call that moved to its twin's run is counted there, once."""
    taker, closer = ingest_of(store), ingest_of(store)
    times = {"at": (10, 12), "trace": OTHER_TRACE, "gen_ai__response__id": "x"}
    post(taker, call(1, scope=OPENAI, at=(10, 12), gen_ai__response__id="x", gen_ai__conversation__id="t"))
    post(taker, call(2, scope="litellm", **times))
    post(taker, call(3, 1, scope=OPENAI))
    closer.close_runs([TRACE.hex(), OTHER_TRACE.hex()])
    post(taker, call(4, 1, scope=OPENAI, gen_ai__response__id="late but new"))
    found = told(store, taker, closer)
    assert {one["scope"]: one["spans_seen"] for one in found} == {OPENAI: 3, "litellm": 1}
    assert sum(one["calls_counted"] for one in found) == store.usage()["llm_call_count"]
    assert sum(sum(one["set_aside"].values()) for one in found) == sum(store.scrape().set_aside.values())


def test_what_a_process_counted_itself_is_recorded(store: RunStore, ingest_of: Callable[[RunStore], Ingest]) -> None:
    """Its spans that come by OTLP as well are seen, and set aside: the columns add up to the calls of the store."""
    told_before = {(scopes.FAMILY, f"{fate} {OPENAI}"): 1 for fate in (SEEN, COUNTED)}
    store.heartbeat([Heartbeat("agent", 1, "svc", told_before)])
    store.write([
        RunSnapshot(
            run_id="r", source="agent", revision=1, final=True, status="success", started_at=NOON,
            updated_at=NOON + 1, ended_at=NOON + 1, usage_by={},
        )
    ])  # fmt: skip
    ingest = ingest_of(store)
    post(ingest, call(1, scope=OPENAI, runmeter__run__id="r", runmeter__source__id="agent"))
    ingest.close_runs(["r"])
    assert told(store, ingest) == [row(OPENAI, 2, 1, recorded=1)]


# In words


def report(**fields: Any) -> Mapping[str, Any]:
    empty = {
        "llm_call_count": 0, "llm_call_failures": 0, "runs": 0, "active_runs": 0, "scopes": [], "counts": [],
    }  # fmt: skip
    return {**empty, **fields}


def count_of(what: str, label: str, count: int) -> dict[str, Any]:
    return {"what": what, "label": label, "count": count}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, ["no spans came at all: .*runmeter exec.*RUNMETER_DATABASE_URL.*OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]),
        ({"counts": [count_of("ingest_spans", "", 7)]}, [r"by OTLP \(7\), but none from an instr.*pip install"]),
        ({"runs": 2}, [r"runs came \(2\), but no span of a model call"]),
        ({"active_runs": 1, "scopes": [row("x", 3)]}, ["nothing is settled yet; active runs: 1"]),
        ({"scopes": [row("litellm", 3)]}, ["from litellm, but none", "litellm: .*USE_OTEL_LITELLM_REQUEST_SPAN=true"]),
        ({"llm_call_count": 3, "scopes": [row(OPENAI, 3, 3)]}, []),
        ({"llm_call_count": 3, "scopes": [row(OPENAI, 3, 3, 2)]}, ["2 of 3 calls came without.*include_usage"]),
        ({"llm_call_count": 1, "scopes": [row("langsmith", 3, 1, 1)]}, ["stream_usage=True"]),
        ({"llm_call_count": 1, "scopes": [row("mine", 3, 1, 1)]}, ["too low; streams may have to ask for it"]),
        (
            {"llm_call_failures": 1, "counts": [count_of("ingest_requests", code, 2) for code in ("200", "401")]},
            ["2 times with 401: .*OTEL_EXPORTER_OTLP_HEADERS"],
        ),
    ],
)  # fmt: skip
def test_a_zero_is_explained(fields: dict[str, Any], says: list[str]) -> None:
    """What did not come, and which switch brings it; nothing where all is well."""
    said = advice(report(**fields))
    assert len(said) == len(says)
    for sentence, pattern in zip(said, says, strict=True):
        assert re.search(pattern, sentence), sentence


def test_the_doctor_prints_scopes_and_advice(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A table for people, the same rows in --json; a scope's name is no command to the terminal."""
    store = open_store(url)
    counts = {(scopes.FAMILY, f"{fate} evil\x1b[2J"): 3 for fate in (SEEN, "repeat")}
    store.heartbeat([Heartbeat("s", 1, None, {**counts, ("spans_rejected", "negative"): 2})])
    store.dispose()
    doctor(url, as_json=False)
    shown = capsys.readouterr().out
    assert re.search(r"scope +spans seen +calls counted +without usage +set aside\n", shown)
    assert re.search(r"evil\S+ +3 +0 +0 +repeat 3\n", shown)
    assert "spans came from evil" in shown
    assert "\x1b[2J" not in shown
    doctor(url, as_json=True)
    found = json.loads(capsys.readouterr().out)["store"]
    assert found["scopes"] == [row("evil\x1b[2J", 3, repeat=3)]
    assert found["counts"] == [count_of("spans_rejected", "negative", 2)]
    assert len(found["advice"]) == 1
