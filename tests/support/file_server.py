"""An HTTP server of one file, with the faults of downloads."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from tests.support.servers import Handler, Server


@dataclass
class Behaviour:
    content: bytes
    etag: str = '"one"'
    """Empty to send none."""
    cuts: list[int] = field(default_factory=list)
    """The bytes after which each of the next responses is cut; later ones are complete."""
    stops_after: int = 0
    """The bytes after which each response stalls until the server ends; 0 for never."""
    status: int = 0
    """A status to send instead of the file; 0 for the file."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Fields to add or replace."""
    ignores_if_range: bool = False
    chunked: bool = False
    redirects: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    path: str
    range: str | None
    if_range: str | None
    authorization: str | None


class FileServer(Server):
    """Serves during a ``with`` block; ``seen`` has all requests.

    Args:
        content: of the file.
        tls: with which it serves HTTPS; None = HTTP.
    """

    daemon_threads = True

    def __init__(self, content: bytes, *, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(_Handler)
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self.socket = tls.wrap_socket(self.socket, server_side=True)
        self.behaviour = Behaviour(content)
        self.seen: list[Seen] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def url(self, path: str = "/m.gguf") -> str:
        return f"{self._scheme}://{self.address}{path}"


class _Handler(Handler):
    server: FileServer

    def do_GET(self) -> None:
        fields = self.headers
        self.server.seen.append(
            Seen(self.path, fields["Range"], fields["If-Range"], fields["Authorization"])
        )
        does = self.server.behaviour
        self.close_connection = True
        if self.path in does.redirects:
            self._head(302, {"Location": does.redirects[self.path], "Content-Length": "0"})
        elif does.status:
            self._head(does.status, {"Content-Length": "4"})
            self.wfile.write(b"oops")
        else:
            self._file(does)

    def _file(self, does: Behaviour) -> None:
        size = len(does.content)
        start = self.requested_start(does.etag, ignores_if_range=does.ignores_if_range)
        if start is not None and start >= size:
            self._head(416, {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
            return
        fields = {"ETag": does.etag} if does.etag else {}
        if start is not None:
            fields["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        body = does.content[start or 0 :]
        fields |= (
            {"Transfer-Encoding": "chunked"} if does.chunked else {"Content-Length": str(len(body))}
        )
        self._head(200 if start is None else 206, fields | dict(does.headers))
        if does.stops_after:
            with suppress(ConnectionError):  # the client was cancelled
                self.wfile.write(body[: does.stops_after])
            self.server.ends.wait()
            return
        self._body(body[: does.cuts.pop(0)] if does.cuts else body, chunked=does.chunked)

    def _head(self, status: int, fields: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()

    def _body(self, body: bytes, *, chunked: bool) -> None:
        if chunked:
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        else:
            self.wfile.write(body)
