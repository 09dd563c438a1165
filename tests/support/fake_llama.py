"""A substitute for llama-server as a program, with faults on demand.

It understands llama-server's --host and --port (a path is a unix socket) and ignores its other
flags. Its own flags, which tests put into EXTRA_ARGS, determine its behaviour:

  --load-seconds N     respond with 503 that long
  --load-until FILE    respond with 503 until this file exists
  --exit-at-load N     exit with this status instead of loading
  --die-at-load NAME   send itself this signal (SIGILL, ...) instead of loading
  --hang-at-load       do nothing instead of loading, forever
  --keep-stale-socket  as llama-server: fail if the socket file exists already
  --print TEXT           print this line first
  --sleep-idle-seconds N  as llama-server: report in /props that it sleeps, until a request
  --ignore-sigterm     as llama-server does with a request in flight
  --die-on PATH        SIGKILL itself at a request for this path
  --pid-file FILE      write the process id to it
  --at-once N          serve N requests concurrently; the others wait
  --model NAME         the model that /props reports
  --error N            respond to each POST with this status
  --slot-save-path DIR  as llama-server: slots can be saved and restored, and a response has the
                       tokens of its prompt that were in a slot; each byte of a body is a token
  --seen FILE          append a line of JSON per request: method, path, fields, body

The variable FAKE_DEVICES names a file with the lines that --list-devices prints.

The request determines the response. The body {"stream": true} requests server-sent events: x-events
is their number, x-tick-ms the time between them, and x-until a file that has to exist before the
last one. x-work-ms is a delay before the response, and x-fault one of the faults of ``fault``.
x-hold is the phase of ``PHASES`` at which the response stops until the file x-until exists: a test
kills the engine then, and creates the file for the next one. A line in x-until.held shows that it
has stopped.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import json
import os
import signal
import socket
import struct
import sys
from typing import Any

SLOTS = 4
OPTIONS = argparse.Namespace()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--load-seconds", type=float, default=0.0)
    parser.add_argument("--load-until", default="/")
    parser.add_argument("--exit-at-load", type=int)
    parser.add_argument("--die-at-load")
    parser.add_argument("--hang-at-load", action="store_true")
    parser.add_argument("--keep-stale-socket", action="store_true")
    parser.add_argument("--print")
    parser.add_argument("--sleep-idle-seconds", type=float, default=-1.0)
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--die-on")
    parser.add_argument("--pid-file")
    parser.add_argument("--at-once", type=int, default=1_000_000)
    parser.add_argument("--model", default="fake")
    parser.add_argument("--error", type=int)
    parser.add_argument("--seen")
    parser.add_argument("--slot-save-path", default="")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--list-devices", action="store_true")
    return parser.parse_known_args()[0]


def response(status: int, body: bytes, content_type: str = "application/json") -> bytes:
    return (
        f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nServer: llama.cpp\r\n"
        f"Access-Control-Allow-Origin: http://evil.example\r\nKeep-Alive: timeout=5, max=100\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def until_file(by_name: dict[str, str], phase: str) -> None:
    """Wait for the file of a request that is held in *phase*, and write that in another one."""
    if by_name.get("x-hold") == phase and not os.path.exists(by_name["x-until"]):
        with open(by_name["x-until"] + ".held", "a", encoding="ascii") as held:
            held.write(phase + "\n")
        while not os.path.exists(by_name["x-until"]):  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.01)


SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


FINAL = {
    "/v1/messages": b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed"}\n\n',
}
"""The last event of a stream by path, where it is not [DONE]."""
PHASES = ("body", "sent", "head", "comment", "mid-event", "event", "last")
"""Before the request's body has been read; after it; after the response's head; after a comment; in
the middle of an event; after it; and after the last one."""


def common_prefix(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


class Slots:
    """What each slot holds: tokens, and the number of its last request."""

    def __init__(self) -> None:
        self.held: list[list[int]] = [[] for _ in range(SLOTS)]
        self.tasks: list[int | None] = [None] * SLOTS
        self.requests = 0
        self.computed = 0

    def ask(self, tokens: list[int]) -> dict[str, int]:
        common = [common_prefix(held, tokens) for held in self.held]
        slot = common.index(max(common))
        if not common[slot]:
            slot = min(range(SLOTS), key=lambda n: self.tasks[n] or 0)
        cached = min(common[slot], len(tokens) - 1)
        self.requests += 1
        self.computed += len(tokens) - cached
        self.held[slot], self.tasks[slot] = tokens, self.requests
        return {"cache_n": cached, "prompt_n": len(tokens) - cached}

    def list(self) -> bytes:
        rows = [
            {"id": n, "is_processing": False}
            | ({} if self.tasks[n] is None else {"id_task": self.tasks[n]})
            | ({"n_prompt_tokens": len(self.held[n])} if self.held[n] else {})
            for n in range(SLOTS)
        ]
        return json.dumps(rows).encode()

    def act(self, path: str, body: bytes) -> bytes:
        """Save or restore one: POST /slots/N?action=..."""
        number, _, action = path.removeprefix("/slots/").partition("?action=")
        slot, file = int(number), OPTIONS.slot_save_path + json.loads(body)["filename"]
        head = struct.Struct("<III")
        if action == "save":
            held = self.held[slot]
            data = head.pack(0x67677371, 2, len(held)) + array.array("i", held).tobytes()
            with open(file, "wb") as saved:
                saved.write(data)
            return json.dumps({"n_saved": len(held), "n_written": len(data)}).encode()
        with open(file, "rb") as saved:
            data = saved.read()
        self.held[slot] = list(array.array("i", data[head.size :]))
        return json.dumps({"n_restored": len(self.held[slot])}).encode()


class Server:
    def __init__(self) -> None:
        self.slots = Slots()
        self.ready_at = asyncio.get_running_loop().time() + OPTIONS.load_seconds
        self.worked_at = self.ready_at
        self.threads = asyncio.Semaphore(OPTIONS.at_once)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Respond to one request; returns whether the connection is kept."""
        raw = await reader.readuntil(b"\r\n\r\n")
        request_line, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
        method, path, _ = request_line.split(" ")
        fields = [tuple(line.split(": ", 1)) for line in lines]
        by_name: dict[str, str] = {n.lower(): v for n, v in fields}
        await until_file(by_name, "body")
        body = await reader.readexactly(int(by_name.get("content-length", 0)))
        if OPTIONS.seen:
            fact = {
                "method": method,
                "path": path,
                "fields": fields,
                "body": body.decode("latin-1"),
            }
            with open(OPTIONS.seen, "a", encoding="utf-8") as seen:
                seen.write(json.dumps(fact) + "\n")
        if path == OPTIONS.die_on:
            os.kill(os.getpid(), signal.SIGKILL)
        await until_file(by_name, "sent")
        async with self.threads:
            await asyncio.sleep(float(by_name.get("x-work-ms", 0)) / 1000)
            return await self.respond(writer, method, path, by_name=by_name, body=body)

    async def respond(
        self,
        writer: asyncio.StreamWriter,
        method: str,
        path: str,
        *,
        by_name: dict[str, str],
        body: bytes,
    ) -> bool:
        key = os.environ.get("LLAMA_API_KEY")
        has_loaded = asyncio.get_running_loop().time() >= self.ready_at
        if not (has_loaded and os.path.exists(OPTIONS.load_until)):
            writer.write(response(503, b'{"error":{"message":"Loading model","code":503}}'))
        elif path == "/health":
            writer.write(response(200, b'{"status":"ok"}'))
        elif key and by_name.get("authorization") != f"Bearer {key}":
            writer.write(response(401, b'{"error":{"message":"Invalid API Key","code":401}}'))
        elif path == "/props":
            idle = asyncio.get_running_loop().time() - self.worked_at
            sleeps = 0 < OPTIONS.sleep_idle_seconds <= idle
            props = {"total_slots": SLOTS, "model_alias": OPTIONS.model, "is_sleeping": sleeps}
            writer.write(response(200, json.dumps(props).encode()))
        elif OPTIONS.slot_save_path and path == "/slots":
            writer.write(response(200, self.slots.list()))
        elif OPTIONS.slot_save_path and path == "/metrics":
            names = (b"prompt_tokens_total", b"prompt_seconds_total")
            lines = [b"llamacpp:%b %d\n" % (name, self.slots.computed) for name in names]
            writer.write(response(200, b"".join(lines), "text/plain"))
        elif OPTIONS.slot_save_path and path.startswith("/slots/"):
            writer.write(response(200, self.slots.act(path, body)))
        elif method == "GET" and path in ("/v1/models", "/metrics"):
            writer.write(response(200, b"{}"))
        elif method == "GET":
            self.worked_at = asyncio.get_running_loop().time()
            writer.write(response(200, json.dumps({"path": path}).encode()))
        elif OPTIONS.error:
            writer.write(response(OPTIONS.error, b'{"error":{"message":"broken"}}'))
        elif "x-fault" in by_name:
            return await self.fault(writer, by_name["x-fault"])
        elif b'"stream":' in body.replace(b'"stream": ', b'"stream":') and b"true" in body:
            return await self.stream(writer, path, by_name)
        else:
            self.worked_at = asyncio.get_running_loop().time()
            echo: dict[str, Any] = {"echo": body.decode("latin-1")}
            if OPTIONS.slot_save_path:
                tokens = json.loads(body)["prompt"] if path == "/completion" else list(body)
                echo["timings"] = self.slots.ask(tokens)
            whole = response(200, json.dumps(echo).encode())
            head, _, content = whole.partition(b"\r\n\r\n")
            if by_name.get("x-hold") in ("head", "mid-event"):
                sent = head + b"\r\n\r\n" + (content[:9] if by_name["x-hold"] != "head" else b"")
                writer.write(sent)
                await writer.drain()
                await until_file(by_name, by_name["x-hold"])
                whole = whole.removeprefix(sent)
            writer.write(whole)
        await writer.drain()
        return True

    async def stream(
        self, writer: asyncio.StreamWriter, path: str, by_name: dict[str, str]
    ) -> bool:
        writer.write(SSE_HEAD)
        if "x-hold" in by_name:
            return await self.stream_in_phases(writer, path, by_name)
        for n in range(int(by_name.get("x-events", 3))):
            writer.write(chunk(b'data: {"n":%d}\n\n' % n))
            await writer.drain()
            await asyncio.sleep(float(by_name.get("x-tick-ms", 1)) / 1000)
        while not os.path.exists(by_name.get("x-until", "/")):  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.01)
        writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()
        return False  # as llama-server: closed after a stream without an announcement

    async def stream_in_phases(
        self, writer: asyncio.StreamWriter, path: str, by_name: dict[str, str]
    ) -> bool:
        event = chunk(b'data: {"n":0,"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\n')
        final = chunk(FINAL.get(path, b"data: [DONE]\n\n"))
        for phase, data in (
            ("head", b""),
            ("comment", chunk(b":\n\n")),
            ("mid-event", event[:20]),
            ("event", event[20:]),
            ("last", final),
        ):
            writer.write(data)
            await writer.drain()
            await until_file(by_name, phase)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return False

    async def fault(self, writer: asyncio.StreamWriter, fault: str) -> bool:
        event = b'data: {"n":0}\n\n'
        match fault:
            case "silence":
                await asyncio.sleep(3600)
            case "nonsense":
                writer.write(b"!!! this is not HTTP\r\n\r\n")
            case "cut":
                writer.write(SSE_HEAD + chunk(event))
            case "cut-mid-event":
                writer.write(SSE_HEAD + chunk(event)[:-7])
            case "silent-stream":
                writer.write(SSE_HEAD + chunk(event))
                await writer.drain()
                await asyncio.sleep(3600)
            case "short":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this")
            case "close-delimited":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
            case "early-head":
                writer.write(
                    b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + response(200, b"{}")
                )
            case "no-content":
                writer.write(b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n")
            case "gone":
                pass
            case "long-head":
                writer.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000)
        await writer.drain()
        return False


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: None)  # of connections that the gateway cuts
    stopped = asyncio.Event()
    if OPTIONS.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
    server = Server()
    if OPTIONS.host.startswith("/") and OPTIONS.keep_stale_socket:
        unlike_asyncio = socket.socket(socket.AF_UNIX)  # which would remove the file
        try:
            unlike_asyncio.bind(OPTIONS.host)
        except OSError:
            sys.exit(f"couldn't bind HTTP server socket, hostname: {OPTIONS.host}, port: 8080")
        listening = await asyncio.start_unix_server(server.serve, sock=unlike_asyncio)
    elif OPTIONS.host.startswith("/"):
        listening = await asyncio.start_unix_server(server.serve, OPTIONS.host)
    else:
        listening = await asyncio.start_server(
            server.serve, OPTIONS.host, OPTIONS.port, backlog=1024
        )
    if OPTIONS.pid_file:
        with open(OPTIONS.pid_file, "w", encoding="ascii") as pid_file:
            pid_file.write(str(os.getpid()))
    port = listening.sockets[0].getsockname()
    sys.stdout.write(f"listening on {port}\n")
    sys.stdout.flush()
    await stopped.wait()
    os._exit(0)  # closing the loop would log new connections


if __name__ == "__main__":
    OPTIONS = parse()
    if OPTIONS.version:
        sys.stdout.write("version: 0 (fake)\n")
        sys.exit(0)
    if OPTIONS.list_devices:
        with open(os.environ.get("FAKE_DEVICES", os.devnull), encoding="utf-8") as listed:
            sys.stdout.write(f"Available devices:\n{listed.read()}")
        sys.exit(0)
    if OPTIONS.print:
        sys.stdout.write(OPTIONS.print + "\n")
        sys.stdout.flush()
    if OPTIONS.exit_at_load is not None:
        sys.exit(OPTIONS.exit_at_load)
    if OPTIONS.die_at_load:
        os.kill(os.getpid(), signal.Signals[OPTIONS.die_at_load])
    if OPTIONS.hang_at_load:
        signal.pause()
    asyncio.run(main())
