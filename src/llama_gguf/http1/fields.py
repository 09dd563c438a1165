"""Rules for header fields: what is forwarded, dropped, replaced or rejected.

Pure functions on lists of ``(name, value)`` as parsed by llhttp. The decision depends on the
field's name alone, and a bounded memo by exact spelling keeps it.
"""

from __future__ import annotations

import enum
import re
from typing import Final

from llama_gguf.errors import (
    BadRequest,
    ExpectationFailed,
    HeadTooLarge,
    Unauthorized,
    UpstreamError,
    UriTooLong,
)
from llama_gguf.memo import BoundedMemo

Fields = list[tuple[bytes, bytes]]

VIA_PSEUDONYM: Final = b"llama-gguf"


class FieldKind(enum.IntEnum):
    """What to do with a field. FORWARD must be 0: the loop tests for truth."""

    FORWARD = 0
    DROP = 1
    HOST = 2
    AUTHORIZATION = 3
    X_API_KEY = 4
    CONTENT_LENGTH = 5
    TRANSFER_ENCODING = 6
    CONNECTION = 7
    EXPECT = 8
    ORIGIN = 9
    REQUEST_ID = 10
    DATE = 11
    CONTENT_TYPE = 12
    SESSION = 13


# "Intermediaries ought to remove or replace fields that are known to require removal
# before forwarding": RFC 9110 section 7.6.1, with its list.
_HOP_BY_HOP: Final = (
    b"keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade "
    b"http2-settings"
).split()

SESSION_FIELDS: Final = (
    b"x-claude-code-session-id",
    b"session-id",
    b"x-session-id",
    b"x-session-affinity",
)
"""In which agents send the id of a conversation; the first of them counts."""

_REQUEST_KINDS: Final = {
    **dict.fromkeys(_HOP_BY_HOP, FieldKind.DROP),
    b"host": FieldKind.HOST,
    b"authorization": FieldKind.AUTHORIZATION,
    b"x-api-key": FieldKind.X_API_KEY,
    b"content-length": FieldKind.CONTENT_LENGTH,
    b"transfer-encoding": FieldKind.TRANSFER_ENCODING,
    b"connection": FieldKind.CONNECTION,
    b"expect": FieldKind.EXPECT,
    b"origin": FieldKind.ORIGIN,
    b"x-request-id": FieldKind.REQUEST_ID,
    **dict.fromkeys(SESSION_FIELDS, FieldKind.SESSION),
}
_RESPONSE_KINDS: Final = {
    **dict.fromkeys(_HOP_BY_HOP, FieldKind.DROP),
    b"content-length": FieldKind.CONTENT_LENGTH,
    b"transfer-encoding": FieldKind.TRANSFER_ENCODING,
    b"connection": FieldKind.CONNECTION,
    b"date": FieldKind.DATE,
    b"content-type": FieldKind.CONTENT_TYPE,
    # The gateway sets these itself.
    b"server": FieldKind.DROP,
    b"x-request-id": FieldKind.DROP,
}


Rules = BoundedMemo[bytes, FieldKind]
"""Exact spelling of a name -> what to do with the field."""
_MAX_SPELLINGS: Final = 1024
"""Far more than clients use, so that only made-up names fill the memo."""


def _response_kind(name: bytes) -> FieldKind:
    low = name.lower()
    if low.startswith(b"access-control-"):
        return FieldKind.DROP
    return _RESPONSE_KINDS.get(low, FieldKind.FORWARD)


_RESPONSE_RULES: Final[Rules] = BoundedMemo(_response_kind, max_entries=_MAX_SPELLINGS)


def request_rules(*, keep_credentials: bool, keep_conversations: bool) -> Rules:
    """What to do with a request's fields.

    Args:
        keep_credentials: forward the client's credentials, where the gateway neither checks any
            nor has its own for the engine.
        keep_conversations: forward X-Conversation-Id. With it, llama-server ends the response to
            an earlier request of the same id, regardless of the client, and does not stop when
            a client disconnects.
    """
    kinds = dict(_REQUEST_KINDS)
    if keep_credentials:
        kinds |= {b"authorization": FieldKind.FORWARD, b"x-api-key": FieldKind.FORWARD}
    if not keep_conversations:
        kinds[b"x-conversation-id"] = FieldKind.DROP
    return BoundedMemo(
        lambda name: kinds.get(name.lower(), FieldKind.FORWARD), max_entries=_MAX_SPELLINGS
    )


USUAL_RULES: Final = request_rules(keep_credentials=False, keep_conversations=False)


_SANE_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REG_NAME: Final = rb"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"
_HOST: Final = re.compile(rb"(?:%b|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?" % _REG_NAME)
# Options that need no search for nominated fields; clients hardly send others.
_PLAIN_CONNECTION: Final = frozenset({b"keep-alive", b"close"})


class RequestFields:
    """What the gateway needs from a request's fields, and the fields to forward."""

    __slots__ = (
        "api_keys",
        "authorizations",
        "connection",
        "content_length",
        "expects_continue",
        "forwarded",
        "is_chunked",
        "origin",
        "request_id",
        "session",
        "session_rank",
    )

    def __init__(self) -> None:
        self.forwarded: list[bytes] = []
        """Pieces to join: name, separator, value, line end, and so on."""
        self.authorizations: list[bytes] = []
        self.api_keys: list[bytes] = []
        self.content_length: int | None = None
        self.is_chunked = False
        self.expects_continue = False
        self.origin: bytes | None = None
        self.request_id: bytes | None = None
        self.session: bytes | None = None
        """The id of its conversation."""
        self.session_rank = len(SESSION_FIELDS)
        """Of the field that had it."""
        self.connection: frozenset[bytes] = frozenset()


def read_request(fields: Fields, *, version: str, rules: Rules = USUAL_RULES) -> RequestFields:
    """Sort a request's *fields*.

    Args:
        fields: as received.
        version: the request's HTTP version, "1.0" or "1.1".
        rules: what to do with them.

    Raises:
        BadRequest: framing or Host is missing, double or malformed.
        ExpectationFailed: an expectation other than 100-continue.
    """
    read = RequestFields()
    forwarded = read.forwarded
    hosts = 0
    for name, value in fields:
        kind = rules[name]
        if not kind:
            forwarded += (name, b": ", value, b"\r\n")
        elif kind is FieldKind.HOST:
            hosts += 1
            _check_host(value)
        elif kind is FieldKind.CONTENT_LENGTH:
            _read_length(read, value)
        else:
            _read_special(read, kind, name, value)
    # RFC 9112 section 3.2: no Host in 1.1, or several, or an invalid one, is 400. HTTP/1.0
    # clients may leave it out.
    if hosts != 1 and (hosts or version != "1.0"):
        raise BadRequest("A request must have exactly one Host field.")
    if read.is_chunked and read.content_length is not None:
        raise BadRequest("A request must not have both Content-Length and Transfer-Encoding.")
    if version == "1.0":
        # RFC 9112 section 6.1: faulty framing. RFC 9110 section 10.1.1: Expect is ignored.
        if read.is_chunked:
            raise BadRequest("An HTTP/1.0 request must not have Transfer-Encoding.")
        read.expects_continue = False
    if read.connection - _PLAIN_CONNECTION:
        _drop_nominated(read, fields, rules)
    return read


def _read_special(read: RequestFields, kind: FieldKind, name: bytes, value: bytes) -> None:
    match kind:
        case FieldKind.AUTHORIZATION:
            read.authorizations.append(value)
        case FieldKind.X_API_KEY:
            read.api_keys.append(value)
        case FieldKind.CONNECTION:
            read.connection |= _tokens(value)
        case FieldKind.TRANSFER_ENCODING:
            _read_coding(read, value)
        case FieldKind.EXPECT:
            _read_expectation(read, value)
        case FieldKind.ORIGIN:
            read.origin = value
            read.forwarded += (name, b": ", value, b"\r\n")
        case FieldKind.REQUEST_ID:
            if _SANE_REQUEST_ID.fullmatch(value):
                read.request_id = value
        case FieldKind.SESSION:
            _read_session(read, name, value)
        case _:
            pass  # FieldKind.DROP


def _read_expectation(read: RequestFields, value: bytes) -> None:
    if value.lower() != b"100-continue":
        raise ExpectationFailed("The only supported expectation is 100-continue.")
    read.expects_continue = True


def _read_session(read: RequestFields, name: bytes, value: bytes) -> None:
    read.forwarded += (name, b": ", value, b"\r\n")
    rank = SESSION_FIELDS.index(name.lower())
    if value and rank < read.session_rank:
        read.session, read.session_rank = value, rank


def _check_host(value: bytes) -> None:
    if not _HOST.fullmatch(value):
        raise BadRequest("The Host field is malformed.")


def _read_length(read: RequestFields, value: bytes) -> None:
    # llhttp rejects signs and several lengths already; int() would accept more than digits.
    if read.content_length is not None or not value.isdigit() or len(value) > 18:
        raise BadRequest("Content-Length must be a single number in digits.")
    read.content_length = int(value)


def _read_coding(read: RequestFields, value: bytes) -> None:
    if read.is_chunked or value.lower() != b"chunked":
        raise BadRequest("The only supported Transfer-Encoding is chunked, once.")
    read.is_chunked = True


def _tokens(value: bytes) -> frozenset[bytes]:
    return frozenset(t.strip().lower() for t in value.split(b",") if t.strip())


def _drop_nominated(read: RequestFields, fields: Fields, rules: Rules) -> None:
    """Rebuild the forwarded fields without those that Connection nominates."""
    read.forwarded.clear()
    for name, value in fields:
        if (
            rules[name] in (FieldKind.FORWARD, FieldKind.ORIGIN, FieldKind.SESSION)
            and name.lower() not in read.connection
        ):
            read.forwarded += (name, b": ", value, b"\r\n")


def presented_key(read: RequestFields, *, in_authorization: bool = True) -> bytes:
    """The one key that the client sent. Empty fields count as absent.

    1. In ``Authorization: Bearer``; an x-api-key beside it is ignored, since agents with two
       variables set send both.
    2. In ``x-api-key``.

    Args:
        read: the fields of the request.
        in_authorization: False where Authorization is for another recipient and has to be ignored.

    Raises:
        Unauthorized: no key, several, or another scheme. The message is the same for all.
    """
    authorizations = read.authorizations if in_authorization else []
    keys = [key for value in authorizations if (key := _bearer(value)) != b""]  # 1
    if not keys:
        keys = [key for key in read.api_keys if key]  # 2
    if len(keys) == 1 and keys[0] is not None:
        return keys[0]
    raise invalid_key()


def _bearer(value: bytes) -> bytes | None:
    """The key in an Authorization field, possibly empty; None if it has another scheme."""
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != b"bearer":
        return None if value else b""
    return key.strip()


def invalid_key() -> Unauthorized:
    """One message for missing, malformed and unknown keys, so that they cannot be distinguished."""
    return Unauthorized(
        "Invalid or missing API key. Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'."
    )


def check_head_size(head: bytes, *, line: int, field: int, total: int) -> None:
    """Enforce the size limits on a request's head, complete or not.

    Args:
        head: what has arrived of it.
        line: most bytes of the request line.
        field: most bytes of one header line.
        total: most bytes of the head.

    Raises:
        UriTooLong, HeadTooLarge: *head* exceeds a limit.
    """
    if len(head) <= min(line, field):
        return
    first, *others = head.split(b"\r\n")
    if len(first) > line:
        raise UriTooLong(f"The request line is longer than {line} bytes.", close=True)
    if max(map(len, others), default=0) > field or len(head) > total:
        raise HeadTooLarge("The header fields are too long.", close=True)


def find(fields: Fields, name: bytes) -> bytes | None:
    """The value of the first field called *name* (in lower case). A linear search."""
    return next((v for n, v in fields if n.lower() == name), None)


def find_all(fields: Fields, name: bytes) -> list[bytes]:
    """The values of all fields called *name* (in lower case), in their order."""
    return [v for n, v in fields if n.lower() == name]


# Responses --------------------------------------------------------------------------------------


class Framing(enum.IntEnum):
    """How the end of a response's body is known (RFC 9112 section 6.3)."""

    NONE = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


class ResponseFields:
    """A response's head, sorted."""

    __slots__ = (
        "connection",
        "content_type",
        "forwarded",
        "framing",
        "has_date",
        "length",
    )

    def __init__(self) -> None:
        self.forwarded: list[bytes] = []
        self.framing = Framing.CLOSE
        self.length: int | None = None
        self.has_date = False
        self.content_type = b""
        self.connection: frozenset[bytes] = frozenset()

    @property
    def is_event_stream(self) -> bool:
        return self.content_type.lower().startswith(b"text/event-stream")


def read_response(fields: Fields, *, status: int, is_head_request: bool) -> ResponseFields:
    """Sort a response's *fields* and determine how its body ends.

    Args:
        fields: as received.
        status: the response's status code.
        is_head_request: whether it is the response to a HEAD request.

    Raises:
        UpstreamError: the framing is double or malformed.
    """
    read = ResponseFields()
    forwarded = read.forwarded
    for name, value in fields:
        kind = _RESPONSE_RULES[name]
        if not kind:
            forwarded += (name, b": ", value, b"\r\n")
        elif kind is FieldKind.CONTENT_TYPE:
            read.content_type = value
            forwarded += (name, b": ", value, b"\r\n")
        elif kind is FieldKind.CONTENT_LENGTH:
            if read.length is not None or not value.isdigit() or len(value) > 18:
                raise UpstreamError("The engine's response has a malformed Content-Length.")
            read.length = int(value)
        elif kind is not FieldKind.DROP:
            _read_special_response(read, kind, name, value)
    if read.connection - _PLAIN_CONNECTION:
        _drop_nominated_response(read, fields)
    read.framing = _framing(read, status=status, is_head_request=is_head_request)
    return read


def _read_special_response(
    read: ResponseFields, kind: FieldKind, name: bytes, value: bytes
) -> None:
    match kind:
        case FieldKind.TRANSFER_ENCODING:
            if read.framing is Framing.CHUNKED or value.lower() != b"chunked":
                raise UpstreamError("The engine's response has an unknown Transfer-Encoding.")
            read.framing = Framing.CHUNKED
        case FieldKind.CONNECTION:
            read.connection |= _tokens(value)
        case FieldKind.DATE:
            read.has_date = True
            read.forwarded += (name, b": ", value, b"\r\n")
        case _:
            pass


def _drop_nominated_response(read: ResponseFields, fields: Fields) -> None:
    forward = (FieldKind.FORWARD, FieldKind.CONTENT_TYPE, FieldKind.DATE)
    read.forwarded.clear()
    for name, value in fields:
        if _RESPONSE_RULES[name] in forward and name.lower() not in read.connection:
            read.forwarded += (name, b": ", value, b"\r\n")


def _framing(read: ResponseFields, *, status: int, is_head_request: bool) -> Framing:
    if read.framing is Framing.CHUNKED and read.length is not None:
        raise UpstreamError("The engine's response has both Content-Length and Transfer-Encoding.")
    # These have no body, regardless of their fields.
    if is_head_request or status in (204, 304):
        return Framing.NONE
    if read.framing is Framing.CHUNKED:
        return Framing.CHUNKED
    return Framing.CLOSE if read.length is None else Framing.LENGTH
