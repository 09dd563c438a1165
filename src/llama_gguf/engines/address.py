"""The address of an engine, and the header lines that requests to it need."""

from __future__ import annotations

from typing import Final

from llama_gguf.config.schema import UpstreamSettings
from llama_gguf.values import Value

_UNIX: Final = "unix:"


class EngineAddress(Value):
    """One engine, as a peer.

    Args:
        host: its host name or address.
        port: its TCP port.
        socket: the path of its unix socket, used instead of both; empty = none.
        api_key: the bearer token that it expects; empty = none.
        has_tls: whether it serves HTTPS.
        name: which *host* is an address of, for the Host field and its certificate; empty = *host*.
    """

    host: str
    port: int
    socket: str = ""
    api_key: str = ""
    has_tls: bool = False
    name: str = ""

    @classmethod
    def of(cls, settings: UpstreamSettings, number: int = 0) -> EngineAddress:
        """The address with *number*, of those that the settings reserve for local engines.

        llama-server requires that the name of a socket ends in .sock.
        """
        path = settings.backend_socket
        if path and number:
            path = f"{path.removesuffix('.sock')}.{number}.sock"
        return cls(
            settings.backend_host,
            settings.port_backend + number,
            path,
            settings.backend_api_key,
        )

    @classmethod
    def from_key(cls, key: str, *, api_key: str = "") -> EngineAddress:
        """Undo ``key``."""
        if key.startswith(_UNIX):
            return cls("", 0, key.removeprefix(_UNIX), api_key)
        host, _, port = key.rpartition(":")
        return cls(host.removeprefix("[").removesuffix("]"), int(port), api_key=api_key)

    @property
    def key(self) -> str:
        """It as text, without the secret: HOST:PORT or unix:/PATH."""
        return f"{_UNIX}{self.socket}" if self.socket else _with_port(self.host, self.port)

    @property
    def authority(self) -> str:
        """The value of the Host field (RFC 9110 section 7.2)."""
        if self.socket:
            return "localhost"
        return _with_port(self.server_name, self.port)

    @property
    def server_name(self) -> str:
        """Its name, as its certificate has it."""
        return self.name or self.host

    def header_lines(self) -> bytes:
        """The lines in the head of a request that depend on the engine."""
        lines = f"Host: {self.authority}\r\n"
        if self.api_key:
            lines += f"Authorization: Bearer {self.api_key}\r\n"
        return lines.encode("ascii")

    def __repr__(self) -> str:
        return f"<EngineAddress {self.socket or _with_port(self.host, self.port)}>"


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
