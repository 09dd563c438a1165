"""Both implementations of reading and writing a socket: one promise."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import pytest

import hatch_build
from tests.support.clients import reset

pytestmark = pytest.mark.processes

SOURCE: Final = Path(hatch_build.__file__).parent / "src/llama_gguf/net/_socket_io.c"


def compiled(folder: Path) -> ModuleType:
    target = folder / f"_socket_io{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = ["cc", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{sysconfig.get_path('include')}"]
    subprocess.run([*command, "-o", target, SOURCE], check=True)
    spec = importlib.util.spec_from_file_location("_socket_io", target)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["in C", "os"])
def io(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "os":
        return SimpleNamespace(read=os.read, write=os.write)
    if reason := hatch_build.obstacle():
        pytest.skip(reason)
    return compiled(tmp_path_factory.mktemp("socket_io"))


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=[socket.AF_INET, socket.AF_UNIX])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            theirs = socket.create_connection(server.getsockname())
            ours = server.accept()[0]
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_it_reads_what_is_there_and_no_more_than_it_is_asked_for(io: Any, pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(b"one\0two")

    assert io.read(ours.fileno(), 4) == b"one\0"
    assert io.read(ours.fileno(), 65536) == b"two"


def test_the_end_is_empty(io: Any, pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(b"last")
    theirs.shutdown(socket.SHUT_WR)

    assert [io.read(ours.fileno(), 65536) for _ in range(3)] == [b"last", b"", b""]


def test_nothing_to_read_does_not_block(io: Any, pair: Pair) -> None:
    with pytest.raises(BlockingIOError):
        io.read(pair[0].fileno(), 65536)


@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_it_writes_bytes_of_both_kinds(kind: type, io: Any, pair: Pair) -> None:
    ours, theirs = pair

    assert io.write(ours.fileno(), kind(b"one\0two")) == 7
    assert theirs.recv(100) == b"one\0two"
    assert io.write(ours.fileno(), kind()) == 0


def test_a_full_socket_takes_a_part_and_then_does_not_block(io: Any, pair: Pair) -> None:
    ours, theirs = pair
    much = bytearray(range(256)) * 65536
    sent = io.write(ours.fileno(), much)
    assert 0 < sent < len(much)
    much.append(0)  # the buffer is not held
    while True:
        try:
            sent += io.write(ours.fileno(), much[sent:])
        except BlockingIOError:
            break

    with theirs.makefile("rb") as file:
        assert file.read(sent) == much[:sent]


def test_a_broken_connection_is_an_error_and_no_signal(io: Any, pair: Pair) -> None:
    ours, theirs = pair
    reset(theirs)

    with contextlib.suppress(ConnectionError):
        io.read(ours.fileno(), 100)
    with pytest.raises(BrokenPipeError):
        io.write(ours.fileno(), b"x")


def test_a_closed_file_is_an_error(io: Any) -> None:
    with socket.socket() as closed:
        fd = closed.fileno()

    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        io.read(fd, 10)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        io.write(fd, b"x")


@pytest.mark.parametrize(
    "arguments", [(), (1,), ("1", 10), (1, "10"), (1, 10, 10), (1 << 80, 10), (1, -1)]
)
def test_what_cannot_be_read_is_an_error(arguments: tuple[Any, ...], io: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, OSError)):
        io.read(*arguments)


@pytest.mark.parametrize("arguments", [(), (1,), ("1", b"x"), (1, "x"), (1, b"x", 10)])
def test_what_cannot_be_written_is_an_error(arguments: tuple[Any, ...], io: Any) -> None:
    with pytest.raises(TypeError):
        io.write(*arguments)
