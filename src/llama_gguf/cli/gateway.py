"""Run the gateway alone, in front of a llama-server that runs elsewhere.

It listens on HOST:PORT and forwards admitted requests to BACKEND_HOST:PORT_BACKEND
(or BACKEND_SOCKET). Keys are read from AUTH_KEYS_FILE; SIGHUP or POST /reload reloads
them. With TLS_CERT_FILE and TLS_KEY_FILE it serves HTTPS; SIGHUP reloads these too.
SIGTERM drains: running requests may finish within DRAIN_TIMEOUT.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
from typing import Final

from llama_gguf.cli import logs
from llama_gguf.cli.context import Context
from llama_gguf.cli.loops import gateway_loop
from llama_gguf.config.schema import ListenSettings, UpstreamSettings
from llama_gguf.errors import UserError
from llama_gguf.gateway.server import Gateway, adopt
from llama_gguf.net.listener import listen

GARBAGE_OBJECTS = 10_000
"""New container objects that trigger a collection of the youngest; Python's default is 700."""
USAGE = "%(prog)s [--SETTING VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # Passed by `serve`, which owns the socket and knows the engine's status.
    parser.add_argument("--listen-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--channel-fd", type=int, help=argparse.SUPPRESS)


_LOCAL: Final = frozenset(("localhost", "127.0.0.1", "::1", "0.0.0.0", "::"))  # noqa: S104


def _check_upstream(at: ListenSettings, upstream: UpstreamSettings) -> None:
    """Check that the gateway would not forward requests to itself.

    Raises:
        UserError: it would.
    """
    # A gateway on one address and llama-server on another may have the same port.
    is_same_host = upstream.backend_host == at.host or (
        at.host in _LOCAL and upstream.backend_host in _LOCAL
    )
    if not upstream.backend_socket and at.port == upstream.port_backend and is_same_host:
        raise UserError(
            f"PORT and PORT_BACKEND are both {at.port}, on this machine: the gateway would forward "
            "requests to itself. Set PORT_BACKEND to the port of llama-server.",
            exit_status=2,
            settings=("port", "port_backend"),
        )


def run(arguments: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    logs.configure(settings.logs.log_format)
    if arguments.listen_fd is None:
        _check_upstream(settings.listen, settings.upstream)
        listener = listen(settings.listen.host, settings.listen.port)
    else:
        listener = adopt(arguments.listen_fd)
    channel = None if arguments.channel_fd is None else adopt(arguments.channel_fd)

    # Objects loaded by now are permanent, and requests leave hardly any cycles. So the former are
    # exempt from garbage collection, and the latter need it only rarely.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)

    async def serve(listener: socket.socket) -> int:
        return await Gateway(settings, listener, channel).run()

    with asyncio.Runner(loop_factory=gateway_loop(settings.tls)) as runner, listener:
        return runner.run(serve(listener))
