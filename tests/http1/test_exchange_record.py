from __future__ import annotations

from tests.support.exchanges import STARTED_AT, record, request_for


def test_request_id_method_and_path_are_those_of_the_request() -> None:
    found = record(request_for("GET", "/v1/models"), b"req-7")

    assert (found.request_id, found.method, found.path) == ("req-7", "GET", "/v1/models")


def test_phases_that_were_not_reached_took_no_time() -> None:
    found = record()
    found.ended_at = STARTED_AT + 3

    assert (found.queued, found.first_byte, found.duration) == (0.0, 0.0, 3.0)


def test_the_time_in_the_queue_ends_with_forwarding_or_with_the_exchange() -> None:
    found = record()
    found.queued_at = STARTED_AT + 1
    found.ended_at = STARTED_AT + 9
    assert found.queued == 8.0
    found.forwarded_at = STARTED_AT + 3
    found.first_byte_at = STARTED_AT + 4

    assert (found.queued, found.first_byte, found.duration) == (2.0, 4.0, 9.0)
