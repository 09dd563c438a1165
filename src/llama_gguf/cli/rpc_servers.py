"""Whether the servers that ``--rpc`` names can be used, and what to do if not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from llama_gguf.cli.check_result import Level, Result
from llama_gguf.engines import rpc_servers
from llama_gguf.engines.devices import Device
from llama_gguf.engines.rpc_servers import RpcServer

SUBJECT: Final = "RPC servers"
_PORT: Final = 50052
_UNREADABLE: Final = (
    "llama-server cannot read this and starts without it. Write HOST:PORT, such as "
    f"10.0.0.2:{_PORT}; there is no form for IPv6 addresses"
)
_SILENT: Final = (
    "accepts connections and does not respond, so llama-server would wait for it. Either another "
    "llama-server uses it, which excludes all others meanwhile, or it hangs: stop that "
    "llama-server, or restart ggml-rpc-server"
)
_FATAL: Final = (
    "llama-server ends when it connects. What listens there is no RPC server, or one of another "
    "version of llama.cpp: correct --rpc in EXTRA_ARGS, or use the same version on both"
)

ListDevices = Callable[[Sequence[str]], Sequence[Device] | None]
"""The devices that the engine lists with these RPC servers; None if it lists none."""


@dataclass(frozen=True, slots=True)
class Found:
    """What ``look`` has found."""

    devices: Sequence[Device] | None
    """Those of the engine and of all servers that respond."""
    results: tuple[Result, ...]


def look(addresses: Sequence[str], list_devices: ListDevices) -> Found:
    """Look for the servers at *addresses*.

    1. What cannot be an address is a problem: llama-server ignores it, with one line in its log.
    2. A server that accepts connections and does not respond is one too, because llama-server
       waits for it; so is one under two names, to which it would connect twice.
    3. So is one at which llama-server ends: build 10068 does at what is no RPC server.
    4. Without any other server that cannot be used it starts, and needs the memory for its part.
    """
    read = {address: rpc_servers.read(address) for address in addresses}
    servers = [server for server in read.values() if server is not None]
    failures = {server.address: rpc_servers.failure(server) for server in servers}
    usable = [address for address, reason in failures.items() if not reason]
    devices = list_devices(usable)
    fatal: list[str] = []
    if devices is None and usable and list_devices(()) is not None:
        fatal = [address for address in usable if list_devices([address]) is None]
        usable = [address for address in usable if address not in fatal]
        devices = list_devices(usable)
    others = rpc_servers.unlisted(usable, devices) if devices is not None else []
    silent = [a for a, reason in failures.items() if reason == rpc_servers.SILENT]
    results = (
        *_wrong([address for address, server in read.items() if server is None], _UNREADABLE),  # 1
        *_wrong(silent, _SILENT),  # 2
        *_twice(servers),  # 2
        *_wrong(fatal, _FATAL),  # 3
        *(  # 4
            _missing(server, failures[server.address])
            for server in servers
            if server.address not in silent
            and (failures[server.address] or server.address in others)
        ),
        *_public(servers),
    )
    return Found(devices, results)


def _wrong(addresses: Sequence[str], what: str) -> Iterator[Result]:
    if addresses:
        yield Result(SUBJECT, f"{', '.join(addresses)}: {what}", Level.WRONG)


def _missing(server: RpcServer, reason: str) -> Result:
    if reason:
        advice = (
            f"Start `ggml-rpc-server --host ADDRESS --port {server.port}` there: without "
            "--host it listens on its own loopback address only"
        )
    else:
        reason = "what listens there is no RPC server that this llama-server understands"
        advice = "Both have to be of the same version of llama.cpp"
    return Result(
        SUBJECT,
        f"{server.address}: {reason}. llama-server will start without it, and needs the "
        f"memory for its part. {advice}",
        Level.NOTE,
    )


def _twice(servers: Sequence[RpcServer]) -> Iterator[Result]:
    by_place: dict[tuple[str, int], list[str]] = {}
    for server in servers:
        for ip in rpc_servers.host_addresses(server.host)[:1]:
            by_place.setdefault((ip, server.port), []).append(server.address)
    for names in by_place.values():
        if len(names) > 1:
            yield Result(
                SUBJECT,
                f"{' and '.join(names)} are one server, which accepts one connection at a time: "
                "llama-server would wait for itself. Remove one of them",
                Level.WRONG,
            )


def _public(servers: Sequence[RpcServer]) -> Iterator[Result]:
    for server in servers:
        if any(map(rpc_servers.is_public, rpc_servers.host_addresses(server.host))):
            yield Result(
                SUBJECT,
                f"{server.address} has a public address. RPC has neither keys nor encryption: all "
                "who can connect can use it and read the prompts. Use a private network",
                Level.NOTE,
            )
