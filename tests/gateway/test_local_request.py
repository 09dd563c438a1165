"""The paths that the gateway answers itself, whatever the engine does."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from llama_gguf.access.key_store import REST_SECONDS
from llama_gguf.engines.status import ChildState
from tests.support.fakes import NewRig, Rig, T
from tests.support.keys import BACKEND_KEY, KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import (
    OK,
    STREAM_HEAD,
    Response,
    code_of,
    event,
    read_responses,
    request,
)


def get(rig: Rig, target: str, *fields: str, key: str | None = None) -> Response:
    return rig.send_request(request("GET", target, *fields, key=key)).response


# Health -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ChildState)
def test_ping_is_200_and_empty_in_every_state(state: ChildState, new_rig: NewRig) -> None:
    rig = new_rig(state=state, keys=None)
    response = get(rig, "/ping")

    assert (response.status, response.body) == (200, b"")
    assert rig.dials == []


@pytest.mark.parametrize("state", ChildState)
def test_health_is_200_only_when_a_request_would_be_served(
    state: ChildState, new_rig: NewRig
) -> None:
    rig = new_rig(state=state)
    response = get(rig, "/health")
    facts = json.loads(response.body)

    would_serve = state in (ChildState.READY, ChildState.DRAINING, ChildState.ASLEEP)
    assert response.status == (200 if would_serve else 503)
    assert response["content-type"] == "application/json"
    assert facts["status"] == ("ok" if state is ChildState.READY else state)
    assert facts["engine"]["state"] == state
    assert rig.dials == []


def test_health_tells_slots_and_queue_and_nothing_of_keys(new_rig: NewRig) -> None:
    rig = new_rig(slots=1, max_queue_size=7)
    rig.send_request(), rig.send_request(), rig.send_request()
    response = get(rig, "/health")
    facts = json.loads(response.body)

    assert facts["slots"] == {"used": 1, "total": 1}
    assert facts["queue"] == {"length": 2, "size": 7}
    assert facts["engine"]["since"].startswith("1970-01-01T00:00:00")
    assert facts["version"]
    assert facts["form"] in ("compiled", "pure Python")
    for secret in (KEY, BACKEND_KEY, "alice", "key"):
        assert secret.encode() not in response.body


def test_no_query_and_no_disguise_makes_another_path_of_them(rig: Rig) -> None:
    assert get(rig, "/ping?x=/v1/models").status == 200
    assert get(rig, "/ping/").status == 404
    assert get(rig, "/pingx").status == 404
    assert get(rig, "/PING").status == 404


# Metrics ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
def test_one_path_returns_text_to_every_client(accept: str | None, rig: Rig) -> None:
    fields = () if accept is None else (f"Accept: {accept}",)
    response = get(rig, "/prometheus/metrics", *fields)

    assert response["content-type"].startswith("text/plain")
    assert list(text_string_to_metric_families(response.body.decode()))
    assert get(rig, "/metrics", *fields)["content-type"] == "application/json"


def test_the_text_path_negotiates_openmetrics_too(rig: Rig) -> None:
    wanted = "Accept: application/openmetrics-text; version=1.0.0"
    response = get(rig, "/prometheus/metrics", wanted)

    assert response["content-type"].startswith("application/openmetrics-text")


def test_the_text_path_needs_a_key_where_metrics_need_one(new_rig: NewRig) -> None:
    rig = new_rig(metrics_auth_enabled=True)

    assert get(rig, "/prometheus/metrics").status == 401
    assert get(rig, "/prometheus/metrics", key=KEY).status == 200


def test_metrics_are_json_by_default(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request()
    response = get(rig, "/metrics", "Accept: */*")
    metrics = json.loads(response.body)

    assert response["content-type"] == "application/json"
    assert metrics["llama_gguf_requests"] == [
        {"route": "/v1/chat/completions", "method": "POST", "status": "200", "value": 1}
    ]
    assert rig.requests[1:] == []


@pytest.mark.parametrize(
    ("target", "accept"),
    [
        ("/metrics", "text/plain"),
        ("/metrics", "text/plain;version=0.0.4;q=0.3,*/*;q=0.1"),
        ("/metrics?format=prometheus", "*/*"),
        ("/metrics?a=b&format=prometheus", "application/json"),
    ],
)
def test_prometheus_gets_its_text(target: str, accept: str, rig: Rig) -> None:
    response = get(rig, target, f"Accept: {accept}")

    assert response["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.body.decode())
    names = {family.name for family in families}
    assert "llama_gguf_backend_up" in names


def test_openmetrics_gets_its_text(rig: Rig) -> None:
    response = get(rig, "/metrics", "Accept: application/openmetrics-text;version=1.0.0")

    assert response["content-type"].startswith("application/openmetrics-text")
    parse = openmetrics.text_string_to_metric_families
    assert list(parse(response.body.decode()))  # type: ignore[no-untyped-call]


def test_metrics_need_a_key_only_when_that_is_set(new_rig: NewRig) -> None:
    assert get(new_rig(), "/metrics").status == 200
    guarded = new_rig(metrics_auth_enabled=True)
    assert get(guarded, "/metrics").status == 401
    assert get(guarded, "/metrics", key=KEY).status == 200


def test_the_paths_of_strangers_make_no_metric_of_their_own(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=0)
    rig.respond_with(OK)
    for n in range(50):
        rig.send_request(request("GET", f"/v1/models/{n}"))
        rig.send_request(request("GET", f"/nothing/{n}"))
        rig.send_request(request("GET", f"/v1/{n}", key=None))

    assert len(rig.metrics.requests) <= 3


# Reload -------------------------------------------------------------------------------------------


def test_reload_takes_new_keys_and_drops_removed_ones(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.set_keys(f"bob:{OTHER_KEY}\nnew:sk-new-0123456789abc\n")
    response = rig.send_request(request("POST", "/reload")).response

    assert response.status == 200
    assert json.loads(response.body) == {"status": "ok", "keys_loaded": 2}
    assert get(rig, "/v1/models", key=KEY).status == 401
    assert get(rig, "/v1/models", key=OTHER_KEY).status == 200
    assert get(rig, "/v1/models", key="sk-new-0123456789abc").status == 200


def test_a_client_that_disconnects_before_its_reload_begins_leaves_nothing(rig: Rig) -> None:
    with warnings.catch_warnings(record=True) as unfinished:
        warnings.simplefilter("always")
        client = rig.client()
        client.transport.receive(request("POST", "/reload"))
        client.reset()
        gc.collect()

    assert unfinished == []


@pytest.mark.parametrize("text", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_changes_nothing_and_says_so(
    text: bytes | None, rig: Rig
) -> None:
    rig.respond_with(OK)
    if text is None:
        rig.set_keys(None)
    else:
        rig.keys_file.write_bytes(text)
    response = rig.send_request(request("POST", "/reload")).response

    assert response.status == 500
    assert code_of(response) == "reload_failed"
    assert get(rig, "/v1/models", key=KEY).status == 200
    assert rig.metrics.keys_reload == {"success": 1, "failure": 1}
    assert rig.metrics.last_reload_successful == 0


def test_a_reload_after_a_failed_one_is_successful(rig: Rig) -> None:
    rig.set_keys(None)
    rig.send_request(request("POST", "/reload"))
    rig.set_keys(KEYS_TEXT)
    rig.advance(REST_SECONDS)

    assert rig.send_request(request("POST", "/reload")).response.status == 200
    assert rig.metrics.last_reload_successful == 1


def test_without_authentication_no_reload_is_reported(new_rig: NewRig) -> None:
    assert new_rig(auth_enabled=False, keys=None).metrics.last_reload_successful is None


@pytest.mark.parametrize("key", [None, "sk-nobody-0123456789"])
def test_reload_needs_a_key(key: str | None, rig: Rig) -> None:
    rig.set_keys("")

    assert rig.send_request(request("POST", "/reload", key=key)).response.status == 401
    assert len(rig.services.authenticator.ring) == 3


def test_reload_is_for_administrators_where_there_are_any(new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("bob",))
    refused = rig.send_request(request("POST", "/reload", key=KEY)).response
    response = rig.send_request(request("POST", "/reload", key=OTHER_KEY)).response

    assert (refused.status, code_of(refused)) == (403, "admin_key_required")
    assert response.status == 200


class Disk:
    """A slow one: a reload is done when a test says so."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._done = rig.loop.create_future()
        rig.services.key_store.off_the_loop = self._read

    async def _read(self, work: Callable[[], T]) -> T:
        await self._done
        return work()

    def response(self) -> None:
        self._done.set_result(None)
        self._rig.spin()


@pytest.mark.parametrize("length", [0, 5, 40])
def test_what_is_sent_behind_a_slow_reload_is_another_request(length: int, rig: Rig) -> None:
    disk = Disk(rig)
    body = request("GET", "/ping", key=None)[:length]
    client = rig.send_request(request("POST", "/reload", body=body))
    client.send(request("GET", "/ping", key=None))
    assert client.received == b""
    disk.response()

    assert [response.status for response in client.responses] == [200, 200]
    assert [record.path for record in rig.records] == ["/reload", "/ping"]


def test_the_rest_of_a_body_that_comes_during_a_reload_is_no_request(rig: Rig) -> None:
    disk = Disk(rig)
    body = request("GET", "/ping", key=None)
    whole = request("POST", "/reload", body=body)
    client = rig.send_request(whole[:-20])
    client.send(whole[-20:])
    disk.response()
    client.send(request("GET", "/health", key=None))

    assert [record.path for record in rig.records] == ["/reload", "/health"]


def test_a_client_that_leaves_during_a_reload_disturbs_nobody(rig: Rig) -> None:
    disk = Disk(rig)
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    client = rig.send_request(request("POST", "/reload"))
    other = rig.send_request(request("POST", "/reload"))
    client.disconnect()
    disk.response()
    rig.advance(REST_SECONDS)

    assert other.response.status == 200
    assert len(rig.services.authenticator.ring) == 1
    assert rig.is_at_rest


def test_a_reload_keeps_what_a_key_has_used_of_its_rate(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=2)
    rig.respond_with(OK)
    rig.send_request()
    rig.send_request(request("POST", "/reload"))
    rig.send_request()

    assert rig.send_request().response.status == 429


def test_a_reload_changes_rates_at_once(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    rig.respond_with(OK)
    rig.send_request()
    rig.set_keys(f"alice:{KEY}:5\n")
    rig.send_request(request("POST", "/reload"))

    assert rig.send_request().response["x-ratelimit-remaining-requests"] == "3"


def test_a_removed_key_s_running_request_finishes(rig: Rig) -> None:
    client = rig.send_request()
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.send_request(request("POST", "/reload", key=OTHER_KEY))
    rig.upstream.send(OK)

    assert client.response.status == 200
    assert rig.is_at_rest


def test_keys_are_not_read_again_for_a_request(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.set_keys(KEYS_TEXT.replace("alice", "mallory"))
    rig.send_request()

    assert rig.records[0].key_id == "alice"


# What is remembered -------------------------------------------------------------------------------


def test_an_exchange_is_recorded_with_what_happened(rig: Rig) -> None:
    client = rig.client(("2001:db8::7", 5, 0, 0))
    client.send(request("POST", "/v1/chat/completions?secret", "x-request-id: r-1", body=b"12345"))
    rig.advance(2)
    rig.upstream.send(STREAM_HEAD)
    rig.advance(3)
    rig.upstream.send(event(1), b"0\r\n\r\n")
    (record,) = rig.records

    assert (record.request_id, record.key_id, record.address) == ("r-1", "alice", "2001:db8::7")
    assert (record.method, record.path) == ("POST", "/v1/chat/completions")
    assert (record.status, record.outcome) == (200, "done")
    assert (record.first_byte, record.duration) == (2.0, 5.0)
    assert record.bytes_in == 5
    assert record.bytes_out == len(client.received)


def test_our_own_answers_are_recorded_and_counted_too(rig: Rig) -> None:
    client = rig.send_request(request("GET", "/v1/models", key=None), b"nonsense\r\n\r\n")
    refused, nonsense = rig.records

    assert (refused.status, refused.outcome) == (401, "invalid_api_key")
    assert (nonsense.status, nonsense.outcome) == (400, "bad_request")
    assert +rig.metrics.rejections == {"invalid_api_key": 1, "bad_request": 1}
    assert sum(rig.metrics.requests.values()) == 2
    assert len(read_responses(client.received)) == 2


def test_the_bytes_of_our_own_answers_are_recorded(rig: Rig) -> None:
    client = rig.send_request(request("GET", "/v1/models", key=None))

    assert rig.records[0].bytes_out == len(client.received)


def test_a_client_over_a_unix_socket_has_an_address_too(rig: Rig) -> None:
    client = rig.client("")
    client.send(request("GET", "/ping", key=None))

    assert rig.records[0].address == "unix"
