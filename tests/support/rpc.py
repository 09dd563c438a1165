"""ggml's RPC server, on this machine: to llama-server, each one is a GPU."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llama_gguf.engines.locate import locate
from tests.support.processes import free_port, until


@contextmanager
def rpc_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run one; its address and its process."""
    engine = locate("", "", environ=os.environ)
    port = free_port()
    process = subprocess.Popen(
        [Path(engine.path).with_name("ggml-rpc-server"), "-p", str(port)],
        env={**os.environ, **engine.environment_changes},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: _accepts(port), "the RPC server accepts connections")
        yield f"127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


@contextmanager
def rpc_servers(count: int) -> Iterator[list[str]]:
    """Run *count* of them; their addresses."""
    with ExitStack() as stack:
        yield [stack.enter_context(rpc_server())[0] for _ in range(count)]


class _Close(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1)


@contextmanager
def free_servers(count: int) -> Iterator[list[str]]:
    """Substitutes that close each connection, as a free RPC server does; their addresses."""
    with ExitStack() as stack:
        servers = [
            stack.enter_context(socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Close))
            for _ in range(count)
        ]
        for server in servers:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        yield [f"127.0.0.1:{server.server_address[1]}" for server in servers]


def _accepts(port: int) -> bool:
    with contextlib.closing(socket.socket()) as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
