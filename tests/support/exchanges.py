"""Exchanges, and records of those that have ended."""

from __future__ import annotations

from typing import Final

from llama_gguf.http1.exchange_record import ExchangeRecord, Usage
from llama_gguf.http1.request import Request, RequestHead
from llama_gguf.http1.routes import Kind, Route
from llama_gguf.scheduling.exchange import Exchange

STARTED_AT: Final = 1000.0


def request_for(
    method: str = "POST", path: str = "/v1/chat/completions", *, label: str = "/v1/chat/completions"
) -> Request:
    """A request for *path*, counted as one for *label*."""
    target = path.encode("latin-1")
    head = RequestHead(method.encode(), target, target, "1.1", [])
    operation = "chat" if method == "POST" else ""
    route = Route(Kind.PROXIED, label, needs_slot=bool(operation), operation=operation)
    return Request(head, cors=b"", route=route)


def new_exchange() -> Exchange:
    return Exchange(STARTED_AT, request_for(), b"req-1", "203.0.113.9")


def record(request: Request | None = None, id_bytes: bytes = b"req-1") -> ExchangeRecord:
    return ExchangeRecord(STARTED_AT, request or request_for(), id_bytes, "203.0.113.9")


def finished_exchange(
    request: Request | None = None,
    *,
    status: int = 200,
    key_id: str = "alice",
    usage: Usage | None = None,
    first_byte: float | None = 0.01234,
    first_token: float | None = None,
    duration: float = 1.5,
    queued: float = 0.0,
) -> ExchangeRecord:
    """An exchange of alice that has ended; without *first_byte*, the engine did not respond.

    Args:
        request: of the client.
        status: of the response.
        key_id: of the client.
        usage: the tokens in the response.
        first_byte: seconds until the first byte of the engine's response.
        first_token: the same of the first event, in a stream.
        duration: seconds in total.
        queued: seconds of waiting for a slot.
    """
    exchange = record(request)
    exchange.key_id = key_id
    exchange.usage = usage
    exchange.status = status
    exchange.bytes_in = 12
    exchange.bytes_out = 345
    if queued:
        exchange.queued_at = STARTED_AT
        exchange.forwarded_at = STARTED_AT + queued
    if first_byte is not None:
        exchange.first_byte_at = STARTED_AT + first_byte
    if first_token is not None:
        exchange.first_token_at = STARTED_AT + first_token
    exchange.ended_at = STARTED_AT + duration
    return exchange
