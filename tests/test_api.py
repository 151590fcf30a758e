"""The REST routes over a store: what each answers, and what each refuses."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from hypothesis import given, settings
from hypothesis import strategies as st
from runs_kit import snapshot, usage
from werkzeug.test import TestResponse

from runmeter.usage import Usage
from runmeter_exporter.store import RunStore, open_store
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import CellKey
from runmeter_exporter.web.app import create_app

THREAD_FIELDS = [
    "thread_id", "total_tokens", "total_input_tokens", "total_output_tokens", "total_runs", "by_model", "by_caller",
    "include_active", "llm_call_count", "llm_call_failures", "calls_without_usage", "message_count",
    "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd", "unpriced_tokens", "by_status",
    "active_runs", "lower_bound_runs", "updated_at", "usage",
]  # fmt: skip
RUN_FIELDS = [
    "run_id", "thread_id", "service", "agent", "user_id", "tags", "status", "usage_state", "model_name",
    "total_input_tokens", "total_output_tokens", "total_tokens", "llm_call_count", "lead_agent_tokens",
    "subagent_tokens", "middleware_tokens", "message_count", "llm_call_failures", "calls_without_usage",
    "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd", "unpriced_tokens", "set_aside",
    "stop_reason", "created_at", "updated_at", "ended_at", "usage",
]  # fmt: skip


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    """Every route over a store in memory and one in SQL: what a URL may carry, a database has to take."""
    store = open_store("memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'runs.db'}", create=True)
    yield store
    store.dispose()


@pytest.fixture
def client(store: RunStore) -> FlaskClient:
    return create_app(store).test_client()


def problem(response: TestResponse) -> dict[str, Any]:
    """The problem document of an error; asserts that it is one and agrees with its status."""
    assert response.content_type == "application/problem+json"
    document: dict[str, Any] = json.loads(response.data)
    assert set(document) == {"type", "title", "status", "detail", "instance"}
    assert document["status"] == response.status_code >= 400
    assert document["detail"]
    return document


# Threads


def test_an_empty_thread_has_the_shape_of_a_full_one(client: FlaskClient, store: RunStore) -> None:
    """A thread never seen is a 200 with zeros and every field of the design."""
    empty = client.get("/api/threads/never/token-usage")
    assert empty.status_code == 200
    assert set(empty.json) == set(THREAD_FIELDS)
    assert empty.json["thread_id"] == "never"
    assert empty.json["total_tokens"] == empty.json["total_runs"] == 0
    assert empty.json["by_model"] == {}
    assert empty.json["by_caller"] == {"lead_agent": 0, "subagent": 0, "middleware": 0}
    assert empty.json["cost_usd"] is None
    store.write([snapshot("r", thread_id="full")])
    assert set(client.get("/api/threads/full/token-usage").json) == set(THREAD_FIELDS)


def test_a_thread_adds_up_completed_runs_by_default_and_active_ones_on_request(
    client: FlaskClient, store: RunStore
) -> None:
    """Running runs are left out until include_active asks for them, and are then told apart, too."""
    store.write([snapshot("done"), snapshot("works", status="running")])
    settled = client.get("/api/threads/t/token-usage").json
    assert (settled["total_tokens"], settled["total_runs"], settled["active_runs"]) == (120, 1, 1)
    assert "active" not in settled
    both = client.get("/api/threads/t/token-usage?include_active=true").json
    assert (both["total_tokens"], both["total_runs"], both["active"]["total_tokens"]) == (240, 2, 120)
    assert both["include_active"] is True


@pytest.mark.parametrize(
    ("spellings", "active"),
    [("true True TRUE tRuE 1 yes YES on On t T y Y", True), ("false False FALSE 0 no NO off oFF f F n N", False)],
)
def test_include_active_takes_the_usual_spellings_in_any_case(
    client: FlaskClient, spellings: str, active: bool
) -> None:
    """All that deer-flow's route takes: Python's requests writes True, forms write on, people write yes."""
    for value in spellings.split():
        for path in ("/api/usage", "/api/threads/t/token-usage"):
            assert client.get(f"{path}?include_active={value}").json["include_active"] is active, value


@pytest.mark.parametrize(
    "path",
    [
        "/api/threads/t/token-usage", "/api/threads/t/runs", "/api/threads/t/runs/r", "/api/threads", "/api/runs",
        "/api/runs/r", "/api/usage", "/api/usage/daily",
    ],
)  # fmt: skip
def test_a_parameter_that_the_route_does_not_know_is_ignored(client: FlaskClient, store: RunStore, path: str) -> None:
    """As deer-flow's routes do: clients add a cache buster, or a parameter of a later version, even twice."""
    store.write([snapshot("r", thread_id="t")])
    answer = client.get(f"{path}?_=1&user_ids=x&_=2&tags=")
    assert (answer.status_code, answer.data) == (200, client.get(path).data)


def test_a_pending_run_is_listed_and_not_added(client: FlaskClient, store: RunStore) -> None:
    """include_active adds what runs, as deer-flow does; what has not begun is among the active runs alone."""
    store.write([snapshot("works", status="running"), snapshot("waits", status="pending", usage_by={})])
    for path in ("/api/threads/t/token-usage", "/api/usage"):
        answer = client.get(f"{path}?include_active=true").json
        assert (answer["total_runs"], answer["active_runs"]) == (1, 2)
        assert answer["by_status"] == {"running": {"tokens": 120, "runs": 1}}
        assert answer["by_model"] == {"gpt-5-mini": {"tokens": 120, "runs": 1}}
    assert [run["run_id"] for run in client.get("/api/runs?status=pending").json["runs"]] == ["waits"]


def test_a_run_without_usage_is_of_an_unknown_model(client: FlaskClient, store: RunStore) -> None:
    """So that the runs of by_model add up to total_runs where each used one model at most, as deer-flow has it."""
    store.write([snapshot("used"), snapshot("idle", usage_by={}), snapshot("working", status="running", usage_by={})])
    settled = client.get("/api/threads/t/token-usage").json
    assert settled["by_model"] == {"gpt-5-mini": {"tokens": 120, "runs": 1}, "unknown": {"tokens": 0, "runs": 1}}
    active = client.get("/api/threads/t/token-usage?include_active=true").json
    assert sum(share["runs"] for share in active["by_model"].values()) == active["total_runs"] == 3
    assert active["by_model"]["unknown"]["runs"] == 2


def test_threads_are_listed_with_what_they_burn(client: FlaskClient, store: RunStore) -> None:
    """A thread whose only run still works lists no tokens, and with include_active those it has used."""
    store.write([snapshot("r", status="running")])
    assert client.get("/api/threads").json["threads"][0]["total_tokens"] == 0
    (thread,) = client.get("/api/threads?include_active=yes").json["threads"]
    assert thread == client.get("/api/threads/t/token-usage?include_active=true").json
    assert thread["active"]["total_tokens"] == 120


def test_several_threads_are_answered_at_once_in_the_order_asked(client: FlaskClient, store: RunStore) -> None:
    """Duplicates and unknown ones included."""
    store.write([snapshot("r", thread_id="b")])
    answer = client.post("/api/threads/token-usage:batch", json={"thread_ids": ["a", "b", "a"]})
    assert [(one["thread_id"], one["total_tokens"]) for one in answer.json] == [("a", 0), ("b", 120), ("a", 0)]
    question = {"thread_ids": ["b"], "include_active": True}
    assert client.post("/api/threads/token-usage:batch", json=question).json[0]["include_active"] is True
    assert client.post("/api/threads/token-usage:batch", json={"thread_ids": []}).json == []


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ({}, "thread_ids"),
        ([], "object"),
        ({"thread_ids": "t"}, "array"),
        ({"thread_ids": ["t"] * 101}, "100"),
        ({"thread_ids": ["x" * 4097]}, "4096"),
        ({"thread_ids": [1]}, r"$.thread_ids[0]"),
        ({"thread_ids": [], "include_actve": True}, "include_actve"),
        ({"thread_ids": [], "include_active": "yes"}, "bool"),
    ],
)
def test_a_wrong_batch_question_is_told_where(client: FlaskClient, question: Any, where: str) -> None:
    """The problem names the place and the limit."""
    answer = client.post("/api/threads/token-usage:batch", json=question)
    assert where in problem(answer)["detail"]
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("content", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"thread_ids": ["\\ud800"]}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"thread_ids": [], "x": ' + b"[" * 100_000, "application/json", 400),
        (b'{"thread_ids": []}', "text/plain", 415),
        (b'{"thread_ids": []}', "", 415),
        (b"thread_ids=t", "application/x-www-form-urlencoded", 415),
        (b'{"thread_ids": [' + b'"t",' * 300_000 + b'"t"]}', "application/json", 413),
    ],
)
def test_a_body_that_is_none_is_refused(client: FlaskClient, content: bytes, content_type: str, status: int) -> None:
    """Broken, deep, foreign and oversized bodies each get their status."""
    answer = client.post("/api/threads/token-usage:batch", data=content, headers={"Content-Type": content_type})
    assert problem(answer)["status"] == status


def test_threads_are_listed_by_latest_activity_in_pages(client: FlaskClient, store: RunStore) -> None:
    """Each page goes on where the one before ended, though runs arrive meanwhile; the last has no cursor."""
    store.write([snapshot(f"r{n}", thread_id=f"t{n}", number=n) for n in range(5)])
    first = client.get("/api/threads?limit=2").json
    assert [thread["thread_id"] for thread in first["threads"]] == ["t4", "t3"]
    store.write([snapshot("new", thread_id="new", number=99)])
    second = client.get(f"/api/threads?limit=3&cursor={quote(first['next_cursor'])}").json
    assert [thread["thread_id"] for thread in second["threads"]] == ["t2", "t1", "t0"]
    assert second["next_cursor"] is None


# Runs


def test_a_run_has_every_field_of_the_design(client: FlaskClient, store: RunStore) -> None:
    """With its counters, by caller kind too, in list and detail alike."""
    cells = {
        CellKey("2023-11-14", "openai", "gpt-5-mini", "lead_agent"): usage(100, 20, cache_read_tokens=40),
        CellKey("2023-11-14", "openai", "gpt-5", "subagent:researcher"): usage(10, 5, reasoning_tokens=3),
        CellKey("2023-11-14", "openai", "gpt-5", "middleware:title"): Usage(failures=2),
    }
    store.write([snapshot("r", usage_by=cells, agent="researcher", user_id="u", tags={"team": "x"})])
    run = client.get("/api/runs/r").json
    assert set(run) == set(RUN_FIELDS)
    assert (run["total_tokens"], run["lead_agent_tokens"], run["subagent_tokens"]) == (135, 120, 15)
    assert (run["middleware_tokens"], run["llm_call_count"], run["llm_call_failures"]) == (0, 2, 2)
    assert (run["created_at"], run["tags"]) == ("2023-11-14T22:13:20.000000Z", {"team": "x"})
    assert client.get("/api/runs").json["runs"] == [run]
    assert client.get("/api/threads/t/runs").json["runs"] == [run]
    assert client.get("/api/threads/t/runs/r").json == run


def test_runs_are_filtered(client: FlaskClient, store: RunStore) -> None:
    """By status, thread, service and user, alone and together."""
    store.write(
        [
            snapshot("1", status="running", thread_id="a", number=1),
            snapshot("2", status="error", thread_id="a", service="s", number=2),
            snapshot("3", status="running", thread_id="b", user_id="u", number=3),
        ]
    )

    def ids(query: str) -> list[str]:
        return [run["run_id"] for run in client.get(query).json["runs"]]

    assert ids("/api/runs") == ["3", "2", "1"]
    assert ids("/api/runs?status=running") == ["3", "1"]
    assert ids("/api/runs?status=running&thread_id=a") == ["1"]
    assert ids("/api/runs?service=s") == ["2"]
    assert ids("/api/runs?user_id=u") == ["3"]
    assert ids("/api/threads/a/runs?status=error") == ["2"]
    assert ids("/api/runs?status=pending") == []


def test_runs_are_asked_for_by_what_they_were_for(client: FlaskClient, store: RunStore) -> None:
    """By agent, by a model they used, by tags, by several statuses and by when they began."""
    large = {CellKey("2023-11-14", "openai", "gpt-5", "lead_agent"): usage()}
    store.write(
        [
            snapshot("1", agent="writer", tags={"team": "x", "env": "prod"}, number=1),
            snapshot("2", agent="writer", tags={"team": "x y"}, status="running", number=2, usage_by=large),
            snapshot("3", status="error", tags={"team": "x", "a,b=c": "\"d\""}, number=3, thread_id="u"),
        ]
    )

    def ids(query: str) -> str:
        return "".join(run["run_id"] for run in client.get(f"/api/runs?{query}").json["runs"])

    assert ids("agent=writer") == "21"
    assert ids("model=gpt-5") == "2"
    assert ids("tag.team=x") == "31"
    assert ids("tag.team=x+y&agent=writer") == "2"
    assert ids("tag.team=x&tag.env=prod") == "1"
    assert ids("tag.a%2Cb%3Dc=%22d%22") == "3"
    assert ids("tag.team=y") == ids("tag.env=x") == ""
    assert ids("status=running,error") == ids("status=error&status=running&status=error") == "32"
    assert ids("from=2023-11-14T22:13:22Z") == "32"
    assert ids("from=2023-11-14T23:13:22%2B01:00&to=2023-11-14T23:13:23+01:00") == "2"
    assert ids("from=2023-11-14&to=2023-11-14") == "321"
    assert ids("from=2023-11-15") == ids("to=2023-11-13") == ""
    assert client.get("/api/threads/t/runs?model=gpt-5&order=oldest").json["runs"][0]["run_id"] == "2"


@pytest.mark.parametrize("order", ["newest", "oldest", "tokens", "cost"])
def test_runs_come_in_the_order_asked_page_by_page(client: FlaskClient, store: RunStore, order: str) -> None:
    """Every run once, whichever comes first; a cursor of one order is none of another."""
    key = CellKey("2023-11-14", "openai", "gpt-5", "lead_agent")
    numbers = [3, 0, 2, 2, 4, 1]
    store.write(
        [
            snapshot(f"r{n}", number=n, usage_by={key: usage(tokens, 0, cost_nanousd=10 - tokens)})
            for n, tokens in enumerate(numbers)
        ]
    )
    wanted = {
        "newest": "543210", "oldest": "012345", "tokens": "403251", "cost": "153204",
    }[order]  # fmt: skip
    seen, cursor = "", ""
    while cursor is not None:
        page = client.get(f"/api/runs?order={order}&limit=2" + (f"&cursor={quote(cursor)}" if cursor else "")).json
        seen += "".join(run["run_id"][1:] for run in page["runs"])
        last, cursor = cursor, page["next_cursor"]
    assert seen == wanted
    other = "tokens" if order != "tokens" else "cost"
    assert "cursor" in problem(client.get(f"/api/runs?order={other}&cursor={quote(last)}"))["detail"]


def test_pages_of_runs_are_stable_while_runs_arrive(client: FlaskClient, store: RunStore) -> None:
    """Going through the pages gives every run that was there once, whatever comes in between."""
    store.write([snapshot(f"r{n}", number=n) for n in range(10)])
    seen: list[str] = []
    cursor = ""
    for page in range(4):
        answer = client.get(f"/api/runs?limit=3{cursor}").json
        seen += [run["run_id"] for run in answer["runs"]]
        store.write([snapshot(f"later{page}", number=100 + page)])
        cursor = f"&cursor={quote(answer['next_cursor'] or '')}"
    assert seen == [f"r{n}" for n in reversed(range(10))]


def test_a_run_that_is_not_there_is_404(client: FlaskClient, store: RunStore) -> None:
    """Nor is one of another thread."""
    store.write([snapshot("r", thread_id="t")])
    assert problem(client.get("/api/runs/none"))["status"] == 404
    answer = client.get("/api/threads/other/runs/r")
    assert problem(answer)["instance"] == "/api/threads/other/runs/r"
    assert answer.status_code == 404


def test_a_supervisor_ends_an_active_run_once(client: FlaskClient, store: RunStore) -> None:
    """The answer is the ended run; a second end is refused with 409, as is one of a run that ended by itself."""
    store.write([snapshot("r", status="running")])
    ended = client.post("/api/runs/r/end", json={"status": "timeout", "stop_reason": "budget"})
    assert (ended.status_code, ended.json["status"], ended.json["stop_reason"]) == (200, "timeout", "budget")
    again = client.post("/api/runs/r/end", json={"status": "error"})
    assert again.status_code == 409
    assert "timeout" in problem(again)["detail"]
    assert client.get("/api/runs/r").json["status"] == "timeout"
    assert client.post("/api/runs/none/end", json={"status": "error"}).status_code == 404


@pytest.mark.parametrize(
    "end",
    [{}, {"status": "running"}, {"status": "done"}, {"status": "error", "stop_reason": "x" * 4097}, {"state": "error"}],
)
def test_a_run_ends_only_as_the_design_says(client: FlaskClient, store: RunStore, end: Any) -> None:
    """What is not an end changes nothing."""
    store.write([snapshot("r", status="running")])
    assert problem(client.post("/api/runs/r/end", json=end))["status"] == 400
    assert client.get("/api/runs/r").json["status"] == "running"


# Ids


HOSTILE_IDS = [
    "a/runs/b", "a/token-usage", "/", "//", "a//b", "%", "%2F", "%252F", "100%", "%ff", "a b", "a+b", "?", "#", ":",
    "a?b=c#d", ";", "a;b", "'\"<script>", "\\", "\n", "\x7f", "\u202e", "token-usage:batch", "ä/ö", "日本語", "🙂",
    "x" * 256, "🙂" * 256,
]  # fmt: skip


@pytest.mark.parametrize("identifier", HOSTILE_IDS)
def test_any_id_round_trips_through_the_url(client: FlaskClient, store: RunStore, identifier: str) -> None:
    """As a thread, as a run, as both, in the path and in the query."""
    store.write([snapshot(identifier, thread_id=identifier, status="running")])
    coded = quote(identifier, safe="")
    thread = client.get(f"/api/threads/{coded}/token-usage?include_active=true").json
    assert (thread["thread_id"], thread["total_tokens"]) == (identifier, 120)
    assert client.get(f"/api/runs/{coded}").json["run_id"] == identifier
    assert client.get(f"/api/threads/{coded}/runs").json["runs"][0]["run_id"] == identifier
    assert client.get(f"/api/threads/{coded}/runs/{coded}").json["thread_id"] == identifier
    assert client.get(f"/api/runs?thread_id={coded}").json["runs"][0]["run_id"] == identifier
    assert client.post(f"/api/runs/{coded}/end", json={"status": "success"}).json["status"] == "success"


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=256))
def test_every_id_round_trips(identifier: str) -> None:
    """For any text of 1 to 256 characters, however encoded, the route gives back the thread that was asked for."""
    client = create_app(MemoryRunStore()).test_client()
    coded = quote(identifier, safe="")
    assert client.get(f"/api/threads/{coded}/token-usage").json["thread_id"] == identifier
    everything = "".join(f"%{byte:02x}" for byte in identifier.encode())
    assert client.get(f"/api/threads/{everything}/token-usage").json["thread_id"] == identifier


@pytest.mark.parametrize("path", ["x" * 4097, "%FF%FE", "%C3"])
def test_an_id_that_cannot_be_stored_is_refused(client: FlaskClient, path: str) -> None:
    """Much too long, or not UTF-8: 400, not an answer about another id."""
    coded = quote(path, safe="%")
    assert client.get(f"/api/threads/{coded}/token-usage").status_code == 400
    assert problem(client.get(f"/api/runs/{coded}"))["status"] == 400


@pytest.mark.parametrize("thread_id", ["x" * 333 + "1", "a\0b", "🙂" * 300])
def test_an_id_that_is_not_kept_whole_is_found_by_the_whole(
    client: FlaskClient, store: RunStore, thread_id: str
) -> None:
    """Who asks by the id that he knows gets what was stored under it, and nothing of another id's."""
    store.write([snapshot("one", thread_id=thread_id), snapshot("two", thread_id=thread_id + "2")])
    for asked in (thread_id, thread_id + "2"):
        coded = quote(asked, safe="")
        assert client.get(f"/api/threads/{coded}/token-usage?include_active=true").json["total_tokens"] == 120
        assert len(client.get(f"/api/runs?thread_id={coded}").json["runs"]) == 1


def test_a_path_is_split_before_it_is_decoded(client: FlaskClient, store: RunStore) -> None:
    """An encoded slash belongs to the id, a slash separates; encoded letters of a route are the route."""
    store.write([snapshot("b", thread_id="a"), snapshot("x", thread_id="a/runs/b")])
    assert client.get("/api/threads/a/runs/b").json["run_id"] == "b"
    assert client.get("/api/threads/a%2Fruns%2Fb/runs").json["runs"][0]["run_id"] == "x"
    assert client.get("/%61pi/threads/a/token%2Dusage").json["thread_id"] == "a"
    assert client.post("/api/threads/token-usage%3Abatch", json={"thread_ids": []}).status_code == 200
    for path in (
        "/api%2Fusage",
        "/api//usage",
        "/api/usage/",
        "/api/threads//token-usage",
        "/api/runs/",
    ):
        assert client.get(path).status_code == 404, path


# Queries


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("/api/usage?include_active=maybe", "include_active"),
        ("/api/usage?include_active=2", "include_active"),
        ("/api/usage?include_active=", "include_active"),
        ("/api/usage?include_active=true&include_active=false", "twice"),
        ("/api/usage?include_active=%FF", "UTF-8"),
        ("/api/usage?" + "&".join(f"a{n}" for n in range(40)), "32"),
        ("/api/runs?limit=0", "limit"),
        ("/api/runs?limit=501", "500"),
        ("/api/runs?limit=-1", "limit"),
        ("/api/runs?limit=1.5", "limit"),
        ("/api/runs?limit=" + "9" * 5000, "limit"),
        ("/api/runs?limit=%D9%A1", "limit"),
        ("/api/runs?status=done", "pending, running, success"),
        ("/api/runs?cursor=x", "cursor"),
        ("/api/runs?cursor=" + "x" * 2000, "1024"),
        ("/api/threads?cursor=W10", "cursor"),
        ("/api/threads?cursor=%00", "cursor"),
        ("/api/runs?thread_id=" + "x" * 4097, "4096"),
        ("/api/runs?status=running,done", "done"),
        ("/api/runs?status=", "pending, running, success"),
        ("/api/runs?order=size", "newest, oldest, tokens, cost"),
        ("/api/runs?agent=a&agent=b", "agent is given twice"),
        ("/api/runs?tag.=x", "names no tag"),
        ("/api/runs?tag.a=x&tag.a=y", "tag.a is given twice"),
        ("/api/runs?tag.a=" + "x" * 65, "64"),
        ("/api/runs?" + "&".join(f"tag.{n}=x" for n in range(9)), "9 tags"),
        ("/api/runs?from=yesterday", "from is 'yesterday'"),
        ("/api/runs?to=2024-01-31T12:00:00", "to is"),
        ("/api/runs?from=2024-01-02&to=2024-01-01", "is not before to"),
        ("/api/runs?from=2024-02-30", "from is"),
        ("/api/usage/daily?from=yesterday", "from"),
        ("/api/usage/daily?from=20240101", "from"),
        ("/api/usage/daily?to=2024-02-30", "to"),
        ("/api/usage/daily?from=2024-02-02&to=2024-02-01", "after"),
        ("/api/usage/daily?group_by=hour", "kept by day"),
        ("/api/usage/daily?group_by=thread", "does not tell threads apart"),
        ("/api/usage/daily?group_by=week", "month"),
        ("/api/usage/daily?group_by=", "group_by"),
        ("/api/usage/daily?group_by=tag.", "tag."),
        ("/api/usage/daily?group_by=day,day", "twice"),
        ("/api/usage/daily?group_by=" + ",".join(f"tag.{n}" for n in range(17)), "16"),
        ("/api/usage/daily?format=xml", "json, csv"),
    ],
)
def test_a_wrong_parameter_is_named(client: FlaskClient, path: str, named: str) -> None:
    """Unknown, repeated and malformed parameters are 400, and the problem says which and what would do."""
    answer = client.get(path)
    assert named in problem(answer)["detail"]
    assert answer.status_code == 400


# Totals


def test_grand_totals_have_the_fields_of_a_thread(client: FlaskClient, store: RunStore) -> None:
    """Without thread_id, with the runs that have no thread counted apart."""
    store.write([snapshot("a"), snapshot("b", thread_id=None)])
    answer = client.get("/api/usage").json
    assert set(answer) == set(THREAD_FIELDS) - {"thread_id"} | {"unthreaded_runs"}
    assert (answer["total_tokens"], answer["total_runs"], answer["unthreaded_runs"]) == (240, 2, 1)


def test_daily_usage_is_grouped_and_bounded_by_days(client: FlaskClient, store: RunStore) -> None:
    """Groups in the order asked, tags among them; both days are included."""
    cells = {CellKey(f"2023-11-{day}", "openai", "gpt-5", "lead_agent"): usage(day, 0) for day in (13, 14, 15)}
    store.write([snapshot("r", usage_by=cells, user_id="u", tags={"team": "x"})])
    answer = client.get("/api/usage/daily?from=2023-11-14&to=2023-11-15&group_by=tag.team,day,user_id").json
    assert [(row["tag.team"], row["day"], row["user_id"], row["total_tokens"]) for row in answer] == [
        ("x", "2023-11-14", "u", 14),
        ("x", "2023-11-15", "u", 15),
    ]
    assert [row["total_tokens"] for row in client.get("/api/usage/daily?group_by=model").json] == [42]
    store.write([snapshot("s", usage_by={CellKey("2023-12-01", "openai", "gpt-5", "lead_agent"): usage(1, 0)})])
    months = client.get("/api/usage/daily?group_by=month").json
    assert [(row["month"], row["total_tokens"]) for row in months] == [("2023-11", 42), ("2023-12", 1)]
    both = client.get("/api/usage/daily?group_by=month,day&from=2023-11-15").json
    assert [(row["month"], row["day"]) for row in both] == [("2023-11", "2023-11-15"), ("2023-12", "2023-12-01")]


def test_daily_usage_as_csv_says_the_same_as_json(client: FlaskClient, store: RunStore) -> None:
    """One line per row under a header; what a spreadsheet would run as a formula is made text."""
    store.write([snapshot("r", user_id='=HYPERLINK("http://evil")', service='a,"b"\n'), snapshot("s", user_id=None)])
    query = "/api/usage/daily?group_by=user_id,service"
    rows = client.get(query).json
    answer = client.get(query + "&format=csv")
    assert answer.mimetype == "text/csv"
    assert "attachment" in answer.headers["Content-Disposition"]
    found = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["user_id"] for row in found] == ["", '\'=HYPERLINK("http://evil")']
    for read, row in zip(found, rows, strict=True):
        assert list(read) == list(row)
        assert int(read["total_tokens"]) == row["total_tokens"]
        assert read["service"] == row["service"]
    assert client.get("/api/usage/daily?format=csv&from=2030-01-01").text.split() == ["day"]


def test_money_in_csv_is_decimal(client: FlaskClient, store: RunStore) -> None:
    """To the nano-dollar and without an exponent; nothing where nothing was priced."""
    nanos = {"a": 100_000_000, "b": 1, "c": 3_000_000_000, "d": 1_034_567_890_123_456, "e": 10_000_000_000}
    for user, cost in nanos.items():
        cell = {CellKey("2023-11-14", "openai", "gpt-5", "lead_agent"): usage(cost_nanousd=cost)}
        store.write([snapshot(user, user_id=user, usage_by=cell)])
    unpriced = {CellKey("2023-11-14", "openai", "new", "lead_agent"): usage(unpriced_tokens=120)}
    store.write([snapshot("u", user_id="u", usage_by=unpriced)])
    found = csv.DictReader(io.StringIO(client.get("/api/usage/daily?group_by=user_id&format=csv").text))
    assert [row["cost_usd"] for row in found] == ["0.1", "0.000000001", "3", "1034567.890123456", "10", ""]


def test_an_answer_without_a_bound_is_refused(
    client: FlaskClient, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows of daily usage than one answer holds are a 400 that says how to ask for less, never a cut answer."""
    monkeypatch.setattr("runmeter_exporter.web.api.ROWS_LIMIT", 2)
    cells = {CellKey(f"2023-11-1{day}", "openai", "gpt-5", "lead_agent"): usage() for day in range(3)}
    store.write([snapshot("r", usage_by=cells)])
    assert "3 rows" in problem(client.get("/api/usage/daily"))["detail"]
    assert len(client.get("/api/usage/daily?to=2023-11-11").json) == 2


# ETag


@pytest.mark.parametrize(
    "path",
    ["/api/runs/r", "/api/runs", "/api/threads/t/token-usage?include_active=true", "/api/threads/t/runs", "/api/usage"],
)
def test_what_has_not_changed_is_304(client: FlaskClient, store: RunStore, path: str) -> None:
    """The ETag of an answer spares its repetition until something in it changes."""
    store.write([snapshot("r", status="running")])
    first = client.get(path)
    tag = first.headers["ETag"]
    for sent in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        same = client.get(path, headers={"If-None-Match": sent})
        assert (same.status_code, same.data, same.headers["ETag"]) == (304, b"", tag)
    store.write([snapshot("r", revision=2, usage_by={CellKey("2023-11-14", "p", "m", "lead_agent"): usage(999)})])
    changed = client.get(path, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["ETag"] != tag
