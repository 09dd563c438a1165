from __future__ import annotations

from llama_gguf.telemetry.recent_requests import MAX_REQUESTS, MAX_SHOWN
from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import OK, request


def ask(rig: Rig, key: str = KEY, *, times: int = 1) -> None:
    rig.respond_with(OK)
    for _ in range(times):
        rig.send_request(request(body=b"{}", key=key))
    rig.services.recorder.settle()


def test_a_key_has_its_own_requests_and_an_administrator_all(rig: Rig) -> None:
    ask(rig)
    ask(rig, OTHER_KEY)
    recent = rig.services.recent

    assert [row["key_id"] for row in recent.view("alice")] == ["alice"]
    assert [row["key_id"] for row in recent.view(None)] == ["bob", "alice"]


def test_a_refused_request_is_shown_with_its_reason(rig: Rig) -> None:
    ask(rig, "sk-unknown-0123456789")
    (row,) = rig.services.recent.view(None)

    assert (row["key_id"], row["status"], row["outcome"]) == ("-", 401, "invalid_api_key")
    assert row["first_token"] is None


def test_nothing_of_a_request_is_kept_that_could_be_a_secret(rig: Rig) -> None:
    ask(rig)
    (row,) = rig.services.recent.view("alice")

    assert KEY not in str(row)
    assert all(isinstance(fact, str | int | float | None) for fact in row.values())


def test_the_gateway_s_own_paths_are_left_out(new_rig: NewRig) -> None:
    rig = new_rig()
    for path in ("/health", "/metrics", "/usage", "/dashboard/data"):
        rig.send_request(request("GET", path))
    rig.services.recorder.settle()

    assert rig.services.recent.view(None) == []


def test_the_number_of_requests_is_bounded(rig: Rig) -> None:
    ask(rig, times=MAX_REQUESTS + 5)

    assert len(rig.services.recent.view(None)) == MAX_SHOWN
    assert len(rig.services.recent._rows) == MAX_REQUESTS
