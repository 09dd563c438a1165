"""`llama-gguf-engine`: llama-server's flags for the engine of the wheel xllamacpp."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Final

from llama_gguf.engines import wheel_server
from llama_gguf.errors import UserError

_TEXTS: Final[Mapping[str, Callable[[], str]]] = {
    "-h": wheel_server.help_text,
    "--help": wheel_server.help_text,
    "--version": wheel_server.version_text,
    "--list-devices": wheel_server.devices_text,
}


def main() -> int:
    """Serve until a signal. Returns the exit status."""
    words = sys.argv[1:]
    for word in words:
        if word in _TEXTS:
            sys.stdout.write(_TEXTS[word]())
            return 0
    stops = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # in the engine's threads as well
    try:
        params = wheel_server.parameters(words, os.environ)  # noqa: TID251 - it is a program too
        server = wheel_server.start(params)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    except RuntimeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    signal.sigwait(stops)
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
