"""Engines for tests: what stands in for llama-server.

Which one to use:

- ``fake_llama.py`` is a program with llama-server's flags and its own for faults: for tests of what
  starts, stops and restarts an engine, and wherever the engine must be another process.
- ``ScriptedEngine`` is in the process of the tests. Each request waits until the test sends the
  response, byte by byte if it likes: for tests whose outcome depends on the order of events.
- ``ChatEngine`` responds to completions on its own, with token counts: for tests of the bench.
- ``fakes.FakeUpstream`` has no sockets: for a gateway in the process of the tests, as in ``Rig``.

An engine that only one room needs is in that room: ``soak/engine.py`` checks thousands of requests
in the loop of its clients, ``engines/test_probe.py`` has canned bytes for each path.
"""

from __future__ import annotations

import itertools
import json
import queue
import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from tests.support.clients import RESET_ON_CLOSE
from tests.support.messages import LAST_CHUNK, chunk
from tests.support.processes import DEADLINE_SECONDS
from tests.support.servers import Handler, Server

FAKE_LLAMA: Final = Path(__file__).with_name("fake_llama.py")


# Responses sent by the test -----------------------------------------------------------------------


class Visit:
    """One request at ``ScriptedEngine``, whose response the test sends."""

    def __init__(self, sock: socket.socket, head: bytes, body: bytes) -> None:
        self.sock = sock
        self.head = head
        self.body = body
        self.is_over = threading.Event()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def finish(self, data: bytes = b"") -> None:
        """Send *data* and close."""
        with suppress(OSError):
            self.sock.sendall(data)
        self.is_over.set()

    def reset(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.is_over.set()

    def send_until_cut(self, data: bytes) -> None:
        """Send *data* repeatedly until the gateway has closed the connection."""
        with suppress(ConnectionError):
            while True:
                self.sock.sendall(data)
        self.is_over.set()

    def wait_until_cut(self) -> None:
        """Return when the gateway has closed the connection; fail if it does not."""
        with suppress(ConnectionResetError):
            assert self.sock.recv(1) == b""
        self.is_over.set()


class ScriptedEngine:
    """Reports to probes that it is ready, and passes each other request to the test as a ``Visit``.

    Args:
        slots: that it reports.
    """

    def __init__(self, slots: int = 4) -> None:
        self._slots = slots
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._visits: queue.Queue[Visit] = queue.Queue()
        self._returned: list[Visit] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for visit in [*self._returned, *self._visits.queue]:
            visit.is_over.set()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with suppress(OSError):  # closed: the test has ended
            while True:
                sock, _ = self._listener.accept()
                self.connections += 1
                thread = threading.Thread(target=self._serve, args=(sock,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, sock: socket.socket) -> None:
        sock.settimeout(DEADLINE_SECONDS)
        with sock, suppress(OSError), sock.makefile("rb") as file:
            head = b"".join(iter(file.readline, b"\r\n"))
            if head.startswith(b"GET /health "):
                sock.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"status":"ok"}')
            elif head.startswith(b"GET /props "):
                slot = {"n_ctx": 2048}
                props = {"total_slots": self._slots, "default_generation_settings": slot}
                body = json.dumps({**props, "model_alias": "m"}).encode()
                length = b"Content-Length: %d\r\n\r\n" % len(body)
                sock.sendall(b"HTTP/1.1 200 OK\r\n" + length + body)
            elif head.startswith(b"GET /v1/models "):  # the probe's: the gateway forwards none
                sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            elif head:
                _, found, length = head.lower().partition(b"content-length: ")
                body = file.read(int(length.split(b"\r\n")[0])) if found else b""
                visit = Visit(sock, head, body)
                self._visits.put(visit)
                visit.is_over.wait()

    def visit(self) -> Visit:
        """The next request that reaches the engine."""
        visit = self._visits.get(timeout=DEADLINE_SECONDS)
        self._returned.append(visit)
        return visit

    @property
    def has_visit(self) -> bool:
        """Whether there is a request that ``visit`` has not returned yet."""
        return not self._visits.empty()


# Completions --------------------------------------------------------------------------------------

TOKENS: Final = 4
"""Of each completion."""


def sse(payload: object) -> bytes:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {data}\n\n".encode()


def text_event(text: str) -> bytes:
    return sse({"choices": [{"delta": {"content": text}}]})


def usage(body: dict[str, Any]) -> dict[str, int]:
    """Each word of the prompt counts as two tokens, and the template as ten."""
    text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return {"prompt_tokens": 10 + 2 * len(text.split()), "completion_tokens": TOKENS}


class ChatEngine(Server):
    """Responds to completions during a ``with`` block, records them, and has some faults."""

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(_ChatHandler)
        self.requests: list[dict[str, Any]] = []
        """The bodies of all POSTs."""
        self.keys: list[str] = []
        """Their Authorization fields."""
        self.gets: dict[str, Any] = {"/v1/models": {"data": [{"id": "tiny"}]}}
        """JSON by path; other paths are not found."""
        self.status = 200
        self.good = 0
        """The number of requests that get 200 before ``status`` applies."""
        self.refused_member = ""
        """A member of bodies that gets 400, with the message ``refusal``."""
        self.refusal = ""
        self.closes = False
        """Closes the connection after a stream without announcing it, as llama-server does."""
        self.holds_after: int | None = None
        """After this number of streams, each one pauses in the middle until ``resume`` is set."""
        self.resume = threading.Event()
        self.text_sent = threading.Semaphore(0)
        """Released each time the text of a stream has been sent."""
        self._streams = itertools.count(1)

    @property
    def url(self) -> str:
        return self.base_url

    def holds_next(self) -> bool:
        return self.holds_after is not None and next(self._streams) > self.holds_after

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.resume.set()
        super().__exit__(kind, error, trace)


class _ChatHandler(Handler):
    server: ChatEngine

    def do_GET(self) -> None:
        found = self.server.gets.get(self.path)
        self._respond(404 if found is None else 200, found or {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        self.server.keys.append(self.headers.get("authorization", ""))
        if self.server.status != 200 and len(self.server.requests) > self.server.good:
            error = {"message": "no.", "code": "some_code"}
            self._respond(self.server.status, {"error": error})
        elif self.server.refused_member and self.server.refused_member in body:
            self._respond(400, {"error": {"message": self.server.refusal}})
        elif body.get("stream"):
            self._stream(body)
        else:
            self._respond(200, {"choices": [{"message": {"content": "x"}}], "usage": usage(body)})

    def _respond(self, status: int, payload: object) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for n in range(TOKENS):
            self.wfile.write(chunk(text_event(f"{n} ")))
        is_held = self.server.holds_next()
        self.server.text_sent.release()
        if is_held:
            self.server.resume.wait(DEADLINE_SECONDS)
        self.wfile.write(chunk(sse({"choices": [], "usage": usage(body)})))
        self.wfile.write(chunk(sse("[DONE]")) + LAST_CHUNK)
        if self.server.closes:
            self.close_connection = True
