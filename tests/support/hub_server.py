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
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.support.servers import Handler, Server

COMMIT = "c0ffee" + "0" * 34
REPO = "owner/name"


@dataclass(frozen=True)
class RecordedRequest:
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
        self.requests: list[RecordedRequest] = []
        self.goes_on = threading.Event()
        self._hub, self._store = _Server(_Hub, self), _Server(_Store, self)

    @property
    def endpoint(self) -> str:
        return self._hub.base_url

    @property
    def store(self) -> str:
        return self._store.base_url

    def requests_for(self, word: str) -> list[RecordedRequest]:
        return [a for a in self.requests if word in a.path]

    def __enter__(self) -> Self:
        self._hub.__enter__()
        self._store.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.goes_on.set()
        self._store.__exit__(None, None, None)
        self._hub.__exit__(None, None, None)


class _Server(Server):
    daemon_threads = True

    def __init__(self, handler: type[_Handler], hub: HubServer) -> None:
        super().__init__(handler)
        self.hub = hub


class _Handler(Handler):
    server: _Server

    @property
    def hub(self) -> HubServer:
        return self.server.hub

    def note(self) -> None:
        fields = self.headers
        self.hub.requests.append(
            RecordedRequest(self.command, self.path, fields["Authorization"], fields["Range"])
        )

    def respond(self, status: int, fields: Mapping[str, str], body: bytes = b"") -> None:
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
            self.respond(does.status, {})
        elif does.gated:
            self.respond(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access restricted"})
        elif not path.removeprefix("/api/models").startswith(f"/{REPO}/") or (
            does.token and self.headers["Authorization"] != f"Bearer {does.token}"
        ):
            self.respond(401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self._tree()
        else:
            self._resolve(re.sub(r".*?/resolve/[^/]+/", "", path))

    def _tree(self) -> None:
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
            for name, content in self.hub.files.items()
        ]
        self.respond(200, {"Content-Type": "application/json"}, json.dumps(tree).encode())

    def _resolve(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.respond(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        size = self.hub.does.sizes.get(name, len(content))
        self.respond(
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
        start = self.requested_start(etag) or 0
        if start:
            fields["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        fields["Content-Length"] = str(len(body))
        if self.hub.does.damage:
            body = body[:-1] + bytes([body[-1] ^ 1])
        cuts = self.hub.does.cuts
        self.respond(206 if start else 200, fields, body[: cuts.pop(0)] if cuts else body)
