"""Where the command ``llama-gguf`` begins: what must not wait for imports.

A server has handlers for signals of its own only after some tenths of a second. Until then it
is this module that handles them: the kernel discards a signal for PID 1 of a container that has
no handler, and any other process would be ended by one that only asks for a reload.
"""

# Nothing is imported here that takes time; `typing` would double it.
from __future__ import annotations

import os
import signal
import sys
from types import FrameType

SERVERS = ("serve", "gateway", "health")
"""The commands that run until they are stopped."""
_STOPS = (signal.SIGINT, signal.SIGTERM)
_RELOADS = (signal.SIGHUP, signal.SIGUSR1)


def main() -> int:
    """Run the command on the command line, and return its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in SERVERS:
        _handle_early_signals(has_reloads=name != "health")
    from llama_gguf.cli import main as command

    return command.main()


def _handle_early_signals(*, has_reloads: bool) -> None:
    for number in _RELOADS if has_reloads else ():
        signal.signal(number, _pass)  # nothing has been read yet
    for number in _STOPS:
        signal.signal(number, _leave)
    # What starts us may have blocked them, so that none is lost before this: scripts/start.sh.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _leave(number: int, frame: FrameType | None) -> None:
    """Leave with the status of any other stop; nothing has begun that would have to be ended.

    An exception would not do: one that is raised in a callback of an import is printed and lost.
    """
    os._exit(0)


def _pass(number: int, frame: FrameType | None) -> None:
    """Go on."""
