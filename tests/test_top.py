"""`runmeter top`: burn rates from successive looks, numbers whole in any width, a terminal given back as it was."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from sidecar_process import Sidecar
from terminal import Terminal

from runmeter.usage import Usage
from runmeter_exporter import cli, open_store
from runmeter_exporter.console import board, burn, looks, tables, top
from runmeter_exporter.totals.run import CellKey, RunSnapshot

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def run(run_id: str, tokens: int, cost: float | None = None, seconds: float = 90, **fields: Any) -> dict[str, Any]:
    created = (NOW - timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    return {
        "run_id": run_id, "thread_id": "t", "agent": "a", "service": "s", "model_name": "m", "status": "running",
        "created_at": created, "llm_call_count": 3, "total_tokens": tokens, "cost_usd": cost,
        "lead_agent_tokens": tokens // 2, "subagent_tokens": tokens // 4, "middleware_tokens": 0, **fields,
    }  # fmt: skip


def lines(*each: tuple[float, list[dict[str, Any]]]) -> list[burn.Burning]:
    """The lines of the last of these looks."""
    watch, made = burn.Burn(), []
    for at, runs in each:
        made = watch.look(at, NOW, {one["run_id"]: one for one in runs})
    return made


def test_burn_rates_come_from_the_growth_between_looks() -> None:
    """500 tokens and a tenth of a dollar in ten seconds are 50 tokens/s and 36 USD/h; age is since the run began."""
    [line] = lines((0, [run("r", 100, 0.2)]), (10, [run("r", 600, 0.3)]))
    assert line.tokens_per_second == 50
    assert line.usd_per_hour == pytest.approx(36)
    assert line.age_seconds == 90


def test_an_old_run_seen_once_has_no_rate_yet_and_an_unpriced_one_no_cost() -> None:
    """Nothing is made up: no growth is known from one look, and unknown prices are not zero."""
    [line] = lines((0, [run("r", 100)]))
    assert (line.tokens_per_second, line.cost_usd, line.usd_per_hour) == (None, None, None)


def test_a_young_run_has_a_rate_from_its_first_tokens() -> None:
    """All it spent, it spent just now; a run whose clock is ahead of ours is one nothing is known of."""
    [line] = lines((0, [run("r", 500, 0.1, seconds=10)]))
    assert (line.tokens_per_second, line.usd_per_hour) == (50, pytest.approx(36))
    [line] = lines((0, []), (2, [run("r", 500, seconds=0.01)]))
    assert line.tokens_per_second == 500, "over a second at least"
    [line] = lines((0, [run("r", 500, seconds=-3600)]))
    assert line.tokens_per_second is None


def test_a_run_that_ended_leaves_and_one_that_came_is_measured_from_its_first_look() -> None:
    """Only the latest look's runs are shown."""
    shown = lines((0, [run("gone", 9)]), (5, [run("new", 100)]), (10, [run("new", 200)]))
    assert [(line.run_id, line.tokens_per_second) for line in shown] == [("new", 20)]


def test_rates_look_back_some_seconds_and_not_to_the_start() -> None:
    """Whatever the interval; one longer than the window looks back to the look before."""
    assert lines(*[(at, [run("a", min(at, 5) * 200)]) for at in range(0, 40, 5)])[0].tokens_per_second == 0
    assert lines((0, [run("a", 0)]), (60, [run("a", 600)]), (120, [run("a", 660)]))[0].tokens_per_second == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20))
def test_what_burns_most_comes_first_and_no_rate_is_negative(counts: list[tuple[int, int]]) -> None:
    """Sorted by burn whatever came; tokens that a recognised repeat took back do not make a negative rate."""
    shown = lines(
        (0, [run(str(i), a) for i, (a, _) in enumerate(counts)]),
        (1, [run(str(i), b) for i, (_, b) in enumerate(counts)]),
    )
    assert [line.tokens_per_second for line in shown] == sorted((max(0.0, b - a) for a, b in counts), reverse=True)


def test_memory_does_not_grow_with_looks_nor_with_runs_that_ended() -> None:
    """Thousands of looks at ever new runs leave what one look leaves, some hundred bytes of each active run."""
    watch = burn.Burn()

    def looks_at(number: int) -> None:
        for at in range(number):
            runs = [run(f"{at // 3}-{i}", at * 100 + i, 0.1, usage=["x" * 1000]) for i in range(20)]
            watch.look(at * 0.01, NOW, {one["run_id"]: one for one in runs})
        gc.collect()

    looks_at(200)
    tracemalloc.start()
    try:
        looks_at(200)
        before = tracemalloc.get_traced_memory()[0]
        looks_at(3000)
        assert tracemalloc.get_traced_memory()[0] - before < 50_000
    finally:
        tracemalloc.stop()
    assert len(watch._seen) == 20
    assert max(len(seen) for seen in watch._seen.values()) <= burn.WINDOW / burn.SPACING + 3


TEXTS = st.text(max_size=40) | st.sampled_from(["researcher-0-0", "\u65e5\u672c\u8a9e" * 9, "\U0001f600" * 20])
RUNS = st.lists(
    st.builds(
        lambda run_id, thread, agent, tokens, cost, seconds: run(
            run_id, tokens, cost, seconds, thread_id=thread, agent=agent, model_name=agent, llm_call_count=tokens // 7
        ),
        TEXTS, TEXTS | st.none(), TEXTS | st.none(), st.integers(0, 2**40),
        st.none() | st.floats(0, 1e6), st.floats(0, 1e6),
    ),
    max_size=12, unique_by=lambda one: one["run_id"],
)  # fmt: skip
NUMBER = re.compile(r"-|<?\$?[\d,]+(\.\d+)?[kMBT]?%?|<0\.1|(\d+[smhd]){1,2}")


@given(RUNS, st.integers(46, 250), st.integers(1, 12))
def test_in_any_width_no_line_is_wider_and_no_number_is_cut(
    runs: list[dict[str, Any]], width: int, rows: int
) -> None:
    """`$1,4...` is worse than none: cells of numbers are whole, or their column is not there."""
    shown = lines((0, runs), (10, runs))
    text = board.table(shown, width=width, rows=rows)
    assert max(map(cell_len, text)) <= width
    titles = text[0].split()
    assert {"run", "tokens", "tokens/s"} <= set(titles)
    numbers = [title for title in titles if title not in ("run", "thread", "agent", "model")]
    for line in text[1 : 1 + min(rows, len(shown))]:
        for cell in line.split()[-len(numbers) :]:
            assert NUMBER.fullmatch(cell), (cell, line)


def test_names_shrink_and_columns_go_before_any_number_does() -> None:
    """At 200, 120, 80 and 60 columns."""
    runs = [run("0b5f3c1e-1111-4222-8333-944444444444", 12_200_000, 1444.44, thread_id="conversation-" * 4,
                agent="researcher", model_name="claude-sonnet-4-5-20260929")]  # fmt: skip
    at = {width: board.table(lines((0, runs)), width=width, rows=5) for width in (200, 120, 80, 60)}
    assert "claude-sonnet-4-5-20260929" in at[200][1]
    assert "12,200,000" in at[120][1]
    for width in (80, 60):
        assert "12.2M" in at[width][1]
        assert "$1,444.44" in at[width][1]
        assert "USD/h" in at[width][0]
    assert "thread" in at[80][0]
    assert "convers" in at[80][1]


def test_ids_are_shown_as_far_as_it_takes_to_tell_them_apart() -> None:
    """Without an ellipsis: what is shown is what `runmeter run` takes."""
    ids = [f"researcher-with-a-long-name-{i}" for i in range(3)] + ["0b5f3c1e-1111-4222-8333-944444444444"]
    assert board.beginnings(ids, 8) == [*ids[:3], "0b5f3c1e"]
    text = board.table(lines((0, [run(one, 5) for one in ids])), width=80, rows=9)
    assert all(any(line.split()[0] == one for line in text) for one in ids[:3])
    assert not any("\u2026" in line for line in text)


def test_the_table_shows_the_first_rows_and_the_sum_of_all() -> None:
    """Rows that do not fit are counted, and the last line adds up every run."""
    shown = lines((0, [run("a", 1000, 1.0), run("b", 500, None)]))
    text = "\n".join(board.table(shown, width=160, rows=1, note="note"))
    assert "2 active" in text
    assert "1 more not shown  note" in text
    assert "1,500" in text
    assert "$1.0000" in text
    assert "50%" in text
    assert "\nb " not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (0.04, "<0.1"), (3.14159, "3.1"), (9.96, "10"), (1234.5, "1,234"), (123456.7, "123,457")],
)
def test_rates_have_a_sensible_precision(value: float | None, text: str) -> None:
    """A tenth below ten, whole above; unknown is not nothing."""
    assert board.per_second(value) == text


@given(st.integers(0, 2**50))
def test_short_numbers_are_short_and_near(value: int) -> None:
    """At most six characters, within a thousandth... or half of the last digit."""
    text = board.short(value)
    assert len(text) <= 7
    unit = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert abs(float(text.rstrip("kMBT").replace(",", "")) * unit - value) <= unit * 0.051


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59, "59s"), (190, "3m10s"), (7500, "2h05m"), (273600, "3d04h")]
)
def test_ages_are_short(seconds: float, text: str) -> None:
    """Two units at most."""
    assert tables.age(seconds) == text


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
    found, more = looks.fetch(looks.Sidecar(url(sidecar), "secret"))
    assert (set(found), more) == ({"a", "b", "c"}, False)
    assert set(sidecar.tokens) == {"Bearer secret"}


def test_reading_is_bounded_and_says_that_there_is_more(sidecar: FakeSidecar) -> None:
    """A sidecar with endless pages is read for a few and no further."""
    sidecar.pages = {"running": {"runs": [], "next_cursor": "x"}, "runningx": {"runs": [], "next_cursor": "x"}}
    assert looks.fetch(looks.Sidecar(url(sidecar), None))[1] is True
    assert len(sidecar.tokens) == looks.PAGES + 1


def test_a_sidecar_that_goes_away_leaves_the_last_numbers_and_a_sentence(sidecar: FakeSidecar) -> None:
    """The problem is shown beside what is known, and goes when the sidecar is back."""
    clock = iter(range(100))
    watch = looks.Lookout(looks.Sidecar(url(sidecar), None), clock=lambda: float(next(clock)))
    sidecar.pages = {"running": {"runs": [run("a", 5)], "next_cursor": None}}
    assert [line.run_id for line in watch.look()] == ["a"]
    sidecar.status = 401
    assert [line.run_id for line in watch.look()] == ["a"]
    assert "RUNMETER_READ_TOKEN" in (watch.problem or "")
    sidecar.status = 200
    watch.look()
    assert watch.problem is None


SECOND = 10**9


def works(run_id: str, tokens: int, revision: int = 1, **fields: Any) -> RunSnapshot:
    """A run that began half a minute ago and works."""
    now = time.time_ns()
    usage = {CellKey("2026-11-22", "openai", "gpt-5", "lead_agent"): Usage(tokens, 0, calls=1, cost_nanousd=SECOND)}
    return RunSnapshot(run_id=run_id, source="s", revision=revision, status="running", started_at=now - 30 * SECOND,
                       updated_at=now, usage_by=usage, **fields)  # fmt: skip


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """A store with a run that works."""
    url = f"sqlite:///{tmp_path}/store.sqlite"
    store = open_store(url)
    store.write([works("working-run", 1000, thread_id="some-thread")])
    store.dispose()
    return url


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    return int(left.value.code or 0)


def test_top_reads_a_store_without_a_sidecar(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As JSON and as a table; both places at once are one too many."""
    assert call("top", "--database-url", store_url, "--json", "--interval", "500ms") == 0
    [line] = json.loads(capsys.readouterr().out)
    assert (line["run_id"], line["total_tokens"]) == ("working-run", 1000)
    assert call("top", "--database-url", store_url, "--once", "--interval", "500ms") == 0
    assert "working-run" in capsys.readouterr().out
    assert call("top", "--database-url", store_url, "--url", "http://127.0.0.1:1") == 2
    assert call("top", "--database-url", "sqlite:////none-such/store", "--once") == 2
    assert "there is no store at" in capsys.readouterr().err.splitlines()[-1]


def test_where_no_sidecar_answers_the_store_of_this_host_is_read(
    store_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And said; where there is none either, both are named."""
    monkeypatch.setattr(top, "DEFAULT", "http://127.0.0.1:1")
    monkeypatch.delenv("RUNMETER_DATABASE_URL", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "none"))
    with pytest.raises(click.ClickException, match=r"127\.0\.0\.1:1 does not answer .* there is no store at"):
        top.choose(None, None, None)
    assert not (tmp_path / "none").exists()
    monkeypatch.setenv("RUNMETER_DATABASE_URL", store_url)
    place = top.choose(None, None, None)
    place.close()
    assert place.name == f"store {store_url}"
    assert "no sidecar answers at http://127.0.0.1:1; reading store" in capsys.readouterr().err
    assert isinstance(top.choose("http://127.0.0.1:1", None, store_url), looks.Sidecar)


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "runmeter.launch.main", "top", "--interval", "500ms", *options]


def test_on_a_terminal_it_follows_every_size_and_leaves_no_row_behind(store_url: str) -> None:
    """Wider, narrower, lower; each picture is whole, fits, and has nothing of the one before."""
    terminal = Terminal(command("--database-url", store_url), 80, 24)
    try:
        terminal.until(lambda: any("working-" in line for line in terminal.screen), "the run is shown")
        assert (terminal.other_screen, terminal.cursor_shown, terminal.echoes()) == (True, False, False)
        for columns, rows in ((200, 40), (60, 24), (120, 10), (46, 5), (80, 24)):
            terminal.resize(columns, rows)
            terminal.until(terminal.fits, f"a picture of {columns} x {rows}, and nothing else")
            last = terminal.pictures + 2
            terminal.until(lambda last=last: terminal.pictures >= last, "the next one")  # type: ignore[misc]
            terminal.until(lambda: any("working-" in line for line in terminal.screen), "the run is shown")
            assert terminal.fits()
        terminal.type("\x03")
        assert terminal.ended() == 0
        assert (terminal.other_screen, terminal.cursor_shown, terminal.echoes()) == (False, True, True)
        assert not any("working-" in line for line in terminal.plain), "nothing stale is left behind"
    finally:
        terminal.close()


@pytest.mark.parametrize("how", ["q", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_however_it_ends_the_terminal_is_as_it_was(store_url: str, how: str | signal.Signals) -> None:
    """By a key or by a signal."""
    terminal = Terminal(command("--database-url", store_url), 80, 24)
    try:
        terminal.until(lambda: any("working-" in line for line in terminal.screen), "the run is shown")
        terminal.type(how) if isinstance(how, str) and not isinstance(how, signal.Signals) else terminal.signal(how)
        assert terminal.ended() == 0
        assert (terminal.other_screen, terminal.cursor_shown, terminal.echoes()) == (False, True, True)
    finally:
        terminal.close()


def test_ctrl_z_lends_the_terminal_back(store_url: str) -> None:
    """The shell gets its screen; `fg` takes the other one again."""
    terminal = Terminal(command("--database-url", store_url), 80, 24)
    try:
        terminal.until(lambda: any("working-" in line for line in terminal.screen), "the run is shown")
        terminal.type("\x1a")
        terminal.until(lambda: not terminal.other_screen and terminal.echoes(), "the terminal is lent back")
        os.waitid(os.P_PID, terminal.process.pid, os.WSTOPPED | os.WNOWAIT)  # what continues it has to come after that
        terminal.signal(signal.SIGCONT)
        terminal.until(lambda: terminal.other_screen and not terminal.echoes(), "it is taken again")
        terminal.type("q")
        assert terminal.ended() == 0
    finally:
        terminal.close()


def test_a_real_sidecar_is_watched_without_growing(store_url: str) -> None:
    """Hundreds of looks at ever new runs, drawn each time: memory stays where it was."""
    store = open_store(store_url)
    with Sidecar(store_url) as sidecar:
        watch = looks.Lookout(looks.Sidecar(sidecar.url, None))

        def looks_at(number: int, first: int) -> None:
            for turn in range(number):
                if turn % 10 == 0:
                    batch = [works(f"{first}-{turn}-{i}", 100 + i) for i in range(3)]
                    store.write(batch)
                    for old in batch:
                        store.end_run(old.run_id, "success")
                shown = watch.look()
                assert watch.problem is None
                board.table(shown, width=80 + turn % 3, rows=20)
            gc.collect()

        looks_at(60, 0)
        tracemalloc.start()
        looks_at(20, 1)
        before = tracemalloc.get_traced_memory()[0]
        looks_at(300, 2)
        grown = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    store.dispose()
    assert grown < 150_000
