from __future__ import annotations

import asyncio
from functools import partial

import pytest

from llama_gguf.engines.probe import Finding
from llama_gguf.engines.status import ChildState
from llama_gguf.gateway.liveness import EVERY_SECONDS
from tests.support.fakes import NewRig, Rig
from tests.support.messages import OK


@pytest.fixture
def rig(new_rig: NewRig) -> Rig:
    """Whose engine resets a connection, and does not respond after that."""
    rig = new_rig()
    found = ChildState.UNREACHABLE

    async def look() -> Finding:
        return Finding(found)

    rig.replica.liveness.look = look
    return rig


def responds(rig: Rig) -> None:
    async def look() -> Finding:
        return Finding(ChildState.READY, slots=4)

    rig.replica.liveness.look = look
    rig.advance(EVERY_SECONDS)


def test_a_request_is_sent_again_when_the_engine_responds_and_not_before(rig: Rig) -> None:
    """The kernel accepts connections for an engine that is ending."""
    client = rig.send_request()
    rig.upstream.reset()
    rig.advance(5)
    assert len(rig.requests) == 1
    responds(rig)
    assert len(rig.requests) == 2
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_other_requests_need_not_wait_for_that(rig: Rig) -> None:
    rig.send_request()
    rig.upstream.reset()
    other = rig.send_request()
    rig.upstream.send(OK)

    assert other.response.status == 200


def test_several_requests_wait_for_one_look(rig: Rig) -> None:
    done: list[int] = []
    for n in range(3):
        rig.replica.liveness.wait(n, partial(done.append, n))
    rig.replica.liveness.leave(1)
    responds(rig)

    assert done == [0, 2]


def test_the_engine_is_not_probed_for_clients_that_have_left(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.reset()
    assert asyncio.all_tasks(rig.loop)
    client.disconnect()

    assert not asyncio.all_tasks(rig.loop)


def test_when_its_death_is_reported_the_queue_waits_for_the_next_one(rig: Rig) -> None:
    client = rig.send_request()
    rig.upstream.reset()
    rig.engine(ChildState.BACKOFF)
    assert rig.services.fleet.admission.queued == 1
    rig.engine(ChildState.READY)
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_a_death_may_be_reported_before_the_connection_is_lost(rig: Rig) -> None:
    """As when the supervisor ends an engine that hangs."""
    client = rig.send_request()
    rig.engine(ChildState.BACKOFF)
    rig.upstream.reset()
    assert rig.services.fleet.admission.queued == 1
    rig.engine(ChildState.READY)
    rig.upstream.send(OK)

    assert client.response.status == 200


def test_without_a_supervisor_each_finding_is_reported(rig: Rig) -> None:
    findings: list[ChildState] = []
    rig.replica.liveness.report = lambda finding: findings.append(finding.state)
    rig.send_request()
    rig.upstream.reset()
    responds(rig)

    assert findings == [ChildState.UNREACHABLE, ChildState.READY]
    assert len(rig.requests) == 2
