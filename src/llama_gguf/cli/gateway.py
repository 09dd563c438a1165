"""Run the gateway alone, in front of a llama-server that runs elsewhere.

It listens on HOST:PORT and forwards admitted requests to BACKEND_HOST:PORT_BACKEND
(or BACKEND_SOCKET). Keys are read from AUTH_KEYS_FILE; SIGHUP or POST /reload reloads
them. With TLS_CERT_FILE and TLS_KEY_FILE it serves HTTPS; SIGHUP reloads these too.
SIGTERM drains: running requests may finish within DRAIN_TIMEOUT.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from llama_gguf.cli.context import Context
from llama_gguf.config.schema import ListenSettings, UpstreamSettings
from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError

if TYPE_CHECKING:
    import argparse
    import socket

GARBAGE_OBJECTS = 10_000
"""New container objects that trigger a collection of the youngest; Python's default is 700."""
SWITCH_SECONDS = 0.0005
"""The loop waits at most so long for a thread of Python code, maybe once per system call."""
USAGE = "%(prog)s [--SETTING VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llama_gguf.cli.arguments import add_log_flags

    add_log_flags(parser)
    parser.set_defaults(listen_fd=None, channel_fd=None)


def without_parser(words: Sequence[str]) -> SimpleNamespace | None:
    """Those of `serve` are the numbers of inherited files: its socket, and the channel to it."""
    given = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) % 2 or not given.keys() <= {"--listen-fd", "--channel-fd"}:
        return None
    return SimpleNamespace(listen_fd=given.get("--listen-fd"), channel_fd=given.get("--channel-fd"))


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
    # Imported here, since `gateway --help` needs none of it.
    from llama_gguf.net.asyncio_import import import_asyncio

    settings = context.settings
    import_asyncio(has_tls=settings.gateway_has_tls, has_processes=False)
    import asyncio
    import contextlib

    from llama_gguf.cli import log_output
    from llama_gguf.cli.loops import gateway_loop
    from llama_gguf.gateway.server import Gateway, adopt
    from llama_gguf.supervisor.boot_log import BOOT_LOG, BootLog

    log_output.configure(settings.logs, context.environ)
    is_alone = arguments.channel_fd is None
    if is_alone:
        from llama_gguf.cli.gateway_operations import control_socket
    listener = (
        _listener(settings) if arguments.listen_fd is None else adopt(int(arguments.listen_fd))
    )
    channel = None if is_alone else adopt(int(arguments.channel_fd))

    # Objects loaded by now are permanent, and requests leave hardly any cycles. So the former are
    # exempt from garbage collection, and the latter need it only rarely.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    sys.setswitchinterval(SWITCH_SECONDS)

    async def serve(listener: socket.socket) -> int:
        gateway = Gateway(settings, listener, channel)
        # The supervisor has the control socket of `serve`.
        operated = control_socket(settings, gateway) if is_alone else contextlib.nullcontext()
        async with operated:
            return await gateway.run()

    boot_log = None if is_alone else context.environ.get(BOOT_LOG)
    keeping = BootLog(settings.logs, boot_log) if boot_log else contextlib.nullcontext()
    with keeping, asyncio.Runner(loop_factory=gateway_loop(settings.tls)) as runner, listener:
        return runner.run(serve(listener))


def _listener(settings: Settings) -> socket.socket:
    """The socket on which a gateway alone listens.

    Raises:
        UserError: it cannot.
    """
    from llama_gguf.net.binding import listen

    _check_upstream(settings.listen, settings.upstream)
    try:
        return listen(settings.listen.host, settings.listen.port)
    except UserError as error:
        from llama_gguf.cli import neighbours

        raise neighbours.explained(error, settings) from None
