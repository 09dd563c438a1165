"""Paths and methods: what is ambiguous, not exposed, or not served."""

from __future__ import annotations

import pytest

from tests.support.fakes import NewRig, Rig
from tests.support.messages import OK, code_of, request

AMBIGUOUS_PATHS = [
    "/v1/../slots",
    "/v1/./models",
    "/v1/models/..",
    "/v1//models",
    "//v1/models",
    "/v1%2fmodels",
    "/v1%2Fmodels",
    "/v1%5cmodels",
    "/v1\\models",
    "/v1/%2e%2e/slots",
    "/v1/.%2E/slots",
    "/v1/models%00",
    "/v1/models%",
    "/v1/models%zz",
    "/%70ing",
    "/healt%68",
    "/metric%73",
    "/reloa%64",
    "http://a/v1/../slots",
    # The engine's HTTP library cuts a target at its "#": this would reach /v1/streams and, with
    # POST, whatever EXPOSED_ROUTES keeps back.
    "/v1/streams#",
    "/v1/models#/load",
    "/ping#x",
]


@pytest.mark.parametrize("target", AMBIGUOUS_PATHS)
@pytest.mark.parametrize("routes", ["inference", "all"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_path_that_two_could_read_differently_is_refused(
    method: str, target: str, routes: str, new_rig: NewRig
) -> None:
    rig = new_rig(exposed_routes=routes)
    client = rig.send_request(request(method, target, body=b""))

    assert client.response.status == 400
    assert code_of(client.response) == "bad_request"
    assert rig.requests == []


def test_the_path_goes_on_as_it_came(rig: Rig) -> None:
    rig.send_request(request("GET", "/v1/re%73ponses/%C3%A9?q=/../&%2f"))

    assert rig.upstream.received.startswith(b"GET /v1/re%73ponses/%C3%A9?q=/../&%2f HTTP/1.1\r\n")


def test_the_authority_of_a_target_is_not_believed(rig: Rig) -> None:
    rig.send_request(request("GET", "http://evil.example/v1/health"))

    assert rig.upstream.received.startswith(b"GET /v1/health HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n")
    assert b"evil" not in rig.upstream.received


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("GET", "/slots"), ("POST", "/slots/0?action=erase"), ("POST", "/props")),
        *(("POST", "/lora-adapters"), ("POST", "/models"), ("DELETE", "/models/x")),
        *(("POST", "/models/load"), ("POST", "/v1/models"), ("GET", "/tools")),
        *(("GET", "/cors-proxy"), ("POST", "/v1/streams/lookup"), ("DELETE", "/v1/stream")),
    ],
)
def test_a_path_that_is_not_exposed_is_403(method: str, target: str, rig: Rig) -> None:
    client = rig.send_request(request(method, target))

    assert client.response.status == 403
    assert code_of(client.response) == "route_not_exposed"
    assert rig.requests == []
    assert not client.is_closed


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *(("GET", "/"), ("GET", "/index.html"), ("POST", "/V1/chat/completions")),
        *(("GET", "/v1/assistants"), ("POST", "/v1/files"), ("GET", "/api/hello")),
    ],
)
def test_a_path_that_is_unknown_is_404_in_the_clients_envelope(
    method: str, target: str, rig: Rig
) -> None:
    client = rig.send_request(request(method, target))
    version = "anthropic-version: 2023-06-01"
    anthropic = rig.send_request(request(method, target, version)).response

    assert client.response.status == anthropic.status == 404
    assert code_of(client.response) == "not_found"
    assert anthropic.json["error"]["type"] == "not_found_error"
    assert rig.requests == []
    assert not client.is_closed


def test_a_head_request_for_the_root_is_404_without_a_body(rig: Rig) -> None:
    response = rig.send_request(request("HEAD", "/", key=None)).received

    assert response.startswith(b"HTTP/1.1 404 ")
    assert response.endswith(b"\r\n\r\n")


def test_a_path_that_is_refused_again_and_again_keeps_nothing_of_its_requests(rig: Rig) -> None:
    for _ in range(3):
        rig.send_request(request("GET", "/slots"), request("GET", "/slots"))
    error = rig.services.reader.router.route(b"GET", b"/slots").error

    assert error is not None
    assert error.__traceback__ is None, "its frames would hold requests, and with them keys"


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("POST", "/ping", "GET, HEAD"),
        ("DELETE", "/metrics", "GET, HEAD"),
        ("GET", "/reload", "POST"),
    ],
)
def test_our_own_paths_answer_their_methods_only(
    method: str, path: str, allow: str, rig: Rig
) -> None:
    client = rig.send_request(request(method, path))

    assert client.response.status == 405
    assert code_of(client.response) == "method_not_allowed"
    assert client.response["allow"] == allow


# The web UI ---------------------------------------------------------------------------------------


def test_files_of_the_web_ui_need_no_key_and_the_engine_s_paths_still_do(new_rig: NewRig) -> None:
    rig = new_rig(web_ui=True)
    rig.respond_with(OK)

    assert rig.send_request(request("GET", "/", key=None)).response.status == 200
    assert rig.send_request(request("GET", "/v1/models", key=None)).response.status == 401
    assert rig.send_request(request("POST", "/", key=None, body=b"{}")).response.status == 404


@pytest.mark.parametrize("framing", ["Content-Length: 4", "Transfer-Encoding: chunked"])
def test_nobody_without_a_key_takes_up_room_for_a_body(framing: str, new_rig: NewRig) -> None:
    rig = new_rig(web_ui=True)
    client = rig.send_request(request("GET", "/", framing, key=None))

    assert client.response.status == 413
    assert client.is_closed
    assert rig.services.body_memory.used == 0
    assert rig.requests == []


def test_nobody_without_a_key_takes_up_room_by_repeating_a_head_with_another_length(
    new_rig: NewRig,
) -> None:
    rig = new_rig(web_ui=True)
    rig.respond_with(OK)
    without = request("GET", "/", "Content-Length: 0", key=None)
    client = rig.send_request(without)

    client.send(request("GET", "/", "Content-Length: 9", key=None))

    assert [response.status for response in client.responses] == [200, 413]
    assert rig.services.body_memory.used == 0
