"""Addresses of clients, and the networks that contain them.

An IPv4 address in the form of IPv6 (``::ffff:192.0.2.1``) is the IPv4 address everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

# `ipaddress` is imported by the first function that needs it: with most keys, none does.
if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

    Address = IPv4Address | IPv6Address
    Network = IPv4Network | IPv6Network

UNKNOWN: Final = "-"
"""Stands for the address of a client that cannot be known; no network contains it."""
MAX_HOPS: Final = 32
"""Proxies in a row: addresses in X-Forwarded-For that are read, from its end."""

_NETWORK: Final = r"[0-9A-Fa-f:.]{2,45}(?:/[0-9]{1,3})?"  # and no zone such as %eth0
_MAPPED_PREFIX: Final = 96  # of ::ffff:0:0/96
# Some proxies add the port of the client.
_HOP: Final = re.compile(
    r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15}):[0-9]{1,5}|([0-9A-Fa-f:.]{2,45})"
)


def parse_network(text: str) -> Network:
    """Parse a network, or one address.

    Raises:
        ValueError: it is neither, has bits after its prefix, or consists of IPv4 addresses in the
            form of IPv6, which no client has here.
    """
    if not re.fullmatch(_NETWORK, text):
        raise ValueError
    from ipaddress import ip_network  # noqa: PLC0415

    network = ip_network(text)
    if network.prefixlen >= _MAPPED_PREFIX and _mapped(network.network_address) is not None:
        raise ValueError
    return network


def _mapped(address: Address) -> IPv4Address | None:
    """The IPv4 address that *address* is, in the form of IPv6; None if it is none."""
    # Not `isinstance`, which would have to import the class for each request.
    return address.ipv4_mapped if address.version == 6 else None


@cache
def _parser() -> Callable[[str], Address]:
    from ipaddress import ip_address  # noqa: PLC0415

    return ip_address


def parse_address(text: str) -> Address | None:
    """The address that *text* is, without its zone; None if it is none."""
    try:
        address = _parser()(text.partition("%")[0])
    except ValueError:
        return None
    return _mapped(address) or address


def contain(networks: Iterable[Network], address: str) -> bool:
    """Whether one of *networks* contains *address*."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in networks)


def client_address(peer: str, forwarded_for: Sequence[bytes], trusted: Sequence[Network]) -> str:
    """The address of the client of a trusted proxy.

    Each proxy appends the address of its peer to X-Forwarded-For; what precedes may be invented.
    The client is therefore the first address from the end that is no trusted proxy.

    Args:
        peer: the address of the proxy.
        forwarded_for: the values of X-Forwarded-For, in their order.
        trusted: the networks of the proxies.

    Returns:
        The address; if all are trusted, the first one that was appended; UNKNOWN if what a proxy
        has appended is no address, or there are more than ``MAX_HOPS``.
    """
    found = peer
    hops = b",".join(forwarded_for).decode("latin-1").rsplit(",", MAX_HOPS)
    for hop in reversed(hops if forwarded_for else []):
        match = _HOP.fullmatch(hop.strip(" \t"))
        address = parse_address(match[match.lastindex or 0]) if match else None
        if address is None:
            return UNKNOWN
        found = str(address)
        if not any(address in network for network in trusted):
            break
    return found
