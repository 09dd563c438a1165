"""Run the gateway alone, in front of a llama-server that runs elsewhere.

It listens on HOST:PORT and forwards admitted requests to BACKEND_HOST:PORT_BACKEND
(or BACKEND_SOCKET). Keys are read from AUTH_KEYS_FILE; SIGHUP or POST /reload reloads
them. With TLS_CERT_FILE and TLS_KEY_FILE it serves HTTPS; SIGHUP reloads these too.
SIGTERM drains: running requests may finish within DRAIN_TIMEOUT.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from llama_gguf.cli import log_output, neighbours
from llama_gguf.cli.context import Context
from llama_gguf.cli.loops import gateway_loop
from llama_gguf.config.schema import ListenSettings, UpstreamSettings
from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.gateway import fleet_facts
from llama_gguf.gateway.operator_facts import operator_facts
from llama_gguf.gateway.server import Gateway, adopt
from llama_gguf.net.clock import wall_now
from llama_gguf.net.listener import listen
from llama_gguf.supervisor.boot_log import BOOT_LOG, BootLog
from llama_gguf.supervisor.control_socket import ControlSocket, Handler, Json, Report
from llama_gguf.supervisor.operations import iso, replica_facts, server_facts

GARBAGE_OBJECTS = 10_000
"""New container objects that trigger a collection of the youngest; Python's default is 700."""
USAGE = "%(prog)s [--SETTING VALUE ...]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    log_output.add_flags(parser)
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
    log_output.configure(settings.logs, context.environ)
    if arguments.listen_fd is None:
        _check_upstream(settings.listen, settings.upstream)
        try:
            listener = listen(settings.listen.host, settings.listen.port)
        except UserError as error:
            raise neighbours.explained(error, settings) from None
    else:
        listener = adopt(arguments.listen_fd)
    channel = None if arguments.channel_fd is None else adopt(arguments.channel_fd)

    # Objects loaded by now are permanent, and requests leave hardly any cycles. So the former are
    # exempt from garbage collection, and the latter need it only rarely.
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)

    async def serve(listener: socket.socket) -> int:
        gateway = Gateway(settings, listener, channel)
        if channel is not None:  # the supervisor has the control socket
            return await gateway.run()
        handlers = _Operations(settings, gateway, wall_now()).handlers()
        async with ControlSocket(settings.model.data_dir, settings.listen.port, handlers):
            return await gateway.run()

    boot_log = context.environ.get(BOOT_LOG) if channel is not None else None
    keeping = BootLog(settings.logs, boot_log) if boot_log else contextlib.nullcontext()
    with keeping, asyncio.Runner(loop_factory=gateway_loop(settings.tls)) as runner, listener:
        return runner.run(serve(listener))


@dataclass(frozen=True, slots=True)
class _Operations:
    """The commands of the control socket of a gateway alone."""

    settings: Settings
    gateway: Gateway
    started_at: float

    def handlers(self) -> Mapping[str, Handler]:
        return {"status": self.status, "restart": self.restart, "stop": self.stop}

    async def status(self, arguments: Json, report: Report) -> Json:
        del arguments, report
        fleet = self.gateway.services.fleet
        status = fleet.status
        facts = operator_facts(self.gateway.services)
        is_draining = self.gateway.services.connections.is_draining
        return {
            **server_facts(self.settings, "gateway", self.started_at),
            "state": "stopping" if is_draining else str(status.state),
            "since": iso(status.since),
            "detail": status.detail,
            "progress": None,
            "model": facts["model"],
            "replicas": [
                {
                    **replica_facts(
                        replica.label, replica.tracker.status, fleet_facts.state(replica)
                    ),
                    "pid": None,
                    "log_file": "",
                }
                for replica in fleet.replicas.values()
            ],
            "gateway": facts,
            "log": [],
        }

    async def restart(self, arguments: Json, report: Report) -> Json:
        del arguments, report
        raise UserError("a gateway alone does not run llama-server: restart that where it runs")

    async def stop(self, arguments: Json, report: Report) -> Json:
        del report
        self.gateway.stop()
        if arguments.get("now") is True:
            self.gateway.stop()
        return {"drain_seconds": self.settings.process.drain_timeout}
