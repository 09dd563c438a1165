"""A real Prometheus for tests: the Debian package ``prometheus``, with the rules of ``deploy/``.

Without it, the tests that need it are skipped, with a reason; CI installs it.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.processes import free_port

needs_prometheus: Final = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="there is no Prometheus on PATH: apt-get install prometheus",
)
DEPLOY: Final = Path(__file__).parents[2] / "deploy"
RULES: Final = DEPLOY / "prometheus" / "alerts.yml"
CONFIG: Final = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: llama-gguf
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class Prometheus:
    """A running Prometheus that scrapes the gateway on *port* once a second.

    Args:
        folder: for its files.
        port: of the gateway.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES, port=port))
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                *("prometheus", f"--config.file={config}"),
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{self._port}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def get(self, path: str, **query: str) -> Any:
        """The data of a response of its API; None if there is none."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                return json.load(response)["data"]
        except OSError:
            return None

    def value(self, query: str) -> float | None:
        """The only number in the result of *query*; None if there is none."""
        found = self.get("query", query=query)
        result = found["result"] if found else []
        return float(result[0]["value"][1]) if len(result) == 1 else None

    def values(self, query: str, *, seconds: int) -> list[float]:
        """All numbers of *query* in the last *seconds*, of all of its series, without NaN."""
        now = self.get("query", query="time()")
        if now is None:
            return []
        end = float(now["result"][0])
        found = self.get(
            "query_range", query=query, start=str(end - seconds), end=str(end), step="1"
        )
        assert found is not None, query
        numbers = [float(value) for series in found["result"] for _, value in series["values"]]
        return [number for number in numbers if not math.isnan(number)]
