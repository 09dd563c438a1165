"""Parsed heads, with everything derived from them before the body is read.

A connection mostly repeats its heads, but for the digits of their Content-Length. So what is
found out here holds nothing that depends on those digits, and is found out once: ``KnownHead``
tells whether it holds again.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Final

from llama_gguf.core.fields import Fields, Framing, RequestFields, ResponseFields
from llama_gguf.core.routes import Kind, Route

_NO_BODY: Final = (b"GET", b"HEAD", b"DELETE", b"OPTIONS")
"""A length of 0 says nothing about these (RFC 9110 section 8.6)."""

_MAX_DIGITS: Final = 18
_MAX_REMEMBERED: Final = 4096


class _Lengths(dict[bytes, int]):
    """Digits -> the length that they mean; -1 for anything but the one way to write a length."""

    def __missing__(self, digits: bytes) -> int:
        is_plain = digits.isdigit() and len(digits) <= _MAX_DIGITS
        length = int(digits) if is_plain and (digits[:1] != b"0" or digits == b"0") else -1
        if len(self) < _MAX_REMEMBERED:
            self[digits] = length
        return length


class _LengthLines(dict[int, bytes]):
    """Length -> its header line."""

    def __missing__(self, length: int) -> bytes:
        line = b"Content-Length: %d\r\n" % length
        if len(self) < _MAX_REMEMBERED:
            self[length] = line
        return line


_LENGTHS: Final = _Lengths()
LENGTH_LINES: Final = _LengthLines()


@dataclass(slots=True)
class RequestHead:
    method: bytes
    target: bytes
    """In origin form: path and query. ``*`` only with OPTIONS."""
    path: bytes
    version: str
    fields: Fields
    method_text: str
    path_text: str


@dataclass(slots=True)
class ResponseHead:
    status: int
    reason: bytes
    version: str
    fields: Fields


class Request:
    """A request, as far as its head tells.

    Args:
        head: parsed.
        cors: the lines for whoever asks from its origin.
        read: its fields, sorted.
        route: where it goes.
        via: our pseudonym in ``Via``.
    """

    __slots__ = (
        "cors",
        "head",
        "is_chunked",
        "is_idempotent",
        "is_to_head",
        "line",
        "may_persist",
        "middle",
        "opening",
        "read",
        "reads_chunks",
        "request_id",
        "route",
        "sends_length",
    )

    def __init__(
        self,
        head: RequestHead,
        *,
        cors: bytes,
        read: RequestFields | None = None,
        route: Route | None = None,
        via: bytes = b"",
    ) -> None:
        self.head = head
        self.cors = cors
        self.read = read = read or RequestFields()
        self.route = route or _NO_ROUTE
        self.request_id = read.request_id
        self.is_chunked = read.is_chunked
        self.is_to_head = head.method == b"HEAD"
        # RFC 9110 section 9.2.2: of the idempotent methods, those that are sure to change nothing.
        self.is_idempotent = head.method in (b"GET", b"HEAD")
        self.reads_chunks = head.version == "1.1"
        """False for HTTP/1.0: it gets a chunked body decoded."""
        self.may_persist = self.reads_chunks and b"close" not in read.connection
        self.sends_length = (
            self.is_chunked or read.content_length is not None or head.method not in _NO_BODY
        )
        """Whether the engine is told a length even when there is no body."""
        # What an engine receives is the line, the lines of its address, the opening, the request
        # id, the middle, and then a length or nothing.
        self.line = b"%b %b HTTP/1.1\r\n" % (head.method, head.target)
        self.opening = b"%bx-request-id: " % b"".join(read.forwarded)
        self.middle = b"\r\nVia: %b %b\r\n" % (head.version.encode("ascii"), via)

    def serialised(self, address: bytes, request_id: bytes, body: bytes | bytearray) -> bytes:
        """The request as an engine receives it: parsed, and written again.

        Args:
            address: the header lines that are the engine's own.
            request_id: of this one.
            body: all of it.
        """
        length = LENGTH_LINES[len(body)] if body or self.sends_length else b""
        return b"".join(
            (self.line, address, self.opening, request_id, self.middle, length, b"\r\n", body)
        )


_NO_ROUTE: Final = Route(Kind.REFUSED, "refused")


def unread(cors: bytes) -> Request:
    """What there is to say of a request whose head cannot be parsed."""
    return Request(RequestHead(b"-", b"-", b"-", "1.1", [], "-", "-"), cors=cors)


class Answer:
    """The engine's answer, as far as its head tells.

    Args:
        head: parsed; of a final answer, no interim one.
        read: its fields, sorted.
    """

    __slots__ = (
        "framing",
        "has_date",
        "has_length",
        "is_event_stream",
        "may_persist",
        "opening",
        "status",
    )

    def __init__(self, head: ResponseHead, read: ResponseFields) -> None:
        self.status = head.status
        self.framing = read.framing
        self.has_date = read.has_date
        self.has_length = read.length is not None and head.status != 204
        self.is_event_stream = read.is_event_stream
        # Never after a stream: llama-server closes then, and does not say so.
        self.may_persist = (
            read.framing in (Framing.LENGTH, Framing.NONE)
            and head.version == "1.1"
            and b"close" not in read.connection
        )
        # What the client gets is the opening, and then what it is told by us.
        self.opening = b"HTTP/1.1 %d %b\r\n%b" % (
            head.status,
            head.reason,
            b"".join(read.forwarded),
        )


NO_MATCH: Final = -1, 0


class KnownHead:
    """A head that was parsed: what has to come again for all that was found in it to hold again.

    Immutable, so that any number of connections may share one.

    Args:
        head: with its blank line; as it came, since nothing else is sure to be parsed alike.
        length: its Content-Length.
    """

    __slots__ = ("_after", "_after_bytes", "_before", "_digits_at", "_digits_end", "_end", "length")

    def __init__(self, head: bytes, length: int | None) -> None:
        self.length = length or 0
        """Its Content-Length, 0 if there is none."""
        at, end = (len(head), len(head)) if length is None else _digits(head)
        self._digits_at = at
        self._digits_end = end
        self._before = head[:at]
        self._after = head[end:]
        self._after_bytes = len(self._after)
        self._end = len(head)

    def match(self, data: bytes) -> tuple[int, int]:
        """Find this head at the beginning of *data*.

        All must be the same but the digits of Content-Length.

        Returns:
            Where the head ends, and its Content-Length; NO_MATCH when it is not there as a whole.
        """
        # Slices, since `startswith` costs twice as much.
        at = self._digits_at
        if data[:at] != self._before:
            return NO_MATCH
        if not self._after:
            return at, self.length
        end, after = self._digits_end, self._end  # there mostly are as many digits again
        # mypyc's slices fail where they would begin behind the end.
        if after > len(data) or data[end:after] != self._after:
            end = data.find(b"\r\n", at, at + _MAX_DIGITS + 2)
            after = end + self._after_bytes
            if end < 0 or data[end:after] != self._after:
                return NO_MATCH
        length = _LENGTHS[data[at:end]]
        return (after, length) if length >= 0 else NO_MATCH

    def match_secret(self, head: bytes) -> tuple[int, int]:
        """``match`` for one whole *head*, which may be another client's and hold a key.

        How long it takes does not tell how much of it is the same.
        """
        at = self._digits_at
        end = len(head) - self._after_bytes
        if not at <= end <= at + _MAX_DIGITS:
            return NO_MATCH
        if not compare_digest(head[:at] + head[end:], self._before + self._after):
            return NO_MATCH
        if not self._after:
            return (end, self.length) if end == at else NO_MATCH
        length = _LENGTHS[head[at:end]]
        return (len(head), length) if length >= 0 else NO_MATCH


class _NoHead(KnownHead):
    """Matches nothing: there was no head, or it must not count."""

    def __init__(self) -> None:
        super().__init__(b"", None)

    def match(self, data: bytes) -> tuple[int, int]:
        del data
        return NO_MATCH


NO_HEAD: Final = _NoHead()


def _digits(head: bytes) -> tuple[int, int]:
    """From where to where the digits of Content-Length stand; the end, if they are hard to find."""
    at = head.lower().find(b"\r\ncontent-length: ") + 18
    end = head.find(b"\r\n", at)
    found = 18 <= at < end <= at + _MAX_DIGITS and _LENGTHS[head[at:end]] >= 0
    return (at, end) if found else (len(head), len(head))
