from __future__ import annotations

import sys

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.gateway.tracing import traces_of
from llama_gguf.net.clock import Clock

WITH_LOGIN = "https://user:a-secret@collector.example:4318/otlp"


def test_without_an_endpoint_there_are_no_traces() -> None:
    assert traces_of(Settings.of(), Clock()) is None


def test_the_collector_is_named_without_its_login() -> None:
    traces = traces_of(Settings.of(otel_exporter_otlp_endpoint=WITH_LOGIN), Clock())

    assert traces is not None
    assert traces._collector == "collector.example:4318"


def test_without_the_packages_there_are_no_traces_and_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "llama_gguf.telemetry.traces", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    settings = Settings.of(otel_exporter_otlp_endpoint="http://collector:4318")

    assert traces_of(settings, Clock()) is None
    assert (
        "opentelemetry is missing; pip install 'llama-gguf-inference[otel]' (in a clone: "
        in caplog.text
    )
