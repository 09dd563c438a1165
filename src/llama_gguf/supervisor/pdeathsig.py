"""Runs another program that dies with its parent: ``pdeathsig.py PARENT_PID PROGRAM ARG…``.

A supervisor that is killed with SIGKILL must not leave a llama-server behind that
holds the GPU and the port. Run as a separate program, between fork and exec,
since Python code in a forked child of a threaded process can deadlock.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def main() -> None:
    parent, program = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        sys.exit(1)
    try:
        os.execv(program[0], program)  # noqa: S606  # no shell in between
    except OSError as error:
        sys.stderr.write(f"{program[0]} cannot be run: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
