"""`runmeter serve` as a process: what it prints, takes, refuses, survives and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from sidecar_process import Sidecar, until

from runmeter.usage import Usage
from runmeter_exporter import open_store
from runmeter_exporter.totals.run import CellKey, RunSnapshot

PATIENCE = 60


def refused(*options: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """A sidecar that should not start."""
    return subprocess.run(
        [sys.executable, "-m", "runmeter.launch.main", "serve", "--listen", "127.0.0.1:0", "--otlp-listen", "",
         *options],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


@contextmanager
def serving(database_url: str, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Sidecar]:
    with Sidecar(database_url, *options, env=env) as sidecar:
        yield sidecar


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.sqlite"


def one_run(url: str, run_id: str = "r") -> None:
    store = open_store(url)
    store.write([
        RunSnapshot(
            run_id=run_id, source="s", revision=1, final=True, status="success", started_at=1, updated_at=2, ended_at=2,
            usage_by={CellKey("2026-11-22", "openai", "gpt-5", "lead_agent"): Usage(10, 5, calls=1)},
        )
    ])  # fmt: skip
    store.dispose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(url: str, number: signal.Signals) -> None:
    """SIGTERM and SIGINT are the ordinary end."""
    with serving(url) as sidecar:
        sidecar.process.send_signal(number)
        assert sidecar.process.wait(PATIENCE) == 0
        until(lambda: any("draining" in line for line in sidecar.lines), "it says that it drains")
    assert not any("Traceback" in line for line in sidecar.lines)


def test_it_says_what_it_uses_and_where_it_listens(url: str) -> None:
    """The store first, then each address with the port it really got, then ready."""
    with serving(url) as sidecar:
        until(lambda: any("ready" in line for line in sidecar.lines), "ready")
        text = "".join(sidecar.lines)
    assert text.index(url) < text.index("REST, page and scrape at http://127.0.0.1:") < text.index("ready")
    assert "127.0.0.1:0" not in text


def test_a_lease_shorter_than_the_heartbeat_is_said(url: str) -> None:
    """Agents in long tool calls would look vanished; whoever chose such a lease should know."""
    with serving(url, "--lease", "5s") as sidecar:
        assert "the lease of 5 s is not longer than the agents' heartbeat of 10 s" in "".join(sidecar.lines)


def test_a_restart_changes_no_number(url: str) -> None:
    """What was written is there after SIGKILL and a new start."""
    one_run(url)
    with serving(url) as sidecar:
        before = sidecar.get("/api/runs/r")
        sidecar.kill()
        sidecar.start()
        assert sidecar.get("/api/runs/r") == before
        assert before["total_tokens"] == 15


def test_the_scrape_alone_has_a_listener_of_its_own(url: str) -> None:
    """--metrics-listen answers /metrics and probes, and nothing of REST."""
    with serving(url, "--metrics-listen", "127.0.0.1:0") as sidecar:
        until(lambda: any("ready" in line for line in sidecar.lines), "ready")
        found = re.search(r"scrape alone at (http://\S+)/metrics", "".join(sidecar.lines))
        assert found
        with urllib.request.urlopen(f"{found[1]}/metrics", timeout=10) as answer:
            assert b"runmeter_store_up 1.0" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as gone:
            urllib.request.urlopen(f"{found[1]}/api/runs", timeout=10)
        assert gone.value.code == 404
        gone.value.close()


def test_otlp_is_taken_on_its_own_listener_only(url: str) -> None:
    """An empty OTLP export is a 200 there, and no route of the REST listener."""
    with serving(url) as sidecar:

        def status(base: str) -> int:
            request = urllib.request.Request(f"{base}/v1/traces", b"{}", {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert status(sidecar.otlp_url) == 200
        assert status(sidecar.url) == 404


def test_a_taken_port_is_said_plainly(url: str) -> None:
    """One line with the address, exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        done = refused("--database-url", url, "--otlp-listen", where)
    assert done.returncode == 2
    assert where in done.stderr
    assert "another program listens there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "env", "says"),
    [
        (("--listen", "0.0.0.0:0"), {}, "RUNMETER_READ_TOKEN"),
        (("--otlp-listen", "0.0.0.0:0"), {}, "RUNMETER_INGEST_TOKEN"),
        (("--read-token-file", "/nonexistent"), {}, "/nonexistent"),
        (("--read-token", "a"), {"RUNMETER_READ_TOKEN_FILE": "/x"}, "both set"),
        (("--listen", "nonsense"), {}, "HOST:PORT"),
        (("--listen", ""), {}, "--listen is empty"),
        (("--grace", "soon"), {}, "not a duration"),
        (("--database-url", "oracle://x"), {}, "oracle"),
        ((), {"RUNMETER_PRICES": "/nonexistent.toml"}, "/nonexistent.toml"),
    ],
)
def test_what_an_operator_got_wrong_is_one_line_and_exit_2(
    url: str, options: tuple[str, ...], env: dict[str, str], says: str
) -> None:
    """Each says what is wrong and names what to set."""
    done = refused("--database-url", url, *options, env=env)
    assert (done.returncode, says in done.stderr) == (2, True), done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_tokens_guard_both_listeners(url: str, tmp_path: Path) -> None:
    """REST and scrape ask for the read token, OTLP for the ingest token; probes ask for none. A token file works."""
    file = tmp_path / "token"
    file.write_text("read-me\n")
    env = {"RUNMETER_READ_TOKEN_FILE": str(file), "RUNMETER_INGEST_TOKEN": "feed-me"}
    with serving(url, env=env) as sidecar:
        def status(target: str, token: str | None, data: bytes | None = None) -> int:
            headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
            try:
                with urllib.request.urlopen(urllib.request.Request(target, data, headers), timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        assert status(f"{sidecar.url}/api/runs", None) == 401
        assert status(f"{sidecar.url}/metrics", "feed-me") == 401
        assert status(f"{sidecar.url}/api/runs", "read-me") == 200
        assert status(f"{sidecar.otlp_url}/v1/traces", "read-me", b"{}") == 401
        assert status(f"{sidecar.otlp_url}/v1/traces", "feed-me", b"{}") == 200
        assert status(f"{sidecar.url}/-/ready", None) == 200
    assert "read-me" not in "".join(sidecar.lines)


def test_a_password_is_never_printed(tmp_path: Path) -> None:
    """The store is named without it, also when it cannot be reached."""
    command = [sys.executable, "-m", "runmeter.launch.main", "serve", "--listen", "127.0.0.1:0", "--otlp-listen", "",
               "--database-url", f"postgresql+psycopg://me:hunter2@/x?host={tmp_path}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.rstrip().endswith("ready"):
            break
    process.send_signal(signal.SIGTERM)
    said += process.stdout.read()
    process.stdout.close()
    assert process.wait(PATIENCE) == 0
    assert "hunter2" not in said
    assert "the store is away" in said


def test_with_the_store_away_it_serves_and_takes_up_work_when_it_comes(tmp_path: Path) -> None:
    """Alive but not ready, then ready, without a restart."""
    folder = tmp_path / "later"
    folder.write_text("a file where the store's folder will be")
    url = f"sqlite:///{folder}/store.sqlite"
    command = [sys.executable, "-m", "runmeter.launch.main", "serve", "--database-url", url, "--listen", "127.0.0.1:0",
               "--otlp-listen", ""]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        said = ""
        for line in process.stdout:
            said += line
            if line.rstrip().endswith("ready"):
                break
        found = re.search(r"REST, page and scrape at (\S+)", said)
        assert found, said

        def ready() -> int:
            try:
                with urllib.request.urlopen(f"{found[1]}/-/ready", timeout=10) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as error:
                with error:
                    return error.code

        with urllib.request.urlopen(f"{found[1]}/-/healthy", timeout=10) as healthy:
            assert healthy.status == 200
        assert ready() == 503
        folder.unlink()
        folder.mkdir()
        until(lambda: ready() == 200, "the store is there and it is ready")
    finally:
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        process.stdout.close()
        assert process.wait(PATIENCE) == 0


def test_systemd_is_told(url: str, tmp_path: Path) -> None:
    """Type=notify: READY=1 when everything answers, STOPPING=1 when it drains."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(PATIENCE)
        with serving(url, env={"NOTIFY_SOCKET": path}) as sidecar:
            assert listener.recv(100) == b"READY=1"
            assert sidecar.stop() == 0
            assert listener.recv(100) == b"STOPPING=1"


def test_the_access_log_is_off_until_asked_for_and_names_no_secret(url: str) -> None:
    """Method, path, status; the query stays out of it."""
    with serving(url) as quiet:
        quiet.get("/api/runs?user_id=me")
        assert quiet.stop() == 0
    with serving(url, "--access-log") as loud:
        loud.get("/api/runs?user_id=me")
        until(lambda: any("GET /api/runs 200" in line for line in loud.lines), "it is logged")
    assert not any("GET /api" in line for line in quiet.lines)
    assert not any("user_id" in line for line in loud.lines)


def test_run_ends_when_its_stop_is_set(url: str) -> None:
    """Embedded in a process of somebody's, without signals."""
    from runmeter_exporter import serve
    from runmeter_exporter.console.options import Address

    stop, said = threading.Event(), []

    def say(line: str) -> None:
        said.append(line)
        if line.endswith("ready"):
            stop.set()

    config = serve.Config(listen=Address("127.0.0.1", 0), otlp_listen=None, database_url=url)
    assert serve.run(config, stop, say) == 0
    assert said[-1] == "runmeter: draining"


def test_what_the_otlp_door_refuses_is_counted_by_status(url: str) -> None:
    """No token, a foreign Host, too large a header, no HTTP at all: each is an ingest request with its code."""
    env = {"RUNMETER_INGEST_TOKEN": "feed-me"}
    with serving(url, env=env) as sidecar:
        where = sidecar.otlp_url.removeprefix("http://")
        host, _, port = where.rpartition(":")

        def status(request: str) -> int:
            with socket.create_connection((host, int(port)), timeout=10) as client, client.makefile("rb") as answer:
                client.sendall(request.replace("\n", "\r\n").encode())
                return int(answer.readline().split()[1])

        def post(headers: str) -> str:
            return f"POST /v1/traces HTTP/1.1\nContent-Type: application/json\nContent-Length: 2\n{headers}\n\n{{}}"

        assert status(post(f"Host: {where}\nAuthorization: Bearer wrong")) == 401
        assert status(post(f"Host: {where}")) == 401
        assert status(post("Host: evil.example\nAuthorization: Bearer feed-me")) == 421
        assert status(post(f"Host: {where}\nX-Long: {'x' * 40_000}")) == 431
        assert status("nonsense\n\n") == 400
        assert status(post(f"Host: {where}\nAuthorization: Bearer feed-me")) == 200
        assert sidecar.stop() == 0
        sidecar.start()  # what the first one counted was stored when it left
        metrics = sidecar.get("/metrics")
    found = dict(re.findall(r'^runmeter_ingest_requests_total\{code="(\d+)"\} (\S+)$', metrics, re.MULTILINE))
    assert found == {"200": "1.0", "400": "1.0", "401": "2.0", "421": "1.0", "431": "1.0"}
