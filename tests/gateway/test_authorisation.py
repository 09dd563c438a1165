"""What a request costs its key; whose key it is, is tested in ``test_client_keys``."""

from __future__ import annotations

from llama_gguf.engines.status import ChildState
from tests.support.fakes import NewRig
from tests.support.messages import code_of, request


def test_a_request_that_is_refused_later_costs_its_key_nothing(new_rig: NewRig) -> None:
    rig = new_rig(max_requests_per_minute=7, state=ChildState.FAILED)

    client = rig.send_request()

    assert client.response.status == 503
    assert client.response["x-ratelimit-remaining-requests"] == "7"


def test_a_body_that_is_too_large_is_refused_by_its_head(new_rig: NewRig) -> None:
    rig = new_rig(max_request_body_size=10)
    head = request("POST", "/v1/chat/completions", "Content-Length: 11", body=None)

    client = rig.send_request(head)

    assert client.response.status == 413
    assert code_of(client.response) == "payload_too_large"
