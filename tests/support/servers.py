"""HTTP servers on threads, for tests of what connects to them.

``FileServer`` (file_server.py) has one file, ``HubServer`` (hub_server.py) a repository of a model
hub, and ``ChatEngine`` (engines.py) is an engine.
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class Server(ThreadingHTTPServer):
    """Serves on a free port of loopback during a ``with`` block."""

    request_queue_size = 64

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.ends = threading.Event()
        """Set at the end of the block, for handlers that wait."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ends.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """HTTP/1.1, without a log."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def requested_start(self, etag: str, *, ignores_if_range: bool = False) -> int | None:
        """The first byte of the requested range; None if the whole file has to be sent."""
        wanted = self.headers["Range"]
        if wanted is None or (self.headers["If-Range"] != etag and not ignores_if_range):
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))
