"""Key management and the engine's log on the dashboard."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlencode

import pytest

from llama_gguf.gateway import dashboard_admin
from tests.support.fakes import FakeClient, NewRig, Rig, at_once
from tests.support.keys import KEY, OTHER_KEY
from tests.support.messages import request

PATHS = ("/dashboard/keys", "/dashboard/log")


@pytest.fixture
def admin_rig(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Alice is an administrator; work is done at once instead of on a thread."""
    monkeypatch.setattr(dashboard_admin, "run_detached", at_once)
    return new_rig(admin_key_ids=("alice",))


def ask(rig: Rig, method: str, path: str, key: str | None = KEY) -> tuple[int, Any]:
    client = rig.send_request(request(method, path, key=key))
    return settled(rig, client)


def settled(rig: Rig, client: FakeClient) -> tuple[int, Any]:
    rig.advance(2.0)  # a reload rests after the previous one
    (response,) = client.responses
    return response.status, json.loads(response.body)


def change(rig: Rig, key: str | None = KEY, **parameters: str) -> tuple[int, Any]:
    return ask(rig, "POST", f"/dashboard/keys?{urlencode(parameters)}", key)


def usage_status(rig: Rig, secret: str) -> int:
    return ask(rig, "GET", "/usage", secret)[0]


# Who may ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_a_key_that_is_no_administrator_is_refused(path: str, admin_rig: Rig) -> None:
    assert ask(admin_rig, "GET", path)[0] == 200
    assert ask(admin_rig, "GET", path, None)[0] == 401
    status, body = ask(admin_rig, "GET", path, OTHER_KEY)
    assert (status, body["error"]["code"]) == (403, "admin_key_required")


def test_without_admin_key_ids_there_is_no_administrator(rig: Rig) -> None:
    status, body = change(rig, action="create", name="new")

    assert (status, body["error"]["code"]) == (403, "admin_key_required")
    assert "new" not in rig.keys_file.read_text()


def test_without_authentication_there_is_no_administrator(new_rig: NewRig) -> None:
    rig = new_rig(auth_enabled=False, admin_key_ids=("alice", "-"))

    assert change(rig, None, action="create", name="new")[0] == 403


def test_an_administrator_s_key_may_be_limited_to_other_routes(admin_rig: Rig) -> None:
    admin_rig.set_keys(f"alice:{KEY} routes=chat,usage\n")
    admin_rig.services.key_store.load()
    status, body = change(admin_rig, action="create", name="new")

    assert (status, body["error"]["code"]) == (403, "key_scope")


def test_a_change_needs_the_key_in_a_field_which_no_browser_adds_by_itself(admin_rig: Rig) -> None:
    query = urlencode({"action": "create", "name": "new", "key": KEY})
    cookie = request("POST", f"/dashboard/keys?{query}", f"Cookie: key={KEY}", key=None)

    assert settled(admin_rig, admin_rig.send_request(cookie))[0] == 401


def test_a_get_changes_nothing(admin_rig: Rig) -> None:
    before = admin_rig.keys_file.read_text()

    assert ask(admin_rig, "GET", "/dashboard/keys?action=revoke&name=bob")[0] == 200
    assert admin_rig.keys_file.read_text() == before


# What they may ------------------------------------------------------------------------------------


def test_a_new_key_works_at_once_and_the_file_has_only_its_digest(admin_rig: Rig) -> None:
    limits = {"rate_limit": "7", "tokens_per_day": "1000", "routes": "chat,usage", "weight": "2"}
    status, body = change(admin_rig, action="create", name="dave", **limits)
    _, listed = ask(admin_rig, "GET", "/dashboard/keys")

    assert status == 200
    assert usage_status(admin_rig, body["secret"]) == 200
    assert body["secret"] not in admin_rig.keys_file.read_text()
    assert listed["keys"][-1] == {
        "key_id": "dave",
        "is_admin": False,
        "rate_limit": 7,
        "expires": None,
        "attributes": {"tokens_per_day": "1000", "routes": "chat,usage", "weight": "2"},
    }


def test_a_change_leaves_other_limits_as_they_are_and_an_empty_one_is_none(admin_rig: Rig) -> None:
    change(admin_rig, action="create", name="dave", rate_limit="7", tokens_per_day="1000")
    assert change(admin_rig, action="set", name="dave", tokens_per_day="", expires="30d")[0] == 200
    _, listed = ask(admin_rig, "GET", "/dashboard/keys")
    dave = listed["keys"][-1]

    assert (dave["rate_limit"], dave["attributes"]) == (7, {})
    assert dave["expires"].endswith("Z")


def test_a_revoked_key_is_refused_at_once(admin_rig: Rig) -> None:
    assert usage_status(admin_rig, OTHER_KEY) == 200
    assert change(admin_rig, action="revoke", name="bob") == (
        200,
        {"status": "ok", "key_id": "bob", "ended": 1},
    )
    assert usage_status(admin_rig, OTHER_KEY) == 401


def test_each_change_is_logged_with_who_made_it(
    admin_rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, body = change(admin_rig, action="create", name="dave")
    (event,) = [r.__dict__ for r in caplog.records if r.__dict__.get("event") == "key_changed"]

    assert event["facts"] == {"key_id": "dave", "action": "create", "admin": "alice"}
    assert body["secret"] not in caplog.text


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"action": "rotate", "name": "bob"},
        {"action": "create", "name": "alice"},
        {"action": "create", "name": "two words"},
        {"action": "create", "name": ""},
        {"action": "create", "name": "x\nmallory:sk-own-secret-0123456789"},
        {"action": "create", "name": "x", "rate_limit": "0"},
        {"action": "create", "name": "x", "rate_limit": "seven"},
        {"action": "create", "name": "x", "routes": "everything"},
        {"action": "create", "name": "x", "from": "10.0.0.0/99"},
        {"action": "create", "name": "x", "expires": "1999-01-01"},
        {"action": "create", "name": "x", "colour": "red"},
        {"action": "set", "name": "nobody", "rate_limit": "1"},
        {"action": "revoke", "name": "nobody"},
        {"action": "revoke", "name": "alice"},
    ],
)
def test_an_invalid_change_is_refused_with_a_reason(
    parameters: dict[str, str], admin_rig: Rig
) -> None:
    before = admin_rig.keys_file.read_text()
    status, body = change(admin_rig, **parameters)

    assert (status, body["error"]["code"]) == (400, "invalid_key_change")
    assert body["error"]["message"]
    assert admin_rig.keys_file.read_text() == before


def test_the_list_of_keys_has_no_secret_and_is_kept_by_no_cache(admin_rig: Rig) -> None:
    (response,) = admin_rig.send_request(request("GET", "/dashboard/keys")).responses

    assert KEY.encode() not in response.body
    assert response["Cache-Control"] == "no-store"
    assert [key["key_id"] for key in json.loads(response.body)["keys"]] == ["alice", "bob", "carol"]


def test_the_file_is_changed_on_a_thread(new_rig: NewRig, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []

    async def noted(work: Any) -> Any:
        threads.append("detached")
        return work()

    monkeypatch.setattr(dashboard_admin, "run_detached", noted)
    rig = new_rig(admin_key_ids=("alice",))
    change(rig, action="create", name="dave")

    assert threads == ["detached"]
