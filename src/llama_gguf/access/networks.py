"""Addresses of clients, and the networks that contain them.

An IPv4 address in the form of IPv6 (``::ffff:192.0.2.1``) is the IPv4 address everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

UNKNOWN: Final = "-"
"""Stands for the address of a client that cannot be known; no network contains it."""
MAX_HOPS: Final = 32
"""Proxies in a row: addresses in X-Forwarded-For that are read, from its end."""

_NETWORK: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}(?:/[0-9]{1,3})?")  # and no zone such as %eth0
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
    if not _NETWORK.fullmatch(text):
        raise ValueError
    network = ip_network(text)
    if network.prefixlen >= _MAPPED_PREFIX and _is_mapped(network.network_address):
        raise ValueError
    return network


def _is_mapped(address: Address) -> bool:
    return isinstance(address, IPv6Address) and address.ipv4_mapped is not None


def parse_address(text: str) -> Address | None:
    """The address that *text* is, without its zone; None if it is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


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
