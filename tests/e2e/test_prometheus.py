"""A real Prometheus scrapes the gateway and loads the rules of ``deploy/``."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from llama_gguf.telemetry.metrics import METRICS
from tests.e2e.conftest import Served
from tests.support.processes import free_port, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        not (shutil.which("prometheus") and shutil.which("promtool")),
        reason="there is no Prometheus on PATH: apt-get install prometheus",
    ),
]
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
    """A running Prometheus that scrapes *served*."""

    def __init__(self, folder: Path, served: Served) -> None:
        self._port = free_port()
        config = folder / "prometheus.yml"
        config.write_text(CONFIG.format(rules=RULES, port=served.port))
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


@pytest.fixture
def prometheus(tmp_path: Path, served: Served) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path, served)
    yield prometheus
    prometheus.close()


def promtool(*arguments: str, text: bytes = b"") -> str:
    result = subprocess.run(
        ["promtool", *arguments],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout.decode()
    return result.stdout.decode()


def test_promtool_accepts_the_metrics(served: Served) -> None:
    served.chat()
    url = f"http://127.0.0.1:{served.port}/metrics?format=prometheus"
    with urllib.request.urlopen(url, timeout=30) as response:
        text = response.read()

    assert b"gen_ai_server_time_to_first_token_seconds_bucket" in text
    assert promtool("check", "metrics", text=text) == ""


def test_prometheus_scrapes_the_gateway_and_counts_requests(
    prometheus: Prometheus, served: Served
) -> None:
    until(lambda: prometheus.value("up") == 1, "a scrape")
    count = "gen_ai_server_time_to_first_token_seconds_count"
    before = prometheus.value(f"sum({count})") or 0.0
    served.chat()
    until(lambda: (prometheus.value(f"sum({count})") or 0) > before, "a first token")

    assert prometheus.value("llama_gguf_backend_up") == 1
    assert (prometheus.value('llama_gguf_tokens_total{type="completion"}') or 0) > 0
    metadata = prometheus.get("metadata")
    for metric in METRICS:
        about = metadata[metric.name]  # it requests OpenMetrics, which names counters so
        assert (about[0]["type"], about[0]["help"]) == (metric.type, metric.help)


def test_the_alert_rules_are_valid_and_loaded(prometheus: Prometheus) -> None:
    said = promtool("check", "rules", str(RULES))
    assert "SUCCESS" in said

    def are_evaluated() -> bool:
        groups = (prometheus.get("rules") or {"groups": []})["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return bool(rules) and all(rule["health"] == "ok" for rule in rules)

    until(are_evaluated, "every rule is evaluated")


def test_every_query_of_the_grafana_dashboard_is_valid(prometheus: Prometheus) -> None:
    until(lambda: prometheus.value("up") == 1, "a scrape")
    board = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]

    assert len(queries) > 10
    for query in queries:
        plain = query.replace("$__rate_interval", "1m").replace("$job", ".*")
        plain = plain.replace("$instance", ".*")
        assert prometheus.get("query", query=plain) is not None, query
