"""API keys: the only reader and writer of the keys file's line format.

A line is ``key_id:api_key[:rate_limit][:expiration]``, a comment that begins with
``#``, or blank. ``api_key`` is the secret itself or ``sha256$`` and its digest in hex. Attributes
may follow, each as a space and ``name=value`` (``attributes.py``).

Rule 1: a ``Key`` holds a digest and never a secret, so none can reach a log or a repr.

Rule 2: a ``Problem`` quotes nothing of its line. With the fields mixed up, the secret is where
the id belongs, and the reason would carry it into the log.

Rule 3: if two lines have the same id or the same secret, the first one is used.

Rule 4: an id that ends in ``-old-`` and six hexadecimal digits is not a separate key. Its line
holds an old secret of the key named before that suffix, which is valid until its expiration.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple, Self

from llama_gguf.access.attributes import (
    NO_ATTRIBUTES,
    Attributes,
    format_words,
    parse_words,
)
from llama_gguf.access.moments import ISO_8601, format_moment, parse_moment
from llama_gguf.digests import sha256

MAX_RATE_LIMIT: Final = 1_000_000_000
HASH_MARK: Final = "sha256$"
NEW_FILE: Final = (
    "# key_id:api_key[:rate_limit per minute][:expiration, ISO 8601] [name=value ...]\n"
)
CHARACTERS_PER_PAUSE: Final = 4096
"""About 0.5 ms of work: 60 lines with a secret alone, or 15 with all attributes."""
IDS_PER_PAUSE: Final = 64

# str.splitlines also splits at U+2028 and other separators, which editors show as part of the
# line: a key could be hidden in a comment.
_LINE: Final = re.compile(r"[^\n]+\n?|\n")
_AROUND: Final = " \t\r\n\ufeff"  # Windows editors put U+FEFF before the first line

# [0-9] and [A-Za-z], not \d and \w: those match digits and letters of every script.
_KEY_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_RETIRED_ID: Final = r"([A-Za-z0-9_-]{1,64}?)(?:-old-[0-9a-f]{6})+"
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{16,128}")
_DIGEST: Final = re.compile(r"sha256\$([0-9A-Fa-f]{64})")
_STORED: Final = rf"[^:]*:({_DIGEST.pattern}|{_SECRET.pattern})"
_DIGITS: Final = re.compile(r"[0-9]+")
# The first space before a word that contains "=", which the fields before it never do. Expirations
# may contain a space.
_ATTRIBUTES: Final = re.compile(r"[ \t]+(?=[^ \t=]*=)")

_WANTED_LINE: Final = "a line must be key_id:api_key[:rate_limit][:expiration] [name=value ...]"
_OR_BARE: Final = ", or a key alone, which must be 16 to 128 of A-Z a-z 0-9 _ -"
_WANTED_ID: Final = "the key id must be 1 to 64 of A-Z a-z 0-9 _ -"
_WANTED_FREE: Final = "the key id is taken by another key"
_WANTED_NEW: Final = "it contains an old secret of a key that is already in the file"
_WANTED_API_KEY: Final = (
    "the api key must be 16 to 128 of A-Z a-z 0-9 _ -, or sha256$ and 64 hex digits"
)
_WANTED_RATE: Final = f"the rate limit must be a whole number from 1 to {MAX_RATE_LIMIT}"
_WANTED_REST: Final = (
    "the api key may be followed by a rate limit, an expiration, or both with a colon between; "
    f"{_WANTED_RATE}; the expiration must be {ISO_8601}"
)


class Key(NamedTuple):
    """One secret of a key, as one line of the file has it. During a rotation, a key has several.

    Args:
        key_id: the public name of the key.
        digest: SHA-256 of the secret.
        rate_limit: requests per minute; None for the gateway's default.
        expires_at: POSIX seconds, always whole; None if it never expires.
        hashed: whether the file contains only the digest.
        retired_as: of an old secret, the id of its line; else empty.
        attributes: those on the line.
    """

    key_id: str
    digest: bytes
    rate_limit: int | None = None
    expires_at: float | None = None
    hashed: bool = False
    retired_as: str = ""
    attributes: Attributes = NO_ATTRIBUTES

    def __repr__(self) -> str:
        return f"Key(key_id={self.key_id!r})"

    @property
    def is_retired(self) -> bool:
        return bool(self.retired_as)

    @property
    def line_id(self) -> str:
        """The id at the start of the line."""
        return self.retired_as or self.key_id

    def is_expired(self, now: float) -> bool:
        """Whether the secret has expired at *now*, in POSIX seconds."""
        return self.expires_at is not None and now >= self.expires_at

    def can_chat(self, now: float) -> bool:
        """Whether a command on this machine can chat with it at *now*, in POSIX seconds.

        Its secret must be in plain text, valid, and limited to no networks and no other routes.
        """
        attributes = self.attributes
        if self.hashed or self.is_expired(now) or attributes.networks:
            return False
        return not attributes.routes or "chat" in attributes.routes


class Problem(NamedTuple):
    """A line that was skipped: its number, from 1, and the expected form."""

    line: int
    reason: str


class KeyRing:
    """The keys of one file. Immutable: a reload makes a new one.

    Its length is the number of keys, not of their secrets.
    """

    __slots__ = ("_by_digest", "_by_id", "keys", "problems")

    def __init__(self) -> None:
        self.keys: tuple[Key, ...] = ()
        """All secrets, in the order of the file."""
        self.problems: tuple[Problem, ...] = ()
        self._by_digest: dict[bytes, Key] = {}
        self._by_id: dict[str, Key] = {}

    @classmethod
    def parse(cls, text: str, pause: Callable[[], None] | None = None) -> Self:
        """Parse the text of a keys file. An invalid line is skipped and becomes a problem.

        Args:
            text: of the file.
            pause: called every ``CHARACTERS_PER_PAUSE``, to let other threads run.
        """
        ring = cls()
        keys: list[Key] = []
        problems: list[Problem] = []
        line_of: dict[str | bytes, int] = {}  # ids are str, digests bytes: they cannot collide
        paused_at = 0
        # finditer and not findall, which would be one long step without pauses.
        for number, found in enumerate(_LINE.finditer(text), 1):
            if pause is not None and found.end() >= paused_at + CHARACTERS_PER_PAUSE:
                paused_at = found.end()
                pause()
            try:
                key = _read_line(found[0])
                if key is not None:
                    _claim(key, number, line_of)
                    keys.append(key)
                    ring._enter(key)
            except ValueError as expected:
                problems.append(Problem(number, str(expected)))
        ring.keys, ring.problems = tuple(keys), tuple(problems)
        return ring

    def _enter(self, key: Key) -> None:
        self._by_digest[key.digest] = key
        if not key.is_retired or key.key_id not in self._by_id:
            self._by_id[key.key_id] = key

    def __len__(self) -> int:
        return len(self._by_id)

    def __repr__(self) -> str:
        return f"<KeyRing keys={len(self)} problems={len(self.problems)}>"

    def look_up(self, presented: bytes) -> Key | None:
        """The key whose secret is *presented*, expired or not.

        Digests are compared and not secrets, so the duration reveals nothing about a secret.
        """
        return self._by_digest.get(sha256(presented).digest())

    def with_digest(self, digest: bytes) -> Key | None:
        """The key whose secret has this SHA-256 digest, expired or not."""
        return self._by_digest.get(digest)

    def named(self, key_id: str) -> Key | None:
        """The key with this id: its current secret, or an old one if the file has no other."""
        return self._by_id.get(key_id)

    def gone_since(self, old: KeyRing, pause: Callable[[], None] | None = None) -> list[str]:
        """The ids of keys that are in *old* and not in this ring; *pause* as for ``parse``."""
        gone: list[str] = []
        for number, key_id in enumerate(old._by_id, 1):
            if pause is not None and not number % IDS_PER_PAUSE:
                pause()
            if key_id not in self._by_id:
                gone.append(key_id)
        return gone

    def secrets_of(self, name: str) -> list[Key]:
        """All secrets of the key *name*, current first; or the old secret with this line id."""
        found = [key for key in self.keys if name in (key.key_id, key.line_id)]
        return sorted(found, key=lambda key: key.is_retired)


def _claim(key: Key, number: int, line_of: dict[str | bytes, int]) -> None:
    line_id = key.line_id
    if line_id in line_of:
        raise ValueError(f"the key id is already on line {line_of[line_id]}, which wins")
    if key.digest in line_of:
        raise ValueError(f"the api key is already on line {line_of[key.digest]}, which wins")
    line_of[line_id] = line_of[key.digest] = number


# Parsing one line: each function raises ValueError with the expected form -------------------------


def _read_line(line: str) -> Key | None:
    """The key on *line*; None for a comment or a blank line."""
    line = line.strip(_AROUND)
    if not line or line.startswith("#"):
        return None
    if "=" in line and (space := _ATTRIBUTES.search(line)):
        words, line = line[space.end() :].split(), line[: space.start()]
    else:
        words = []
    key_id, *others = line.split(":", 2)
    if not others:
        raise ValueError(_WANTED_LINE)
    key_id, retired_as = _read_key_id(key_id)
    digest, hashed = _read_api_key(others[0])
    rate_limit, expires_at = _read_rest(others[1]) if len(others) == 2 else (None, None)
    attributes = parse_words(words) if words else NO_ATTRIBUTES
    return Key(key_id, digest, rate_limit, expires_at, hashed, retired_as, attributes)


def _read_key_id(text: str) -> tuple[str, str]:
    """The id of the key, and the id of the line if that is one of an old secret."""
    if "-old-" in text and (match := re.fullmatch(_RETIRED_ID, text)):
        return match[1], text
    if not _KEY_ID.fullmatch(text):
        raise ValueError(_WANTED_ID)
    return text, ""


def _read_api_key(text: str) -> tuple[bytes, bool]:
    """The digest, and whether *text* contains only the digest."""
    if match := _DIGEST.fullmatch(text):
        return bytes.fromhex(match[1]), True
    if not _SECRET.fullmatch(text):
        raise ValueError(_WANTED_API_KEY)
    return sha256(text.encode("ascii")).digest(), False


def _read_rest(text: str) -> tuple[int | None, float | None]:
    """Rate limit and expiration; either may be empty or missing.

    An expiration contains colons itself. What precedes the first colon decides:

    1. Anything but digits: the whole text is an expiration.
    2. Digits: they are the rate limit, and an expiration may follow.
    3. Nothing: there is no rate limit, and an expiration may follow.
    """
    first, _, after = text.partition(":")
    if first and not _DIGITS.fullmatch(first):
        try:
            return None, parse_moment(text)  # 1
        except ValueError:
            raise ValueError(_WANTED_REST) from None
    rate_limit = parse_rate_limit(first) if first else None  # 2, 3
    try:
        return rate_limit, parse_moment(after) if after else None
    except ValueError as expected:
        raise ValueError(f"the expiration must be {expected}") from None


def parse_rate_limit(text: str) -> int:
    """Parse a number of requests per minute.

    Raises:
        ValueError: its message is the expected form.
    """
    # int() alone would accept "+5", "1_000" and digits of other scripts.
    if not _DIGITS.fullmatch(text) or len(text) > 10 or not 1 <= int(text) <= MAX_RATE_LIMIT:
        raise ValueError(_WANTED_RATE)
    return int(text)


# Writing ------------------------------------------------------------------------------------------


def hashed(secret: str) -> str:
    """The digest of *secret*, as a file contains it instead of the secret."""
    return stored_digest(sha256(secret.encode()).digest())


def stored_digest(digest: bytes) -> str:
    return HASH_MARK + digest.hex()


def retired_id(key_id: str, suffix: str) -> str:
    """The id of a line with an old secret of the key *key_id*.

    Args:
        key_id: of the key.
        suffix: six hexadecimal digits, which distinguish several old secrets.
    """
    return f"{key_id}-old-{suffix}"


def format_line(
    key_id: str,
    api_key: str,
    *,
    rate_limit: int | None = None,
    expires_at: float | None = None,
    attributes: Attributes = NO_ATTRIBUTES,
) -> str:
    """One line of the file, without its line end.

    Args:
        key_id: the public name, or the result of ``retired_id``.
        api_key: the secret, or the result of ``hashed``.
        rate_limit: requests per minute.
        expires_at: POSIX seconds.
        attributes: of the key.

    Raises:
        ValueError: a field could not be parsed again; its message is the expected form.
    """
    _read_key_id(key_id)
    _read_api_key(api_key)
    fields = [key_id, api_key]
    if rate_limit is not None or expires_at is not None:
        fields.append("" if rate_limit is None else str(parse_rate_limit(str(rate_limit))))
    if expires_at is not None:
        fields.append(format_moment(expires_at))
    return ":".join(fields) + format_words(attributes)


def _stored(line: str) -> re.Match[str]:
    """The api key on a valid line, as it is stored: group 1."""
    match = re.match(_STORED, line)
    assert match is not None
    return match


def stored_keys(text: str) -> list[tuple[Key, str]]:
    """All keys of a file in their order, each with its secret, or its digest as it is stored."""
    claimed = KeyRing.parse(text)
    return [
        (key, _stored(line)[1])
        for line in _LINE.findall(text)
        if (key := _read_or_none(line)) is not None and claimed.with_digest(key.digest) == key
    ]


def chat_keys(text: str, now: float) -> list[tuple[Key, str]]:
    """The keys with which a command on this machine can chat at *now*, each with its secret."""
    return [(key, secret) for key, secret in stored_keys(text) if key.can_chat(now)]


def change(text: str, key: Key) -> str:
    """*text* with the rate limit, expiration and attributes of *key* on its line.

    Raises:
        ValueError: a value could not be parsed again; its message is the expected form.
        KeyError: there is no line with its id and its secret.
    """
    lines = _LINE.findall(text)
    for number, line in enumerate(lines):
        old = _read_or_none(line)
        if old is not None and (old.line_id, old.digest) == (key.line_id, key.digest):
            new = format_line(
                key.line_id,
                _stored(line)[1],
                rate_limit=key.rate_limit,
                expires_at=key.expires_at,
                attributes=key.attributes,
            )
            lines[number] = new + line[len(line.rstrip(_AROUND)) :]
            return "".join(lines)
    raise KeyError(key.line_id)


def add_line(text: str, line: str) -> str:
    """*text* with *line* at its end."""
    end = _line_end(text)
    return text + (end if text and not text.endswith("\n") else "") + line + end


def replace(text: str, name: str, *lines: str) -> str:
    """*text* with *lines* instead of the key *name*; without *lines*, the key is removed.

    All secrets of the key are removed, old ones included; if *name* is the id of an old secret's
    line, only that one is. Lines that were skipped because they repeat one of these ids or
    secrets are removed as well: otherwise they would make a removed key valid again. All other
    lines are unchanged.

    Raises:
        KeyError: there is no such key.
    """
    gone = KeyRing.parse(text).secrets_of(name)
    if not gone:
        raise KeyError(name)
    digests = {key.digest for key in gone}
    end = _line_end(text)
    kept: list[str] = []
    for line in _LINE.findall(text):
        key = _read_or_none(line)
        if key is None or not (name in (key.key_id, key.line_id) or key.digest in digests):
            kept.append(line)
        elif key == gone[0]:
            kept += [new + end for new in lines]
            lines = ()  # a second identical line is a duplicate
    return "".join(kept)


def without_ended(text: str, now: float) -> str:
    """*text* without old secrets that have expired at *now*, in POSIX seconds.

    One whose id or secret another line repeats is kept: that line is skipped only because of this
    one, and would become valid.
    """
    lines = _LINE.findall(text)
    read = [_read_or_none(line) for line in lines]
    claims = Counter(claim for key in read if key for claim in (key.line_id, key.digest))
    return "".join(
        line
        for line, key in zip(lines, read, strict=True)
        if key is None
        or not (key.is_retired and key.is_expired(now))
        or claims[key.line_id] + claims[key.digest] > 2
    )


def hash_secrets(text: str) -> tuple[str, int]:
    """*text* with a digest instead of each secret, and the number of secrets.

    Invalid lines are unchanged.
    """
    lines = _LINE.findall(text)
    bare = [_without_secret(line) for line in lines]
    changed = sum(new != old for new, old in zip(bare, lines, strict=True))
    return "".join(bare), changed


def _without_secret(line: str) -> str:
    key = _read_or_none(line)
    if key is None or key.hashed:
        return line
    stored = _stored(line)
    return line[: stored.start(1)] + stored_digest(key.digest) + line[stored.end(1) :]


class Merged:
    """A keys file, with the keys of another file added.

    Args:
        text: of the file, with its secrets: this is not a tuple, whose ``repr`` would show them.
        added: the keys that are new in it.
        known: the number of keys in the other file that were in the first one already.
        problems: lines of the other file that cannot be imported. If there are any, nothing is.
    """

    def __init__(
        self, text: str, added: tuple[Key, ...], known: int, problems: tuple[Problem, ...]
    ) -> None:
        self.text: Final = text
        self.added: Final = added
        self.known: Final = known
        self.problems: Final = problems


def merge(text: str, other: str, *, prefix: str, hashes: bool) -> Merged:
    """*text* with the keys of *other* appended.

    Args:
        text: of a keys file.
        other: of another keys file, or a list of bare keys, one per line, as for llama-server's
            ``--api-key-file``.
        prefix: of the ids for bare keys.
        hashes: whether to add digests instead of secrets.
    """
    ids = {key.key_id for key in KeyRing.parse(text).keys}
    named = _name_bare_keys(other, prefix, ids)
    ring = KeyRing.parse(named)
    known = {key.digest for key in KeyRing.parse(text).keys}
    problems = [
        Problem(p.line, p.reason + _OR_BARE) if p.reason == _WANTED_LINE else p
        for p in ring.problems
    ]
    added = [key for key in ring.keys if key.digest not in known]
    new_lines: list[str] = []
    for number, line in enumerate(_LINE.findall(named), 1):
        key = _read_or_none(line)
        if key not in added:
            continue
        if key.key_id in ids:
            problems.append(Problem(number, _WANTED_NEW if key.is_retired else _WANTED_FREE))
        new_lines.append((_without_secret(line) if hashes else line).strip(_AROUND))
    merged = text or NEW_FILE
    for line in new_lines:
        merged = add_line(merged, line)
    return Merged(merged, tuple(added), len(ring.keys) - len(added), tuple(problems))


def _name_bare_keys(text: str, prefix: str, taken: set[str]) -> str:
    """*text* with an id before each line that is a bare key."""
    lines: list[str] = []
    number = 0
    for line in _LINE.findall(text):
        if _SECRET.fullmatch(line.strip(_AROUND)):
            number += 1
            while f"{prefix}-{number}" in taken:
                number += 1
            lines.append(f"{prefix}-{number}:{line.lstrip(_AROUND)}")
        else:
            lines.append(line)
    return "".join(lines)


def _read_or_none(line: str) -> Key | None:
    try:
        return _read_line(line)
    except ValueError:
        return None


def _line_end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"
