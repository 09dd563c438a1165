"""The state of a running server, from the endpoints that need no key: for `diagnose`."""

from __future__ import annotations

import http.client
import socket
import ssl
from typing import Final

from llama_gguf.cli.context import Context
from llama_gguf.engines.address import EngineAddress

RESPONSE_SECONDS: Final = 3.0
MAX_RESPONSE_BYTES: Final = 1 << 20


def server(context: Context) -> str:
    """What a running server reports about itself: each request with its response or its error."""
    listen, upstream = context.settings.listen, context.settings.upstream
    has_tls = bool(context.settings.tls.tls_cert_file)
    requests = [
        (_Connection(listen.host, listen.port, tls=has_tls), path)
        for path in ("/ping", "/health", "/metrics", "/metrics?format=prometheus")
    ]
    requests.append((_Connection(listen.host, listen.port_health), "/"))
    # /slots, and in older builds /metrics, would wake a sleeping engine.
    replicas = context.settings.engine.replicas
    for number in range(replicas if isinstance(replicas, int) else 1):
        address = EngineAddress.of(upstream, number)
        backend = _Connection(address.host, address.port, path=address.socket)
        requests.append((backend, "/health"))
    return "\n\n".join(_get(connection, path) for connection, path in requests)


class _Connection(http.client.HTTPConnection):
    """A connection to a server on this machine; a wildcard address is replaced by loopback."""

    def __init__(self, host: str, port: int, *, tls: bool = False, path: str = "") -> None:
        loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # not bound to
        super().__init__(loopback.get(host, host), port, timeout=RESPONSE_SECONDS)
        self._tls = tls
        self._path = path

    @property
    def name(self) -> str:
        return self._path or f"{self.host}:{self.port}"

    def connect(self) -> None:
        if self._path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(RESPONSE_SECONDS)
            self.sock.connect(self._path)
            return
        super().connect()
        if self._tls:
            # No secret is sent, and an expired certificate must not hide the state.
            context = ssl._create_unverified_context()  # noqa: S323
            self.sock = context.wrap_socket(self.sock)


def _get(connection: _Connection, path: str) -> str:
    request = f"GET {path} on {connection.name}"
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read(MAX_RESPONSE_BYTES).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return f"{request}: {type(error).__name__} {error}"
    finally:
        connection.close()
    return f"{request}: {response.status} {response.reason}\n{body}"
