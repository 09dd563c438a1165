from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from llama_gguf.engines.status import ChildState
from llama_gguf.errors import GatewayError
from llama_gguf.scheduling.exchange import PHASES
from llama_gguf.telemetry.gauges import Gauges
from llama_gguf.telemetry.histogram import Histogram
from llama_gguf.telemetry.metric_table import METRICS, Metric
from llama_gguf.telemetry.metrics import Metrics
from tests.support.metrics_text import as_json


def error_kinds(kind: type[GatewayError]) -> Iterator[type[GatewayError]]:
    """*kind* and all of its subclasses, as far as they have a code."""
    if hasattr(kind, "code"):
        yield kind
    for narrower in kind.__subclasses__():
        yield from error_kinds(narrower)


# The table ----------------------------------------------------------------------------------------


def test_no_two_metrics_have_the_same_name() -> None:
    names = [metric.name for metric in METRICS]

    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_every_sample_has_a_value_for_each_label_and_the_right_kind(
    metric: Metric, metrics: Metrics, gauges: Gauges
) -> None:
    found = metric.samples(metrics, gauges)

    assert found
    for labels, number in found:
        assert len(labels) == len(metric.labels)
        assert all(isinstance(label, str) for label in labels)
        assert isinstance(number, Histogram) == (metric.type == "histogram")


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_and_labels_are_valid_in_prometheus(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in metric.labels)
    assert not metric.name.endswith("_total")  # the exposition adds it
    assert metric.help.endswith(".")
    assert metric.type != "histogram" or metric.name.endswith("_seconds")


@pytest.mark.parametrize(
    ("name", "label", "values"),
    [
        ("rejections", "reason", {kind.code for kind in error_kinds(GatewayError)}),
        ("client_disconnects", "phase", set(PHASES.values())),
        (
            "backend_failures",
            "kind",
            {"connect", "no_response", "broken_off", "timeout", "engine_error"},
        ),
        ("replays", "kind", {"no_response", "broken_off"}),
        ("keys_reload", "result", {"success", "failure"}),
        ("auth_failures", "reason", {"invalid_api_key", "key_expired"}),
    ],
)
def test_a_counter_of_known_labels_has_all_of_them_from_the_start(
    name: str, label: str, values: set[str], gauges: Gauges
) -> None:
    """``increase`` in Prometheus misses the first event of a series that begins with it."""
    found = as_json(Metrics(), gauges)[f"llama_gguf_{name}"]

    assert isinstance(found, list)
    assert {row[label]: row["value"] for row in found} == dict.fromkeys(values, 0)


def test_whether_the_last_reload_succeeded_is_a_gauge_once_there_was_one(gauges: Gauges) -> None:
    metrics, name = Metrics(), "llama_gguf_keys_last_reload_successful"
    seen = [as_json(metrics, gauges)[name]]
    for succeeded in (True, False, True):
        metrics.count_reload(succeeded)
        seen.append(as_json(metrics, gauges)[name])

    assert seen == [None, 1, 0, 1]


# Gauges -------------------------------------------------------------------------------------------


def test_exactly_the_state_of_the_engine_is_1(metrics: Metrics, gauges: Gauges) -> None:
    found = as_json(metrics, gauges)["llama_gguf_backend_state"]

    assert isinstance(found, list)
    states = {row["state"]: row["value"] for row in found}
    assert {state for state, value in states.items() if value} == {"loading"}
    assert len(states) == len(ChildState)


def test_an_autoscaler_can_read_waiting_and_running_requests(
    metrics: Metrics, gauges: Gauges
) -> None:
    found = as_json(metrics, gauges)

    assert found["llama_gguf_queue_depth"] == 7
    assert found["llama_gguf_requests_in_flight"] == 2
    assert found["llama_gguf_backend_up"] == 0
