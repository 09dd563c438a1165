from __future__ import annotations

import pytest

from llama_gguf.access.keys import Key, KeyRing
from llama_gguf.errors import Unauthorized
from llama_gguf.http1.fields import (
    Fields,
    RequestFields,
    invalid_key,
    presented_key,
    read_request,
    request_rules,
)

HOST = (b"Host", b"a.example")
KEY = b"sk-Zq8vN2xLw5TfR7mB"
OTHER = b"sk-another-secret-0"
SHA256_OF_NOTHING = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def read(*fields: tuple[bytes, bytes], keep: bool = False) -> RequestFields:
    rules = request_rules(keep_credentials=keep, keep_conversations=False)
    return read_request([HOST, *fields], version="1.1", rules=rules)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Authorization", b"Bearer " + KEY)],
        [(b"authorization", b"bearer " + KEY)],
        [(b"AUTHORIZATION", b"BEARER " + KEY)],
        [(b"Authorization", b"bEaReR   " + KEY)],
        [(b"x-api-key", KEY)],
        [(b"X-API-Key", KEY)],
        [(b"x-api-key", KEY), (b"Authorization", b"Bearer " + KEY)],
        [(b"x-api-key", OTHER), (b"Authorization", b"Bearer " + KEY)],
        [(b"x-api-key", OTHER), (b"x-api-key", OTHER), (b"Authorization", b"Bearer " + KEY)],
        [(b"x-api-key", b""), (b"Authorization", b"Bearer " + KEY)],
        [(b"Authorization", b""), (b"x-api-key", KEY)],
        [(b"Authorization", b"Bearer"), (b"x-api-key", KEY)],
        [(b"Authorization", b"Bearer "), (b"x-api-key", KEY)],
        [(b"Authorization", b""), (b"Authorization", b"Bearer " + KEY)],
        [(b"x-api-key", b""), (b"x-api-key", KEY)],
    ],
    ids=repr,
)
def test_authorization_wins_over_x_api_key_and_empty_fields_count_as_absent(fields: Fields) -> None:
    assert presented_key(read(*fields)) == KEY


REFUSED: list[Fields] = [
    [],
    [(b"Authorization", b"Bearer " + KEY), (b"Authorization", b"Bearer " + KEY)],
    [(b"Authorization", b"Bearer " + KEY), (b"authorization", b"Bearer " + OTHER)],
    [(b"x-api-key", KEY), (b"X-Api-Key", KEY)],
    [(b"x-api-key", KEY), (b"X-Api-Key", OTHER)],
    [(b"Authorization", b"Basic dTpw"), (b"x-api-key", KEY)],
    [(b"Authorization", b"Bearer "), (b"x-api-key", b"")],
]


@pytest.mark.parametrize("fields", REFUSED, ids=repr)
def test_no_key_or_several_are_rejected_with_the_same_message(fields: Fields) -> None:
    with pytest.raises(Unauthorized) as caught:
        presented_key(read(*fields))

    assert str(caught.value) == str(invalid_key())
    assert (caught.value.code, caught.value.status) == ("invalid_api_key", 401)


def key_let_in(ring: KeyRing, *fields: tuple[bytes, bytes]) -> Key | None:
    try:
        return ring.look_up(presented_key(read(*fields)))
    except Unauthorized:
        return None


@pytest.mark.parametrize(
    "value",
    [KEY, b"Bearer" + KEY, b"Bearer\t" + KEY, b"Token " + KEY, b"Bearer\xa0" + KEY, b" " + KEY],
    ids=repr,
)
def test_a_key_without_its_scheme_is_rejected(value: bytes) -> None:
    ring = KeyRing.parse(f"alice:{KEY.decode()}")

    assert key_let_in(ring, (b"Authorization", b"Bearer " + KEY)) is not None
    assert key_let_in(ring, (b"Authorization", value)) is None


# The digest of an empty string gets into a file by `printf %s "$UNSET" | sha256sum`.
@pytest.mark.parametrize(
    "field",
    [
        (b"Authorization", b""),
        (b"Authorization", b"Bearer"),
        (b"Authorization", b"Bearer "),
        (b"Authorization", b"Basic dTpw"),
        (b"x-api-key", b""),
    ],
    ids=repr,
)
def test_an_empty_key_is_rejected_even_if_the_file_has_its_digest(
    field: tuple[bytes, bytes],
) -> None:
    ring = KeyRing.parse(f"alice:sha256${SHA256_OF_NOTHING}")

    assert key_let_in(ring, field) is None


def test_the_clients_credentials_do_not_reach_the_engine() -> None:
    found = read((b"AUTHORIZATION", b"Bearer " + KEY), (b"x-Api-key", KEY), (b"Cookie", b"a"))

    assert b"".join(found.forwarded) == b"Cookie: a\r\n"


def test_without_key_checks_the_client_s_credentials_are_forwarded_unchanged() -> None:
    fields = [(b"authorization", b"Basic dTpw"), (b"X-API-Key", KEY), (b"x-api-key", OTHER)]

    found = read(*fields, keep=True)

    assert b"".join(found.forwarded) == b"".join(b"%b: %b\r\n" % field for field in fields)


def test_hop_by_hop_and_framing_fields_are_dropped_with_and_without_key_checks() -> None:
    found = read((b"Proxy-Authorization", b"Basic x"), (b"Content-Length", b"1"), keep=True)

    assert found.forwarded == []
    assert found.content_length == 1


def test_forwarded_credentials_are_dropped_if_connection_nominates_them() -> None:
    found = read((b"Authorization", b"x"), (b"Connection", b"authorization"), keep=True)

    assert found.forwarded == []
