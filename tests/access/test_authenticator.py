"""Loaded keys and their rate windows; ``test_client_keys`` tests them with requests."""

from __future__ import annotations

import sys

import pytest

from llama_gguf.access.authenticator import Authenticator, Principal
from llama_gguf.access.keys import KeyRing
from llama_gguf.access.moments import format_moment, parse_moment
from llama_gguf.access.rate_limit import RateLimiter, local_limiter
from llama_gguf.config.schema import AuthSettings
from llama_gguf.errors import AdminKeyRequired
from tests.support.fakes import NewRig, Rig
from tests.support.keys import KEY, KEYS_TEXT, OTHER_KEY
from tests.support.messages import OK, request


def test_a_key_keeps_its_window_while_its_id_stays(rig: Rig) -> None:
    before = rig.services.authenticator.holder(KEY.encode())
    rig.set_keys(KEYS_TEXT.replace(KEY, "sk-rotated-0123456789"))
    rig.services.key_store.load()
    after = rig.services.authenticator.holder(b"sk-rotated-0123456789")

    assert before is not None
    assert after is not None
    assert after.limiter is before.limiter
    assert rig.services.authenticator.holder(KEY.encode()) is None


def test_a_key_that_is_removed_and_added_again_gets_a_new_window(rig: Rig) -> None:
    before = rig.services.authenticator.holder(KEY.encode())
    rig.set_keys(f"bob:{OTHER_KEY}\n")
    rig.services.key_store.load()
    rig.set_keys(KEYS_TEXT)
    rig.services.key_store.load()
    after = rig.services.authenticator.holder(KEY.encode())

    assert before is not None
    assert after is not None
    assert after.limiter is not before.limiter


def test_a_changed_limit_applies_to_requests_that_are_already_counted(rig: Rig) -> None:
    before = rig.services.authenticator.holder(OTHER_KEY.encode())
    assert before is not None
    assert before.limiter is not None
    before.limiter.hit(0.0)
    rig.set_keys(KEYS_TEXT.replace(f"{OTHER_KEY}:1000", f"{OTHER_KEY}:7"))
    rig.services.key_store.load()
    after = rig.services.authenticator.holder(OTHER_KEY.encode())

    assert after is not None
    assert after.limiter is before.limiter
    assert after.limiter.limit == 7
    assert after.limiter.hit(1.0) == 5
    assert b"x-ratelimit-limit-requests: 7\r\n" in after.fields_after_hit(5)


def test_each_key_in_use_gets_one_limiter_with_its_own_limit_or_the_default() -> None:
    made: list[tuple[str, int]] = []

    def new_limiter(key_id: str, limit: int) -> RateLimiter:
        made.append((key_id, limit))
        return local_limiter(key_id, limit)

    authenticator = Authenticator(AuthSettings(max_requests_per_minute=60), new_limiter)
    ring = KeyRing.parse(f"alice:{KEY}:7\nbob:{OTHER_KEY}\nidle:sk-never-used-0123456789\n")
    for _ in range(2):
        authenticator.take(ring, ())
        for key in (KEY, OTHER_KEY, KEY):
            authenticator.holder(key.encode())

    assert made == [("alice", 7), ("bob", 60)]


OLD_KEY = "sk-alice-of-old-0123"
GRACED = f"alice:{KEY}:3\nalice-old-0a1b2c:{OLD_KEY}:1000:2099-01-01\nbob:{OTHER_KEY}\n"


def principal_of(rig: Rig, key: str) -> Principal:
    found = rig.services.authenticator.holder(key.encode())
    assert found is not None
    return found


@pytest.mark.parametrize("text", [GRACED, "\n".join(reversed(GRACED.splitlines()))])
def test_an_old_secret_in_its_grace_shares_the_window_of_its_key(
    text: str, new_rig: NewRig
) -> None:
    rig = new_rig(keys=text)
    new, old = principal_of(rig, KEY), principal_of(rig, OLD_KEY)

    assert (old.key_id, new.key_id) == ("alice", "alice")
    assert old.limiter is new.limiter
    assert new.limiter is not None
    assert new.limiter.limit == 3, "the limit on the key's own line"
    assert principal_of(rig, OTHER_KEY).limiter is not new.limiter


def test_an_old_secret_gives_no_second_allowance_across_reloads(new_rig: NewRig) -> None:
    rig = new_rig(keys=f"alice:{OLD_KEY}:3\n")
    rig.respond_with(OK)
    requests = [request(body=b"{}", key=key) for key in (OLD_KEY, KEY)]
    statuses = [rig.send_request(requests[0]).response.status]
    for text in (GRACED, GRACED.replace("1000", "5000"), GRACED):
        rig.set_keys(text)
        rig.services.key_store.load()
        statuses += [rig.send_request(raw).response.status for raw in requests]

    assert statuses == [200, 200, 200, 429, 429, 429, 429]
    assert {record.key_id for record in rig.records} == {"alice"}


def test_both_secrets_of_a_key_share_its_concurrency(new_rig: NewRig) -> None:
    rig = new_rig(keys=GRACED, max_concurrent_per_key=1)
    rig.send_request(request(body=b"{}", key=KEY))

    assert rig.send_request(request(body=b"{}", key=OLD_KEY)).response.status == 429


def test_a_key_keeps_its_window_when_only_its_old_secret_remains(new_rig: NewRig) -> None:
    rig = new_rig(keys=GRACED)
    before = principal_of(rig, KEY)
    rig.set_keys(GRACED.splitlines()[1])
    rig.services.key_store.load()
    after = principal_of(rig, OLD_KEY)

    assert after.limiter is before.limiter
    assert after.limiter is not None
    assert after.limiter.limit == 1000
    assert rig.services.authenticator.named("alice") is after


@pytest.mark.parametrize(
    ("own", "old", "ends"), [("", "2098-01-01", "2098-01-01"), ("2097-01-01", "", "2097-01-01")]
)
def test_an_old_secret_expires_with_its_grace_and_with_its_key(
    own: str, old: str, ends: str, new_rig: NewRig
) -> None:
    rig = new_rig(keys=f"alice:{KEY}::{own}\nalice-old-0a1b2c:{OLD_KEY}::{old}\n")

    assert principal_of(rig, OLD_KEY).expires_at == parse_moment(ends)


def test_the_cost_of_replacing_keys_does_not_depend_on_their_number() -> None:
    """It runs on the event loop, where a step per key would delay all streams."""

    def calls(count: int) -> int:
        ring = KeyRing.parse("".join(f"key-{n}:sk-{n:020}\n" for n in range(count)))
        authenticator = Authenticator(AuthSettings())
        calls = 0

        def on_call(*_: object) -> None:
            nonlocal calls
            calls += 1

        sys.setprofile(on_call)
        try:
            authenticator.take(ring, ())
        finally:
            sys.setprofile(None)
        return calls

    assert calls(1000) == calls(10)


def test_without_authentication_nothing_is_counted_and_no_rate_fields_are_sent(
    new_rig: NewRig,
) -> None:
    anonymous = new_rig(auth_enabled=False).services.authenticator.ANONYMOUS

    assert (anonymous.key_id, anonymous.limiter) == ("-", None)
    assert anonymous.fields_at(0.0) == b""


def test_a_request_that_is_not_counted_gets_the_current_rate_fields(new_rig: NewRig) -> None:
    alice = new_rig(max_requests_per_minute=3).services.authenticator.named("alice")
    assert alice is not None
    assert alice.limiter is not None
    alice.limiter.hit(10.0)

    assert alice.fields_at(20.0) == (
        b"x-ratelimit-limit-requests: 3\r\nx-ratelimit-remaining-requests: 2\r\n"
        b"x-ratelimit-reset-requests: 50s\r\n"
    )


# Administrators -----------------------------------------------------------------------------------


def with_admins(*key_ids: str) -> Authenticator:
    authenticator = Authenticator(AuthSettings(admin_key_ids=key_ids))
    authenticator.take(KeyRing.parse(KEYS_TEXT), ())
    return authenticator


def may_operate(authenticator: Authenticator, key_id: str) -> bool:
    principal = authenticator.named(key_id)
    assert principal is not None
    try:
        authenticator.check_admin(principal)
    except AdminKeyRequired:
        return False
    return True


@pytest.mark.parametrize(
    ("admins", "allowed"), [((), {"alice", "bob"}), (("bob",), {"bob"}), (("nobody",), set())]
)
def test_only_admin_keys_may_operate_the_gateway(
    admins: tuple[str, ...], allowed: set[str]
) -> None:
    authenticator = with_admins(*admins)

    assert {key_id for key_id in ("alice", "bob") if may_operate(authenticator, key_id)} == allowed


def test_an_admin_id_without_a_key_is_reported() -> None:
    assert with_admins("bob", "zoe", "ann").missing_admins() == ["ann", "zoe"]


# Expiry -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "remaining"), [(0.0, 100.0), (99.5, 0.5), (100.0, 900.0), (1000.0, None)]
)
def test_the_next_expiry_is_that_of_the_next_key_to_expire(
    now: float, remaining: float | None
) -> None:
    lines = [f"k{n}:sk-{n}-0123456789abcdef::{format_moment(n)}" for n in (1000, 100)]
    authenticator = Authenticator(AuthSettings())
    authenticator.take(KeyRing.parse("\n".join([*lines, f"alice:{KEY}"])), ())

    assert authenticator.next_expiry(now) == remaining
