from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.net.binding import check_socket_path, listen

# The socket ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_it_listens_on_the_given_address(host: str) -> None:
    with closing(listen(host, 0)) as listener:
        address = listener.getsockname()
        assert address[0] == host
        assert not listener.getblocking()
        with socket.create_connection(address[:2], timeout=5):
            pass


def test_a_port_in_use_is_a_plain_error() -> None:
    with closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("203.0.113.1", "No network interface of this machine has the address: set HOST to"),
        ("2001:db8::1", r"on \[2001:db8::1\]:0: .* No network interface"),
        ("no-such-host.invalid", "The name cannot be resolved: set HOST to"),
        ("a" * 64, "The name cannot be resolved"),
        ("x86_64-conda-linux-gnu", "The name cannot be resolved"),
    ],
)
def test_an_address_that_is_not_of_this_machine_names_its_setting(host: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        listen(host, 0)

    assert caught.value.settings == ("host",)


@pytest.mark.parametrize(
    ("number", "words", "setting"),
    [
        (errno.EADDRINUSE, "Another process uses this port. To use another port, set P.", "p"),
        (errno.EACCES, "Ports below 1024 require root", "p"),
        (errno.EMFILE, "Raise the limit on open files", "p"),
        (errno.EADDRNOTAVAIL, "No network interface of this machine has the address: set A", "a"),
        (errno.EAFNOSUPPORT, "This machine has no IPv6: set A", "a"),
        (errno.EPERM, "Check A and P.", "a"),
    ],
)
def test_each_cause_has_its_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, words: str, setting: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket, "socket", fail)

    with pytest.raises(UserError) as caught:
        listen("::1", 80, "P", "A")

    assert str(caught.value).startswith(f"cannot listen on [::1]:80: {os.strerror(number)}. ")
    assert words in str(caught.value)
    assert caught.value.settings == (setting,)


# The path of a unix socket ------------------------------------------------------------------------


def test_a_path_at_which_a_socket_can_be_created_is_accepted(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as left:
        left.bind(str(tmp_path / "s.sock"))

    check_socket_path(str(tmp_path / "s.sock"), "BACKEND_SOCKET")
    check_socket_path(str(tmp_path / "new.sock"), "BACKEND_SOCKET")
    check_socket_path("relative.sock", "BACKEND_SOCKET")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing/s.sock", "cannot be created: there is no directory"),
        ("file/s.sock", "cannot be created: there is no directory"),
        ("file", "cannot be created: there is another file, which is no socket"),
        ("a" * 108, "is too long: a path of a socket has at most 107 bytes"),
    ],
)
def test_a_path_at_which_no_socket_can_be_created_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(UserError, match=words) as caught:
        check_socket_path(path, "BACKEND_SOCKET")

    assert str(caught.value).startswith(f"BACKEND_SOCKET={path} ")
    assert caught.value.settings == ("backend_socket",)
