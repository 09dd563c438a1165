"""Makes slightly wrong input out of valid input."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Final

TOKENS: Final = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\n\n",
        b"\0",
        b"\t",
        b" ",
        b":",
        b",",
        b";",
        b"=",
        b'"',
    ),
    *(b"\x0b", b"\x7f", b"\x80", b"\xff", b"/", b"//", b"/../", b"?", b"#", b"*", b"@", b"%"),
    *(b"%2f", b"%00", b"%2e", b"0", b"-", b"+", b"0x", b"_", b"chunked", b"close", b"HTTP/1.0"),
    *(b"HTTP/1.1", b"HTTP/2.0", b"GET", b"HEAD", b"POST", b"OPTIONS", b"0\r\n\r\n", b"1\r\na\r\n"),
]
LINES: Final = [
    *(b"Content-Length: 0", b"Content-Length: 5", b"content-length:16", b"Content-Length: 1, 1"),
    *(b"Content-Length: +1", b"Content-Length:", b"Content-Length : 4", b"CONTENT-LENGTH: 1\t"),
    *(b"Transfer-Encoding: chunked", b"transfer-encoding:\tchunked", b"Transfer-Encoding: x"),
    *(b"Transfer-Encoding : chunked", b"Transfer-Encoding: identity, chunked", b"TE: trailers"),
    *(b"Host: b", b"Host:", b"host: a/b", b"Connection: close", b"Connection: keep-alive, x-a"),
    *(b"Connection: Content-Length", b"Connection: Host, Via, x-request-id", b"Trailer: X-Sum"),
    *(b"Connection: Transfer-Encoding, Authorization", b"Upgrade: websocket", b"Keep-Alive: 5"),
    *(b"Expect: 100-continue", b"Expect: x", b"x-request-id: a b", b"x-request-id: mine", b"X-A:"),
    *(b" folded", b"\tfolded", b"X-A: \xe9", b"Via: 1.0 x", b"Date: today", b"Server: x"),
    *(b"Content-Type: text/event-stream", b"Access-Control-Allow-Origin: *", b"x-api-key: x"),
    *(b"Authorization: Bearer x", b"Origin: https://a.example", b"Accept: text/plain"),
]
NUMBERS: Final = [
    *(b"0", b"1", b"00", b"-1", b"+1", b"1e1", b"0x10", b"1_0", b"a", b"\xb2", b"1 1", b"1,1"),
    *(b"00000000000000000005", b"999999999999999999", b"18446744073709551621", b"fffffffffffffff"),
]
_LENGTH: Final = re.compile(rb"(?<=content-length: )[0-9]+", re.IGNORECASE)
_NUMBER: Final = re.compile(rb"(?<![0-9A-Za-z.])[0-9A-Fa-f]{1,3}(?=[;\r ])")

Mutation = Callable[[random.Random, bytes], bytes]


def _span(rng: random.Random, raw: bytes) -> tuple[int, int]:
    """Start and end of a short part of *raw*."""
    start = rng.randint(0, len(raw))
    return start, min(len(raw), start + int(rng.expovariate(0.15)))


def flip_a_bit(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]


def delete(rng: random.Random, raw: bytes) -> bytes:
    start, end = _span(rng, raw)
    return raw[:start] + raw[end:]


def repeat(rng: random.Random, raw: bytes) -> bytes:
    start, end = _span(rng, raw)
    return raw[:end] + raw[start:]


def insert_a_token(rng: random.Random, raw: bytes) -> bytes:
    at = rng.randint(0, len(raw))
    return raw[:at] + rng.choice(TOKENS) + raw[at:]


def overwrite_with_a_token(rng: random.Random, raw: bytes) -> bytes:
    start, end = _span(rng, raw)
    return raw[:start] + rng.choice(TOKENS) + raw[end:]


def change_a_number(rng: random.Random, raw: bytes) -> bytes:
    numbers = list(_NUMBER.finditer(raw))
    if not numbers:
        return raw
    match = rng.choice(numbers)
    near = b"%d" % max(0, int(match[0], 16) + rng.choice((-2, -1, 1, 2)))
    return raw[: match.start()] + rng.choice([near, *NUMBERS]) + raw[match.end() :]


def resize(rng: random.Random, raw: bytes) -> bytes:
    """Change the length, with a body of that length."""
    match = _LENGTH.search(raw)
    if match is None:
        return raw
    size = rng.choice((0, 1, 9, 10, 99, 100))
    head, end, _ = raw.partition(b"\r\n\r\n")
    return head[: match.start()] + b"%d" % size + head[match.end() :] + end + b"x" * size


def _on_lines(change: Callable[[random.Random, list[bytes], int], None]) -> Mutation:
    def mutation(rng: random.Random, raw: bytes) -> bytes:
        lines = raw.split(b"\r\n")
        change(rng, lines, rng.randrange(len(lines)))
        return b"\r\n".join(lines)

    return mutation


def _insert_a_line(rng: random.Random, lines: list[bytes], at: int) -> None:
    lines.insert(at, rng.choice(LINES))


def _delete_a_line(_: random.Random, lines: list[bytes], at: int) -> None:
    del lines[at]


def _repeat_a_line(rng: random.Random, lines: list[bytes], at: int) -> None:
    lines.insert(rng.randint(0, len(lines)), lines[at])


def _move_a_line(rng: random.Random, lines: list[bytes], at: int) -> None:
    lines.insert(rng.randint(0, len(lines) - 1), lines.pop(at))


def _change_the_line_end(rng: random.Random, lines: list[bytes], at: int) -> None:
    lines[at : at + 2] = [rng.choice((b"\n", b"\r", b"\r\r\n", b" \r\n")).join(lines[at : at + 2])]


def _change_the_case(_: random.Random, lines: list[bytes], at: int) -> None:
    lines[at] = lines[at].swapcase()


MUTATIONS: Final[Sequence[Mutation]] = [
    *(flip_a_bit, delete, repeat, insert_a_token, overwrite_with_a_token, change_a_number, resize),
    *map(_on_lines, (_insert_a_line, _insert_a_line, _delete_a_line, _repeat_a_line)),
    *map(_on_lines, (_move_a_line, _change_the_line_end, _change_the_case)),
]


def mutated(rng: random.Random, raw: bytes, others: Sequence[bytes]) -> bytes:
    """*raw* with a few mutations, sometimes with the end of one of *others*."""
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 5))):
        raw = rng.choice(MUTATIONS)(rng, raw or b"\r\n")
    if rng.random() < 0.1:
        other = rng.choice(others)
        raw = raw[: rng.randint(0, len(raw))] + other[rng.randint(0, len(other)) :]
    return raw


def pieces(rng: random.Random, raw: bytes) -> tuple[bytes, ...]:
    """*raw* as the network may split it: usually in one piece, or in a few, or in many."""
    count = rng.choice((0, 0, 1, 1, 2, 5, 40))
    cuts = sorted(rng.randint(0, len(raw)) for _ in range(count))
    found = (raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True))
    return tuple(piece for piece in found if piece)
