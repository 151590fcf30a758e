"""The landing page, its files over HTTP and itself in a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, Browser, chromium
from http_kit import ask, serving
from runs_kit import snapshot, usage
from sidecar_process import Sidecar

from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store.memory.store import MemoryRunStore
from runmeter_exporter.totals.run import CellKey
from runmeter_exporter.web.app import create_app

STATIC = files("runmeter_exporter.web") / "static"

in_a_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt install chromium-driver)"
    ),
]


def cell(day: str = "2023-11-14", caller: str = "lead_agent") -> CellKey:
    return CellKey(day, "openai", "gpt-5-mini", caller)


def test_the_page_loads_nothing_from_elsewhere() -> None:
    """No other host in its files, no script or style inside the HTML, and a policy under which neither would run."""
    html = (STATIC / "page.html").read_text("utf-8")
    for name in ("page.html", "page.js", "page.css"):
        text = (STATIC / name).read_text("utf-8")
        assert not re.search(r"https?://|//[a-z]+\.|@import|url\(", text), name
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", html)
    script = (STATIC / "page.js").read_text("utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script)
    with serving(create_app(MemoryRunStore())) as server:
        answer = ask(server, "/")
    assert answer.body == html.encode()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_page_is_revalidated() -> None:
    """Its files carry an ETag, so that a newer version is seen at once and an old one is not sent again."""
    with serving(create_app(MemoryRunStore())) as server:
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            answer = ask(server, path)
            assert answer.headers["Content-Type"].startswith(kind)
            assert ask(server, path, headers={"If-None-Match": answer.headers["ETag"]}).status == 304


def test_what_is_served_needs_the_token() -> None:
    """The page's shell is open; the store's address, which has no password, is not."""
    with serving(create_app(MemoryRunStore(), read_token="s3cret", about={"store": "sqlite:///x"})) as server:
        assert ask(server, "/about.json").status == 401
        answer = ask(server, "/about.json", headers={"Authorization": "Bearer s3cret"})
        assert (answer.status, json.loads(answer.body)) == (200, {"store": "sqlite:///x"})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as tab:
        yield tab


class TestInABrowser:
    pytestmark = in_a_browser

    def test_the_empty_pages_lines_lead_to_a_first_token(self, browser: Browser, tmp_path: Path) -> None:
        """What it shows to copy, run as it is shown, makes its numbers appear; store and OTLP are those in use, and no
        console message shows that something was blocked."""
        with Sidecar(f"sqlite:///{tmp_path}/a store.db") as sidecar:
            browser.open(sidecar.url)
            browser.wait("!document.getElementById('first').hidden && !document.getElementById('serves').hidden")
            assert "runmeter[store]" in browser.text("first")
            assert f"OTEL_EXPORTER_OTLP_ENDPOINT={sidecar.otlp_url}\n" in browser.text("otlp")
            assert browser.text("serves") == f"Store: {sidecar.database_url}. OTLP/HTTP: {sidecar.otlp_url}."
            assert browser.text("state") == "live"
            code = browser.text("python")
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
            assert (done.returncode, done.stderr) == (0, "")
            row = browser.wait("document.querySelector('#rows-ended tr')?.innerText")
            for part in ("first", "my-thread", "success", "1,200", "80"):
                assert part in row
            assert browser.run("return document.getElementById('first').hidden")
            assert browser.log() == []

    def test_it_says_what_is_served(self, browser: Browser) -> None:
        """The agents' own default needs no URL; an address of every interface is that of this host as the page was
        asked for; a token is named; without OTLP it says so."""
        about: dict[str, object] = {"store": "sqlite:////s/runmeter.db", "by_default": True, "otlp_token": True,
                                    "otlp": "http://127.0.0.1:4000", "otlp_everywhere": True}
        with serving(create_app(MemoryRunStore(), about=about)) as server:
            browser.open(server.url.replace("127.0.0.1", "localhost"))
            browser.wait("!document.getElementById('serves').hidden")
            assert "runmeter.instrument()\n" in browser.text("python")
            assert "http://localhost:4000\n" in browser.text("otlp")
            assert "OTEL_EXPORTER_OTLP_HEADERS" in browser.text("otlp")
        hidden = {"store": "postgresql+psycopg://u:***@h/db", "by_default": False, "otlp": None}
        with serving(create_app(MemoryRunStore(), about=hidden)) as server:
            browser.open(server.url)
            browser.wait("!document.getElementById('serves').hidden")
            assert "password" in browser.text("python")
            assert "--otlp-listen" in browser.text("otlp-off")
            assert browser.text("serves").endswith("No OTLP is taken.")

    def test_running_runs_are_shown_and_move(self, browser: Browser) -> None:
        """Tokens of a running run appear, grow by themselves, get a rate, and move to the ended ones with its end."""
        store = MemoryRunStore()
        cells = {cell(): usage(1000, 200), cell(caller="subagent:a"): usage(300, 0)}
        store.write([snapshot("run-1", status="running", agent="researcher", usage_by=cells)])
        with serving(create_app(store, scraper=Scraper(store))) as server:
            browser.open(server.url)
            row = browser.wait("document.querySelector('#rows-running tr')?.innerText")
            for part in ("researcher", "run-1", "1,300", "200"):
                assert part in row
            split = "document.querySelector('#rows-running .split').getAttribute('aria-label')"
            assert browser.run(f"return {split}") == "lead agent 1,200, subagents 300"
            store.write(
                [snapshot("run-1", status="running", revision=2, usage_by=cells | {cell(): usage(99_000, 200)})]
            )
            row = browser.wait("/99,300/.test(document.querySelector('#rows-running').innerText)"
                               " && document.querySelector('#rows-running tr').innerText")  # fmt: skip
            assert int(re.sub(r"\D", "", row.split("\t")[6])) > 0
            store.write([snapshot("run-1", revision=3, usage_by=cells | {cell(): usage(99_000, 200)})])
            assert "success" in browser.wait("document.querySelector('#rows-ended tr')?.innerText")
            browser.wait("document.getElementById('running').hidden && !document.getElementById('quiet').hidden")
            assert browser.log() == []

    def test_hostile_names_stay_text(self, browser: Browser) -> None:
        """An agent, run or thread that is called like a script is shown as it is called, and nothing runs."""
        name = "<img src=x onerror=\"document.title='owned'\">"
        store = MemoryRunStore()
        store.write([snapshot(name, status="running", agent=name, thread_id=name)])
        with serving(create_app(store)) as server:
            browser.open(server.url)
            assert browser.wait("document.querySelector('#rows-running tr')?.innerText").count(name) == 3
            assert browser.run("return document.title + document.querySelectorAll('img').length") == "runmeter0"
            assert browser.log() == []

    def test_it_asks_for_the_token_and_keeps_it_for_the_tab(self, browser: Browser) -> None:
        """Numbers appear only with the right one; it is not in the address, a cookie or what outlives the tab."""
        store = MemoryRunStore()
        store.write([snapshot("run-1", status="running")])
        with serving(create_app(store, read_token="s3cret")) as server:
            browser.open(server.url)
            browser.wait("!document.getElementById('ask').hidden")
            assert browser.run("return document.getElementById('numbers').hidden")
            enter = (
                "document.getElementById('token').value = arguments[0]; document.querySelector('#ask button').click()"
            )
            browser.run(enter, "wrong")
            browser.wait("document.getElementById('refused').innerText")
            browser.run(enter, "s3cret")
            browser.wait("document.querySelector('#rows-running tr')")
            assert browser.run("return document.getElementById('ask').hidden")
            kept = browser.run("return [location.href, document.cookie, JSON.stringify(localStorage)].join()")
            assert "s3cret" not in kept
            browser.open(server.url)
            browser.wait("document.querySelector('#rows-running tr')")
            browser.run("document.querySelector('nav a[href=\"openapi.json\"]').click()")
            browser.wait("location.protocol === 'blob:' && document.body.innerText.includes('\"openapi\"')")

    def test_a_server_that_goes_away_is_said(self, browser: Browser) -> None:
        """The numbers stay, and the page says that they are the last known."""
        store = MemoryRunStore()
        store.write([snapshot("run-1", status="running")])
        with serving(create_app(store)) as server:
            browser.open(server.url)
            browser.wait("document.querySelector('#rows-running tr')")
        browser.wait("document.getElementById('state').className === 'away'")
        assert "last known" in browser.text("state")
        assert "run-1" in browser.text("rows-running")

    @pytest.mark.parametrize("dark", [False, True])
    def test_text_is_readable_in_light_and_dark(self, browser: Browser, dark: bool) -> None:
        """Every visible text has at least the contrast that WCAG AA asks for, 4.5 to 1, with its background."""
        store = MemoryRunStore()
        store.write([snapshot("run-1", status="running"), snapshot("run-2", status="error")])
        with serving(create_app(store)) as server:
            browser.dark(dark)
            browser.open(server.url)
            browser.wait("document.querySelector('#rows-running tr') && document.querySelector('#rows-ended tr')")
            assert browser.run(CONTRAST) == []


CONTRAST = """
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const behind = (node) => {
  for (; node; node = node.parentElement) {
    const colour = rgb(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const poor = [];
for (const node of document.querySelectorAll("body *")) {
  const says = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
  if (!says || !node.checkVisibility()) continue;
  const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
  if ((a + 0.05) / (b + 0.05) < 4.5) poor.push(`${node.tagName} ${node.textContent.slice(0, 40)}`);
}
return poor;
"""
