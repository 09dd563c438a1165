"""Retry-After of what is refused for lack of room."""

from __future__ import annotations

import pytest

from llama_gguf.gateway.retry_hint import until_one_ends
from llama_gguf.telemetry.metrics import Metrics
from tests.support.fakes import NewRig
from tests.support.messages import OK, request


@pytest.mark.parametrize(
    ("durations", "running", "seconds"),
    [
        ((), 4, 1.0),
        ((10.0,), 1, 10.0),
        ((10.0, 30.0), 4, 5.0),
        ((10.0,), 0, 10.0),
        ((0.01,), 1, 1.0),
        ((1000.0,), 2, 60.0),
    ],
)
def test_a_place_is_free_when_one_of_the_running_requests_ends(
    durations: tuple[float, ...], running: int, seconds: float
) -> None:
    metrics = Metrics()
    metrics.durations["chat"].observe(durations)

    assert until_one_ends(metrics, running) == seconds


def test_a_key_that_is_busy_gets_the_time_that_its_requests_take(new_rig: NewRig) -> None:
    rig = new_rig(max_concurrent_per_key=1)
    rig.send_request()
    rig.advance(12)
    rig.upstream.send(OK)
    rig.services.recorder.settle()
    rig.send_request()

    assert rig.send_request().response["retry-after"] == "12"


def test_a_full_queue_has_room_when_a_request_ends(new_rig: NewRig) -> None:
    rig = new_rig(slots=2, max_queue_size=0)
    rig.send_request()
    rig.advance(20)
    rig.upstream.send(OK)
    rig.services.recorder.settle()
    rig.send_request(), rig.send_request()

    refused = rig.send_request(request(body=b"{}")).response
    assert (refused.status, refused["retry-after"]) == (503, "10")
