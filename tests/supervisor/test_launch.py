from __future__ import annotations

import socket
from pathlib import Path

import pytest

from llama_gguf.engines.address import EngineAddress
from llama_gguf.errors import UserError
from llama_gguf.supervisor.launch import check_address, remove_socket
from tests.support.processes import free_ports


def test_a_port_that_is_taken_at_the_start_is_a_users_error() -> None:
    address = EngineAddress("127.0.0.1", free_ports(1)[0])

    check_address(address)
    with (
        socket.create_server((address.host, address.port)),
        pytest.raises(UserError, match="To use another port, set PORT_BACKEND"),
    ):
        check_address(address)


def test_a_socket_in_a_missing_directory_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"BACKEND_SOCKET=.* there is no directory"):
        check_address(EngineAddress("", 0, str(tmp_path / "missing" / "e.sock")))


def test_an_address_of_another_machine_names_the_engines_setting() -> None:
    with pytest.raises(UserError, match="set BACKEND_HOST to an address of this machine"):
        check_address(EngineAddress("203.0.113.1", 0))


def test_a_stale_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    check_address(EngineAddress("", 0, str(path)))

    assert not path.exists()


def test_a_file_that_is_not_a_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    path.write_text("another program's")

    remove_socket(str(path))
    remove_socket(str(tmp_path / "nowhere.sock"))

    assert path.read_text() == "another program's"
