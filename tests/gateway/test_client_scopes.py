"""Keys that are limited to some routes or networks, and addresses behind proxies."""

from __future__ import annotations

import json

import pytest

from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import OK, code_of, request

POST = "POST", "/v1/chat/completions"
PROXY = "10.0.0.1"
INSIDE = "192.0.2.7"
OUTSIDE = "198.51.100.1"


def limited(new_rig: NewRig, words: str, **settings: object) -> Rig:
    """A gateway whose key alice has *words*, and whose key bob has none."""
    rig = new_rig(keys=f"alice:{KEY} {words}\nbob:{OTHER_KEY}\n", **settings)
    rig.respond_with(OK)
    return rig


def send(rig: Rig, head: bytes, peer: str = INSIDE) -> FakeClient:
    client = rig.client((peer, 40000))
    client.send(head)
    return client


def status_of(rig: Rig, *fields: str, peer: str = INSIDE, key: str = KEY) -> int:
    return send(rig, request(*POST, *fields, key=key, body=b"{}"), peer).response.status


# Routes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/chat/completions", "chat"),
        ("POST", "/chat/completions/input_tokens", "chat"),
        ("POST", "/completion", "completions"),
        ("POST", "/infill", "completions"),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/v1/messages", "messages"),
        ("POST", "/v1/messages/count_tokens", "messages"),
        ("POST", "/v1/embeddings", "embeddings"),
        ("POST", "/reranking", "rerank"),
        ("POST", "/v1/audio/transcriptions", "audio"),
        ("POST", "/tokenize", "tokenize"),
        ("GET", "/v1/models", "models"),
        ("GET", "/props", "models"),
        ("GET", "/usage", "usage"),
        ("GET", "/dashboard/data", "usage"),
        ("GET", "/metrics", "metrics"),
        ("GET", "/v1/health", "other"),
        ("POST", "/reload", "admin"),
    ],
)
def test_a_key_limited_to_some_routes_gets_only_those(
    method: str, path: str, scope: str, new_rig: NewRig
) -> None:
    other = "chat" if scope != "chat" else "models"
    permitted = limited(new_rig, f"routes={other},{scope}", metrics_auth_enabled=True)
    assert send(permitted, request(method, path, body=b"")).response.status == 200

    rejected = limited(new_rig, f"routes={other}", metrics_auth_enabled=True)
    client = send(rejected, request(method, path, body=b""))
    error = json.loads(client.response.body)["error"]

    assert (client.response.status, error["type"]) == (403, "permission_error")
    assert f"'{scope}' is not one of them" in error["message"]
    assert other not in error["message"]
    assert rejected.requests == []
    assert (rejected.records[-1].key_id, rejected.records[-1].outcome) == ("alice", "key_scope")


@pytest.mark.parametrize("path", ["/ping", "/health", "/metrics", "/dashboard"])
def test_what_needs_no_key_is_in_no_scope(path: str, new_rig: NewRig) -> None:
    rig = limited(new_rig, "routes=chat from=10.9.9.9")

    assert send(rig, request("GET", path)).response.status == 200


def test_a_request_outside_a_key_s_scope_does_not_count_towards_its_rate(new_rig: NewRig) -> None:
    rig = limited(new_rig, "routes=models", max_requests_per_minute=5)
    rejected = send(rig, request(*POST, body=b"{}"))
    client = send(rig, request("GET", "/v1/models"))

    assert rejected.response.status == 403
    assert rejected.response["x-ratelimit-remaining-requests"] == "5"
    assert client.response["x-ratelimit-remaining-requests"] == "5"


def test_the_envelope_is_that_of_the_route(new_rig: NewRig) -> None:
    rig = limited(new_rig, "routes=chat")

    client = send(rig, request("POST", "/v1/messages", body=b"{}"))

    assert json.loads(client.response.body)["error"]["type"] == "permission_error"
    assert json.loads(client.response.body)["type"] == "error"


def test_a_connection_that_was_served_is_refused_another_route(new_rig: NewRig) -> None:
    rig = limited(new_rig, "routes=chat")
    client = send(rig, request(*POST, body=b"{}"))
    client.send(request("POST", "/v1/embeddings", body=b"{}"))
    client.send(request(*POST, body=b"{}"))

    assert [response.status for response in client.responses] == [200, 403, 200]


def test_a_reload_applies_to_open_connections(new_rig: NewRig) -> None:
    rig = limited(new_rig, "routes=chat")
    client = send(rig, request(*POST, body=b"{}"))
    rig.set_keys(f"alice:{KEY} routes=embeddings\n")
    rig.services.key_store.load()
    client.send(request(*POST, body=b"{}"))

    assert [response.status for response in client.responses] == [200, 403]


def test_an_old_secret_has_the_scope_of_its_key(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"alice:{KEY} routes=models\nalice-old-0a1b2c:{OTHER_KEY}\n")
    rig.respond_with(OK)

    assert status_of(rig, key=OTHER_KEY) == 403


# Networks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("peer", "status"),
    [
        ("192.0.2.7", 200),
        ("::ffff:192.0.2.7", 200),
        ("2001:db8::1", 200),
        ("192.0.3.7", 403),
        ("2001:db9::1", 403),
    ],
)
def test_a_key_limited_to_some_networks_is_rejected_elsewhere(
    peer: str, status: int, new_rig: NewRig
) -> None:
    rig = limited(new_rig, "from=192.0.2.0/24,2001:db8::/32")

    client = send(rig, request(*POST, body=b"{}"), peer)

    assert client.response.status == status
    if status == 403:
        assert code_of(client.response) == "key_scope"
        assert b"192.0.2.0" not in client.received
    assert status_of(rig, peer=peer, key=OTHER_KEY) == 200


def test_a_head_that_another_connection_has_sent_is_checked_again(new_rig: NewRig) -> None:
    rig = limited(new_rig, f"from={INSIDE}")

    assert [status_of(rig, peer=peer) for peer in (INSIDE, OUTSIDE, INSIDE)] == [200, 403, 200]
    head = request(*POST, body=b"{}")[:-2]
    assert rig.services.head_cache.match(head)[0] is None


def test_a_unix_socket_is_in_no_network(new_rig: NewRig) -> None:
    rig = limited(new_rig, "from=0.0.0.0/0,::/0")
    client = rig.client("")
    client.send(request(*POST, body=b"{}"))

    assert client.response.status == 403


# Proxies ------------------------------------------------------------------------------------------


def test_no_one_s_x_forwarded_for_counts_by_default(new_rig: NewRig) -> None:
    rig = limited(new_rig, f"from={INSIDE}")

    assert status_of(rig, f"X-Forwarded-For: {INSIDE}", peer=OUTSIDE) == 403
    assert status_of(rig, f"X-Forwarded-For: {OUTSIDE}", peer=INSIDE) == 200
    assert [record.address for record in rig.records] == [OUTSIDE, INSIDE]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([f"X-Forwarded-For: {INSIDE}"], 200),
        ([f"x-forwarded-for: {OUTSIDE}, {INSIDE}, 10.7.7.7"], 200),
        ([f"X-Forwarded-For: {OUTSIDE}"], 403),
        # Invented by the client, and followed by what the proxies have appended.
        ([f"X-Forwarded-For: {INSIDE}, {OUTSIDE}"], 403),
        ([f"X-Forwarded-For: {INSIDE}", f"X-Forwarded-For: {OUTSIDE}"], 403),
        ([f"X-Forwarded-For: {INSIDE}, {OUTSIDE}, 10.7.7.7"], 403),
        ([f"X-Forwarded-For: {INSIDE}, nonsense"], 403),
        ([f"X-Real-IP: {INSIDE}"], 403),
        ([f"Forwarded: for={INSIDE}"], 403),
        ([], 403),
    ],
)
def test_behind_a_trusted_proxy_its_word_counts_and_not_the_client_s(
    fields: list[str], status: int, new_rig: NewRig
) -> None:
    rig = limited(new_rig, f"from={INSIDE}", trusted_proxies=("10.0.0.0/8",))

    assert status_of(rig, *fields, peer=PROXY) == status


def test_each_request_on_a_proxy_s_connection_has_its_own_client(new_rig: NewRig) -> None:
    rig = limited(new_rig, f"from={INSIDE}", trusted_proxies=("10.0.0.0/8",))
    client = rig.client((PROXY, 40000))
    for address in (INSIDE, OUTSIDE, OUTSIDE, INSIDE, INSIDE):
        client.send(request(*POST, f"X-Forwarded-For: {address}", body=b"{}"))
    client.send(b"nonsense\r\n\r\n")

    assert [response.status for response in client.responses] == [200, 403, 403, 200, 200, 400]
    assert [record.address for record in rig.records] == [
        *(INSIDE, OUTSIDE, OUTSIDE, INSIDE, INSIDE),
        PROXY,
    ]


def test_a_proxy_s_head_is_not_taken_for_that_of_another_connection(new_rig: NewRig) -> None:
    rig = limited(new_rig, "weight=2", trusted_proxies=("10.0.0.0/8",))
    forwarded = f"X-Forwarded-For: {OUTSIDE}"
    for peer in (INSIDE, PROXY, INSIDE):
        assert status_of(rig, forwarded, peer=peer) == 200

    assert [record.address for record in rig.records] == [INSIDE, OUTSIDE, INSIDE]


def test_wrong_keys_behind_a_trusted_proxy_count_by_client(new_rig: NewRig) -> None:
    rig = limited(new_rig, "weight=2", trusted_proxies=("10.0.0.0/8",), auth_failures_per_minute=1)
    wrong = [
        status_of(rig, f"X-Forwarded-For: {OUTSIDE}", peer=PROXY, key="sk-nobody-0123456789")
        for _ in range(2)
    ]

    assert wrong == [401, 429]
    assert status_of(rig, f"X-Forwarded-For: {OUTSIDE}", peer=PROXY) == 429
    assert status_of(rig, f"X-Forwarded-For: {INSIDE}", peer=PROXY) == 200
