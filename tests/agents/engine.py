"""A slow stand-in for llama-server that speaks each dialect, and records what agents send.

It sends the head of a stream at once, and the first event when the prompt has been "processed", as
llama-server does; the events are those of build 10068. Faults are given in advance, one for each
request of an agent: ``DIES`` closes the connection behind the head, as an engine does that is
killed, and ``OVERFLOWS`` is the engine's refusal of a prompt that is too long.
"""

from __future__ import annotations

import enum
import json
import threading
from collections import deque
from typing import Any, Final

from tests.support.messages import LAST_CHUNK, chunk
from tests.support.servers import Handler, Server

MODEL: Final = "tiny"
CONTEXT: Final = 32768
TEXT: Final = "Hello from the engine."
USAGE_IN, USAGE_OUT = 21, 5
PING_SECONDS: Final = 30.0
"""Between llama-server's own comments."""


class Fault(enum.Enum):
    DIES = enum.auto()
    OVERFLOWS = enum.auto()


OVERFLOW: Final = {
    "code": 400,
    "message": f"request (40000 tokens) exceeds the available context size ({CONTEXT} tokens), "
    "try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 40000,
    "n_ctx": CONTEXT,
}


class AgentEngine(Server):
    """Serves agents during a ``with`` block.

    Args:
        prompt_seconds: how long a prompt takes.
        faults: of the first requests, in turn.
    """

    daemon_threads = True

    def __init__(self, prompt_seconds: float = 0.0, faults: tuple[Fault, ...] = ()) -> None:
        super().__init__(_Handler)
        self.prompt_seconds = prompt_seconds
        self.faults = deque(faults)
        self.lock = threading.Lock()
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        """Path, fields and body of each POST."""
        self.release = threading.Event()
        """Set to end the prompts that are being processed."""

    def next_fault(self) -> Fault | None:
        with self.lock:
            return self.faults.popleft() if self.faults else None


class _Handler(Handler):
    server: AgentEngine

    def do_GET(self) -> None:
        found: dict[str, Any] = {
            "/health": {"status": "ok"},
            "/props": {
                "total_slots": 2,
                "model_alias": MODEL,
                "default_generation_settings": {"n_ctx": CONTEXT},
            },
        }
        self._respond(200 if self.path in found else 404, found.get(self.path, {}))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        fields = {name.lower(): value for name, value in self.headers.items()}
        path = self.path.partition("?")[0]
        if path.endswith(("/count_tokens", "/input_tokens")):
            self._respond(200, {"input_tokens": USAGE_IN})
            return
        with self.server.lock:
            self.server.requests.append((path, fields, body))
        fault = self.server.next_fault()
        if fault is Fault.OVERFLOWS:
            self._respond(400, {"error": OVERFLOW})
        elif body.get("stream"):
            self._stream(EVENTS[path](), dies=fault is Fault.DIES)
        else:
            self.server.release.wait(self.server.prompt_seconds)
            self._respond(200, WHOLE[path]())

    def _respond(self, status: int, payload: object) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.wfile.write(data)

    def _stream(self, events: bytes, *, dies: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        remaining = 1.0 if dies else self.server.prompt_seconds
        while remaining > 0 and not self.server.release.wait(min(PING_SECONDS, remaining)):
            remaining -= PING_SECONDS
            if remaining > 0:
                self.wfile.write(chunk(b":\n\n"))
        if not dies:
            for event in events.split(b"\n\n")[:-1]:
                self.wfile.write(chunk(event + b"\n\n"))
            self.wfile.write(LAST_CHUNK)


# The events of each dialect -----------------------------------------------------------------------


def _event(kind: str, **facts: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **facts})}\n\n".encode()


def _responses() -> bytes:
    begun = {"id": "resp_1", "object": "response", "status": "in_progress"}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": TEXT}
    item = {"type": "message", "id": "msg_1", "role": "assistant"}
    done = item | {"status": "completed", "content": [part]}
    return b"".join(
        [
            _event("response.created", response=begun),
            _event("response.in_progress", response=begun),
            _event(
                "response.output_item.added",
                item=item | {"content": [], "status": "in_progress"},
            ),
            _event(
                "response.content_part.added",
                item_id="msg_1",
                part={"type": "output_text", "text": ""},
            ),
            _event("response.output_text.delta", item_id="msg_1", delta=TEXT),
            _event("response.output_text.done", item_id="msg_1", text=TEXT),
            _event("response.content_part.done", item_id="msg_1", part=part),
            _event("response.output_item.done", item=done),
            _event("response.completed", response=_response(done)),
        ]
    )


def _response(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": MODEL,
        "output": [item],
        "usage": {
            "input_tokens": USAGE_IN,
            "output_tokens": USAGE_OUT,
            "total_tokens": USAGE_IN + USAGE_OUT,
            "input_tokens_details": {"cached_tokens": 0},
        },
    }


def _whole_response() -> dict[str, Any]:
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": TEXT}
    item = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    return _response(item | {"content": [part]})


def _message(**facts: Any) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": USAGE_IN, "output_tokens": 0},
        **facts,
    }


def _messages() -> bytes:
    return b"".join(
        [
            _event("message_start", message=_message()),
            _event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
            _event("content_block_delta", index=0, delta={"type": "text_delta", "text": TEXT}),
            _event("content_block_stop", index=0),
            _event(
                "message_delta",
                delta={"stop_reason": "end_turn", "stop_sequence": None},
                usage={"output_tokens": USAGE_OUT},
            ),
            _event("message_stop"),
        ]
    )


def _whole_message() -> dict[str, Any]:
    return _message(
        content=[{"type": "text", "text": TEXT}],
        stop_reason="end_turn",
        usage={"input_tokens": USAGE_IN, "output_tokens": USAGE_OUT},
    )


def _chat_chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    facts = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    return b"data: " + json.dumps(facts).encode() + b"\n\n"


_CHAT_USAGE: Final = {
    "prompt_tokens": USAGE_IN,
    "completion_tokens": USAGE_OUT,
    "total_tokens": USAGE_IN + USAGE_OUT,
}


def _chat() -> bytes:
    usage = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [],
        "usage": _CHAT_USAGE,
    }
    return b"".join(
        [
            _chat_chunk({"role": "assistant", "content": None}),
            _chat_chunk({"content": TEXT}),
            _chat_chunk({}, "stop"),
            b"data: " + json.dumps(usage).encode() + b"\n\n",
            b"data: [DONE]\n\n",
        ]
    )


def _whole_chat() -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _CHAT_USAGE,
    }


EVENTS: Final = {
    "/v1/chat/completions": _chat,
    "/v1/responses": _responses,
    "/v1/messages": _messages,
}
WHOLE: Final = {
    "/v1/chat/completions": _whole_chat,
    "/v1/responses": _whole_response,
    "/v1/messages": _whole_message,
}
