"""Servers for ``--rpc``: whether one can be reached, and if not, why.

To llama-server each one is a GPU, and it starts without those that it cannot reach. A server serves
one client at a time; the next one waits. If that one has left before its turn and after its first
request, the server ends (SIGPIPE). So llama-server lists the devices only of servers that respond
here. The protocol changes between versions, so whether a server speaks it is left to that list.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from llama_gguf.engines.devices import Device
from llama_gguf.values import Value

PROBE_SECONDS: Final = 3.0
SILENT: Final = "it accepts connections and does not respond"
_NO_REQUEST: Final = b"\xff"
"""A server that is free closes the connection instead of the greeting. One that is busy reads this
later, and closes too."""
# As llama.cpp reads it, but without names of no characters and ports that do not exist.
_ADDRESS: Final = r"([^:\s]+):([0-9]{1,5})"


class RpcServer(Value):
    """One server that ``--rpc`` names."""

    address: str
    """As it is written."""
    host: str
    port: int


def read(address: str) -> RpcServer | None:
    """The server at *address*; None if llama-server cannot read it: IPv6 has no form there."""
    match = re.fullmatch(_ADDRESS, address)
    if match is None or not 0 < int(match[2]) < 1 << 16:
        return None
    return RpcServer(address, match[1], int(match[2]))


def unlisted(addresses: Sequence[str], devices: Iterable[Device]) -> list[str]:
    """Those of *addresses* that are none of the *devices* that llama-server lists."""
    names = " ".join(device.name for device in devices)
    # Older builds write RPC[ADDRESS].
    return [each for each in addresses if f"({each})" not in names and f"[{each}]" not in names]


def host_addresses(host: str) -> tuple[str, ...]:
    """The IPv4 addresses of *host*; none if it cannot be resolved."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def is_public(address: str) -> bool:
    """Whether the IP address can be reached from the internet."""
    from ipaddress import ip_address  # noqa: PLC0415

    return ip_address(address).is_global


def failure(server: RpcServer, *, seconds: float = PROBE_SECONDS) -> str:
    """The reason why *server* cannot be used now, such as ``SILENT``; empty if it responds."""
    ips = host_addresses(server.host)
    if not ips:
        return "its name cannot be resolved"
    try:
        sock = socket.create_connection((ips[0], server.port), seconds)
    except TimeoutError:
        return f"no response within {seconds:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    with sock:
        try:
            sock.sendall(_NO_REQUEST)
            sock.recv(1)
        except TimeoutError:
            return SILENT
        except OSError:  # closed, with our byte unread
            return ""
    return ""


def responding(addresses: Sequence[str]) -> list[str]:
    """Those of *addresses* whose servers respond. Blocks."""
    found = [(address, read(address)) for address in addresses]
    return [address for address, server in found if server is not None and not failure(server)]
