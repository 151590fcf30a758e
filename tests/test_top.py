"""`runmeter top`: burn rates from successive looks, what burns most first."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from runmeter_exporter.console import top

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def run(run_id: str, tokens: int, cost: float | None = None, seconds: int = 90) -> dict[str, Any]:
    created = (NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    return {
        "run_id": run_id, "thread_id": "t", "agent": "a", "service": "s", "model_name": "m", "status": "running",
        "created_at": created, "llm_call_count": 3, "total_tokens": tokens, "cost_usd": cost,
        "lead_agent_tokens": tokens // 2, "subagent_tokens": tokens // 4, "middleware_tokens": 0,
    }  # fmt: skip


def look(at: float, *runs: dict[str, Any]) -> top.Look:
    return top.Look(at, {one["run_id"]: one for one in runs}, False)


def test_burn_rates_come_from_the_growth_between_looks() -> None:
    """500 tokens and a tenth of a dollar in ten seconds are 50 tokens/s and 36 USD/h; age is since the run began."""
    [line] = top.lines([look(0, run("r", 100, 0.2)), look(10, run("r", 600, 0.3))], NOW)
    assert line.tokens_per_second == 50
    assert line.usd_per_hour == pytest.approx(36)
    assert line.age_seconds == 90


def test_a_run_seen_once_has_no_rate_yet_and_an_unpriced_one_no_cost() -> None:
    """Nothing is made up: no growth is known from one look, and unknown prices are not zero."""
    [line] = top.lines([look(0, run("r", 100))], NOW)
    assert (line.tokens_per_second, line.cost_usd, line.usd_per_hour) == (0, None, None)


def test_a_run_that_ended_leaves_and_one_that_came_is_measured_from_its_first_look() -> None:
    """Only the latest look's runs are shown."""
    shown = top.lines([look(0, run("gone", 9)), look(5, run("new", 100)), look(10, run("new", 200))], NOW)
    assert [(line.run_id, line.tokens_per_second) for line in shown] == [("new", 20)]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_what_burns_most_comes_first_and_no_rate_is_negative(counts: list[tuple[int, int]]) -> None:
    """Sorted by burn whatever came; tokens that a recognised repeat took back do not make a negative rate."""
    before = look(0, *[run(str(i), a) for i, (a, _) in enumerate(counts)])
    after = look(1, *[run(str(i), b) for i, (_, b) in enumerate(counts)])
    rates = [line.tokens_per_second for line in top.lines([before, after], NOW)]
    assert rates == sorted((max(0.0, b - a) for a, b in counts), reverse=True)


def test_the_table_shows_the_first_rows_and_the_sum_of_all() -> None:
    """Rows that do not fit are counted, and the last line adds up every run."""
    shown = top.lines([look(0, run("a", 1000, 1.0), run("b", 500, None))], NOW)
    out = Console(file=io.StringIO(), width=160)
    out.print(top.table(shown, rows=1, note="note"))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert "2 active" in text
    assert "1 more not shown" in text
    assert "1,500" in text
    assert "500" in text
    assert "$1.0000" in text
    assert "50%" in text
    assert "\nb " not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (190, "3m10s"), (7500, "2h05m"), (273600, "3d04h")]
)
def test_ages_are_short(seconds: float, text: str) -> None:
    """Two units at most."""
    assert top.age(seconds) == text


class FakeSidecar(ThreadingHTTPServer):
    daemon_threads = True
    pages: Mapping[str, dict[str, Any]]
    status = 200
    tokens: list[str | None]


class Answers(BaseHTTPRequestHandler):
    server: FakeSidecar

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        key = query["status"][0] + query.get("cursor", [""])[0]
        self.server.tokens.append(self.headers.get("Authorization"))
        body = json.dumps(self.server.pages.get(key, {"runs": [], "next_cursor": None})).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def sidecar() -> Iterator[FakeSidecar]:
    server = FakeSidecar(("127.0.0.1", 0), Answers)
    server.pages, server.tokens = {}, []
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: FakeSidecar) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_every_page_of_active_runs_is_read_with_the_token(sidecar: FakeSidecar) -> None:
    """Running and pending, page after page, each request with the bearer token."""
    sidecar.pages = {
        "running": {"runs": [run("a", 1)], "next_cursor": "two"},
        "runningtwo": {"runs": [run("b", 1)], "next_cursor": None},
        "pending": {"runs": [run("c", 0)], "next_cursor": None},
    }
    found, more = top.fetch(url(sidecar), "secret")
    assert (set(found), more) == ({"a", "b", "c"}, False)
    assert set(sidecar.tokens) == {"Bearer secret"}


def test_reading_is_bounded_and_says_that_there_is_more(sidecar: FakeSidecar) -> None:
    """A sidecar with endless pages is read for a few and no further."""
    sidecar.pages = {"running": {"runs": [], "next_cursor": "x"}, "runningx": {"runs": [], "next_cursor": "x"}}
    assert top.fetch(url(sidecar), None)[1] is True
    assert len(sidecar.tokens) == top.PAGES + 1


def test_a_sidecar_that_goes_away_leaves_the_last_numbers_and_a_sentence(sidecar: FakeSidecar) -> None:
    """The problem is shown beside what is known, and goes when the sidecar is back."""
    clock = iter(range(100))
    watch = top.Watch(url(sidecar), None, clock=lambda: float(next(clock)))
    sidecar.pages = {"running": {"runs": [run("a", 5)], "next_cursor": None}}
    assert [line.run_id for line in watch.look()] == ["a"]
    sidecar.status = 401
    assert [line.run_id for line in watch.look()] == ["a"]
    assert "RUNMETER_READ_TOKEN" in (watch.problem or "")
    sidecar.status = 200
    watch.look()
    assert watch.problem is None


def test_the_window_is_bounded(sidecar: FakeSidecar) -> None:
    """Rates look back some seconds, not to the start."""
    clock = iter(range(0, 1000, 5))
    watch = top.Watch(url(sidecar), None, clock=lambda: float(next(clock)))
    for tokens in (0, 1000, 1000, 1000, 1000, 1000, 1000):
        sidecar.pages = {"running": {"runs": [run("a", tokens)], "next_cursor": None}}
        shown = watch.look()
    assert shown[0].tokens_per_second == 0
