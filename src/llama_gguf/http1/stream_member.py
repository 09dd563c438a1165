"""Detects a request for an event stream: the member ``stream`` of the body's outermost object.

``json.loads`` would block all connections meanwhile: 10 MB of small values take it a second. So the
document is only scanned, in steps of bounded effort, and no objects are created.

For a valid document the result is that of ``json.loads``: the last of several members counts, and
names may have escapes. Not every invalid document is recognised, since llama-server rejects them
all: the kinds of brackets, numbers and UTF-8 are not checked.
"""

from __future__ import annotations

import enum
import json
import re
from typing import Final

WINDOW_BYTES: Final = 4096
"""That one step scans at most. A longer token takes several steps."""
STEP_EFFORT: Final = 512
"""Of one step, in addition to the bytes that it scans: 1 us, where a byte takes 2 to 10 ns."""

# Quantifiers of characters are possessive (`*+`): nothing is scanned again to try another match.
# Those of groups are not, and need not be, since no text matches in two ways: until Python 3.11.5 a
# possessive group does not go back to where its last, incomplete repetition began.
_SPACE: Final = rb"[ \t\n\r]*+"
_CHARACTERS: Final = rb'[^"\\\x00-\x1f]*+(?:\\[^\x00-\x1f][^"\\\x00-\x1f]*+)*'
_STRING: Final = rb'"%b"' % _CHARACTERS
_LITERAL: Final = rb"[-+.0-9A-Za-z]*+"
_PLAIN: Final = rb'[^"\[\]{}]'
_LEAF: Final = rb"[\[{]%b*+(?:%b%b*+)*[\]}]" % (_PLAIN, _STRING, _PLAIN)
"""An array or object that contains no other."""

_IN_SPACE: Final = re.compile(_SPACE)
_IN_STRING: Final = re.compile(_CHARACTERS)
_IN_LITERAL: Final = re.compile(_LITERAL)
_IN_NESTED: Final = re.compile(rb"(?:%b++|%b|%b)*" % (_PLAIN, _STRING, _LEAF))
_OPENING: Final = re.compile(rb"[\[{]++")
_CLOSING: Final = re.compile(rb"[\]}]++")
_TRUE: Final = re.compile(rb"true[ \t\n\r,}]")
# Whole members of other names, each with the comma that follows it.
_OTHERS: Final = re.compile(
    rb'(?:%b"(?!stream")[^"\\\x00-\x1f]*+"%b:%b(?:%b|%b|[0-9tfnNI-]%b)%b,)*'
    % (_SPACE, _SPACE, _SPACE, _STRING, _LEAF, _LITERAL, _SPACE)
)

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NAME: Final = b"stream"
_MAX_NAME_BYTES: Final = 6 * len(_NAME)
"""With each letter as an escape such as ``\\u0073``."""
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_COMMA: Final = ord(",")
_COLON: Final = ord(":")
_LEFT_BRACE: Final = ord("{")
_RIGHT_BRACE: Final = ord("}")
_OPENERS: Final = frozenset(b"[{")
_LITERAL_STARTS: Final = frozenset(b"-0123456789tfnNI")


class _Part(enum.IntEnum):
    """The next part. White space may precede it, except in NAME, STRING and LITERAL."""

    DOCUMENT = 0
    FIRST_MEMBER = 1  # or the end of an empty object
    MEMBER = 2
    NAME = 3  # the rest of it
    COLON = 4
    VALUE = 5
    LITERAL = 6  # the rest of it
    STRING = 7  # the rest of it, in a nested value too
    NESTED = 8  # the rest of an array or object
    COMMA = 9  # or the end of the object
    END = 10


class StreamSearch:
    """The state of scanning one body.

    Args:
        window_bytes: that one step scans at most; at least 2.
    """

    __slots__ = (
        "_at",
        "_depth",
        "_is_stream",
        "_name_at",
        "_part",
        "_requests_stream",
        "_window",
        "answer",
    )

    def __init__(self, *, window_bytes: int = WINDOW_BYTES) -> None:
        self._window = window_bytes
        self._part = _Part.DOCUMENT
        self._at = 0
        self._depth = 1
        """Number of open containers; 1 in the outermost object."""
        self._name_at = 0
        self._is_stream = False
        """Whether the present member is ``stream``."""
        self._requests_stream = False
        self.answer: bool | None = None
        """Whether *body* requests a stream; None until that is known."""

    def advance(self, body: bytes | bytearray, effort: int) -> int:
        """Continue until the result is known or *effort* is spent.

        Args:
            body: the same object each time.
            effort: in bytes and ``STEP_EFFORT``.

        Returns:
            The effort spent, which exceeds *effort* by one step at most.
        """
        size = len(body)
        spent = 0
        while self.answer is None and spent < effort:
            at = self._at
            end = min(at + self._window, size)
            part = self._part
            if part is _Part.NESTED:
                self._scan_nested(body, end, size)
            elif part is _Part.STRING or part is _Part.NAME:
                self._scan_string(body, end, size)
            elif part is _Part.LITERAL:
                self._scan_literal(body, end, size)
            else:
                self._scan_member(body, end, size)
            spent += STEP_EFFORT + self._at - at
        return spent

    def _scan_nested(self, body: bytes | bytearray, end: int, size: int) -> None:
        match = _IN_NESTED.match(body, self._at, end)
        assert match is not None
        at = match.end()
        if at == end:
            self._at = at
            if end == size:
                self.answer = False  # the document is cut off
            return
        byte = body[at]
        if byte == _QUOTE:
            at += 1
            self._part = _Part.STRING
        elif byte in _OPENERS:
            run = _OPENING.match(body, at, end)
            assert run is not None
            at = run.end()
            self._depth += at - run.start()
        else:
            # No further than to the end of this value.
            run = _CLOSING.match(body, at, min(end, at + self._depth - 1))
            assert run is not None
            at = run.end()
            self._depth -= at - run.start()
            if self._depth == 1:
                self._part = _Part.COMMA
        self._at = at

    def _scan_string(self, body: bytes | bytearray, end: int, size: int) -> None:
        match = _IN_STRING.match(body, self._at, end)
        assert match is not None
        at = self._at = match.end()
        if at < end and body[at] == _QUOTE:
            self._at = at + 1
            if self._part is _Part.NAME:
                self._end_name(body, at)
            else:
                self._part = _Part.COMMA if self._depth == 1 else _Part.NESTED
        elif end == size or (at < end and not (body[at] == _BACKSLASH and at == end - 1)):
            self.answer = False  # it is cut off, or has a control character

    def _end_name(self, body: bytes | bytearray, end: int) -> None:
        self._part = _Part.COLON
        self._is_stream = False
        if end - self._name_at <= _MAX_NAME_BYTES:
            name = bytes(body[self._name_at : end])
            self._is_stream = name == _NAME
            if _BACKSLASH in name:
                try:
                    self._is_stream = json.loads(b'"%b"' % name) == "stream"
                except ValueError:
                    self.answer = False

    def _scan_literal(self, body: bytes | bytearray, end: int, size: int) -> None:
        match = _IN_LITERAL.match(body, self._at, end)
        assert match is not None
        self._at = match.end()
        if self._at < end or end == size:
            self._part = _Part.COMMA

    def _scan_member(self, body: bytes | bytearray, end: int, size: int) -> None:
        """Scan white space in the outermost object, or around it, and the next byte."""
        part = self._part
        at = self._at
        if part is _Part.MEMBER:
            others = _OTHERS.match(body, at, end)
            assert others is not None
            at = others.end()
        elif not at and body.startswith(_BYTE_ORDER_MARK):
            self._at = len(_BYTE_ORDER_MARK)
            return
        space = _IN_SPACE.match(body, at, end)
        assert space is not None
        at = space.end()
        if at >= end:
            self._at = at
            if end == size:
                self.answer = self._requests_stream and part is _Part.END
            return
        self._at = at + 1
        self._on_byte(part, body, at)

    def _on_byte(self, part: _Part, body: bytes | bytearray, at: int) -> None:
        """Process the byte at *at*, where white space ends."""
        byte = body[at]
        if part is _Part.VALUE:
            self._begin_value(body, at)
        elif byte == _LEFT_BRACE and part is _Part.DOCUMENT:
            self._part = _Part.FIRST_MEMBER
        elif byte == _QUOTE and part in (_Part.FIRST_MEMBER, _Part.MEMBER):
            self._part = _Part.NAME
            self._name_at = at + 1
        elif byte == _COLON and part is _Part.COLON:
            self._part = _Part.VALUE
        elif byte == _COMMA and part is _Part.COMMA:
            self._part = _Part.MEMBER
        elif byte == _RIGHT_BRACE and part in (_Part.FIRST_MEMBER, _Part.COMMA):
            self._part = _Part.END
        else:
            self.answer = False  # not an object

    def _begin_value(self, body: bytes | bytearray, at: int) -> None:
        byte = body[at]
        if self._is_stream:
            self._requests_stream = _TRUE.match(body, at) is not None
        if byte == _QUOTE:
            self._part = _Part.STRING
        elif byte in _OPENERS:
            self._depth = 2
            self._part = _Part.NESTED
        elif byte in _LITERAL_STARTS:
            self._part = _Part.LITERAL
        else:
            self.answer = False
