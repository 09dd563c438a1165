"""Hosts with separate addresses, as network namespaces, and links that a test can cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import ExitStack
from typing import Final, Self

IP: Final = shutil.which("ip", path="/usr/sbin:/sbin:/usr/bin:/bin") or ""


class Hosts:
    """One host in the middle, and others with a link to it."""

    def __init__(self, count: int) -> None:
        self._prefix = f"llama-gguf-{os.getpid()}"
        self._count = count
        self._stack = ExitStack()

    @staticmethod
    def refusal() -> str:
        """Why there can be none here; empty if there can be."""
        if not IP or os.geteuid() != 0:
            return "network namespaces need root and iproute2"
        name = f"llama-gguf-try-{os.getpid()}"
        if subprocess.run([IP, "netns", "add", name], capture_output=True, check=False).returncode:
            return "this machine allows no network namespaces"
        subprocess.run([IP, "netns", "del", name], check=True)
        return ""

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _make(self) -> None:
        for n in range(self._count + 1):
            self._ip("netns", "add", self.name(n))
            self._stack.callback(self._ip, "netns", "del", self.name(n))
            self._ip("-n", self.name(n), "link", "set", "lo", "up")
        for n in range(1, self._count + 1):
            there = f"to{n}"
            link = ("link", "add", there, "type", "veth", "peer", "name", "eth0")
            self._ip("-n", self.name(0), *link, "netns", self.name(n))
            for where, device, end in ((0, there, 1), (n, "eth0", 2)):
                at = ("-n", self.name(where))
                self._ip(*at, "address", "add", f"10.231.{n}.{end}/24", "dev", device)
                self._ip(*at, "link", "set", device, "up")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def name(self, n: int) -> str:
        """Of a namespace; 0 is in the middle."""
        return f"{self._prefix}-{n}"

    def address(self, n: int) -> str:
        """Of a host that is not in the middle."""
        return f"10.231.{n}.2"

    def at(self, n: int, *program: str) -> tuple[str, ...]:
        """The command that runs *program* on a host."""
        return (IP, "netns", "exec", self.name(n), *program)

    def cut(self, n: int) -> None:
        """Nothing that is sent to or from a host arrives any more, and no side gets an error."""
        self._ip("-n", self.name(n), "link", "set", "eth0", "down")

    def mend(self, n: int) -> None:
        """Undo ``cut``."""
        self._ip("-n", self.name(n), "link", "set", "eth0", "up")

    def _ip(self, *argv: str) -> None:
        subprocess.run([IP, *argv], check=True)
