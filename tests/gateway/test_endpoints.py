"""What the gateway answers by itself, without a client; ``test_local_request`` has one."""

from __future__ import annotations

import json

import pytest

from llama_gguf.config.schema import RouteSettings
from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway import endpoints
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.parser import parse_request
from llama_gguf.http1.request import Request
from llama_gguf.http1.routes import Kind
from llama_gguf.values import replace
from tests.support.fakes import NewRig, Rig
from tests.support.messages import OK, request

ANSWERED_HERE = [kind for kind in Kind if kind not in (Kind.PROXIED, Kind.REFUSED)]
FOR_KEYS = {
    Kind.RELOAD,
    Kind.USAGE,
    Kind.DASHBOARD_DATA,
    Kind.DASHBOARD_LOG,
    Kind.DASHBOARD_KEYS,
    Kind.MODELS,
}


def get(rig: Rig, target: str, *fields: str, method: str = "GET") -> Request:
    return rig.services.reader.understand(parse_request(request(method, target, *fields)), cors=b"")


def response(rig: Rig, target: str, *fields: str, method: str = "GET") -> LocalResponse:
    found = get(rig, target, *fields, method=method)
    return endpoints.respond(found.route.kind, found, rig.services)


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guards_metrics", [False, True])
def test_reload_and_numbers_need_a_key_metrics_if_that_is_set_and_nothing_else(
    guards_metrics: bool,
) -> None:
    settings = RouteSettings(metrics_auth_enabled=guards_metrics)
    guarded = {kind for kind in ANSWERED_HERE if endpoints.needs_key(kind, settings)}

    assert guarded == (FOR_KEYS | {Kind.METRICS} if guards_metrics else FOR_KEYS)


def test_a_reload_says_how_many_keys_there_are() -> None:
    assert json.loads(endpoints.reloaded(3).body) == {"status": "ok", "keys_loaded": 3}


# Health -------------------------------------------------------------------------------------------


def test_a_ping_has_nothing_to_say(rig: Rig) -> None:
    found = response(rig, "/ping")

    assert (found.status, found.body, found.content_type, found.fields) == (200, b"", b"", ())


def test_health_has_the_engine_s_sentence(rig: Rig) -> None:
    rig.fleet.update(EngineStatus(ChildState.FAILED, since=0.0, detail="no memory"))
    found = endpoints.health(rig.services)

    assert found.status == 503
    assert json.loads(found.body)["engine"]["detail"] == "no memory"


def test_health_is_503_while_draining_whatever_the_engine_does(rig: Rig) -> None:
    rig.services.connections.is_draining = True
    found = endpoints.health(rig.services)

    assert found.status == 503
    assert json.loads(found.body)["status"] == "draining"


def test_health_tells_how_long_the_gateway_has_run(rig: Rig) -> None:
    rig.services.clock.started_at = rig.clock.now - 12.34

    assert json.loads(endpoints.health(rig.services).body)["uptime_seconds"] == 12.3


# Metrics ------------------------------------------------------------------------------------------


def test_gauges_show_what_is_under_way(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.send_request(), rig.send_request(), rig.client()
    gauges = endpoints.gauges(rig.services)

    assert (gauges.in_flight, gauges.queue_depth, gauges.slots) == (1, 1, 1)
    assert gauges.connections == 3
    assert gauges.is_ready
    assert gauges.keys_loaded == 3
    assert rig.services.connections.busy() == 2


@pytest.mark.parametrize(
    ("target", "accept", "content_type"),
    [
        ("/metrics", "*/*", b"application/json"),
        ("/metrics?format=json", "application/json", b"application/json"),
        ("/metrics?format=prometheus2", "*/*", b"application/json"),
        ("/metrics?x=format=prometheus", "*/*", b"application/json"),
        ("/metrics", "text/plain", b"text/plain"),
        ("/metrics?a&format=prometheus&b", "*/*", b"text/plain"),
        ("/metrics", "application/openmetrics-text", b"application/openmetrics-text"),
    ],
)
def test_metrics_are_json_unless_a_scraper_asks(
    target: str, accept: str, content_type: bytes, rig: Rig
) -> None:
    found = response(rig, target, f"Accept: {accept}")

    assert found.status == 200
    assert found.content_type.startswith(content_type)


OPENMETRICS = "application/openmetrics-text"
PROMETHEUS_3 = (
    f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.6,{OPENMETRICS};version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        (PROMETHEUS_3, True),
        (f"{OPENMETRICS}; version=0.0.1,text/plain;version=0.0.4;q=0.5", False),  # Prometheus 2.5
        (f"{OPENMETRICS}; version=0.0.1", False),
        (f"{OPENMETRICS}; version=forged", True),
        (f"{OPENMETRICS}; version=1.0.0; escaping=forged", True),
        ("text/plain; version=forged", False),
    ],
)
def test_what_a_scraper_accepts_chooses_the_format_and_never_comes_back(
    accept: str, is_open: bool, rig: Rig
) -> None:
    found = response(rig, "/metrics", f"Accept: {accept}")

    assert found.content_type.startswith(OPENMETRICS.encode() if is_open else b"text/plain; v")
    assert found.body.endswith(b"# EOF\n") == is_open
    assert b"forged" not in found.content_type


@pytest.mark.parametrize("accept", ["application/json", "text/plain", OPENMETRICS])
def test_metrics_that_are_dear_are_not_made_for_everybody_who_asks(accept: str, rig: Rig) -> None:
    def asked() -> bytes:
        return response(rig, "/metrics", f"Accept: {accept}").body

    for number in range(10_000):
        rig.metrics.count_tokens(f"key{number}", [1, 0, 5, 6, 7, 0])
    asked()  # imports what it needs
    rig.advance(60)
    dear = asked()

    assert asked() is dear
    rig.advance(60)
    assert asked() is not dear


def test_metrics_hold_everything_that_is_over_by_now(rig: Rig) -> None:
    rig.respond_with(OK)
    for _ in range(3):
        rig.send_request()
    found = json.loads(response(rig, "/metrics").body)

    assert [row["value"] for row in found["llama_gguf_requests"]] == [3]
    assert found["llama_gguf_received_bytes"] == 6


# Preflights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "is_told"), [("http://app.example", True), ("http://evil.example", False)]
)
def test_a_preflight_is_answered_by_its_own_origin(
    origin: str, is_told: bool, new_rig: NewRig
) -> None:
    rig = new_rig(cors_origins=("http://app.example",))
    asks = "Access-Control-Request-Method: POST"
    found = response(rig, "/v1/models", f"Origin: {origin}", asks, method="OPTIONS")

    assert (found.status, found.body) == (204, b"")
    assert (b"Access-Control-Max-Age: 86400\r\n" in found.fields) == is_told


def test_nothing_here_asks_the_engine(rig: Rig) -> None:
    for target in ("/ping", "/health", "/metrics"):
        response(rig, target)
    response(rig, "/reload", method="POST")
    response(rig, "/v1/models", method="OPTIONS")

    assert rig.dials == []


# What runs ----------------------------------------------------------------------------------------


def test_health_tells_what_the_supervisor_knows(rig: Rig) -> None:
    status = EngineStatus(
        ChildState.LOADING,
        since=0.0,
        model="m",
        progress=0.25,
        load_seconds=3.5,
        last_exit="killed by SIGKILL",
        restarts={"crash": 2, "hang": 1},
        facts={"quantization": "Q4_1", "size_bytes": 98, "engine_version": "b1"},
    )
    rig.fleet.update(EngineStatus.from_line(status.to_line()))
    facts = json.loads(endpoints.health(rig.services).body)

    assert facts["model"] == {"name": "m", "quantization": "Q4_1", "size_bytes": 98}
    engine = facts["engine"]
    assert (engine["progress"], engine["load_seconds"], engine["version"]) == (0.25, 3.5, "b1")
    assert (engine["last_exit"], engine["restarts"]) == ("killed by SIGKILL", 3)
    assert endpoints.gauges(rig.services).restarts == {"crash": 2, "hang": 1}


def test_the_context_in_health_is_that_of_one_request_as_the_engine_reports_it(rig: Rig) -> None:
    def shown() -> object:
        return json.loads(endpoints.health(rig.services).body)["model"]["context"]

    status = EngineStatus(ChildState.LOADING, since=0.0, facts={"context": 4096})
    rig.fleet.update(status)
    assert shown() == 4096  # calculated before the start

    rig.fleet.update(replace(status, request_tokens=2048))
    assert shown() == 2048


def test_a_degraded_engine_serves_and_its_missing_devices_are_in_health(rig: Rig) -> None:
    status = EngineStatus(
        ChildState.READY, since=0.0, detail="It lacks one.", missing_devices=("RPC (peer:1)",)
    )
    assert not endpoints.gauges(rig.services).is_degraded
    rig.fleet.update(EngineStatus.from_line(status.to_line()))
    found = endpoints.health(rig.services)
    facts = json.loads(found.body)

    assert (found.status, facts["status"]) == (200, "ok")
    assert facts["engine"]["missing_devices"] == ["RPC (peer:1)"]
    assert facts["engine"]["detail"] == "It lacks one."
    assert endpoints.gauges(rig.services).is_degraded


def test_a_gateway_on_its_own_tells_what_it_has_found(rig: Rig) -> None:
    facts = json.loads(endpoints.health(rig.services).body)

    assert facts["model"] == {"name": "m"}
    assert (facts["engine"]["version"], facts["engine"]["restarts"]) == ("", 0)


def test_saved_prompts_are_in_health_and_metrics_only_if_they_are_kept(rig: Rig) -> None:
    assert "prompt_cache" not in json.loads(endpoints.health(rig.services).body)
    numbers = dict.fromkeys(("save_failures", "restores", "restore_failures"), 0)
    cache = {"bytes": 7, "files": 1, "saves": 2, "life": 1, "restored": [], **numbers}
    status = EngineStatus(
        ChildState.READY, since=0.0, prompt_cache={**cache, "seconds_per_token": 0.0}
    )
    rig.fleet.update(status)

    shown = json.loads(endpoints.health(rig.services).body)["prompt_cache"]
    assert (shown["bytes"], shown["saves"], shown["spared_tokens"]) == (7, 2, 0)
    assert endpoints.gauges(rig.services).prompt_cache == shown
