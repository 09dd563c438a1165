from __future__ import annotations

import functools
import socket
from collections.abc import Iterator, Sequence

import pytest

from llama_gguf.cli.check_result import Level
from llama_gguf.cli.rpc_servers import Found, ListDevices, look
from llama_gguf.engines import rpc_servers
from llama_gguf.engines.devices import Device
from tests.support.processes import free_port
from tests.support.rpc import free_servers


@pytest.fixture
def free() -> Iterator[str]:
    """The address of a server that responds."""
    with free_servers(1) as (address,):
        yield address


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that accepts connections and does not respond."""
    soon = functools.partial(rpc_servers.failure, seconds=0.2)
    monkeypatch.setattr(rpc_servers, "failure", soon)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def device(address: str) -> Device:
    return Device(f"RPC0 ({address})", 2, 1)


def engine(*understood: str) -> ListDevices:
    """An engine that lists the servers that it understands."""

    def list_devices(addresses: Sequence[str]) -> tuple[Device, ...]:
        return tuple(device(each) for each in addresses if each in understood)

    return list_devices


def summary(found: Found) -> list[tuple[Level, str]]:
    return [(result.level, result.text.split(": ")[0]) for result in found.results]


def test_servers_that_respond_are_devices(free: str) -> None:
    assert look([free], engine(free)) == Found((device(free),), ())
    assert look([], engine()) == Found((), ())


def test_an_address_that_llama_server_cannot_read_is_a_problem(free: str) -> None:
    found = look(["[::1]:50052", free], engine(free))

    assert summary(found) == [(Level.WRONG, "[::1]:50052")]
    assert "HOST:PORT" in found.results[0].text
    assert found.devices == (device(free),)


def test_a_server_that_does_not_run_is_noted_with_its_command() -> None:
    port = free_port()

    found = look([f"127.0.0.1:{port}"], engine())

    assert summary(found) == [(Level.NOTE, f"127.0.0.1:{port}")]
    assert ": connection refused. " in found.results[0].text
    assert f"`ggml-rpc-server --host ADDRESS --port {port}`" in found.results[0].text


def test_a_server_of_something_else_is_noted(free: str) -> None:
    found = look([free], engine())

    assert summary(found) == [(Level.NOTE, free)]
    assert "no RPC server that this llama-server understands" in found.results[0].text


def test_a_busy_server_is_a_problem_and_the_engine_does_not_connect_to_it(
    free: str, busy: str
) -> None:
    gone = f"127.0.0.1:{free_port()}"

    found = look([busy, free, gone], engine(busy, free))

    assert found.devices == (device(free),)
    assert summary(found) == [(Level.WRONG, busy), (Level.NOTE, gone)]


def test_without_any_list_only_what_does_not_respond_is_noted(free: str) -> None:
    gone = f"127.0.0.1:{free_port()}"

    found = look([free, gone], lambda addresses: None)

    assert found.devices is None
    assert summary(found) == [(Level.NOTE, gone)]


def test_a_server_at_which_llama_server_ends_is_a_problem_and_the_others_are_listed() -> None:
    with free_servers(2) as (free, other):

        def list_devices(addresses: Sequence[str]) -> Sequence[Device] | None:
            return None if other in addresses else engine(free)(addresses)

        found = look([free, other], list_devices)

    assert summary(found) == [(Level.WRONG, other)]
    assert found.devices == (device(free),)


def test_one_server_under_two_names_is_a_problem(free: str) -> None:
    name = free.replace("127.0.0.1", "localhost")

    found = look([free, name], engine(free, name))

    assert [result.level for result in found.results] == [Level.WRONG]
    assert found.results[0].text.startswith(f"{free} and {name} are one server")


def test_the_same_address_twice_is_one_device_to_llama_server_too(free: str) -> None:
    assert look([free, free], engine(free)).results == ()


def test_a_public_address_is_noted(free: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpc_servers, "is_public", lambda address: True)

    found = look([free], engine(free))

    assert [result.level for result in found.results] == [Level.NOTE]
    assert "neither keys nor encryption" in found.results[0].text
