from __future__ import annotations

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llama_gguf.engines.status import ChildState
from llama_gguf.gateway import endpoints
from llama_gguf.telemetry.engine_metrics import parse
from llama_gguf.telemetry.exposition import render
from llama_gguf.telemetry.formats import Format
from llama_gguf.telemetry.metric_table import METRICS
from tests.support.fakes import Rig
from tests.support.messages import LAST_CHUNK, OK, STREAM_HEAD, event, request

ENGINE = parse(
    b"# TYPE llamacpp:n_decode_total counter\nllamacpp:n_decode_total 54\n"
    b"# TYPE llamacpp:requests_deferred gauge\nllamacpp:requests_deferred 3\n"
)
TEXTS = (Format.PROMETHEUS, Format.OPENMETRICS)


def scrape(rig: Rig, wanted: Format = Format.PROMETHEUS) -> dict[str, Metric]:
    body, content_type = render(rig.metrics, endpoints.gauges(rig.services), ENGINE, wanted)
    if content_type.startswith(b"application/openmetrics-text"):
        parse = openmetrics.text_string_to_metric_families
        families = parse(body.decode())  # type: ignore[no-untyped-call]
    else:
        families = text_string_to_metric_families(body.decode())
    return {family.name: family for family in families}


def busy(rig: Rig) -> Rig:
    """A rig with at least one sample of each metric."""
    rig.send_request()
    rig.advance(0.3)
    rig.upstream.send(STREAM_HEAD, event(1), LAST_CHUNK)
    rig.send_request(request("GET", "/v1/models", key=None))
    rig.send_request().disconnect()
    rig.send_request()
    rig.upstream.send(b"this is not HTTP\r\n\r\n")
    rig.respond_with(OK)
    rig.send_request()
    return rig


@pytest.mark.parametrize("wanted", TEXTS)
def test_every_metric_is_there_with_its_type_and_help(wanted: Format, rig: Rig) -> None:
    families = scrape(busy(rig), wanted)

    for metric in METRICS:
        family = families[metric.name]
        assert family.type == metric.type
        assert family.documentation == metric.help


@pytest.mark.parametrize("wanted", TEXTS)
def test_an_unused_gateway_can_be_scraped(wanted: Format, rig: Rig) -> None:
    assert "llama_gguf_requests_in_flight" in scrape(rig, wanted)


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for family in families.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return float(found)


def test_counters_count_what_happened(rig: Rig) -> None:
    families = scrape(busy(rig))
    route = "/v1/chat/completions"

    requests = "llama_gguf_requests_total"
    assert value(families, requests, route=route, method="POST", status="200") == 2
    assert value(families, requests, route=route, method="POST", status="499") == 1
    assert value(families, requests, route=route, method="POST", status="502") == 1
    assert value(families, "llama_gguf_rejections_total", reason="invalid_api_key") == 1
    left = "llama_gguf_client_disconnects_total"
    assert value(families, left, phase="before_first_byte") == 1
    assert value(families, "llama_gguf_backend_failures_total", kind="no_response") == 1
    assert value(families, "llama_gguf_rejections_total", reason="queue_full") == 0
    assert value(families, "llama_gguf_received_bytes_total") == 8
    assert value(families, "llama_gguf_sent_bytes_total") > 0


def test_the_engine_s_own_metrics_are_in_the_same_scrape(rig: Rig) -> None:
    families = scrape(rig)

    assert value(families, "llama_gguf_engine_n_decode_total") == 54
    assert value(families, "llama_gguf_engine_requests_deferred") == 3


def test_the_resources_of_the_process_are_included(rig: Rig) -> None:
    families = scrape(rig)

    assert value(families, "process_resident_memory_bytes") > 0
    assert value(families, "process_open_fds") > 0


def test_histograms_are_labelled_by_operation(rig: Rig) -> None:
    busy(rig)
    rig.send_request(request("POST", "/v1/embeddings", body=b"{}"))
    family = scrape(rig)["gen_ai_server_request_duration_seconds"]

    counts = {
        s.labels["gen_ai_operation_name"]: s.value
        for s in family.samples
        if s.name.endswith("_count")
    }
    assert counts == {"chat": 2, "embeddings": 1}


def test_gauges_have_the_current_values(rig: Rig) -> None:
    rig.send_request()
    families = scrape(rig)

    assert value(families, "llama_gguf_requests_in_flight") == 1
    assert value(families, "llama_gguf_slots") == 4
    assert value(families, "llama_gguf_slots_used_ratio") == 0.25
    assert value(families, "llama_gguf_connections") == 1
    assert value(families, "llama_gguf_backend_up") == 1
    assert value(families, "llama_gguf_keys_loaded") == 3


def test_exactly_one_state_of_the_engine_is_1(rig: Rig) -> None:
    rig.engine(ChildState.LOADING)
    states = scrape(rig)["llama_gguf_backend_state"].samples

    assert {s.labels["state"] for s in states} == set(ChildState)
    assert [s.labels["state"] for s in states if s.value] == ["loading"]


def test_buckets_of_histograms_grow_and_end_with_the_count(rig: Rig) -> None:
    family = scrape(busy(rig))["gen_ai_server_time_to_first_token_seconds"]
    buckets = [s for s in family.samples if s.name.endswith("_bucket")]
    counts = [s.value for s in buckets]
    count = next(s.value for s in family.samples if s.name.endswith("_count"))

    assert counts == sorted(counts)
    assert buckets[-1].labels == {"le": "+Inf", "gen_ai_operation_name": "chat"}
    assert counts[-1] == count == 1
    assert [s.value for s in buckets if s.labels["le"] in ("0.25", "0.5")] == [0, 1]
