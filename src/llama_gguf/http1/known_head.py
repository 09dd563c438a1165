"""Recognises a head that was parsed before, so that it need not be parsed again.

The heads on one connection usually differ only in the digits of their Content-Length. ``KnownHead``
matches the bytes around those digits.
"""

from __future__ import annotations

from typing import Final

from llama_gguf.digests import compare_digest
from llama_gguf.memo import BoundedMemo

_MAX_DIGITS: Final = 18


def _length(digits: bytes) -> int:
    """The length that *digits* mean; -1 unless they are its canonical form."""
    is_plain = digits.isdigit() and len(digits) <= _MAX_DIGITS
    return int(digits) if is_plain and (digits[:1] != b"0" or digits == b"0") else -1


_LENGTHS: Final = BoundedMemo(_length, max_entries=4096)
NO_MATCH: Final = -1, 0


class KnownHead:
    """The bytes of a parsed head that another must have for the same result to apply.

    Immutable, so that any number of connections may share one.

    Args:
        head: with its blank line, exactly as received: other bytes could be parsed differently.
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

        Everything but the digits of Content-Length must be equal.

        Returns:
            The end of the head, and its Content-Length; NO_MATCH if it is not there completely.
        """
        # Slices, since `startswith` costs twice as much.
        at = self._digits_at
        if data[:at] != self._before:
            return NO_MATCH
        if not self._after:
            return at, self.length
        end, after = self._digits_end, self._end  # the number of digits is usually the same
        # A slice that begins after the end fails when compiled with mypyc.
        if after > len(data) or data[end:after] != self._after:
            end = data.find(b"\r\n", at, at + _MAX_DIGITS + 2)
            after = end + self._after_bytes
            if end < 0 or data[end:after] != self._after:
                return NO_MATCH
        length = _LENGTHS[data[at:end]]
        return (after, length) if length >= 0 else NO_MATCH

    def match_secret(self, head: bytes) -> tuple[int, int]:
        """``match`` for one complete *head*, possibly of another client and with its key.

        Its duration does not depend on how many bytes are equal.
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
    """Matches nothing: there was no head, or it must not be reused."""

    def __init__(self) -> None:
        super().__init__(b"", None)

    def match(self, data: bytes) -> tuple[int, int]:
        del data
        return NO_MATCH


NO_HEAD: Final = _NoHead()


def _digits(head: bytes) -> tuple[int, int]:
    """Start and end of the digits of Content-Length; twice the end of *head* if not found."""
    at = head.lower().find(b"\r\ncontent-length: ") + 18
    end = head.find(b"\r\n", at)
    found = 18 <= at < end <= at + _MAX_DIGITS and _LENGTHS[head[at:end]] >= 0
    return (at, end) if found else (len(head), len(head))
