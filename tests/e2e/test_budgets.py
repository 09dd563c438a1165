"""Budgets of keys with the real engine, and with a client that waits as the response states."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Final

import pytest

from tests.e2e.conftest import MODEL, ROOT, Served
from tests.e2e.test_client_libraries import python_of_clients
from tests.e2e.test_usage import ASKED
from tests.support.clients import send_request
from tests.support.messages import request

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

KEYS: Final = {
    "rich": "tokens_per_minute=1000000 tokens_per_day=1000000 engine_seconds_per_day=100000",
    "minute": "tokens_per_minute=20",
    "day": "tokens_per_day=20",
}


@pytest.fixture(scope="module")
def settings() -> dict[str, str]:
    return {"PARALLEL": "2"}  # llama-server allows as many outputs of a request as it has slots


def secret(name: str) -> str:
    return f"sk-with-a-budget-{name}"


@pytest.fixture(scope="module")
def budgeted(served: Served) -> Served:
    """With the keys of ``KEYS``."""
    path = served.data_dir / "api_keys.txt"
    lines = "".join(f"{name}:{secret(name)} {words}\n" for name, words in KEYS.items())
    path.write_text(lines + path.read_text())
    with served.wire() as wire:
        wire.send(request("POST", "/reload", key=served.key))
        assert wire.response().status == 200
    return served


def usage(served: Served, name: str) -> dict[str, Any]:
    response = send_request(served.address, "/usage", key=secret(name))
    (own,) = json.loads(response.body)["keys"]
    assert isinstance(own, dict)
    return own


def used(served: Served, name: str = "rich") -> dict[str, float]:
    return {window: facts["used"] for window, facts in usage(served, name)["budgets"].items()}


def refusals(served: Served, name: str) -> list[dict[str, Any]]:
    _, metrics = served.get("/metrics")
    return [row for row in metrics["llama_gguf_rate_limited"] if row["key_id"] == name]


def post(served: Served, path: str, body: dict[str, Any]) -> bytes:
    with served.wire() as wire:
        data = json.dumps(body).encode()
        wire.send(request("POST", path, body=data, key=secret("rich")))
        response = wire.response()
    assert response.status == 200, response.body
    return response.body


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("shape", ASKED)
def test_the_tokens_that_the_engine_reports_are_counted(
    shape: str, stream: bool, budgeted: Served
) -> None:
    path, body = ASKED[shape]
    before, total_before = used(budgeted), usage(budgeted, "rich")["total"]
    limits = dict.fromkeys(("max_tokens", "max_output_tokens", "n_predict"), 7)

    post(budgeted, path, {**body, **limits, "stream": stream})

    total = usage(budgeted, "rich")["total"]
    tokens = sum(total[k] - total_before[k] for k in ("prompt_tokens", "completion_tokens"))
    assert tokens > 4
    counted = used(budgeted)["tokens_per_day"] - before["tokens_per_day"]
    # llama-server sometimes omits the prompt's tokens on /v1/messages: then the estimate counts.
    is_unknown = total["responses_without_usage"] > total_before["responses_without_usage"]
    assert counted == tokens or (is_unknown and counted > tokens)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_outputs_that_the_engine_does_not_report_are_counted(
    stream: bool, budgeted: Served
) -> None:
    path, body = ASKED["chat"]
    before = used(budgeted)["tokens_per_day"]

    post(budgeted, path, {**body, "n": 2, "max_tokens": 7, "ignore_eos": True, "stream": stream})

    assert used(budgeted)["tokens_per_day"] - before == pytest.approx(2 * 7 + 30, abs=10)


def test_each_prompt_of_a_list_is_counted(budgeted: Served) -> None:
    before = used(budgeted)["tokens_per_day"]
    body = {"prompt": ["Once", "Twice"], "max_tokens": 7, "ignore_eos": True}

    post(budgeted, "/v1/completions", body)

    assert used(budgeted)["tokens_per_day"] - before == len(json.dumps(body)) // 4 + 2 * 7


def test_engine_seconds_are_those_of_the_engine_s_timings(budgeted: Served) -> None:
    before = used(budgeted)["engine_seconds_per_day"]
    path, body = ASKED["chat"]

    timings = [json.loads(post(budgeted, path, body | {"max_tokens": 5}))["timings"] for _ in "12"]

    took = sum(found["prompt_ms"] + found["predicted_ms"] for found in timings) / 1000
    assert used(budgeted)["engine_seconds_per_day"] - before == pytest.approx(took, abs=0.002)
    assert timings[1]["cache_n"] > 0  # which had a part in the tokens, but none in the time


def run_client(served: Served, name: str) -> list[dict[str, Any]]:
    """Two chats of OpenAI's client, one after the other."""
    done = subprocess.run(
        [str(python_of_clients()), "-m", "tests.e2e.clients.openai_budgets"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "MODEL": MODEL,
            "BASE_URL": served.base_url,
            "KEY": secret(name),
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: list[dict[str, Any]] = json.loads(done.stdout)
    return outcomes


def test_a_client_over_the_minute_waits_as_long_as_stated_and_is_served(budgeted: Served) -> None:
    first, second = run_client(budgeted, "minute")

    assert (first["error"], second["error"]) == (None, None)
    assert int(first["pieces"][0]) > 20
    # Refused once: the retry came when the window had room.
    assert refusals(budgeted, "minute") == [
        {"key_id": "minute", "limit": "tokens_per_minute", "value": 1}
    ]
    # What the engine used beyond the estimate counts from the end of the first request, so less
    # than the limit of it may be left in the window.
    left = used(budgeted, "minute")["tokens_per_minute"] - int(second["pieces"][0])
    assert 0 <= left < 20


def test_a_client_over_the_day_gets_an_error_and_does_not_retry(budgeted: Served) -> None:
    first, second = run_client(budgeted, "day")

    assert first["error"] is None
    assert second["error"] == "RateLimitError"
    assert "has used its budget of 20 tokens per day" in second["message"]
    assert refusals(budgeted, "day") == [{"key_id": "day", "limit": "tokens_per_day", "value": 1}]
