"""The tokens in llama-server's responses, in each of its formats, and what is counted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest

from tests.e2e.conftest import Served, start, stop
from tests.support.messages import Response

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MESSAGES: Final = [{"role": "user", "content": "Say hello."}]
ASKED: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES}),
    "completions": ("/v1/completions", {"prompt": "Once upon a time"}),
    "native": ("/completion", {"prompt": "Once upon a time"}),
    "messages": ("/v1/messages", {"messages": MESSAGES, "model": "x"}),
    "responses": ("/v1/responses", {"input": "Say hello.", "model": "x"}),
}


def send_request(served: Served, path: str, body: Mapping[str, Any]) -> Response:
    data = json.dumps(body).encode()
    with served.wire() as wire:
        wire.send(
            b"POST %b HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
            % (path.encode(), served.key.encode(), len(data))
            + data
        )
        response = wire.response()
    assert response.status == 200, response.body
    return response


def totals(served: Served) -> dict[str, int]:
    status, usage = served.get("/usage")
    assert status == 200
    total: dict[str, int] = usage["keys"][0]["total"]
    return total


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("shape", ASKED)
def test_the_tokens_of_every_format_are_counted(shape: str, stream: bool, served: Served) -> None:
    path, body = ASKED[shape]
    before = totals(served)
    for limit in ("max_tokens", "max_output_tokens", "n_predict"):
        body = body | {limit: 7}
    send_request(served, path, body | {"stream": stream, "ignore_eos": True})
    grown = {name: count - before[name] for name, count in totals(served).items()}

    assert (grown["requests"], grown["errors"], grown["responses_without_usage"]) == (1, 0, 0)
    # Known from /tokenize and from the limit; `ignore_eos` is not in OpenAI's API.
    assert grown["completion_tokens"] == 7
    assert 4 <= grown["prompt_tokens"] <= 40
    assert grown["cached_tokens"] < grown["prompt_tokens"]


def test_the_access_log_has_the_tokens_of_the_response(served: Served) -> None:
    path, body = ASKED["chat"]
    response = send_request(served, path, body | {"max_tokens": 5})
    told = json.loads(response.body)["usage"]
    its = f" request_id={response['x-request-id']} "
    log = served.data_dir / "logs" / "api_access.log"

    def lines() -> list[str]:
        return [line for line in log.read_text().splitlines() if its in line]

    served.until(lambda: bool(lines()), "its line")
    (line,) = lines()
    assert f" prompt_tokens={told['prompt_tokens']} " in line
    assert line.endswith(f" completion_tokens={told['completion_tokens']}")


def test_the_engines_metrics_are_shown_while_it_is_busy(served: Served) -> None:
    name = "llama_gguf_engine_n_decode"
    path, body = ASKED["native"]
    for _ in range(20):
        send_request(served, path, body | {"n_predict": 400, "ignore_eos": True})
        if (served.get("/metrics")[1].get(name) or 0) > 0:
            return
    pytest.fail("they never came")


def test_numbers_survive_a_restart(own_server: Served) -> None:
    path, body = ASKED["chat"]
    send_request(own_server, path, body | {"max_tokens": 5})
    before = totals(own_server)
    assert stop(own_server) == 0
    again = start(own_server.data_dir, {})
    try:
        again.until_ready()

        assert before["completion_tokens"] > 0
        assert totals(again) == before
    finally:
        stop(again)
