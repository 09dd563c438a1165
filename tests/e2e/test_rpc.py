"""`check` and real RPC servers: a free one, one that is in use, and one that is frozen."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence

from llama_gguf.cli.check_result import Level
from llama_gguf.cli.rpc_servers import look
from llama_gguf.engines.devices import Device
from llama_gguf.engines.locate import devices_of, locate
from tests.support.rpc import rpc_server


def is_closed_within(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1) == b""
    except TimeoutError:
        return False


def test_check_finds_the_rpc_servers_that_can_be_used_and_ends_none() -> None:
    engine = locate("", "", environ=os.environ)

    def list_devices(addresses: Sequence[str]) -> tuple[Device, ...] | None:
        return devices_of(engine, os.environ, rpc=addresses)

    with (
        rpc_server() as (free, _),
        rpc_server() as (used, in_use),
        rpc_server() as (frozen, stopped),
    ):
        assert look([free, used], list_devices).results == ()
        host, port = used.split(":")
        client = socket.create_connection((host, int(port)))
        client.sendall(b"\x0e")  # the first byte of a greeting, whose rest never comes
        os.kill(stopped.pid, signal.SIGSTOP)
        found = look([free, used, frozen], list_devices)
        client.close()
        with socket.create_connection((host, int(port))) as another:
            another.sendall(b"\xff")
            assert is_closed_within(another, 30)

        assert in_use.poll() is None
    assert [device.description for device in found.devices or ()] == [free]
    assert [(result.level, result.text.split(": ")[0]) for result in found.results] == [
        (Level.WRONG, f"{used}, {frozen}")
    ]
