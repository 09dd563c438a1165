"""Parses heads with llhttp.

Callers cut a complete head at its blank line, so that llhttp never sees a body or the next
message. llhttp rejects bare CR and LF, NUL, folded lines, and white space before a colon. What it
does not check (Host, exact codings) is in ``http1/fields.py``.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Final

from llama_gguf.errors import BadRequest, UpstreamError
from llama_gguf.http1.fields import Fields
from llama_gguf.http1.request import RequestHead
from llama_gguf.http1.response import ResponseHead
from llama_gguf.stand_ins import stand_ins


def _parse_url(url: bytes) -> object:
    """As in httptools, for others in this process: nothing here parses URLs with it."""
    return import_module("httptools.parser.url_parser").parse_url(url)


with stand_ins({"httptools.parser.url_parser": {"parse_url": _parse_url}}):
    import httptools

HEAD_END: Final = b"\r\n\r\n"
_VERSIONS: Final = {b" HTTP/1.0": "1.0", b" HTTP/1.1": "1.1"}
# RFC 9112 section 4: a reason is made of tabs, spaces and visible bytes.
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] [0-9]{3}(?: [\t\x20-\x7e\x80-\xff]*)?\r\n")
_STATUS_LINE_START: Final = b"HTTP/1."
# RFC 9110 section 9.1: a method is a token. A CR may be the start of an empty line before it.
_REQUEST_START: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]|\r?\Z")
_TLS_HANDSHAKE: Final = b"\x16"
"""The first byte of a TLS record with a ClientHello (RFC 8446 section 5.1)."""
# RFC 9112 section 5: white space after a value is not part of it. llhttp accepts a space there, but
# rejects a tab after the coding of a request.
_SPACE_AFTER_CODING: Final = re.compile(
    rb"(\r\ntransfer-encoding:[ \t]*chunked)[ \t]+(?=\r\n)", re.IGNORECASE
)


class _Collector:
    """The callbacks of llhttp. Parsing is synchronous, so the process needs only one."""

    __slots__ = ("fields", "reason", "url")

    def __init__(self) -> None:
        self.fields: Fields = []
        self.url = b""
        self.reason = b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp keeps the white space after a value, which is not part of it (RFC 9112 section 5).
        self.fields.append((name, value.rstrip(b" \t")))


_collector: Final = _Collector()


def _fault(
    parser: httptools.HttpRequestParser | httptools.HttpResponseParser, head: bytes
) -> httptools.HttpParserError | None:
    """Parse *head* with llhttp, and return its error, if any."""
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass  # the offer to upgrade is ignored (RFC 9110 section 7.8)
    except httptools.HttpParserCallbackError:
        raise  # a bug in a callback; a subclass of HttpParserError, so it has to be caught first
    except httptools.HttpParserError as error:
        return error
    return None


def _has_bare_line_feed(head: bytes, seen: int = 0) -> bool:
    return head.count(b"\n", seen) != head.count(b"\r\n", max(seen - 1, 0))


def check_request_start(head: bytes, seen: int = 0) -> None:
    """Reject what cannot become a request, since its blank line may never arrive.

    Args:
        head: what has arrived of it, without empty lines before it.
        seen: number of bytes that have been checked before.

    Raises:
        BadRequest: *head* is not the beginning of an HTTP/1.0 or 1.1 request.
    """
    if head.startswith(_TLS_HANDSHAKE):
        raise BadRequest(
            "This looks like TLS, but the port serves plain HTTP. Use http://, or set "
            "TLS_CERT_FILE and TLS_KEY_FILE."
        )
    if not _REQUEST_START.match(head):
        raise BadRequest("A request begins with its method.")
    # In the order of the bytes: the result must not depend on where the network cuts a head.
    line_end = head.find(b"\n") - 1
    if (
        line_end >= 0
        and head[line_end : line_end + 1] == b"\r"
        and head[max(line_end - 9, 0) : line_end] not in _VERSIONS
    ):
        raise BadRequest("Only HTTP/1.0 and HTTP/1.1 are supported.")
    if _has_bare_line_feed(head, seen):
        raise BadRequest("A line of the head ends with LF alone; HTTP needs CR LF.")


def _refusal(head: bytes, message: str) -> BadRequest:
    """The error for *head*: that of its start, if there is one, else *message*."""
    check_request_start(head)
    return BadRequest(message)


def parse_request(head: bytes) -> RequestHead:
    """Parse *head*, which ends with its blank line.

    Raises:
        BadRequest: it is not an HTTP/1.0 or 1.1 request, or is ambiguous.
    """
    collector = _collector
    collector.fields = []
    collector.url = b""
    parser = httptools.HttpRequestParser(collector)
    fault = _fault(parser, head)
    if fault is not None:
        without_space = _SPACE_AFTER_CODING.sub(rb"\1", head)
        if without_space != head:
            return parse_request(without_space)
        raise _refusal(head, f"The request cannot be parsed: {fault}.")
    # llhttp also accepts other protocols with the same syntax (ICE, RTSP).
    line = head[: head.find(b"\r\n")]
    version = _VERSIONS.get(line[-9:])
    if version is None:
        raise _refusal(head, "Only HTTP/1.0 and HTTP/1.1 are supported.")
    method: bytes = parser.get_method()
    # llhttp also ends the line of an HTTP/0.9 request at a bare LF, and skips repeated spaces.
    if line[:-9] != b"%b %b" % (method, collector.url):
        raise _refusal(head, "The request line is not a method, a target and a version.")
    target = _origin_form(method, collector.url)
    path = target.partition(b"?")[0]
    return RequestHead(method, target, path, version, collector.fields)


def _origin_form(method: bytes, target: bytes) -> bytes:
    """*target* as path and query (RFC 9112 section 3.2).

    The authority of an absolute form is dropped, as the Host field is: the gateway has one
    upstream and uses neither.
    """
    if b"#" in target:  # llama-server would cut the target there
        raise BadRequest("The request target must not have a fragment.")
    if target.startswith(b"/"):
        return target
    if method == b"CONNECT" or (method == b"OPTIONS" and target == b"*"):
        return b"*"
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        authority, _, path = rest.partition(b"/")
        if authority and not any(c in authority for c in b"?#@"):
            return b"/" + path
    raise BadRequest("The request target is neither a path nor an http URL.")


def check_response_start(head: bytes) -> None:
    """Reject what cannot become a response, since its blank line may never arrive.

    Args:
        head: what has arrived of it.

    Raises:
        UpstreamError: *head* is not the beginning of an HTTP/1.0 or 1.1 response.
    """
    start = head[: len(_STATUS_LINE_START)]
    if not _STATUS_LINE_START.startswith(start):
        raise UpstreamError("The engine's response is not HTTP.")
    if _has_bare_line_feed(head):
        raise UpstreamError("The engine ends a line of its response's head with LF alone.")
    if b"\r\n" in head and not _STATUS_LINE.match(head):
        raise UpstreamError("The engine's response is not HTTP.")


def parse_response(head: bytes) -> ResponseHead:
    """Parse *head*, which ends with its blank line.

    Raises:
        UpstreamError: it is not an HTTP/1.0 or 1.1 response.
    """
    if not _STATUS_LINE.match(head):
        raise UpstreamError("The engine's response is not HTTP.")
    collector = _collector
    collector.fields = []
    collector.reason = b""
    parser = httptools.HttpResponseParser(collector)
    if _fault(parser, head) is not None:
        raise UpstreamError("The engine's response is not HTTP.")
    status: int = parser.get_status_code()
    if not 100 <= status <= 599:
        raise UpstreamError("The engine's response has an invalid status.")
    return ResponseHead(status, collector.reason, parser.get_http_version(), collector.fields)
