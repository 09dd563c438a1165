from __future__ import annotations

import logging

import pytest

from llama_gguf.engines.status import ChildState, EngineStatus
from llama_gguf.gateway import endpoints
from llama_gguf.http1.routes import Kind
from tests.support.exchanges import request_for
from tests.support.fakes import NewRig, Rig
from tests.support.keys import BACKEND_KEY, KEY
from tests.support.messages import request


def test_a_change_of_state_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    status = EngineStatus(ChildState.FAILED, since=0.0, detail="it was killed")
    with caplog.at_level(logging.INFO):
        rig.fleet.update(status)
        rig.fleet.update(status)

    assert caplog.text.count("Engine state: failed (it was killed)") == 1


# Time and identities ------------------------------------------------------------------------------


def test_the_access_log_is_told_the_wall_clock(rig: Rig) -> None:
    rig.clock.now = 5000.0
    rig.services.tick()

    assert rig.services.access_log.wall_offset == rig.services.clock.wall - 5000.0


def test_a_drained_gateway_is_idle_when_its_last_exchange_is_over(rig: Rig) -> None:
    client = rig.send_request()
    rig.services.connections.is_draining = True
    rig.services.connections.notice_idle()
    assert not rig.services.connections.idle.is_set()

    client.disconnect()

    assert rig.services.connections.idle.is_set()


def test_no_secret_is_in_what_can_be_printed(rig: Rig) -> None:
    rig.send_request(request(body=b"{}"))
    metrics = endpoints.respond(Kind.METRICS, request_for("GET", "/metrics"), rig.services)
    shown = repr(vars(rig.services).values()) + metrics.body.decode()

    for principal in (
        rig.services.authenticator.holder(KEY.encode()),
        rig.services.authenticator.ring,
    ):
        shown += repr(principal) + repr(getattr(principal, "key", ""))
    assert KEY not in shown


def test_the_engine_s_key_is_not_logged(new_rig: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        rig = new_rig()
        rig.send_request()
        rig.upstream.close()

    assert BACKEND_KEY not in caplog.text
    assert KEY not in caplog.text
