from __future__ import annotations

import socket

import pytest

from llama_gguf.engines.devices import Device
from llama_gguf.engines.rpc_servers import (
    SILENT,
    RpcServer,
    failure,
    host_addresses,
    is_public,
    read,
    responding,
    unlisted,
)
from tests.support.processes import free_port
from tests.support.rpc import free_servers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.2:50052", ("10.0.0.2", 50052)),
        ("gpu-box.lan:1", ("gpu-box.lan", 1)),
        ("10.0.0.2", None),
        ("10.0.0.2:", None),
        ("10.0.0.2:rpc", None),
        ("10.0.0.2:0", None),
        ("10.0.0.2:65536", None),
        (":50052", None),
        ("[::1]:50052", None),
        ("http://10.0.0.2:50052", None),
        ("10.0.0.2 :50052", None),
    ],
)
def test_an_address_is_a_host_and_a_port(text: str, found: tuple[str, int] | None) -> None:
    assert read(text) == (found and RpcServer(text, *found))


def test_a_listed_server_is_recognised_in_both_forms_of_its_name() -> None:
    devices = [Device("RPC0 (a:1)", 1, 1), Device("RPC[b:2] (RPC[b:2])", 1, 1)]

    assert unlisted(["a:1", "b:2", "c:3", "a:11"], devices) == ["c:3", "a:11"]


def server_at(address: str) -> RpcServer:
    found = read(address)
    assert found is not None
    return found


def test_the_reason_why_a_server_cannot_be_reached_is_given() -> None:
    with free_servers(1) as (address,):
        assert failure(server_at(address)) == ""
    assert failure(RpcServer("x", "127.0.0.1", free_port())) == "connection refused"
    assert failure(RpcServer("x", "no..name", 1)) == "its name cannot be resolved"


def test_a_server_that_is_busy_or_frozen_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, free_servers(1) as (free,):
        busy = f"127.0.0.1:{listener.getsockname()[1]}"

        assert failure(server_at(busy), seconds=0.2) == SILENT
        assert responding([free, f"127.0.0.1:{free_port()}", "[::1]:1"]) == [free]


def test_a_server_whose_queue_of_connections_is_full_does_not_respond() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        waiting = [socket.create_connection(("127.0.0.1", port))]
        try:
            reason = failure(RpcServer("x", "127.0.0.1", port), seconds=0.2)
        finally:
            for sock in waiting:
                sock.close()

    assert reason == "no response within 0.2 s"


def test_names_are_resolved_to_ipv4_as_llama_server_does() -> None:
    assert host_addresses("localhost") == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("address", "found"),
    [("10.0.0.2", False), ("127.0.0.1", False), ("100.64.0.1", False), ("8.8.8.8", True)],
)
def test_addresses_of_the_internet_are_public(address: str, found: bool) -> None:
    assert is_public(address) is found
