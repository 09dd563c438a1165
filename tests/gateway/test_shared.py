from __future__ import annotations

import logging
import re

import pytest

from llama_gguf.core.engine import EngineState, EngineStatus
from llama_gguf.core.fields import presented_key
from llama_gguf.core.messages import Request
from llama_gguf.core.routes import Kind
from llama_gguf.errors import HeadTooLarge, ReloadFailed
from llama_gguf.gateway import own
from llama_gguf.gateway.heads import parse_request
from llama_gguf.gateway.shared import Principal
from tests.exchanges import asked
from tests.fakes import BACKEND_KEY, KEY, KEYS_TEXT, OTHER_KEY, Rig, request
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


# Keys ---------------------------------------------------------------------------------------------


def test_loading_keys_says_how_many(rig: Rig) -> None:
    assert rig.shared.load_keys() == 3


def test_a_bad_line_is_skipped_and_named_without_its_secret(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    rig.set_keys(f"alice:{KEY}\nsk-secret-in-the-wrong-place\n")
    with caplog.at_level(logging.WARNING):
        assert rig.shared.load_keys() == 1

    assert "line 2" in caplog.text
    assert "sk-secret" not in caplog.text


def test_a_file_open_to_others_is_warned_about(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.keys_file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        rig.shared.load_keys()

    assert "chmod 600" in caplog.text


def test_a_failed_load_keeps_the_old_set(rig: Rig) -> None:
    rig.set_keys(None)
    with pytest.raises(ReloadFailed, match="not reloaded"):
        rig.shared.load_keys()

    assert rig.shared.principal_of(KEY.encode()) is not None


def test_an_empty_file_is_a_set_of_no_keys(rig: Rig) -> None:
    rig.set_keys("")
    assert rig.shared.load_keys() == 0

    assert rig.shared.principal_of(KEY.encode()) is None


def test_a_key_keeps_its_window_while_its_id_stays(rig: Rig) -> None:
    before = rig.shared.principal_of(KEY.encode())
    rig.set_keys(KEYS_TEXT.replace(KEY, "sk-rotated-0123456789"))
    rig.shared.load_keys()
    after = rig.shared.principal_of(b"sk-rotated-0123456789")

    assert before is not None
    assert after is not None
    assert after.window is before.window
    assert rig.shared.principal_of(KEY.encode()) is None


def test_a_key_that_comes_back_begins_anew(rig: Rig) -> None:
    before = rig.shared.principal_of(KEY.encode())
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.shared.load_keys()
    rig.set_keys(KEYS_TEXT)
    rig.shared.load_keys()
    after = rig.shared.principal_of(KEY.encode())

    assert before is not None
    assert after is not None
    assert after.window is not before.window


def test_a_key_s_limit_changes_with_the_file_and_what_it_has_used_stays(rig: Rig) -> None:
    before = rig.shared.principal_of(OTHER_KEY.encode())
    assert before is not None
    assert before.window is not None
    before.window.hit(0.0)
    rig.set_keys(KEYS_TEXT.replace(f"{OTHER_KEY}:1000", f"{OTHER_KEY}:7"))
    rig.shared.load_keys()
    after = rig.shared.principal_of(OTHER_KEY.encode())

    assert after is not None
    assert after.window is before.window
    assert after.window.limit == 7
    assert after.window.hit(1.0) == 5
    assert b"x-ratelimit-limit-requests: 7\r\n" in after.rate_fields % 5


@pytest.mark.parametrize(("now", "is_expired"), [(9.0, False), (10.0, True), (11.0, True)])
def test_a_key_expires_at_its_second(now: float, is_expired: bool) -> None:
    assert Principal("a", None, 10.0).is_expired(now) == is_expired
    assert not Principal("a", None).is_expired(now)


def test_where_nobody_checks_keys_nothing_is_counted_or_told(new_rig: NewRig) -> None:
    anybody = new_rig(auth_enabled=False).shared.anybody

    assert (anybody.key_id, anybody.window, anybody.rate_fields) == ("-", None, b"")


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

    assert caplog.text.count("engine: failed (it was killed)") == 1


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

    for principal in (rig.shared.principal_of(KEY.encode()), rig.shared.ring):
        shown += repr(principal) + repr(getattr(principal, "key", ""))
    assert KEY not in shown


def test_the_engine_s_key_is_not_logged(new_rig: NewRig, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        rig = new_rig()
        rig.ask()
        rig.upstream.hang_up()

    assert BACKEND_KEY not in caplog.text
    assert KEY not in caplog.text
