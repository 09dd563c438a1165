"""Binds the sockets on which a process listens: the supervisor's part, which needs no traffic.

Not compiled, unlike ``listener.py``: a start would load the library of all compiled modules.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Final

from llama_gguf.errors import UserError

BACKLOG: Final = 4096
MAX_SOCKET_PATH: Final = 107
"""Bytes: unix(7) has 108, with a final zero."""
NO_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""No further file or socket can be opened."""


def listen(host: str, port: int, variable: str = "PORT", address: str = "HOST") -> socket.socket:
    """A listening socket.

    Args:
        host: the address, or a name of it.
        port: the port.
        variable: the setting that *port* comes from.
        address: the setting that *host* comes from.

    Raises:
        UserError: it cannot be used; the message has the reason and a remedy.
    """
    listener: socket.socket | None = None
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as error:  # a name may be too long for DNS
        if listener is not None:
            listener.close()
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        about_port, remedy = _remedy(error, variable, address)
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(
            f"cannot listen on {where}: {reason or error}. {remedy}",
            settings=(variable.lower(),) if about_port else (address.lower(),),
        ) from None
    listener.setblocking(False)
    return listener


def _remedy(error: Exception, variable: str, address: str) -> tuple[bool, str]:
    """Whether an error of ``listen`` is about the port, not the address; and what to do."""
    number = error.errno if isinstance(error, OSError) else None
    another = f"To use another port, set {variable}."
    if number == errno.EADDRINUSE:
        return True, f"Another process uses this port. {another}"
    if number == errno.EACCES:
        return True, f"Ports below 1024 require root or CAP_NET_BIND_SERVICE. {another}"
    if number in NO_FILES:
        return True, "Raise the limit on open files (ulimit -n), or close other programs."
    if number == errno.EADDRNOTAVAIL:
        return False, f"No network interface of this machine has the address: {_set(address)}"
    if number == errno.EAFNOSUPPORT:
        return False, f"This machine has no IPv6: {_set(address)}"
    if isinstance(error, (socket.gaierror, UnicodeError)):
        return False, f"The name cannot be resolved: {_set(address)}"
    return False, f"Check {address} and {variable}."


def _set(address: str) -> str:
    return (
        f"set {address} to an address of this machine, 127.0.0.1 for local clients only, or "
        "0.0.0.0 for all."
    )


def check_socket_path(path: str, variable: str) -> None:
    """Check that a unix socket can be created at *path*, the value of the setting *variable*.

    Raises:
        UserError: it cannot.
    """
    folder = os.path.dirname(os.path.abspath(path))
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        wrong = f"is too long: a path of a socket has at most {MAX_SOCKET_PATH} bytes"
    elif not os.path.isdir(folder):
        wrong = f"cannot be created: there is no directory {folder}"
    elif not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"cannot be created: {folder} is not writable"
    elif os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
        wrong = "cannot be created: there is another file, which is no socket"
    else:
        return
    raise UserError(f"{variable}={path} {wrong}.", settings=(variable.lower(),))
