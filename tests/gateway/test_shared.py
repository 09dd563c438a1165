from __future__ import annotations

import json
import logging

import pytest

from llama_gguf.core.engine import EngineState, EngineStatus
from llama_gguf.errors import ReloadFailed
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


def test_health_has_the_engine_s_sentence(rig: Rig) -> None:
    rig.shared.take_engine_status(EngineStatus(EngineState.FAILED, since=0.0, detail="no memory"))
    status, body = rig.shared.health()

    assert status == 503
    assert json.loads(body)["engine"]["detail"] == "no memory"


# Time and accounts --------------------------------------------------------------------------------


def test_the_date_follows_the_wall_clock(rig: Rig) -> None:
    rig.shared.tell_time()

    assert rig.shared.date.startswith(b"Date: ")
    assert rig.shared.date.endswith(b" GMT\r\n")
    assert rig.shared.wall > 1_700_000_000


def test_request_ids_are_unique_among_gateways(new_rig: NewRig) -> None:
    first, second = new_rig(), new_rig()

    assert first.shared.next_request_id() != first.shared.next_request_id()
    assert first.shared.next_request_id()[:16] != second.shared.next_request_id()[:16]


def test_gauges_show_what_is_under_way(new_rig: NewRig) -> None:
    rig = new_rig(slots=1)
    rig.ask(), rig.ask(), rig.client()
    gauges = rig.shared.gauges()

    assert (gauges.in_flight, gauges.queue_depth, gauges.slots) == (1, 1, 1)
    assert gauges.connections == 3
    assert gauges.is_ready
    assert gauges.keys_loaded == 3
    assert rig.shared.busy() == 2


def test_a_drained_gateway_is_idle_when_its_last_exchange_is_over(rig: Rig) -> None:
    client = rig.ask()
    rig.shared.is_draining = True
    rig.shared.notice_idle()
    assert not rig.shared.idle.is_set()

    client.leave()

    assert rig.shared.idle.is_set()


def test_no_secret_is_in_what_can_be_printed(rig: Rig) -> None:
    rig.ask(request(body=b"{}"))
    shown = repr(vars(rig.shared).values()) + str(rig.shared.metrics_json())

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
