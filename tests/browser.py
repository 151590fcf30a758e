"""A headless Chromium through chromedriver's own HTTP protocol: a dozen lines, and no client library to keep up."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


class Browser:
    """One tab."""

    def __init__(self, session_url: str) -> None:
        self._url = session_url

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        return call(method, self._url + path, body)

    def open(self, url: str) -> None:
        """Go to a page; returns once it is loaded."""
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *args: Any) -> Any:
        """What the body of a function in the page returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": args})

    def wait(self, condition: str) -> Any:
        """Wait until an expression in the page is true, looked at after every change; its value."""
        script = f"""
            const done = arguments[0];
            const look = () => {{ try {{ return {condition}; }} catch {{ return false; }} }};
            const first = look();
            if (first) return done(first);
            const watch = new MutationObserver(() => {{
                const value = look();
                if (value) {{ watch.disconnect(); done(value); }}
            }});
            watch.observe(document, {{subtree: true, childList: true, attributes: true, characterData: true}});
        """
        for left in reversed(range(4)):
            try:
                return self._call("POST", "/execute/async", {"script": script, "args": []})
            except urllib.error.HTTPError as error:
                # Another page came meanwhile, which the driver says in several ways or finds out by its timeout: wait
                # on that one.
                said = json.load(error)["value"]["message"]
                if not left:
                    raise AssertionError(said) from error
        raise AssertionError("unreachable")

    def text(self, identifier: str) -> str:
        """The visible text of the element with this id."""
        return str(self.run("return document.getElementById(arguments[0]).innerText", identifier))

    def log(self) -> list[str]:
        """What the page wrote to the console since the last call; violations of its content policy are there too."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def dark(self, on: bool) -> None:
        """Whether the system asks for dark pages."""
        media = {"features": [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]}
        self._call("POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": media})

    def screenshot(self) -> bytes:
        """The tab as PNG."""
        return base64.b64decode(self._call("GET", "/screenshot"))


def call(method: str, url: str, body: Any = None) -> Any:
    """One command to the driver; its value."""
    data = None if method == "GET" else json.dumps(body or {}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)["value"]


@contextmanager
def chromium(width: int = 1280, height: int = 900) -> Iterator[Browser]:
    """A browser of its own, with an empty profile that goes with it."""
    assert CHROMIUM
    assert DRIVER
    with subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            line = next(line for line in driver.stdout if "successfully on port" in line)
            port = "".join(c for c in line.rsplit("port", 1)[1] if c.isdigit())
            driver_url = f"http://127.0.0.1:{port}"
            options = {
                "binary": CHROMIUM,
                # No sandbox: CI and containers run as root. Nothing but our own page is opened.
                "args": [
                    "--headless=new",
                    "--no-sandbox",
                    "--disable-dev-shm-usage",
                    f"--window-size={width},{height}",
                ],
            }
            always = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 20_000},
            }
            session = call("POST", f"{driver_url}/session", {"capabilities": {"alwaysMatch": always}})
            url = f"{driver_url}/session/{session['sessionId']}"
            try:
                yield Browser(url)
            finally:
                call("DELETE", url)
        finally:
            driver.terminate()
