"""A real Prometheus scrapes the gateway and loads the rules of ``deploy/``."""

from __future__ import annotations

import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_gguf.telemetry.metric_table import METRICS
from tests.e2e.conftest import Served
from tests.e2e.prometheus import RULES, Prometheus, needs_prometheus
from tests.support.processes import until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(180),
    needs_prometheus,
]


@pytest.fixture
def prometheus(tmp_path: Path, served: Served) -> Iterator[Prometheus]:
    prometheus = Prometheus(tmp_path, served.port)
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
