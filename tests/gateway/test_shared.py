from __future__ import annotations

import logging
import re

import pytest

from llama_gguf.core.engine import EngineState, EngineStatus
from llama_gguf.core.fields import presented_key
from llama_gguf.core.messages import Request
from llama_gguf.core.routes import Kind
from llama_gguf.errors import HeadTooLarge
from llama_gguf.gateway import own
from llama_gguf.gateway.heads import parse_request
from tests.exchanges import asked
from tests.fakes import BACKEND_KEY, KEY, Rig, request
from tests.gateway.conftest import NewRig


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        ({"backend_host": "engine.example", "port_backend": 81}, b"engine.example:81"),
        ({"backend_host": "::1"}, b"[::1]:8080"),
        ({"backend_socket": "/run/llama.sock"}, b"localhost"),
    ],
)
def test_the_engine_is_called_by_its_name(
    settings: dict[str, object], host: bytes, new_rig: NewRig
) -> None:
    rig = new_rig(**settings)
    rig.ask()

    assert b"\r\nHost: " + host + b"\r\n" in rig.upstream.received


# What a head says ---------------------------------------------------------------------------------


def understood(rig: Rig, raw: bytes) -> Request:
    return rig.shared.understand(parse_request(raw), cors=b"")


def test_all_that_a_head_says_is_worked_out_at_once(rig: Rig) -> None:
    found = understood(rig, request(body=b""))

    assert found.route.label == "/v1/chat/completions"
    assert found.route.needs_slot
    assert presented_key(found.read) == KEY.encode()
    assert found.serialised(b"r1", b"").startswith(b"POST /v1/chat/completions HTTP/1.1\r\nHost: ")


def test_a_head_may_have_so_many_fields_and_no_more(new_rig: NewRig) -> None:
    rig = new_rig(max_headers=3)
    assert understood(rig, request("GET", "/ping", "a: b")).route.kind is Kind.PING

    with pytest.raises(HeadTooLarge):
        understood(rig, request("GET", "/ping", "a: b", "c: d"))


# The engine ---------------------------------------------------------------------------------------


def test_slots_come_and_go_with_the_engine(rig: Rig) -> None:
    assert rig.shared.admission.slots == 4
    rig.engine(EngineState.BACKOFF)
    assert rig.shared.admission.slots == 0

    rig.engine(EngineState.READY, slots=8)
    assert rig.shared.admission.slots == 8


def test_a_change_of_state_is_logged_once(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    status = EngineStatus(EngineState.FAILED, since=0.0, detail="it was killed")
    with caplog.at_level(logging.INFO):
        rig.shared.take_engine_status(status)
        rig.shared.take_engine_status(status)

    assert caplog.text.count("Engine state: failed (it was killed)") == 1


# Time and identities ------------------------------------------------------------------------------


def test_the_date_follows_the_wall_clock(rig: Rig) -> None:
    rig.shared.tell_time()

    assert rig.shared.date.startswith(b"Date: ")
    assert rig.shared.date.endswith(b" GMT\r\n")
    assert rig.shared.wall > 1_700_000_000


def test_request_ids_are_unique_among_gateways(new_rig: NewRig) -> None:
    first, second = new_rig(), new_rig()

    assert first.shared.next_request_id() != first.shared.next_request_id()
    assert first.shared.next_request_id()[:16] != second.shared.next_request_id()[:16]


def test_request_ids_go_on_being_unique_and_keep_their_form(rig: Rig) -> None:
    ids = [rig.shared.next_request_id() for _ in range(1000)]

    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(rb"req-[0-9a-f]{12}-[0-9a-f]{8}", found) for found in ids)


def test_the_access_log_is_told_the_wall_clock(rig: Rig) -> None:
    rig.clock.now = 5000.0
    rig.shared.tell_time()

    assert rig.shared.access_log.wall_offset == rig.shared.wall - 5000.0


def test_a_drained_gateway_is_idle_when_its_last_exchange_is_over(rig: Rig) -> None:
    client = rig.ask()
    rig.shared.is_draining = True
    rig.shared.notice_idle()
    assert not rig.shared.idle.is_set()

    client.leave()

    assert rig.shared.idle.is_set()


def test_no_secret_is_in_what_can_be_printed(rig: Rig) -> None:
    rig.ask(request(body=b"{}"))
    metrics = own.answer(Kind.METRICS, asked("GET", "/metrics"), rig.shared)
    shown = repr(vars(rig.shared).values()) + str(metrics)

    for principal in (rig.shared.principals.holder(KEY.encode()), rig.shared.principals.ring):
        shown += repr(principal) + repr(getattr(principal, "key", ""))
    assert KEY not in shown


def test_the_engine_s_key_is_not_logged(new_rig: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        rig = new_rig()
        rig.ask()
        rig.upstream.hang_up()

    assert BACKEND_KEY not in caplog.text
    assert KEY not in caplog.text
