"""Stop the server that runs with the same DATA_DIR, as SIGTERM does.

Running requests may finish within DRAIN_TIMEOUT; the command returns when the server
has ended.

Exit status: 0 it has ended, 3 no server runs, 1 another failure.
"""

from __future__ import annotations

import argparse

from llama_gguf.cli.context import Context
from llama_gguf.cli.operate import find
from llama_gguf.cli.terminal import echo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="cut running requests")


def run(arguments: argparse.Namespace, context: Context) -> int:
    with find(context) as server:
        seconds = server.ask("stop", now=arguments.now)["drain_seconds"]
        waits = "" if arguments.now else f"; running requests may take {seconds:g} s"
        echo(f"Stopping process {server.pid}{waits}.")
        server.wait_for_end()
    echo("Stopped.")
    return 0
