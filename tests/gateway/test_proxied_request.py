"""What ends a request gives back all that it holds; its way is in the files beside this one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.fakes import FakeClient, NewRig, Rig
from tests.support.keys import KEY
from tests.support.messages import OK, STREAM_HEAD, event, request


def reading(rig: Rig) -> FakeClient:
    return rig.send_request(request(body=b"x" * 100)[:-10])


def queued(rig: Rig) -> FakeClient:
    for _ in range(4):
        rig.send_request()
    return rig.send_request()


def connecting(rig: Rig) -> FakeClient:
    rig.accepts = False
    return rig.send_request()


def sent(rig: Rig) -> FakeClient:
    return rig.send_request()


def streaming(rig: Rig) -> FakeClient:
    client = rig.send_request()
    rig.upstream.send(STREAM_HEAD, event(1))
    return client


PHASES = [reading, queued, connecting, sent, streaming]


def end_the_others(rig: Rig) -> None:
    for upstream in rig.upstreams:
        if not upstream.is_closed:
            upstream.close()


@pytest.mark.parametrize("phase", PHASES)
def test_a_client_that_leaves_frees_everything(
    phase: Callable[[Rig], FakeClient], rig: Rig
) -> None:
    phase(rig).disconnect()
    end_the_others(rig)

    assert rig.is_at_rest
    assert not rig.replica.pool.connecting


@pytest.mark.parametrize("phase", PHASES)
def test_a_time_out_frees_everything(phase: Callable[[Rig], FakeClient], new_rig: NewRig) -> None:
    rig = new_rig(
        client_body_timeout=5, max_queue_wait=5, request_timeout=5, backend_connect_timeout=9
    )
    client = phase(rig)

    rig.advance(12)
    end_the_others(rig)

    assert client.received
    assert rig.is_at_rest
    assert not rig.replica.pool.connecting


@pytest.mark.parametrize("phase", PHASES)
def test_a_bug_frees_everything(
    phase: Callable[[Rig], FakeClient], rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    client = phase(rig)
    client.connection.on_bug()
    rig.spin()
    end_the_others(rig)

    assert client.was_cut
    assert rig.is_at_rest
    assert "cut because of a bug" in caplog.text


def test_one_request_after_the_other_leaves_nothing_behind(rig: Rig) -> None:
    rig.respond_with(OK)
    client = rig.client()
    for _ in range(3):
        client.send(request(body=b"{}"), request("GET", "/v1/health"), request(body=b"[]", key=KEY))

    assert [response.status for response in client.responses] == [200] * 9
    assert rig.is_at_rest
    assert not client.connection.is_busy
