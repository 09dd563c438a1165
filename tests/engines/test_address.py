from __future__ import annotations

import pytest

from llama_gguf.engines.address import EngineAddress

SECRET = "gateway-0123456789abcdef"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        (EngineAddress("engine.example", 81), b"engine.example:81"),
        (EngineAddress("::1", 8080), b"[::1]:8080"),
        (EngineAddress("127.0.0.1", 8080, socket="/run/llama.sock"), b"localhost"),
    ],
)
def test_the_host_field_names_the_engine(address: EngineAddress, host: bytes) -> None:
    assert address.header_lines() == b"Host: " + host + b"\r\n"


def test_the_engines_key_is_in_its_requests_and_nowhere_else() -> None:
    address = EngineAddress("127.0.0.1", 8080, api_key=SECRET)

    assert address.header_lines().endswith(b"Authorization: Bearer " + SECRET.encode() + b"\r\n")
    assert SECRET not in repr(address)


@pytest.mark.parametrize(
    "address",
    [
        EngineAddress("engine.example", 81, api_key=SECRET),
        EngineAddress("::1", 8080, api_key=SECRET),
        EngineAddress("", 0, socket="/run/llama.1.sock", api_key=SECRET),
    ],
)
def test_an_address_is_read_back_from_its_key_which_has_no_secret(address: EngineAddress) -> None:
    assert EngineAddress.from_key(address.key, api_key=SECRET) == address
    assert SECRET not in address.key
