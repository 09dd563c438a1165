"""The start of the command ``llama-gguf``: what must not wait for imports.

A server installs its signal handlers only after some tenths of a second. Until then, this module
handles signals: for PID 1 of a container the kernel discards a signal that has no handler, and
any other process would be terminated by SIGHUP, which only requests a reload.
"""

# Only fast imports here; `typing` would double the time.
from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from llama_gguf.cli import SERVERS

_STOPS = (signal.SIGINT, signal.SIGTERM)
_RELOADS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> int:
    """Run the command of the command line and return its exit status."""
    _open_standard_streams()
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in SERVERS:
        _handle_early_signals(has_reloads=name != "health")
    from llama_gguf.cli import main as command

    return command.main()


def _open_standard_streams() -> None:
    """Open those that the parent has closed: else a socket would get their number, and our output.

    Python has None for a stream that was closed at its start.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")


def _handle_early_signals(*, has_reloads: bool) -> None:
    for number in _RELOADS if has_reloads else ():
        # No file has been read yet, so there is nothing to reload. Under `nohup` it is ignored.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _pass)
    for number in _STOPS:
        signal.signal(number, _leave)
    # The parent may have blocked them so that none is lost before this: scripts/start.sh.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)


def _leave(number: int, frame: FrameType | None) -> None:
    """Exit with the status of a normal stop; nothing is running yet that must be stopped first.

    An exception would not do: if it is raised in a callback during an import, it is printed and
    discarded.
    """
    os._exit(0)


def _pass(number: int, frame: FrameType | None) -> None:
    """Ignore the signal, without SIG_IGN, which children would inherit."""
