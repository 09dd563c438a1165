"""A model hub on loopback, for the real huggingface_hub.

As the real one, it redirects requests for a large file to another host, which needs no login.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
REPO = "owner/name"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    authorization: str | None
    range: str | None


@dataclass
class Behaviour:
    token: str = ""
    """Requests without it get 401."""
    gated: bool = False
    status: int = 0
    """Of all responses, unless 0."""
    cuts: list[int] = field(default_factory=list)
    """The bytes after which each of the next files is cut; later ones are complete."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes to report instead of the true ones."""
    pause_at: int = 0
    """The bytes after which a file waits for ``goes_on``; 0 for no wait."""
    damage: bool = False
    """Send bytes that do not match the hash."""


class HubServer:
    """Serves the files of one repository during a ``with`` block."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.does = Behaviour()
        self.asked: list[Asked] = []
        self.goes_on = threading.Event()
        owner = self

        class Hub(_Hub):
            hub = owner

        class Store(_Store):
            hub = owner

        self._servers = [ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (Hub, Store)]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,)) for server in self._servers
        ]
        for server in self._servers:
            server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_address[1]}"

    @property
    def store(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_address[1]}"

    def asked_for(self, word: str) -> list[Asked]:
        return [a for a in self.asked if word in a.path]

    def __enter__(self) -> HubServer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.goes_on.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def note(self) -> None:
        fields = self.headers
        self.hub.asked.append(
            Asked(self.command, self.path, fields["Authorization"], fields["Range"])
        )

    def answer(self, status: int, fields: Mapping[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | dict(fields)).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        pause_at = self.hub.does.pause_at
        if 0 < pause_at < len(body):
            self.wfile.write(body[:pause_at])
            self.hub.goes_on.wait()
            body = body[pause_at:]
        with suppress(ConnectionError):  # the client was stopped
            self.wfile.write(body)


class _Hub(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.note()
        does = self.hub.does
        path = unquote(urlsplit(self.path).path)
        if does.status:
            self.answer(does.status, {})
        elif does.gated:
            self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"})
        elif not path.removeprefix("/api/models").startswith(f"/{REPO}/") or (
            does.token and self.headers["Authorization"] != f"Bearer {does.token}"
        ):
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self._tree()
        else:
            self._resolve(re.sub(r".*?/resolve/[^/]+/", "", path))

    def _tree(self) -> None:
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.hub.files.items()
        ]
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())

    def _resolve(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        size = self.hub.does.sizes.get(name, len(content))
        self.answer(
            302,
            {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(size),
                "Location": f"{self.hub.store}/{name}?Signature=signed-secret",
            },
        )


class _Store(_Handler):
    def do_GET(self) -> None:
        self.note()
        content = self.hub.files[unquote(urlsplit(self.path).path)[1:]]
        etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        fields = {"ETag": etag}
        start = 0
        if self.headers["Range"] and self.headers["If-Range"] == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            fields["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        fields["Content-Length"] = str(len(body))
        if self.hub.does.damage:
            body = body[:-1] + bytes([body[-1] ^ 1])
        cuts = self.hub.does.cuts
        self.answer(206 if start else 200, fields, body[: cuts.pop(0)] if cuts else body)
