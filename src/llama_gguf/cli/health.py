"""Run the health server alone, on HOST:PORT_HEALTH.

With HEALTH_MODE=live it returns 200 to any GET. With HEALTH_MODE=ready it polls the
llama-server at BACKEND_HOST:PORT_BACKEND once a second, and returns 204 while that
loads, 200 when it serves, 503 when it cannot be reached.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from llama_gguf.cli.context import Context

if TYPE_CHECKING:
    import argparse

USAGE = "%(prog)s [--SETTING VALUE ...]"

PROBE_SECONDS = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # its flags are settings


def without_parser(words: Sequence[str]) -> SimpleNamespace | None:
    return None if words else SimpleNamespace()


def run(arguments: argparse.Namespace, context: Context) -> int:
    del arguments
    # Imported here, since `health --help` needs none of it.
    from llama_gguf.net.asyncio_import import import_asyncio

    import_asyncio(has_tls=False, has_processes=False)  # it probes a llama-server by HTTP
    import asyncio

    from llama_gguf.cli import log_output
    from llama_gguf.engines.address import EngineAddress
    from llama_gguf.engines.probe import Finding, Probe, watch
    from llama_gguf.engines.status import HEALTH_STATUS, ChildState
    from llama_gguf.net.binding import listen
    from llama_gguf.supervisor.health_server import HealthServer

    settings = context.settings
    log_output.configure(settings.logs, context.environ)
    state = ChildState.STARTING

    def status() -> int:
        return 200 if settings.listen.health_mode == "live" else HEALTH_STATUS[state]

    def take(finding: Finding) -> None:
        nonlocal state
        state = finding.state

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        watching = None
        if settings.listen.health_mode == "ready":
            probe = Probe(EngineAddress.of(settings.upstream))
            watching = loop.create_task(
                watch(probe, take, ready_every=PROBE_SECONDS, else_every=PROBE_SECONDS)
            )
        await stop.wait()
        if watching is not None:
            watching.cancel()

    host, port = settings.listen.host, settings.listen.port_health
    server = HealthServer(listen(host, port, "PORT_HEALTH"), status)
    server.start()
    try:
        asyncio.run(serve())
    finally:
        server.stop()
    return 0
