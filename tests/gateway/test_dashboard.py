"""The dashboard without a browser; ``tests/browser`` has one."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway import dashboard
from llama_gguf.gateway.dashboard import take_reading
from llama_gguf.http1.routes import PAGE_FILES
from llama_gguf.telemetry.timeseries import NAMES, STEP_SECONDS
from llama_gguf.values import replace
from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import OK, STREAM_HEAD, Response, chunk, request

FILES = ("/dashboard", "/favicon.ico", *(f"/{name}" for name in PAGE_FILES))
KEYS = (KEY, OTHER_KEY)
TELLING = (
    b'data: {"timings":{"cache_n":32,"prompt_n":1,"prompt_ms":16.5,"prompt_per_token_ms":16.5,'
    b'"prompt_per_second":60.3,"predicted_n":4,"predicted_ms":44.8,"predicted_per_token_ms":11.2,'
    b'"predicted_per_second":89.2}}\n\n'
)


def get(rig: Rig, path: str, key: str | None = KEY) -> Response:
    (response,) = rig.send_request(request("GET", path, key=key)).responses
    return response


def data(rig: Rig, path: str = "/dashboard/data", key: str | None = KEY) -> Any:
    response = get(rig, path, key)
    assert response.status == 200
    return json.loads(response.body)


def stream(rig: Rig, key: str = KEY) -> None:
    rig.send_request(request(body=b"{}", key=key))
    rig.advance(0.5)
    rig.upstream.send(STREAM_HEAD, chunk(b'data: {"x":1}\n\n'), chunk(TELLING), b"0\r\n\r\n")


# The page -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
def test_the_page_needs_no_key_no_engine_and_lets_nothing_else_in(path: str, rig: Rig) -> None:
    response = get(rig, path, key=None)

    assert response.status == 200
    assert response.body
    policy = response["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert response["X-Content-Type-Options"] == "nosniff"
    assert rig.dials == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/dashboard", "text/html; charset=utf-8"),
        ("/dashboard/style.css", "text/css; charset=utf-8"),
        ("/dashboard/main.js", "text/javascript; charset=utf-8"),
        ("/favicon.ico", "image/svg+xml"),
    ],
)
def test_each_file_says_what_it_is(path: str, kind: str, rig: Rig) -> None:
    assert get(rig, path)["Content-Type"] == kind


def test_nothing_in_the_page_comes_from_elsewhere_or_stands_inline() -> None:
    page = dashboard.page("/dashboard").body.decode()
    scripts = {
        name: dashboard.page(f"/{name}").body.decode() for name in PAGE_FILES if name[-3:] == ".js"
    }
    code = "".join(scripts.values())
    style = dashboard.page("/dashboard/style.css").body.decode()

    # Relative, so that the page works below a path of a proxy, as at /llm/dashboard.
    linked = re.findall(r'(?:src|href)="([^"#]+)"', page)
    files = ("dashboard/icon.svg", "dashboard/style.css", "dashboard/main.js")
    assert linked == [*files, "metrics", "metrics"]
    assert not re.search(r"<style|<script>|\son\w+=|style=", page)
    assert "url(" not in style
    assert "@import" not in style
    imported = re.findall(r'from "\./([^"]*)"', code)
    assert {f"dashboard/{name}" for name in imported} | {"dashboard/main.js"} == scripts.keys()
    requested = re.findall(r"""(?:json|request)\(["`]([^"`?]*)""", code)
    assert sorted(set(requested)) == [
        *("dashboard/data", "dashboard/keys", "dashboard/log", "v1/chat/completions"),
    ]
    assert re.findall(r"https?://[^\"]*", code) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|document\.write", code)


def test_the_page_can_be_switched_off(new_rig: NewRig) -> None:
    rig = new_rig(dashboard=False)

    assert {
        get(rig, path).status for path in ("/dashboard", "/dashboard/data", "/dashboard/log", "/")
    } == {404}


# The root -----------------------------------------------------------------------------------------


def test_a_browser_is_led_to_the_page_also_below_a_path_of_a_proxy(rig: Rig) -> None:
    browser = request("GET", "/", "Accept: text/html,application/xhtml+xml;q=0.9", key=None)
    (response,) = rig.send_request(browser).responses

    assert (response.status, response["Location"]) == (302, "dashboard")
    assert response["Vary"] == "Accept"
    assert get(rig, "/favicon.ico", key=None).status == 200
    assert rig.services.metrics.rejections.total() == 0


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
def test_other_clients_are_refused_as_ever(accept: str, rig: Rig) -> None:
    (response,) = rig.send_request(request("GET", "/", f"Accept: {accept}")).responses

    assert (response.status, json.loads(response.body)["error"]["code"]) == (
        404,
        "not_found",
    )


# Its numbers --------------------------------------------------------------------------------------


def test_numbers_need_a_key(rig: Rig) -> None:
    for path in ("/dashboard/data", "/usage"):
        response = get(rig, path, key=None)
        assert response.status == 401
        assert response["WWW-Authenticate"].startswith("Bearer")


def test_numbers_have_what_health_says_and_what_the_page_draws(rig: Rig) -> None:
    stream(rig)
    rig.send_request(request("POST", "/nowhere"))
    rig.services.recorder.settle()
    take_reading(rig.services, rig.clock.now + STEP_SECONDS)
    found = data(rig)

    assert found["engine"]["state"] == "ready"
    assert found["slots"] == {"used": 0, "total": 4}
    assert set(NAMES) < found["history"].keys()
    assert found["recent"]["first_token_p50"] == 0.5
    assert found["errors"] == {"not_found": 1}
    assert found["keys"][0]["total"]["completion_tokens"] == 4


def test_errors_are_those_that_a_client_got(rig: Rig) -> None:
    rig.send_request(request(body=b"{}"))
    rig.upstream.send(STREAM_HEAD)
    rig.upstream.reset()  # its client gets what follows, and nothing of this
    rig.upstream.send(STREAM_HEAD, chunk(b'data: {"error":{"code":500}}\n\n'), b"0\r\n\r\n")
    rig.send_request(request(body=b"{}"))
    rig.upstream.send(STREAM_HEAD, chunk(b'data: {"x":1}\n\n'))
    rig.upstream.reset()
    take_reading(rig.services, rig.clock.now + STEP_SECONDS)

    assert data(rig)["errors"] == {"response_broken_off": 1, "engine_error": 1}


def test_a_step_is_taken_when_it_is_due_and_its_times_are_its_own(rig: Rig) -> None:
    begin = rig.clock.now
    stream(rig)
    for n in (0.4, 1.0, 1.2, 2.0):
        take_reading(rig.services, begin + n * STEP_SECONDS)
    history = data(rig)["history"]

    assert history["first_token_p50"] == [0.5, None]
    assert history["completion_tokens_per_second"] == [0.8, 0.0]


def test_looks_at_the_gateway_itself_are_no_requests_on_the_chart(rig: Rig) -> None:
    rig.respond_with(OK)
    for path in ("/health", "/metrics", "/dashboard/data", "/v1/models"):
        get(rig, path)
    take_reading(rig.services, rig.clock.now + STEP_SECONDS)

    assert data(rig)["history"]["requests_per_second"] == [0.0]


def test_the_charts_cover_the_range_that_is_asked_for(rig: Rig) -> None:
    for query, seconds in (("", 900), ("?range=300", 300), ("?x=1&range=86400", 86400)):
        assert data(rig, f"/dashboard/data{query}")["history"]["range_seconds"] == seconds
    for query in ("?range=1", "?range=", "?range=99999999999", "?range=300x", "?arange=300"):
        assert data(rig, f"/dashboard/data{query}")["history"]["range_seconds"] == 900


def test_a_replica_has_its_state_and_its_work(rig: Rig) -> None:
    stream(rig)
    rig.services.recorder.settle()
    take_reading(rig.services, rig.clock.now + STEP_SECONDS)
    rig.send_request(request(body=b"{}"))
    (replica,) = data(rig)["replicas"]

    assert replica == {
        "replica": "0",
        "state": "ready",
        "detail": "",
        "slots": 4,
        "slots_busy": 1,
        "tokens_per_second": 0.727,
        "cached_ratio": 0.97,
    }


def test_each_of_several_replicas_has_its_state_and_its_work(rig: Rig) -> None:
    second = EngineStatus(ChildState.LOADING, since=0.0, replica="1", address="127.0.0.1:9")
    rig.fleet.update(second)
    stream(rig)
    rig.services.recorder.settle()
    first, other = data(rig)["replicas"]

    assert (first["replica"], first["state"], first["slots"]) == ("0", "ready", 4)
    assert first["cached_ratio"] == 0.97
    assert (other["replica"], other["state"], other["slots_busy"]) == ("1", "loading", 0)


def test_a_key_sees_its_own_requests_and_an_administrator_all(new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("alice",))
    stream(rig)
    stream(rig, OTHER_KEY)
    ids = {key: [row["key_id"] for row in data(rig, key=key)["requests"]] for key in KEYS}

    assert ids == {KEY: ["bob", "alice"], OTHER_KEY: ["bob"]}


def test_the_rate_of_a_key_has_limit_used_and_remaining(rig: Rig) -> None:
    stream(rig)

    assert data(rig)["keys"][0]["requests_per_minute"] == {
        "limit": 1000,
        "used": 1,
        "remaining": 999,
    }


def test_advice_after_a_crash_is_for_administrators(new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("alice",))
    status = rig.replica.tracker.status
    rig.replica.tracker.update(replace(status, last_exit="it died", last_advice="lower CTX"))
    rig.spin()

    assert data(rig)["last_advice"] == "lower CTX"
    assert "last_advice" not in data(rig, key=OTHER_KEY)


# Usage --------------------------------------------------------------------------------------------


def test_a_key_sees_its_own_numbers_and_no_other_s(rig: Rig) -> None:
    stream(rig)
    stream(rig, OTHER_KEY)
    found = data(rig, "/usage")

    assert [account["key_id"] for account in found["keys"]] == ["alice"]
    assert (found["key_id"], found["sees_all"]) == ("alice", False)
    counts = found["keys"][0]["last_minute"]
    assert (counts["prompt_tokens"], counts["cached_tokens"]) == (33, 32)


def test_an_administrator_sees_everybody_s(new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("alice",))
    stream(rig, OTHER_KEY)
    ids = {key: [a["key_id"] for a in data(rig, "/usage", key)["keys"]] for key in (KEY, OTHER_KEY)}

    assert ids == {KEY: ["alice", "bob"], OTHER_KEY: ["bob"]}


def test_an_administrator_is_in_the_list_once(new_rig: NewRig) -> None:
    rig = new_rig(admin_key_ids=("alice",))
    stream(rig)

    assert [account["key_id"] for account in data(rig, "/usage")["keys"]] == ["alice"]


def test_where_no_keys_are_asked_for_everybody_is_one(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False)
    stream(rig)
    found = data(rig, "/usage", key=None)

    assert [account["key_id"] for account in found["keys"]] == ["-"]
    assert found["keys"][0]["total"]["requests"] == 1


def test_no_look_ever_asks_the_engine(rig: Rig) -> None:
    for path in (*FILES, "/dashboard/data", "/usage", "/metrics", "/health"):
        assert get(rig, path).status == 200

    assert rig.dials == []


def test_numbers_are_kept_by_no_cache(rig: Rig) -> None:
    assert get(rig, "/usage")["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("auth_enabled", "keys"), [(True, "needed"), (False, "none")])
def test_the_page_knows_whether_to_ask_for_a_key(
    auth_enabled: bool, keys: str, new_rig: NewRig
) -> None:
    rig = new_rig(auth_enabled=auth_enabled)

    assert f'<html lang="en" data-keys="{keys}">' in get(rig, "/dashboard").body.decode()
