"""Replace llama-server without refusing a request, with the present settings and files.

Running requests may finish within DRAIN_TIMEOUT. It works on the `serve` that runs with
the same DATA_DIR; SIGUSR2 to `serve` does the same.

Exit status: 0 the model is served again, 3 no server runs, 1 another failure.
"""

from __future__ import annotations

import argparse

from llama_gguf.cli.context import Context
from llama_gguf.cli.operate import find
from llama_gguf.cli.terminal import echo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    del parser  # its flags are settings


def run(arguments: argparse.Namespace, context: Context) -> int:
    del arguments
    with find(context) as server:
        echo(server.ask("restart", on_progress=echo, timeout=None)["message"])
    return 0
