"""Who may ask, and how often."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pytest

from llama_gguf.engines.status import ChildState
from tests.support.fakes import TICK_SECONDS, NewRig, Rig
from tests.support.keys import EXPIRED_KEY, KEY, OTHER_KEY
from tests.support.messages import OK, Response, code_of, request, without_varying

GET = "GET", "/v1/health"


def send_request(rig: Rig, *fields: str, peer: str = "203.0.113.9") -> Response:
    """The answer to a GET with these credentials."""
    rig.respond_with(OK)
    client = rig.client((peer, 40000))
    client.send(request(*GET, *fields, key=None))
    return client.response


@pytest.mark.parametrize(
    "fields",
    [
        (f"Authorization: Bearer {KEY}",),
        (f"authorization: bearer {KEY}",),
        (f"AUTHORIZATION: BEARER   {KEY}",),
        (f"x-api-key: {KEY}",),
        (f"X-API-Key: {KEY}",),
        (f"Authorization: Bearer {KEY}", f"x-api-key: {KEY}"),
        (f"Authorization: Bearer {KEY}", "x-api-key: a-key-for-another-service"),
        ("Authorization: Bearer ", f"x-api-key: {KEY}"),
        (f"Authorization: Bearer {KEY}", "x-api-key:"),
    ],
)
def test_a_key_is_taken_however_it_is_shown(fields: tuple[str, ...], rig: Rig) -> None:
    assert send_request(rig, *fields).status == 200
    assert KEY.encode() not in rig.upstream.received
    assert b"x-api-key" not in rig.upstream.received.lower()
    assert b"another-service" not in rig.upstream.received


def test_where_authorization_is_the_platform_s_only_the_other_field_counts(
    new_rig: NewRig,
) -> None:
    rig = new_rig(auth_header="x-api-key")
    platform = "Authorization: Bearer a-key-of-the-platform"

    assert send_request(rig, platform, f"x-api-key: {KEY}").status == 200
    assert b"a-key-of-the-platform" not in rig.upstream.received
    assert send_request(rig, f"Authorization: Bearer {KEY}").status == 401
    assert send_request(rig, platform).status == 401
    assert send_request(rig, platform, "x-api-key: sk-nobody-0123456789").status == 401


BAD_CREDENTIALS = {
    "none": (),
    "an unknown key": ("Authorization: Bearer sk-nobody-0123456789",),
    "a key with its last letter missing": (f"Authorization: Bearer {KEY[:-1]}",),
    "a key with a letter more": (f"Authorization: Bearer {KEY}x",),
    "a key in another case": (f"Authorization: Bearer {KEY.upper()}",),
    "no key": ("Authorization: Bearer",),
    "an empty key": ("Authorization: Bearer ",),
    "an empty x-api-key": ("x-api-key:",),
    "another scheme": (f"Authorization: Basic {KEY}",),
    "no scheme": (f"Authorization: {KEY}",),
    "a key with a space": (f"Authorization: Bearer {KEY} {KEY}",),
    "a list": (f"Authorization: Bearer {KEY}, Bearer {KEY}",),
    "not ASCII": ("Authorization: Bearer \xe9\xe9\xe9",),
    "a key twice": (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {KEY}"),
    "an x-api-key twice": (f"x-api-key: {KEY}", f"x-api-key: {KEY}"),
    "two keys": (f"Authorization: Bearer {KEY}", f"Authorization: Bearer {OTHER_KEY}"),
    "a wrong one beside a key": ("Authorization: Bearer sk-nobody-0123456", f"x-api-key: {KEY}"),
    "a key and another scheme": ("Authorization: Basic Zm9v", f"x-api-key: {KEY}"),
    "the engine's own key": ("Authorization: Bearer gateway-secret-of-the-engine",),
}


@pytest.mark.parametrize("fields", BAD_CREDENTIALS.values(), ids=BAD_CREDENTIALS.keys())
def test_missing_malformed_and_unknown_keys_get_the_same_401(
    fields: tuple[str, ...], rig: Rig
) -> None:
    client = rig.client()
    client.send(request(*GET, *fields, key=None))
    other = rig.send_request(request(*GET, key=None))

    assert client.response.status == 401
    assert client.response["www-authenticate"].startswith("Bearer")
    assert without_varying(client.received) == without_varying(other.received)
    error = json.loads(client.response.body)["error"]
    assert error["type"] == "authentication_error"
    assert error["code"] == "invalid_api_key"
    assert error["message"]
    assert error["param"] is None
    assert rig.requests == []
    assert rig.records[0].key_id == "-"


def test_an_expired_key_says_so(rig: Rig) -> None:
    response = send_request(rig, f"Authorization: Bearer {EXPIRED_KEY}")

    assert response.status == 401
    assert code_of(response) == "key_expired"
    assert "www-authenticate" in response


def test_a_key_expires_at_its_moment_without_a_reload(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"dora:{KEY}::2030-01-01T00:00:00Z\n")
    moment = 1893456000.0
    rig.services.clock.wall = moment - 1
    assert send_request(rig, f"x-api-key: {KEY}").status == 200

    rig.services.clock.wall = moment

    assert code_of(send_request(rig, f"x-api-key: {KEY}")) == "key_expired"


def test_no_key_in_the_file_refuses_everybody(new_rig: NewRig) -> None:
    assert send_request(new_rig(keys=None), f"x-api-key: {KEY}").status == 401
    assert send_request(new_rig(keys="# nothing\n"), f"x-api-key: {KEY}").status == 401


def test_a_hashed_key_is_found_by_its_secret_and_not_by_its_hash(new_rig: NewRig) -> None:
    hashed = f"sha256${sha256(KEY.encode()).hexdigest()}"
    rig = new_rig(keys=f"eve:{hashed}\n")

    assert send_request(rig, f"x-api-key: {KEY}").status == 200
    assert send_request(rig, f"x-api-key: {hashed}").status == 401


def test_anthropic_clients_get_anthropic_s_envelope(rig: Rig) -> None:
    client = rig.send_request(request("POST", "/v1/messages", key=None, body=b"{}"))
    error = json.loads(client.response.body)

    assert client.response.status == 401
    assert error["type"] == "error"
    assert error["error"]["type"] == "authentication_error"
    assert error["request_id"] == client.response["x-request-id"]


def test_a_secret_is_in_no_answer_and_no_record(rig: Rig) -> None:
    wrong = "sk-wrong-0123456789"
    client = rig.send_request(request(*GET, key=wrong), request(*GET, f"x-api-key: {KEY}"))

    assert wrong.encode() not in client.received
    assert KEY.encode() not in client.received
    assert KEY not in repr(rig.records)


# Wrong keys ---------------------------------------------------------------------------------------


def test_an_address_that_tries_too_many_wrong_keys_has_to_wait(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=3)
    wrong = "x-api-key: sk-nobody-0123456789"
    assert [send_request(rig, wrong).status for _ in range(4)] == [401, 401, 401, 429]

    good = send_request(rig, f"x-api-key: {KEY}")
    assert good.status == 429
    assert good["retry-after"] == "60"
    assert code_of(good) == "rate_limit_exceeded"
    assert send_request(rig, f"x-api-key: {KEY}", peer="203.0.113.10").status == 200

    rig.advance(60)
    assert send_request(rig, f"x-api-key: {KEY}").status == 200


def test_addresses_of_one_ipv6_network_count_as_one(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=2)
    wrong = "x-api-key: sk-nobody-0123456789"
    statuses = [send_request(rig, wrong, peer=f"2001:db8:0:1::{n}").status for n in range(1, 4)]

    assert statuses == [401, 401, 429]
    assert send_request(rig, f"x-api-key: {KEY}", peer="2001:db8:0:1:ffff::9").status == 429
    assert send_request(rig, f"x-api-key: {KEY}", peer="2001:db8:0:2::1").status == 200


def test_expired_keys_count_as_wrong_ones(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=1)
    send_request(rig, f"x-api-key: {EXPIRED_KEY}")

    assert send_request(rig, f"x-api-key: {KEY}").status == 429


def test_to_show_no_key_is_no_guess_as_of_a_check_that_only_looks_whether_we_are_there(
    new_rig: NewRig,
) -> None:
    rig = new_rig(auth_failures_per_minute=1)
    assert {send_request(rig).status for _ in range(5)} == {401}

    assert send_request(rig, f"x-api-key: {KEY}").status == 200


def test_right_keys_do_not_count_as_wrong_ones(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=1)

    assert {send_request(rig, f"x-api-key: {KEY}").status for _ in range(5)} == {200}


def test_wrong_keys_may_be_left_uncounted(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=0)

    assert {send_request(rig, "x-api-key: wrong").status for _ in range(100)} == {401}


# Crowds: what one connection has said, another one may say ----------------------------------------


def test_new_connections_that_say_the_same_are_served_each_for_itself(rig: Rig) -> None:
    rig.respond_with(OK)
    bodies = [b"first", b"2nd", b"third", b"no. 4, which is longer", b"fifth"]
    clients = [rig.client(("203.0.113.9", 40000 + n)) for n in range(len(bodies))]
    for client, body in zip(clients, bodies, strict=True):
        client.send(request(body=body))

    assert [client.response.status for client in clients] == [200] * len(bodies)
    assert len({client.response["x-request-id"] for client in clients}) == len(bodies)
    assert [sent.partition(b"\r\n\r\n")[2] for sent in rig.requests] == bodies
    assert [record.key_id for record in rig.records] == ["alice"] * len(bodies)
    left = [client.response["x-ratelimit-remaining-requests"] for client in clients]
    assert left == ["999", "998", "997", "996", "995"]


def test_a_key_that_is_another_in_one_byte_is_another(rig: Rig) -> None:
    assert send_request(rig, f"x-api-key: {KEY}").status == 200
    for place in range(len(KEY)):
        guess = KEY[:place] + ("x" if KEY[place] != "x" else "y") + KEY[place + 1 :]
        assert send_request(rig, f"x-api-key: {guess}", peer=f"203.0.113.{place}").status == 401


def test_whoever_says_the_same_after_its_key_was_removed_is_refused(rig: Rig) -> None:
    assert send_request(rig, f"x-api-key: {KEY}").status == 200
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.services.key_store.load()

    assert send_request(rig, f"x-api-key: {KEY}").status == 401


def test_whoever_says_the_same_from_an_address_that_guesses_has_to_wait(new_rig: NewRig) -> None:
    rig = new_rig(auth_failures_per_minute=1)
    assert send_request(rig, f"x-api-key: {KEY}", peer="203.0.113.10").status == 200
    assert send_request(rig, "x-api-key: sk-nobody-0123456789").status == 401

    assert send_request(rig, f"x-api-key: {KEY}", peer="203.0.113.10").status == 200
    assert send_request(rig, f"x-api-key: {KEY}").status == 429


def test_a_key_is_not_kept_in_memory_when_its_connections_are_gone(rig: Rig) -> None:
    assert send_request(rig, f"x-api-key: {KEY}").status == 200
    assert rig.services.head_cache._known is not None
    rig.advance(TICK_SECONDS)

    assert rig.services.head_cache._known is None


# Without keys -------------------------------------------------------------------------------------


def test_without_keys_everybody_is_served_and_the_engine_gets_our_key(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False)

    assert send_request(rig, "Authorization: Bearer whatever", "x-api-key: this").status == 200
    assert b"whatever" not in rig.upstream.received
    assert b"x-api-key" not in rig.upstream.received
    assert b"Authorization: Bearer gateway-secret-of-the-engine" in rig.upstream.received


def test_without_keys_and_without_our_own_the_client_s_credentials_pass(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False, backend_api_key="")
    send_request(rig, "Authorization: Basic Zm9v", "X-Api-Key: this")

    assert b"\r\nAuthorization: Basic Zm9v\r\n" in rig.upstream.received
    assert b"\r\nX-Api-Key: this\r\n" in rig.upstream.received
    assert rig.upstream.received.count(b"Authorization") == 1


def test_with_keys_and_without_our_own_no_credentials_reach_the_engine(new_rig: NewRig) -> None:
    rig = new_rig(backend_api_key="")
    send_request(rig, f"Authorization: Bearer {KEY}")

    assert b"uthorization" not in rig.upstream.received


def test_without_keys_nobody_is_limited(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False, max_requests_per_minute=1)
    rig.respond_with(OK)
    client = rig.send_request(request(body=b"{}") * 3)

    assert [a.status for a in client.responses] == [200, 200, 200]
    assert "x-ratelimit-limit-requests" not in client.responses[0]


# Rates --------------------------------------------------------------------------------------------


def post(rig: Rig, key: str = KEY) -> Response:
    rig.respond_with(OK)
    return rig.send_request(request(body=b"{}", key=key)).response


def test_the_answers_tell_what_is_left(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=3)
    first = post(rig)
    rig.advance(10)
    second = post(rig)

    assert first["x-ratelimit-limit-requests"] == "3"
    assert first["x-ratelimit-remaining-requests"] == "2"
    assert first["x-ratelimit-reset-requests"] == "1m0s"
    assert second["x-ratelimit-remaining-requests"] == "1"


def test_a_key_over_its_rate_is_told_when_it_would_be_admitted(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=2)
    post(rig)
    rig.advance(10.25)
    post(rig)
    rig.advance(10)
    response = post(rig)

    assert response.status == 429
    assert code_of(response) == "rate_limit_exceeded"
    assert response["retry-after"] == "40"
    assert response["retry-after-ms"] == "39750"
    assert response["x-ratelimit-remaining-requests"] == "0"
    assert response["x-ratelimit-reset-requests"] == "50s"
    assert rig.metrics.rate_limited["alice", "requests"] == 1
    assert len(rig.requests) == 2


def test_who_waits_as_long_as_told_is_admitted(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    post(rig)
    rig.advance(7)
    wait = int(post(rig)["retry-after-ms"]) / 1000
    rig.advance(wait - 0.25)
    assert post(rig).status == 429

    rig.advance(0.25)

    assert post(rig).status == 200


def test_one_key_s_rate_is_not_another_s(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    post(rig)

    assert post(rig).status == 429
    assert post(rig, OTHER_KEY).status == 200


def test_a_key_s_own_rate_wins(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)

    assert post(rig, OTHER_KEY)["x-ratelimit-limit-requests"] == "1000"


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/health"), ("POST", "/tokenize"), ("POST", "/v1/messages/count_tokens")],
)
def test_what_uses_no_slot_is_not_counted(method: str, target: str, new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    rig.respond_with(OK)
    for _ in range(3):
        assert rig.send_request(request(method, target, body=b"{}")).response.status == 200

    assert post(rig).status == 200


@pytest.mark.parametrize(("method", "target"), [("GET", "/v1/health"), ("POST", "/reload")])
def test_what_is_not_counted_is_told_what_is_left_too(
    method: str, target: str, new_rig: NewRig
) -> None:
    rig = new_rig(max_requests_per_minute=3)
    post(rig)
    rig.advance(20)
    response = rig.send_request(request(method, target)).response

    assert response.status == 200
    assert response["x-ratelimit-limit-requests"] == "3"
    assert response["x-ratelimit-remaining-requests"] == "2"
    assert response["x-ratelimit-reset-requests"] == "40s"


def test_who_shows_no_key_is_told_nothing_of_limits(rig: Rig) -> None:
    assert "x-ratelimit-limit-requests" not in rig.send_request(request(key=None)).response


REFUSED = {
    "a full queue": ({"slots": 1, "max_queue_size": 0}, "queue_full"),
    "a body too large": ({"max_request_body_size": 3}, "payload_too_large"),
    "no room for a body": ({"max_body_memory": 3, "state": ChildState.LOADING}, "queue_full"),
    "an engine that is gone": ({"state": ChildState.FAILED}, "backend_unavailable"),
}


@pytest.mark.parametrize(("settings", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_what_we_refuse_costs_nothing(settings: dict[str, Any], code: str, new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=5, **settings)
    rig.send_request(request(body=b"{}", key=OTHER_KEY))
    response = rig.send_request(request(body=b"1234")).response

    assert code_of(response) == code
    assert response["x-ratelimit-remaining-requests"] == "5"


def test_a_request_too_many_at_once_costs_nothing(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=5, max_concurrent_per_key=1)
    rig.send_request()

    assert rig.send_request().response["x-ratelimit-remaining-requests"] == "4"


def test_a_wait_that_was_too_long_costs_nothing(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1, slots=1, max_queue_wait=10)
    rig.send_request(request(body=b"{}", key=OTHER_KEY))
    waiting = rig.send_request()
    rig.advance(10)

    assert code_of(waiting.response) == "queue_timeout"
    assert waiting.response["x-ratelimit-remaining-requests"] == "1"


def test_a_request_that_was_sent_on_counts_whatever_became_of_it(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    rig.send_request()
    rig.upstream.close()

    assert post(rig).status == 429


def test_a_request_refused_after_its_key_was_removed_is_refused_and_no_more(
    new_rig: NewRig,
) -> None:
    rig = new_rig(slots=1, max_queue_wait=10)
    rig.send_request()
    waiting = rig.send_request()
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.services.key_store.load()
    rig.advance(10)

    assert code_of(waiting.response) == "queue_timeout"


def test_a_refused_request_with_a_small_body_leaves_the_connection(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=1)
    rig.respond_with(OK)
    client = rig.send_request(request(body=b"{}") * 2 + request("GET", "/v1/health"))

    assert [a.status for a in client.responses] == [200, 429, 200]


# One key at once ----------------------------------------------------------------------------------


def test_a_key_may_have_only_so_many_requests_here_at_once(new_rig: NewRig) -> None:
    rig = new_rig(max_concurrent_per_key=1)
    first = rig.send_request()
    second = rig.send_request()
    other = rig.send_request(request(body=b"{}", key=OTHER_KEY))

    assert second.response.status == 429
    assert code_of(second.response) == "concurrency_limit_exceeded"
    assert "retry-after" in second.response
    assert other.received == b""
    assert rig.metrics.rate_limited["alice", "concurrency"] == 1

    rig.upstreams[0].send(OK)
    assert first.response.status == 200
    assert rig.send_request().received == b""
    assert len(rig.requests) == 3


def test_waiting_counts_as_being_here(new_rig: NewRig) -> None:
    rig = new_rig(max_concurrent_per_key=2, slots=1)
    rig.send_request(), rig.send_request()

    assert rig.send_request().response.status == 429


@pytest.mark.parametrize("leaver", [0, 1], ids=["that runs", "that waits"])
def test_a_request_whose_client_left_no_longer_counts(leaver: int, new_rig: NewRig) -> None:
    rig = new_rig(max_concurrent_per_key=2, slots=1)
    clients = [rig.send_request(), rig.send_request()]
    clients[leaver].disconnect()

    assert rig.send_request().received == b""
    assert rig.send_request().response.status == 429
