"""One line per exchange, written off the event loop.

The gathered lines are passed to a thread, so that no request waits for a slow or full disk.
``RequestLog`` is the short form for people who watch the program's own log.
"""

from __future__ import annotations

import json
from typing import Final

from llama_gguf.events import EventLog
from llama_gguf.files.line_writer import LogWriter
from llama_gguf.files.log_file import LogFile
from llama_gguf.http1.exchange_record import ExchangeRecord
from llama_gguf.http1.routes import Kind
from llama_gguf.memo import BoundedMemo
from llama_gguf.telemetry.batch import Batch
from llama_gguf.wall_clock import iso_time

_log: Final = EventLog(__name__)


def _facts(exchange: ExchangeRecord, wall_offset: float) -> dict[str, str | int | float]:
    ended_at = exchange.ended_at + wall_offset
    return {
        "time": f"{_TIMES[int(ended_at)]}{_milliseconds(ended_at % 1)}Z",
        "request_id": exchange.request_id,
        "key_id": exchange.key_id,
        "client": exchange.address,
        "method": exchange.method,
        "path": exchange.path,
        "status": exchange.status,
        "bytes_in": exchange.bytes_in,
        "bytes_out": exchange.bytes_out,
        "queue_ms": round(exchange.queued * 1000, 1),
        "first_byte_ms": round(exchange.first_byte * 1000, 1),
        "duration_ms": round(exchange.duration * 1000, 1),
        "outcome": exchange.outcome,
        **({"replays": exchange.replays} if exchange.replays else {}),
        **({"replica": exchange.replica} if exchange.replica else {}),
        **_token_facts(exchange),
    }


def as_json(exchange: ExchangeRecord, wall_offset: float) -> str:
    """One line. *wall_offset*: what to add to a time of *exchange* to get POSIX seconds."""
    return json.dumps(_facts(exchange, wall_offset))


def as_text(exchange: ExchangeRecord, wall_offset: float) -> str:
    """``time key=value …``: values have no spaces, so that no field can forge another."""
    ended_at = exchange.ended_at + wall_offset
    second = int(ended_at)
    head = exchange.request.head
    # Joined, since formatting takes four times as long.
    return "".join(
        (
            _TIMES[second],
            _milliseconds(ended_at - second),
            "Z request_id=",
            exchange.id_bytes.decode("ascii"),
            _ORIGINS[exchange.key_id, exchange.address, head.method_text, head.path_text],
            _STATUSES[exchange.status],
            str(exchange.bytes_in),
            " bytes_out=",
            str(exchange.bytes_out),
            _waited(exchange.queued) if exchange.queued_at else " queue_ms=0.0 first_byte_ms=",
            _tenths(exchange.first_byte),
            " duration_ms=",
            _tenths(exchange.duration),
            " outcome=",
            exchange.outcome,
            f" replays={exchange.replays}" if exchange.replays else "",
            _REPLICAS[exchange.replica] if exchange.replica else "",
            _tokens(exchange) if exchange.usage is not None or exchange.first_token_at else "",
        )
    )


def _tokens(exchange: ExchangeRecord) -> str:
    """Fields of responses with tokens. Unknown counts are left out, not 0."""
    text = f" first_token_ms={_tenths(exchange.first_token)}" if exchange.first_token_at else ""
    usage = exchange.usage
    if usage is not None:
        if usage.prompt is not None:
            text += f" prompt_tokens={usage.prompt}"
        if usage.cached is not None:
            text += f" cached_tokens={usage.cached}"
        if usage.completion is not None:
            text += f" completion_tokens={usage.completion}"
    return text


def _waited(queued: float) -> str:
    return f" queue_ms={_tenths(queued)} first_byte_ms="


def _token_facts(exchange: ExchangeRecord) -> dict[str, int | float]:
    """The same for JSON."""
    pairs = [pair.split("=") for pair in _tokens(exchange).split()]
    return {name: float(value) if "." in value else int(value) for name, value in pairs}


def _tenths_text(tenths: int) -> str:
    return f"{tenths // 10}.{tenths % 10}"


_TENTHS: Final = BoundedMemo(_tenths_text, max_entries=10_000)
"""Tenths of a millisecond, in milliseconds. Most durations are below a second."""


def _tenths(seconds: float) -> str:
    """Milliseconds with one decimal."""
    return _TENTHS[int(seconds * 10_000 + 0.5)]


_MILLISECONDS: Final = tuple(f".{n:03d}" for n in range(1000))


def _milliseconds(fraction: float) -> str:
    return _MILLISECONDS[int(fraction * 1000)]


def _origin(parts: tuple[str, str, str, str]) -> str:
    key_id, address, method, path = parts
    # The other values of a line are the gateway's own, or validated.
    return f" key_id={key_id} client={address} method={method} path={_escaped(path)}"


def _replica(name: str) -> str:
    return f" replica={_escaped(name)}"


_STATUSES: Final = tuple(f" status={status} bytes_in=" for status in range(600))
_TIMES: Final = BoundedMemo(iso_time, max_entries=8)  # seconds do not recur
"""POSIX second, in ISO 8601."""
_ORIGINS: Final = BoundedMemo(_origin, max_entries=256)
"""Key id, address, method and path, as they are in a line."""
_REPLICAS: Final = BoundedMemo(_replica, max_entries=256)


def _escaped(text: str) -> str:
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")


MAX_WAITING_BYTES: Final = 16 << 20
"""Queued and not written yet: the memory that a hanging disk may cost."""
PIECE_BYTES: Final = 256 << 10
"""What the thread gets at once under load. It competes with requests for the cores and for the
interpreter's lock: a tick's text in one piece (8 MB at 60,000 requests per second) delayed the
slowest request of 100 by 2 ms, and so do many small pieces."""


class AccessLog:
    """Gathers lines, which a thread writes to a file.

    Args:
        path: of the file; a missing folder is created.
        log_format: ``text`` or ``json``.
        max_bytes: of the file, before it is rotated; 0 = never.
        backups: rotated files that are kept.
    """

    def __init__(self, path: str, log_format: str, *, max_bytes: int = 0, backups: int = 0) -> None:
        self._line = as_json if log_format == "json" else as_text
        self._text: list[bytes] = []
        self._lines = 0
        self._bytes = 0
        self.wall_offset = 0.0
        """Added to a time of an exchange, it gives POSIX seconds."""
        file = LogFile(path, "access log", max_bytes=max_bytes, backups=backups)
        self._writer = LogWriter(file, max_waiting_bytes=MAX_WAITING_BYTES)

    def take(self, batch: Batch) -> None:
        """Write a line for each exchange of *batch*, at the next ``flush`` or before.

        They are formatted here, not by the thread: their data is in this core's cache, and costs
        another core four times as much to read.
        """
        line, wall_offset = self._line, self.wall_offset
        lines = [line(exchange, wall_offset) for exchange in batch.records]
        lines.append("")  # so that the last line is complete, too
        # Encoded here: the thread would hold the interpreter's lock for thousands of lines.
        text = "\n".join(lines).encode()
        self._text.append(text)
        self._lines += len(batch.records)
        self._bytes += len(text)
        if self._bytes >= PIECE_BYTES:
            self.flush()

    def start(self) -> None:
        self._writer.start()

    def flush(self) -> None:
        """Queue what has gathered for the thread. Never blocks."""
        if self._text:
            self._writer.write_lines(self._text, self._lines)
            self._text, self._lines, self._bytes = [], 0, 0

    def reopen(self) -> None:
        """Reopen the file, after what is queued has been written."""
        self._writer.reopen()

    def stop(self, within_seconds: float) -> None:
        """Write what has gathered, and wait for that, but only for *within_seconds*."""
        self.flush()
        self._writer.close(within_seconds)


class RequestLog:
    """An ``ExchangeSink`` that logs an event per request, without health checks and the like."""

    def take(self, batch: Batch) -> None:
        for exchange in batch.records:
            if exchange.request.route.kind in _OF_CLIENTS:
                _log_request(exchange)


_OF_CLIENTS: Final = (Kind.PROXIED, Kind.REFUSED)


def _log_request(exchange: ExchangeRecord) -> None:
    usage = exchange.usage
    _log.info(
        "request",
        "{key_id} {method} {path} {status} {outcome} in {seconds:.2f} s"
        if usage is None
        else "{key_id} {method} {path} {status} {outcome} in {seconds:.2f} s: {prompt_tokens} + "
        "{completion_tokens} tokens, the first after {first_token_seconds:.2f} s",
        key_id=exchange.key_id,
        method=exchange.method,
        path=exchange.path,
        status=exchange.status,
        outcome=exchange.outcome,
        seconds=round(exchange.duration, 4),
        first_token_seconds=round(exchange.first_token or exchange.first_byte, 4),
        prompt_tokens=0 if usage is None else usage.prompt or 0,
        completion_tokens=0 if usage is None else usage.completion or 0,
    )
