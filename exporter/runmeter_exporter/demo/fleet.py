"""`runmeter demo`: a sidecar on a store of its own and a small fleet of agent processes, until Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from runmeter_exporter.console.options import Address
from runmeter_exporter.console.top import top
from runmeter_exporter.demo.asked import Asked
from runmeter_exporter.demo.personas import PERSONAS
from runmeter_exporter.demo.provider import Provider
from runmeter_exporter.demo.wire import Numbers

READY_SECONDS = 30.0
LEAVE_SECONDS = 30.0
"""How long agents may take to write their last, all of them together; who is killed leaves its runs open."""
_ADDRESS = re.compile(r"(REST|OTLP)\b.*?(http://\S+?:\d+)")


def realistic(number: int, asked: Asked) -> Numbers:
    """Counts that look like work: every third prompt is half cached, reasoning models reason."""
    given, answered = 800 + number * 37 % 23 * 150, 60 + number * 53 % 17 * 25
    reasoning = answered // 3 if asked.model.startswith("gpt-5") else 0
    return Numbers(given, answered, given // 2 if number % 3 == 0 else 0, 0, reasoning)


class Child:
    """A process of the demo; `runmeter_exporter.demo.child` says why its stdin is ours."""

    def __init__(self, name: str, arguments: Sequence[str], environment: dict[str, str], **settings: Any) -> None:
        self.name = name
        command = [sys.executable, "-m", "runmeter_exporter.demo.child", *arguments]
        # A session of its own: Ctrl-C reaches the demo alone, which then ends its children in order.
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, start_new_session=True, text=True, **settings
        )

    def ask(self, number: signal.Signals) -> None:
        """Ask it to end. Once: another Ctrl-C would break off what it does about the first."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def end(self, seconds: float) -> None:
        """Wait for it to end, and insist."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Fleet:
    """Everything the demo runs; `close` ends it in order: agents, sidecar, provider."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self.database_url = f"sqlite:///{directory / 'runmeter-demo.sqlite'}"
        self.provider = Provider(numbers=realistic, seconds=seconds).start()
        self.agents: list[Child] = []
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.sidecar: Child | None = None
        self.rest = self.otlp = ""
        self._seconds = seconds
        # The demo is its own world: nothing of the caller's telemetry settings reaches it, and nothing of it leaves.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "RUNMETER_", "OPENAI_"))}
        self._environment = kept | {"RUNMETER_DATABASE_URL": self.database_url, "PYTHONUNBUFFERED": "1"}

    def start_sidecar(self, listen: Address, otlp_listen: Address | None) -> None:
        """Start it and wait until it says where it listens."""
        arguments = ["serve", "--listen", str(listen), "--otlp-listen", str(otlp_listen or "")]
        self.sidecar = Child("sidecar", arguments, self._environment, stdout=subprocess.PIPE)
        said = self._said(self.sidecar)
        watchdog = threading.Timer(READY_SECONDS, self.sidecar.process.kill)
        watchdog.start()
        try:
            for line in said:
                if match := _ADDRESS.search(line):
                    if match[1] == "REST":
                        self.rest = match[2]
                    else:
                        self.otlp = match[2]
                if line.rstrip().endswith("ready"):
                    break
            else:
                code = self.sidecar.process.wait()
                how = f"within {READY_SECONDS:g} s" if code == -signal.SIGKILL else f"(exit code {code})"
                raise click.ClickException(f"the sidecar did not start {how}; what it said is above")
        finally:
            watchdog.cancel()
        # Somebody has to read on, or a full pipe would stop the sidecar.
        threading.Thread(target=lambda: [None for _ in said], name="demo-sidecar-output", daemon=True).start()

    @staticmethod
    def _said(child: Child) -> Iterator[str]:
        with contextlib.suppress(ValueError):  # closed while we wait
            yield from child.process.stdout or ()

    def start_agents(self, count: int, runs: int | None) -> None:
        """Start agent processes until there are so many."""
        for number in range(len(self.agents), count):
            persona = PERSONAS[number % len(PERSONAS)].agent
            arguments = ["agent", "--provider", self.provider.openai_url, "--number", str(number)]
            arguments += ["--seconds", str(self._seconds)] + (["--runs", str(runs)] if runs else [])
            service = {"OTEL_SERVICE_NAME": f"demo-{persona}"}
            self.agents.append(Child(f"{persona} {number}", arguments, self._environment | service))

    def watch(self, stop: threading.Event) -> None:
        """Tell of children that end, restart a sidecar that was killed; `stop` is set when every agent has left."""
        working = list(self.agents)
        while not stop.wait(0.25):
            for child in [c for c in working if c.process.poll() is not None]:
                working.remove(child)
                code = child.process.returncode
                how = f"by signal {-code}" if code < 0 else "by itself" if code == 0 else f"with exit code {code}"
                if code:
                    self._news.put(f"agent {child.name} (pid {child.process.pid}) ended {how}; the others go on")
            if not working:
                stop.set()
                return
            if self.sidecar is not None and self.sidecar.process.poll() is not None:
                self._news.put("the sidecar ended; starting it again on the same addresses")
                try:
                    self.start_sidecar(_address(self.rest), _address(self.otlp) if self.otlp else None)
                except click.ClickException as problem:
                    self._news.put(problem.format_message())
                    stop.set()

    def news(self) -> list[str]:
        """What `watch` had to tell since it was asked last."""
        told = []
        with contextlib.suppress(queue.Empty):
            while True:
                told.append(self._news.get_nowait())
        return told

    def close(self) -> None:
        """End everything; nothing is left running."""
        until = time.monotonic() + LEAVE_SECONDS
        for agent in self.agents:
            agent.ask(signal.SIGINT)
        for agent in self.agents:
            agent.end(max(0.0, until - time.monotonic()))
        if self.sidecar is not None:
            self.sidecar.ask(signal.SIGTERM)
            self.sidecar.end(10.0)
        self.provider.stop()


def demo(
    listen: Address, otlp_listen: Address | None, *, agents: int, runs: int | None, seconds: float,
    directory: str | None,
) -> int:  # fmt: skip
    """Run the demo until Ctrl-C, SIGTERM, or until every agent has done its `runs`."""
    for needed in ("openai", "opentelemetry.instrumentation.genai.openai"):
        if not _installed(needed):
            raise click.ClickException(f"the demo needs {needed}. Run: pip install 'runmeter[sidecar,openai]'")
    stop = threading.Event()
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    with contextlib.ExitStack() as leaving:
        for number, handler in before.items():
            leaving.callback(signal.signal, number, handler)
        if directory is None:
            folder = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="runmeter-demo-")))
        else:
            folder = Path(directory).absolute()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fleet = Fleet(folder, seconds)
        leaving.callback(fleet.close)
        # Before the sidecar, though it needs none: what it imports for the first time after an installation, Python
        # compiles while the other core does the same for the sidecar, and the other agents find it compiled.
        fleet.start_agents(min(agents, 1), runs)
        fleet.start_sidecar(_free(listen), _free(otlp_listen) if otlp_listen else None)
        fleet.start_agents(agents, runs)
        _welcome(fleet)
        watcher = threading.Thread(target=fleet.watch, args=(stop,), name="demo-watch")
        watcher.start()
        try:
            top(fleet.rest, stop=stop, news=fleet.news, header=_places(fleet))
        finally:
            stop.set()
            watcher.join()
        for line in fleet.news():
            click.echo(line)
        done = all(agent.process.poll() == 0 for agent in fleet.agents)
        agreed = not done or _compare(fleet)
        click.echo("ending the agents, then the sidecar")
    return 0 if agreed else 1


def _compare(fleet: Fleet) -> bool:
    """Say what both sides counted, once every agent has left by itself; False when they differ."""
    with urllib.request.urlopen(f"{fleet.rest}/api/usage", timeout=10) as response:
        ours = json.load(response)
    truth = fleet.provider.truth()
    theirs = (truth["calls"], truth["input_tokens"], truth["output_tokens"])
    mine = (ours["llm_call_count"], ours["total_input_tokens"], ours["total_output_tokens"])
    for who, (calls, given, answered) in (("the provider answered", theirs), ("runmeter counted", mine)):
        click.echo(f"{who:<22} {calls:>6,} calls  {given:>12,} input tokens  {answered:>10,} output tokens")
    return theirs == mine


def _places(fleet: Fleet) -> list[str]:
    """What the demo is and where it answers: said at the beginning, and above `top` while that has the screen."""
    thread = "researcher-0-0"
    return [
        f"runmeter demo: {len(fleet.agents)} agent processes spend imaginary money, on a store of their own",
        f"  store      {fleet.database_url}",
        f"  page, REST {fleet.rest}",
        f"  scrape     {fleet.rest}/metrics?include_active=true",
        f"  OTLP       {fleet.otlp or 'off'}",
        f"  provider   {fleet.provider.url}/ledger   (what the model provider says it returned)",
        f"  agents     {', '.join(f'{a.name} (pid {a.process.pid})' for a in fleet.agents)}",
        "try, in another terminal:",
        f"  curl '{fleet.rest}/api/runs?status=running'",
        f"  curl '{fleet.rest}/api/threads/{thread}/token-usage?include_active=true'",
        "",
    ]


def _welcome(fleet: Fleet) -> None:
    click.echo("\n".join(["", *_places(fleet)]))


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _address(url: str) -> Address:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return Address(host.strip("[]"), int(port))


def _free(wanted: Address) -> Address:
    """The address, or any port on its host where that one is taken."""
    family = socket.AF_INET6 if ":" in wanted.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is free
        try:
            probe.bind((wanted.host, wanted.port))
        except OSError:
            click.echo(f"{wanted} is taken; using a free port instead")
            return Address(wanted.host, 0)
    return wanted
