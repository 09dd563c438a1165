from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access.networks import (
    MAX_HOPS,
    UNKNOWN,
    client_address,
    contain,
    parse_network,
)

PROXIES = (ip_network("10.0.0.0/8"), ip_network("2001:db8:ffff::/48"))
PEER = "10.0.0.1"


@pytest.mark.parametrize(
    ("network", "address", "expected"),
    [
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "::ffff:10.255.0.1", True),
        ("192.0.2.7", "192.0.2.7", True),
        ("2001:db8::/32", "2001:db8::1", True),
        ("2001:db8::/32", "192.0.2.7", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("0.0.0.0/0", "::1", False),
        ("0.0.0.0/0", "unix", False),
        ("::/0", "unix", False),
        ("::/0", UNKNOWN, False),
    ],
)
def test_a_network_contains_addresses_of_its_own_version_only(
    network: str, address: str, expected: bool
) -> None:
    assert contain([parse_network(network)], address) is expected


@pytest.mark.parametrize(
    ("forwarded_for", "expected"),
    [
        ([], PEER),
        ([b"192.0.2.7"], "192.0.2.7"),
        ([b"198.51.100.1, 192.0.2.7"], "192.0.2.7"),
        ([b"198.51.100.1,\t192.0.2.7 ,10.1.1.1, 10.2.2.2"], "192.0.2.7"),
        ([b"198.51.100.1", b"192.0.2.7", b"10.2.2.2"], "192.0.2.7"),
        ([b"garbage, 192.0.2.7"], "192.0.2.7"),
        ([b"10.9.9.9, 10.2.2.2"], "10.9.9.9"),
        ([b"192.0.2.7:50123"], "192.0.2.7"),
        ([b"2001:db8::7"], "2001:db8::7"),
        ([b"[2001:db8::7]:50123, 2001:db8:ffff::1"], "2001:db8::7"),
        ([b"[2001:db8::7]"], "2001:db8::7"),
        ([b"::ffff:192.0.2.7"], "192.0.2.7"),
        ([b"192.0.2.7, ::ffff:10.0.0.9"], "192.0.2.7"),
        ([b""], UNKNOWN),
        ([b"192.0.2.7,"], UNKNOWN),
        ([b"192.0.2.7, unknown"], UNKNOWN),
        ([b"192.0.2.7, unknown, 10.0.0.9"], UNKNOWN),
        ([b"192.0.2.7 192.0.2.8"], UNKNOWN),
        ([b"192.0.2.999"], UNKNOWN),
        ([b"\xb9\xb2"], UNKNOWN),
        ([b"[192.0.2.7"], UNKNOWN),
        ([b"192.0.2.7" + b", 10.0.0.1" * MAX_HOPS], "192.0.2.7"),
        ([b"192.0.2.7" + b", 10.0.0.1" * (MAX_HOPS + 1)], UNKNOWN),
    ],
)
def test_the_client_is_the_last_address_that_is_no_trusted_proxy(
    forwarded_for: list[bytes], expected: str
) -> None:
    assert client_address(PEER, forwarded_for, PROXIES) == expected


invented = st.lists(
    st.binary(max_size=60)
    | st.sampled_from([b"10.0.0.1", b"192.0.2.1", b"192.0.2.1, 10.0.0.1", b"[::1]:1", b","]),
    max_size=4,
)


@given(invented, st.ip_addresses(), st.integers(0, 3))
def test_what_a_client_invents_changes_nothing(
    field_lines: list[bytes], client: object, proxies: int
) -> None:
    if contain(PROXIES, str(client)) or "::ffff:" in str(client):
        return
    appended = ", ".join([str(client), *["10.3.3.3"] * proxies]).encode()

    assert client_address(PEER, [*field_lines, appended], PROXIES) == str(client)
