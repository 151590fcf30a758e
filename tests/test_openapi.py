"""/openapi.json against what is served: schemathesis asks a real server everything that the document allows."""

from __future__ import annotations

import re
from collections.abc import Iterator

import jsonschema_rs
import pytest
import schemathesis
from http_kit import ask, serving
from hypothesis import HealthCheck, settings
from runs_kit import snapshot, usage
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from runmeter.usage import Usage
from runmeter_exporter.http.server import Server
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.questions import boolean
from runmeter_exporter.totals.run import CellKey
from runmeter_exporter.web import openapi
from runmeter_exporter.web.app import create_app

contract = schemathesis.openapi.from_dict(openapi.document())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Over runs of every kind, some with the ids that schemathesis is told of."""
    store = MemoryRunStore()
    statuses = ("pending", "running", "success", "error", "timeout", "interrupted")
    store.write([snapshot(f"run {status}", status=status, number=n) for n, status in enumerate(statuses)])
    cells = {
        CellKey("2023-11-14", "openai", "gpt-5", "subagent:a"): usage(cost_nanousd=5 * 10**6),
        CellKey("2023-11-15", "anthropic", "claude", "middleware:b"): Usage(failures=1),
    }
    store.write([snapshot("r", thread_id="t", usage_by=cells, tags={"team": "x"}, user_id="u", agent="a")])
    store.write([snapshot("adrift", thread_id=None, service=None, set_aside={"repeat": 3})])
    with serving(create_app(store, scraper=Scraper(store))) as served:
        yield served


UNSAID = re.compile(
    "is not one that was given out|from .* is (after|not before) to|names something twice|it is a UTC day such as"
)
"""Rules that JSON Schema cannot say: what they refuse is allowed by the document."""


@contract.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_server_keeps_its_contract(case: schemathesis.Case, server: Server) -> None:
    """What the document allows is answered in the shape it says, what it forbids is refused, and nothing is a 5xx."""
    answer = case.call(base_url=server.url)
    excluded = []
    if answer.status_code == 400 and UNSAID.search(answer.json()["detail"]):
        excluded = [positive_data_acceptance]
    elif boolean(str((case.query or {}).get("include_active", "")) or "no") is not None:
        # A boolean in the document, of which more spellings are taken than JSON has.
        excluded = [negative_data_rejection]
    case.validate_response(answer, excluded_checks=excluded)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/api/runs/r", "Run"),
        ("/api/runs?limit=3", "RunPage"),
        ("/api/threads/t/token-usage?include_active=true", "ThreadUsage"),
        ("/api/threads?limit=1", "ThreadPage"),
        ("/api/usage", "GrandUsage"),
    ],
)
def test_answers_full_of_numbers_have_the_described_shape(server: Server, path: str, shape: str) -> None:
    """The shapes hold for answers that are not empty, too, with every field they require and no other."""
    schema = {**openapi.schemas()[shape], "components": {"schemas": openapi.schemas()}}
    answer = ask(server, path)
    assert answer.status == 200
    jsonschema_rs.validator_for(schema).validate(answer.json)


def test_the_document_that_is_served_is_the_one_that_is_tested(server: Server) -> None:
    """/openapi.json, with an ETag, and only what this server has: no scrape, no token, where there is none."""
    answer = ask(server, "/openapi.json")
    assert answer.json == openapi.document(metrics=True, server="http://localhost")
    with serving(create_app(MemoryRunStore(), read_token="t")) as other:
        document = ask(other, "/openapi.json", headers={"Authorization": "Bearer t"}).json
    assert "/metrics" not in document["paths"]
    assert document["security"] == [{"token": []}]


def test_every_route_is_described() -> None:
    """No route is served that the document does not name, but the page's own files."""
    app = create_app(MemoryRunStore(), scraper=Scraper(MemoryRunStore()))
    served = {re.sub(r"<(?:id:)?(\w+)>", r"{\1}", rule.rule) for rule in app.url_map.iter_rules()}
    assert served - {"/", "/about.json", "/page.js", "/page.css", "/icon.svg"} == set(openapi.document()["paths"])
