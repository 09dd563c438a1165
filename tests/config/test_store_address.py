from __future__ import annotations

import pytest

from llama_gguf.config.parsers import store_url
from llama_gguf.config.store_address import StoreAddress

FORMS = {
    "redis://valkey": ("valkey", 6379, "", False, 0, "", ""),
    "redis://10.0.0.9:6380/2": ("10.0.0.9", 6380, "", False, 2, "", ""),
    "redis://:s3cret@host/": ("host", 6379, "", False, 0, "", "s3cret"),
    "rediss://gate:p%40ss%2Fword@[2001:db8::1]:7000/1": (
        *("2001:db8::1", 7000, "", True, 1, "gate", "p@ss/word"),
    ),
    "unix:///run/valkey.sock": ("", 6379, "/run/valkey.sock", False, 0, "", ""),
    "unix://gate:pw@/run/valkey.sock?db=3": ("", 6379, "/run/valkey.sock", False, 3, "gate", "pw"),
}
INVALID = (
    "host:6379",
    "http://host",
    "redis://",
    "redis://host:0",
    "redis://host:70000",
    "redis://host/one",
    "redis://host/1/2",
    "redis://host/²",
    "redis://host?db=1",
    "redis://host#x",
    "redis://host:port",
    "redis://a%0Ab:secret@host",
    "unix://",
    "unix://host/path",
    "unix:///path?database=1",
    "rediss://[::1",
    "redis-cluster://secret@host",
)


@pytest.mark.parametrize("url", FORMS)
def test_all_parts_of_an_address_are_read(url: str) -> None:
    host, port, path, has_tls, database, user, password = FORMS[url]

    assert StoreAddress.of(url) == StoreAddress(
        host, port, path, has_tls=has_tls, database=database, user=user, password=password
    )


@pytest.mark.parametrize("url", INVALID)
def test_an_invalid_address_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="redis://HOST:PORT/DATABASE") as caught:
        store_url(url)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", [url for url in FORMS if "@" in url])
def test_an_address_never_shows_its_password(url: str) -> None:
    address = StoreAddress.of(url)

    assert address.password not in str(address) + repr(address)


def test_an_address_without_a_login_is_shown_as_it_was_given() -> None:
    assert str(StoreAddress.of("rediss://u:p@host:7000/4")) == "rediss://host:7000/4"
    assert str(StoreAddress.of("redis://[::1]")) == "redis://[::1]:6379/0"
    assert str(StoreAddress.of("unix:///run/s?db=2")) == "unix:/run/s (database 2)"
