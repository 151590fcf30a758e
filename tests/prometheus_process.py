"""Debian's Prometheus as a process, for tests that want to see what it sees."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from sidecar_process import until


class Prometheus:
    """A server with data of its own; the test is skipped where there is none."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        """`folder` exists, and has the rules that `config` names; everything happens once a second."""
        binary = shutil.which("prometheus")
        if not binary:
            pytest.skip("prometheus is not installed (apt-get install prometheus)")
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), "utf-8")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{sock.getsockname()[1]}"
        self.url = f"http://{address}"
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [binary, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address={address}"],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query; AssertionError with Prometheus' own words where it fails."""
        with urlopen(f"{self.url}/api/v1/query?{urlencode({'query': expr})}", timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success", (expr, found)
        data = found["data"]
        return [{"metric": {}, "value": data["result"]}] if data["resultType"] == "scalar" else data["result"]

    def number(self, expr: str) -> float | None:
        """The one value of an instant query; None for none."""
        found = self.ask(expr)
        return float(found[0]["value"][1]) if found else None

    def __enter__(self) -> Prometheus:
        until(lambda: self.ask("vector(1)"), "Prometheus answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
