"""An engine for the benchmark's tests: an HTTP server in a thread that can be told to misbehave."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = 4
KEY = "sk-bench-0123456789"


def sse(payload: object) -> bytes:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {data}\n\n".encode()


def text_event(text: str) -> bytes:
    return sse({"choices": [{"delta": {"content": text}}]})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        said = self.server.gets.get(self.path)
        self.answer(404 if said is None else 200, said or {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers.get("authorization", ""))
        if self.server.status != 200 and len(self.server.asked) > self.server.good:
            error = {"message": "no.", "code": "some_code"}
            self.answer(self.server.status, {"error": error})
        elif body.get("stream"):
            self.stream()
        else:
            self.answer(200, {"choices": [{"message": {"content": "x"}}], "usage": usage(body)})

    def answer(self, status: int, said: object) -> None:
        data = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for n in range(TOKENS):
            self.chunk(text_event(f"{n} "))
        is_held = self.server.holds_behind is not None and self.server.is_behind()
        self.server.under_way.release()
        if is_held:
            self.server.let_go.wait(30)
        self.chunk(sse({"choices": [], "usage": usage(self.server.asked[-1])}))
        self.chunk(sse("[DONE]"))
        self.wfile.write(b"0\r\n\r\n")
        if self.server.leaves:
            self.close_connection = True

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))


def usage(body: dict[str, Any]) -> dict[str, int]:
    """Every word is two tokens, and the template takes ten."""
    text = body["prompt"] if "prompt" in body else body["messages"][0]["content"]
    return {"prompt_tokens": 10 + 2 * len(text.split()), "completion_tokens": TOKENS}


class Engine(ThreadingHTTPServer):
    """What it saw, and how it behaves."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.gets: dict[str, Any] = {"/v1/models": {"data": [{"id": "tiny"}]}}
        self.status = 200
        self.good = 0
        """So many requests are answered with 200 first."""
        self.leaves = False
        """Closes behind a stream without having said so, as llama-server does."""
        self.holds_behind: int | None = None
        """Behind so many streams, stops in the middle of each until ``let_go`` is set."""
        self._streams = itertools.count(1)
        self.let_go = threading.Event()
        self.under_way = threading.Semaphore(0)
        """Released whenever the text of a stream is out."""

    def is_behind(self) -> bool:
        return next(self._streams) > (self.holds_behind or 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[Engine]:
    engine = Engine()
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield engine
    finally:
        engine.let_go.set()
        engine.shutdown()
        thread.join()
        engine.server_close()
