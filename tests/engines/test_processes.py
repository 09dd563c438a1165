from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from llama_gguf.engines.processes import (
    Listener,
    Process,
    directory_of,
    environ_of,
    family,
    listeners,
    look,
)


def process(pid: int, parent: int, *argv: str) -> Process:
    return Process(pid, parent, argv[0], "S", 1, 0, 0.0, argv)


def test_without_proc_no_process_is_visible(tmp_path: Path) -> None:
    assert look(str(tmp_path / "proc")) == {}


def test_this_process_is_read_correctly() -> None:
    me = look()[os.getpid()]

    assert me.parent == os.getppid()
    assert me.argv[1:] == tuple(sys.orig_argv[1:])
    assert me.memory > 1 << 20
    assert me.threads >= 1
    assert me.cpu_seconds > 0


def test_a_name_with_brackets_and_spaces_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    folder.mkdir()
    numbers = " ".join(["0"] * 40)
    (folder / "stat").write_text(f"7 (a ) b (c) S 3 {numbers}")
    (folder / "cmdline").write_bytes(b"")
    (tmp_path / "8").mkdir()  # this process has just ended

    (only,) = look(str(tmp_path)).values()

    assert (only.pid, only.name, only.state, only.parent) == (7, "a ) b (c", "S", 3)
    assert only.argv == ()


def test_our_processes_are_listed_with_ancestors_and_descendants() -> None:
    processes = {
        p.pid: p
        for p in (
            process(1, 0, "init"),
            process(2, 1, "sshd"),
            process(3, 1, "sh"),
            process(4, 3, "python", "-m", "llama_gguf", "serve"),
            process(5, 4, "/app/llama-server"),
            process(6, 5, "helper"),
            process(7, 3, "sleep"),
        )
    }

    assert [(depth, p.pid) for depth, p in family(processes)] == [
        *((0, 1), (1, 3), (2, 4), (3, 5), (4, 6)),
    ]


@pytest.mark.processes
def test_the_environment_of_a_process_can_be_read() -> None:
    command = [sys.executable, "-c", "print(flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env={"A": "1=2"}, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it runs now
        assert environ_of(child.pid) == {"A": "1=2"}
        child.communicate(b"\n")

    assert environ_of(1 << 22) == {}


def test_a_listener_is_listed_with_its_process() -> None:
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        four.bind(("127.0.0.1", 0))
        six.bind(("::1", 0))
        four.listen()
        six.listen()
        ports = (four.getsockname()[1], six.getsockname()[1])

        found = listeners([os.getpid()])
        others = listeners([])

    assert Listener("127.0.0.1", ports[0], os.getpid()) in found
    assert Listener("::1", ports[1], os.getpid()) in found
    assert {one.pid for one in others} <= {None}


def test_without_a_readable_proc_nothing_is_listed(tmp_path: Path) -> None:
    assert listeners([1], str(tmp_path)) == []


def test_the_directory_of_a_process_is_known_while_it_runs() -> None:
    assert directory_of(os.getpid()) == os.getcwd()
    assert directory_of(1 << 22) == ""
