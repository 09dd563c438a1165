"""What a key with a budget may use, and what is counted. Windows: ``test_token_budget``."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import LAST_CHUNK, STREAM_HEAD, Response, chunk, code_of, request

NOON: Final = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
HALF_A_DAY: Final = 43_200


def key_with(words: str) -> str:
    return f"alice:{KEY} {words}\nbob:{OTHER_KEY}\n"


def answer(prompt: int, completion: int, milliseconds: float = 40.0, *, status: int = 200) -> bytes:
    """llama-server's response, of which half of the time was for the prompt."""
    timings = {
        "cache_n": 0,
        "prompt_n": prompt,
        "prompt_ms": milliseconds / 2,
        "prompt_per_token_ms": 1.0,
        "prompt_per_second": 1.0,
        "predicted_n": completion,
        "predicted_ms": milliseconds / 2,
        "predicted_per_token_ms": 1.0,
        "predicted_per_second": 1.0,
    }
    body = json.dumps({"choices": [], "timings": timings}, separators=(",", ":")).encode()
    head = b"HTTP/1.1 %d x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


def rig_with(new_rig: NewRig, words: str, **settings: Any) -> Rig:
    rig = new_rig(keys=key_with(words), **settings)
    rig.services.clock.wall = NOON
    return rig


def post(rig: Rig, reply: bytes | None = None, body: bytes = b"{}", key: str = KEY) -> Response:
    rig.respond_with(reply or answer(6, 4))
    return send(rig, body, key).response


def send(rig: Rig, body: bytes = b"{}", key: str = KEY) -> FakeClient:
    return rig.send_request(request(body=body, key=key))


def used(rig: Rig, key_id: str = "alice") -> dict[str, float]:
    rig.services.recorder.settle()
    budget = rig.services.authenticator.budgets.of(key_id)
    states = budget.states(rig.services.clock.steady(), rig.services.clock.wall)
    return {state.name: state.used for state in states}


def tokens_today(rig: Rig) -> float:
    return used(rig)["tokens_per_day"]


# What is counted ----------------------------------------------------------------------------------


def test_the_engine_s_exact_figures_are_counted(new_rig: NewRig) -> None:
    rig = rig_with(
        new_rig,
        "tokens_per_minute=900 tokens_per_day=900 tokens_per_month=900 engine_seconds_per_day=9",
    )

    post(rig, answer(100, 20, 250.0), body=b'{"max_tokens":500}')

    assert used(rig) == {
        "tokens_per_minute": 120,
        "tokens_per_day": 120,
        "tokens_per_month": 120,
        "engine_seconds_per_day": 0.25,
    }


def test_the_estimate_counts_while_the_request_is_under_way(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=500")
    client = send(rig, b'{"max_tokens":500}')
    assert tokens_today(rig) == 504

    assert code_of(send(rig).response) == "insufficient_quota"

    rig.upstream.send(answer(6, 4))
    assert client.response.status == 200
    assert tokens_today(rig) == 10
    assert post(rig).status == 200


def test_the_estimate_is_bounded_by_the_context_of_a_request(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100000")
    status = EngineStatus(ChildState.READY, since=0.0, slots=4, model="m", request_tokens=4096)
    rig.fleet.update(status)

    send(rig, b'{"max_tokens":90000}')

    assert tokens_today(rig) == 4096


def test_a_body_that_arrives_in_pieces_is_estimated_as_a_whole(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    raw = request(body=b'{"max_tokens":500}')

    rig.send_request(raw[:-9], raw[-9:])

    assert tokens_today(rig) == 504


@pytest.mark.parametrize(
    "reply",
    [answer(6, 4, status=400), answer(6, 4, status=500), b"no HTTP\r\n\r\n"],
    ids=["400", "500", "no response"],
)
def test_a_request_that_fails_gives_all_back(reply: bytes, new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000 engine_seconds_per_day=9")

    assert post(rig, reply).status >= 400

    assert used(rig) == {"tokens_per_day": 0, "engine_seconds_per_day": 0}


def test_a_stream_that_the_engine_breaks_off_gives_all_back(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    send(rig, b'{"max_tokens":500}')
    rig.upstream.send(STREAM_HEAD + chunk(b'data: {"n":1}\n\n'))

    rig.upstream.reset()

    assert tokens_today(rig) == 0


def test_a_request_that_is_refused_by_the_queue_gives_all_back(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000", slots=1, max_queue_size=0)
    send(rig, key=OTHER_KEY)

    response = send(rig, b'{"max_tokens":500}').response

    assert response.status == 503
    assert response["x-ratelimit-remaining-tokens"] == "1000"
    assert tokens_today(rig) == 0


def test_a_client_that_leaves_the_queue_gets_all_back(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000", slots=1)
    send(rig, key=OTHER_KEY)
    client = send(rig, b'{"max_tokens":500}')
    assert tokens_today(rig) == 504

    client.disconnect()

    assert tokens_today(rig) == 0


def test_a_client_that_does_not_wait_for_the_end_pays_the_estimate(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000 engine_seconds_per_day=9")
    client = send(rig, b'{"max_tokens":50}')
    rig.upstream.send(STREAM_HEAD + chunk(b'data: {"n":1}\n\n'))
    rig.clock.now += 2.5

    client.disconnect()

    assert used(rig) == {"tokens_per_day": 54, "engine_seconds_per_day": 2.5}


def test_a_client_that_leaves_after_a_long_stream_pays_for_its_length(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    client = send(rig, b"{}")
    rig.upstream.send(STREAM_HEAD + 100 * chunk(b"data: %b\n\n" % (b"x" * 248)))

    client.disconnect()

    assert 100 <= tokens_today(rig) <= 110


@pytest.mark.parametrize(
    ("members", "reply", "tokens"),
    [
        (b"", STREAM_HEAD, 4096 + 1),  # and the head of the response
        (b',"n":2', answer(600, 50), 8192 + 2 * 50),
    ],
    ids=["the client leaves", "two outputs"],
)
def test_a_body_with_an_image_costs_no_more_prompt_than_the_context_has_room_for(
    members: bytes, reply: bytes, tokens: int, new_rig: NewRig
) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000000")
    status = EngineStatus(ChildState.READY, since=0.0, slots=4, model="m", request_tokens=4096)
    rig.fleet.update(status)
    client = send(rig, b'{"image_url":"%b"%b}' % (100_000 * b"x", members))
    rig.upstream.send(reply)

    client.disconnect()

    assert tokens_today(rig) == tokens


def test_a_response_without_figures_costs_the_estimate(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

    post(rig, reply, body=b'{"max_tokens":50}')

    assert tokens_today(rig) == 54


def test_outputs_that_the_engine_does_not_report_count_like_the_reported_one(
    new_rig: NewRig,
) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000 engine_seconds_per_day=9")

    post(rig, answer(6, 4, 2000.0), body=b'{"n":3}')

    assert used(rig) == {"tokens_per_day": 6 + 3 * 4, "engine_seconds_per_day": 4.0}


def test_prompts_that_the_engine_does_not_report_count_by_their_length(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    prompts = [100 * "x", 100 * "y", 100 * "z"]
    body = json.dumps({"prompt": prompts, "max_tokens": 4}).encode()

    post(rig, answer(25, 4), body=body)

    assert tokens_today(rig) == len(body) // 4 + 3 * 4


def test_requests_that_need_no_slot_cost_nothing(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100")
    rig.respond_with(answer(6, 4))

    client = rig.send_request(request("GET", "/v1/health"))

    assert client.response["x-ratelimit-remaining-tokens"] == "100"
    assert tokens_today(rig) == 0


def test_a_request_that_is_sent_again_counts_once(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000", max_replays=1)
    client = send(rig, b'{"max_tokens":50}')
    rig.upstream.reset()
    assert tokens_today(rig) == 54

    rig.upstream.send(answer(6, 4))

    assert client.response.status == 200
    assert len(rig.requests) == 2
    assert tokens_today(rig) == 10


def test_no_response_that_has_ended_is_uncounted_when_the_next_request_is_decided(
    new_rig: NewRig,
) -> None:
    rig = rig_with(new_rig, "tokens_per_day=1000")
    rig.respond_with(answer(900, 100))
    client = rig.client()

    client.send(request(body=b"{}") * 2)

    assert [response.status for response in client.responses] == [200, 429]


# Refusals -----------------------------------------------------------------------------------------


def test_over_the_minute_the_wait_is_stated_and_true(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_minute=100")
    post(rig, answer(90, 10))

    refused = post(rig)

    assert refused.status == 429
    assert code_of(refused) == "rate_limit_exceeded"
    assert "x-should-retry" not in refused
    assert refused["x-ratelimit-limit-tokens"] == "100"
    assert refused["x-ratelimit-remaining-tokens"] == "0"
    assert refused["x-ratelimit-reset-tokens"] == "1m0s"
    assert rig.metrics.rate_limited["alice", "tokens_per_minute"] == 1
    wait = int(refused["retry-after-ms"]) / 1000
    rig.clock.now += wait - 0.25
    assert post(rig).status == 429
    rig.clock.now += 0.25
    assert post(rig).status == 200


@pytest.mark.parametrize(
    ("words", "reply", "what"),
    [
        ("tokens_per_day=10", answer(6, 4), "10 tokens per day"),
        ("tokens_per_month=10", answer(6, 4), "10 tokens per month"),
        ("engine_seconds_per_day=2", answer(1, 1, 2000.0), "2 engine-seconds per day"),
    ],
)
def test_over_a_budget_no_retry_is_suggested_before_the_window_ends(
    words: str, reply: bytes, what: str, new_rig: NewRig
) -> None:
    rig = rig_with(new_rig, words)  # noon of the last day of a month
    assert post(rig, reply).status == 200

    refused = post(rig)

    assert refused.status == 429
    error = refused.json["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert what in error["message"]
    assert "It resets in 12 h, at the end of the " in error["message"]
    assert refused["retry-after"] == str(HALF_A_DAY)
    assert refused["x-should-retry"] == "false"
    assert rig.metrics.rate_limited["alice", words.partition("=")[0]] == 1
    assert len(rig.requests) == 1
    rig.services.clock.wall = NOON + HALF_A_DAY
    assert post(rig).status == 200


def test_a_refused_request_counts_towards_no_rate(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10", max_requests_per_minute=5)
    post(rig)

    responses = [post(rig) for _ in range(9)]

    assert {code_of(response) for response in responses} == {"insufficient_quota"}
    assert responses[-1]["x-ratelimit-remaining-requests"] == "4"


def test_an_upload_is_refused_by_its_head_once_the_budget_is_used(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10")
    post(rig)

    client = rig.send_request(
        request("POST", "/v1/chat/completions", "Content-Length: 9000000", body=None)
    )

    assert code_of(client.response) == "insufficient_quota"


def test_a_budget_that_is_used_up_while_the_body_arrives_refuses_the_request(
    new_rig: NewRig,
) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10")
    raw = request(body=b"{}")
    slow = rig.send_request(raw[:-1])
    post(rig)

    slow.send(raw[-1:])

    assert code_of(slow.response) == "insufficient_quota"
    assert len(rig.requests) == 1


def test_one_key_s_budget_is_not_another_s(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10")
    post(rig)

    other = post(rig, key=OTHER_KEY)

    assert post(rig).status == 429
    assert other.status == 200
    assert "x-ratelimit-limit-tokens" not in other


# Header fields ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "limit", "reset"),
    [
        ("tokens_per_minute=50 tokens_per_day=90", "50", "1m"),
        ("tokens_per_day=90 tokens_per_month=95", "90", "12h0m"),
        ("tokens_per_month=95", "95", "12h0m"),
    ],
)
def test_the_header_fields_describe_the_shortest_window_of_tokens(
    words: str, limit: str, reset: str, new_rig: NewRig
) -> None:
    response = post(rig_with(new_rig, words))

    assert response["x-ratelimit-limit-tokens"] == limit
    assert response["x-ratelimit-remaining-tokens"] == str(int(limit) - 1)
    assert response["x-ratelimit-reset-tokens"].startswith(reset)


def test_a_budget_of_engine_seconds_adds_no_header_field(new_rig: NewRig) -> None:
    response = post(rig_with(new_rig, "engine_seconds_per_day=9"))

    assert "x-ratelimit-limit-tokens" not in response


@pytest.mark.parametrize("target", ["/usage", "/v1/health", "/dashboard/data"])
def test_every_response_to_the_key_has_them(target: str, new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100")
    post(rig)
    rig.respond_with(answer(0, 0))

    response = rig.send_request(request("GET", target)).response

    assert response.all("x-ratelimit-remaining-tokens") == ["90"]


# What is shown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/usage", "/dashboard/data"])
def test_a_key_sees_what_remains_of_each_window(target: str, new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100 engine_seconds_per_day=9")
    post(rig, answer(20, 10, 2500.0))

    (own,) = rig.send_request(request("GET", target)).response.json["keys"]

    assert own["key_id"] == "alice"
    assert own["budgets"] == {
        "tokens_per_day": {
            "limit": 100,
            "used": 30,
            "remaining": 70,
            "resets_in_seconds": HALF_A_DAY,
        },
        "engine_seconds_per_day": {
            "limit": 9,
            "used": 2.5,
            "remaining": 6.5,
            "resets_in_seconds": HALF_A_DAY,
        },
    }


def test_an_administrator_sees_the_budgets_of_all_keys(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100", admin_key_ids=("bob",))
    post(rig)

    keys = rig.send_request(request("GET", "/usage", key=OTHER_KEY)).response.json["keys"]

    assert {key["key_id"]: list(key["budgets"]) for key in keys} == {
        "alice": ["tokens_per_day"],
        "bob": [],
    }


def test_the_metrics_have_the_budgets_of_keys_in_use(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100 engine_seconds_per_day=9")
    post(rig, answer(20, 10, 2500.0))
    post(rig, key=OTHER_KEY)

    metrics = rig.send_request(request("GET", "/metrics")).response.json

    found = {
        name.removeprefix("llama_gguf_budget_"): values
        for name, values in metrics.items()
        if name.startswith("llama_gguf_budget_")
    }
    labels = {"key_id": "alice", "window": "day"}
    assert found == {
        "limit_tokens": [labels | {"value": 100}],
        "used_tokens": [labels | {"value": 30}],
        "remaining_tokens": [labels | {"value": 70}],
        "limit_engine_seconds": [labels | {"value": 9}],
        "used_engine_seconds": [labels | {"value": 2.5}],
        "remaining_engine_seconds": [labels | {"value": 6.5}],
    }
    reload(rig, "")
    metrics = rig.send_request(request("GET", "/metrics")).response.json
    assert metrics["llama_gguf_budget_limit_tokens"] == []


# Keys that change ---------------------------------------------------------------------------------


def reload(rig: Rig, words: str | None) -> None:
    rig.set_keys(f"bob:{OTHER_KEY}\n" if words is None else key_with(words))
    rig.services.key_store.load()


def test_a_reload_applies_new_limits_and_keeps_what_was_used(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10")
    post(rig)

    reload(rig, "tokens_per_day=20")
    assert post(rig).status == 200

    assert tokens_today(rig) == 20
    assert post(rig).status == 429
    reload(rig, "")
    assert post(rig).status == 200


def test_a_key_that_is_removed_and_added_again_continues(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=10")
    post(rig)
    reload(rig, None)
    assert post(rig).status == 401

    reload(rig, "tokens_per_day=10")

    assert code_of(post(rig)) == "insufficient_quota"


def test_a_request_that_runs_through_a_reload_is_counted(new_rig: NewRig) -> None:
    rig = rig_with(new_rig, "tokens_per_day=100")
    client = send(rig)
    reload(rig, "tokens_per_day=50")

    rig.upstream.send(STREAM_HEAD + LAST_CHUNK)

    assert client.response.status == 200
    assert tokens_today(rig) == 1
