"""Show the latest log of `serve`, or of llama-server.

Logs are files below LOG_DIR, so that they can also be read when no server runs.

Examples:
  llama-gguf logs             the last lines of the server's own log
  llama-gguf logs -f          the same, then new lines until Ctrl-C
  llama-gguf logs --engine    the output of llama-server

A `gateway` without `serve` writes its own log to its standard error only.

Exit status: 0, or 3 if there is no log.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import IO, Final

from llama_gguf.cli.context import Context
from llama_gguf.cli.terminal import flush
from llama_gguf.config.schema import LogSettings
from llama_gguf.errors import UserError
from llama_gguf.files.retention import latest
from llama_gguf.supervisor import control_client

DEFAULT_LINES: Final = 50
POLL_SECONDS: Final = 0.25
NO_LOG: Final = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="wait for new lines, and print")
    parser.add_argument("--engine", action="store_true", help="llama-server's output")
    parser.add_argument("--requests", action="store_true", help="the access log: a line a request")
    parser.add_argument(
        *("-n", "--lines"),
        type=_whole,
        default=DEFAULT_LINES,
        metavar="N",
        help=f"how many of the last lines [{DEFAULT_LINES}]",
    )


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def run(arguments: argparse.Namespace, context: Context) -> int:
    logs = context.settings.logs
    kind = "engine" if arguments.engine else "requests" if arguments.requests else "server"
    path = _latest(logs, kind)
    is_of_serve = kind != "requests"
    is_gateways = is_of_serve and _runs_gateway_alone(context.settings.model.data_dir)
    if path is None:
        what = (
            "a gateway runs, which logs to its standard error; `llama-gguf serve` writes this log."
            if is_gateways
            else "`llama-gguf serve` writes it."
        )
        raise UserError(
            f"there is no such log in {logs.log_dir} yet: {what} With another DATA_DIR, add "
            "--data-dir.",
            NO_LOG,
        )
    if is_gateways:
        sys.stderr.write(
            "llama-gguf: the gateway that runs logs to its standard error; this is the log of an "
            "earlier `serve`\n"
        )
    with open(path, "rb") as file:
        _print(b"".join(deque(file, arguments.lines)))
        if arguments.follow:
            _follow(file, path, logs, kind)
    return 0


def _runs_gateway_alone(data_dir: str) -> bool:
    """Whether a `gateway` runs with *data_dir*, and no `serve`."""
    found: set[str] = set()
    try:
        for server in control_client.servers(data_dir):
            with server:
                found.add(server.ask("status")["server"])
    except UserError:  # one that does not respond, or is another user's: then it is not certain
        return False
    return found == {"gateway"}


def _latest(logs: LogSettings, kind: str) -> str | None:
    """The log of *kind* that was written last."""
    if kind == "requests":
        path = os.path.join(logs.log_dir, "api_access.log")
        return path if os.path.exists(path) else None
    if kind == "server":
        return latest(os.path.join(logs.log_dir, "_boot"), "boot")
    name = f"llama-{logs.worker_type}" if logs.worker_type else logs.log_name
    return latest(os.path.join(logs.log_dir, name), "server")


def _follow(file: IO[bytes], path: str, logs: LogSettings, kind: str) -> None:
    """Print what is added to the log, and continue with the next one: after a start, a rotation."""
    while True:
        for text in _pieces(file):
            _print(text)
        newest = _latest(logs, kind)
        if newest is not None and (newest != path or not _is_same(file, path)):
            for text in _pieces(file):  # what was written before the next log began
                _print(text)
            if newest != path:
                sys.stderr.write(f"==> {newest} <==\n")
            path = newest
            file.close()
            file = open(path, "rb")  # noqa: SIM115  # closed above, or at the end
            continue
        time.sleep(POLL_SECONDS)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while text := file.read(1 << 16):
        yield text


def _is_same(file: IO[bytes], path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:  # between renaming and creating it
        return True


def _print(text: bytes) -> None:
    flush(text.decode("utf-8", "replace"))
