"""Changes of the keys file: a key is created, changed, rotated or revoked; others are imported.

Each change is one edit of the file, so that concurrent ones lose nothing. Secrets are returned to
the caller and never logged. ``key_file.py`` has the I/O, ``keys.py`` the format.
"""

from __future__ import annotations

import difflib
import os
import secrets
from collections.abc import Callable

from llama_gguf.access import key_file, keys
from llama_gguf.access.attributes import NO_ATTRIBUTES, Attributes
from llama_gguf.access.keys import Key, KeyRing, Merged
from llama_gguf.errors import UserError
from llama_gguf.values import Value
from llama_gguf.wall_clock import wall_now


class NewKey(Value, hidden=("secret", "line")):
    key: Key
    secret: str
    line: str


class Rotated(Value):
    """A key with a new secret, and the fate of its old ones."""

    new: NewKey
    kept: tuple[Key, ...]
    """Old secrets that stay valid during the grace period."""
    ended: int
    """The number of old secrets that were invalidated."""


def keys_in(path: str) -> KeyRing:
    """The keys in the file at *path*; none if the file does not exist.

    Raises:
        UserError: it exists and cannot be read.
    """
    return KeyRing.parse(key_file.read(path) if os.path.lexists(path) else "")


def create(
    path: str,
    *,
    name: str,
    rate_limit: int | None = None,
    expires_at: float | None = None,
    hashed: bool = False,
    attributes: Attributes = NO_ATTRIBUTES,
) -> NewKey:
    """Create a key and add it to the file at *path*.

    Args:
        path: the keys file; created if it is missing.
        name: the key's id.
        rate_limit: requests a minute; None for the gateway's default.
        expires_at: POSIX seconds; None for never.
        hashed: store only the digest, so that the secret exists only in the return value.
        attributes: of the key.

    Raises:
        UserError: the name is invalid or in use, or the file cannot be written.
    """
    new = _new_key(
        name,
        rate_limit=rate_limit,
        expires_at=expires_at,
        hashed=hashed,
        attributes=attributes,
    )

    def add(text: str) -> str:
        text = keys.without_ended(text, wall_now())
        if KeyRing.parse(text).named(new.key.key_id):
            raise UserError(
                f"{path} already has a key {name}; use another name, "
                f"or replace its secret with: llama-gguf keys rotate {name} --file {path}"
            )
        return keys.add_line(text or keys.NEW_FILE, new.line)

    key_file.edit(path, add)
    return new


def change(path: str, name: str, changed: Callable[[Key], Key]) -> Key:
    """Change limits of the key *name*, and nothing else. Returns the key as it is now.

    Args:
        path: the keys file.
        name: the key's id.
        changed: returns its argument with the new limits.

    Raises:
        UserError: there is no such key, or the file cannot be written.
    """
    done: list[Key] = []

    def with_changes(text: str) -> str:
        text = keys.without_ended(text, wall_now())
        key = _secrets_of(text, name, path)[0]
        if name != key.key_id:
            raise UserError(
                f"{name} is an old secret of {key.key_id}, whose limits apply to it: "
                f"change them with: llama-gguf keys set {key.key_id} --file {path}"
            )
        done.append(changed(key))
        return keys.change(text, done[-1])

    key_file.edit(path, with_changes)
    return done[-1]


def secret_of(path: str, name: str) -> tuple[Key, str]:
    """The key *name*, or the old secret of that id, and its secret.

    Raises:
        UserError: there is none, or the file contains only its digest.
    """
    text = key_file.read(path)
    key = _secrets_of(text, name, path)[0]
    if key.hashed:
        raise UserError(
            f"{path} contains only the digest of {name}, from which its secret cannot be read; "
            f"replace it with: llama-gguf keys rotate {key.key_id} --file {path}"
        )
    return key, dict(keys.stored_keys(text))[key]


def remove(path: str, name: str) -> int:
    """Revoke the key *name*, or the old secret of that id. Returns how many secrets ended.

    Raises:
        UserError: there is none, or the file cannot be written.
    """
    now = wall_now()
    removed: list[Key] = []

    def without(text: str) -> str:
        text = keys.without_ended(text, now)
        removed[:] = _secrets_of(text, name, path)
        return keys.replace(text, name)

    key_file.edit(path, without)
    return _count_valid(removed, now)


def rotate(path: str, name: str, *, grace_ends: float | None) -> Rotated:
    """Replace the secret of the key *name*.

    Args:
        path: the keys file.
        name: the key's id.
        grace_ends: POSIX seconds until which its old secrets stay valid; None to end them now.

    Raises:
        UserError: there is no such key, it has expired, or the file cannot be written.
    """
    now = wall_now()
    done: list[Rotated] = []

    def with_new_secret(text: str) -> str:
        text = keys.without_ended(text, now)
        old = _secrets_of(text, name, path)
        latest = old[0]
        _check_can_be_rotated(latest, name, now, path)
        new = _new_key(
            latest.key_id,
            rate_limit=latest.rate_limit,
            expires_at=latest.expires_at,
            hashed=latest.hashed,
            attributes=latest.attributes,
        )
        retired = [] if grace_ends is None else [_retired_line(key, grace_ends) for key in old]
        kept = tuple(KeyRing.parse("\n".join(retired)).keys)
        done.append(Rotated(new, kept, ended=0 if kept else _count_valid(old, now)))
        return keys.replace(text, latest.key_id, new.line, *retired)

    key_file.edit(path, with_new_secret)
    return done[-1]


def import_keys(path: str, other: str, *, source: str, prefix: str, hashes: bool) -> Merged:
    """Add the keys of *other*, the text of another file.

    Args:
        path: the keys file; created if it is missing.
        other: a keys file, or a list of bare keys.
        source: its name, for errors.
        prefix: of ids for bare keys.
        hashes: store only digests.

    Raises:
        UserError: a line of *other* is invalid, or the file cannot be written.
    """
    done: list[Merged] = []

    def merge(text: str) -> str:
        text = keys.without_ended(text, wall_now())
        merged = keys.merge(text, other, prefix=prefix, hashes=hashes)
        if merged.problems:
            lines = "".join(f"\n  line {p.line}: {p.reason}" for p in merged.problems)
            raise UserError(f"nothing was imported, because of these lines of {source}:{lines}")
        done.append(merged)
        return merged.text if merged.added else text

    key_file.edit(path, merge)
    return done[-1]


def hash_secrets(path: str) -> int:
    """Replace all secrets in the file by their digests. Returns how many were replaced.

    Raises:
        UserError: the file is missing (the path may be mistyped), or cannot be written.
    """
    key_file.read(path)
    done: list[int] = []

    def without_secrets(text: str) -> str:
        text, changed = keys.hash_secrets(text)
        done.append(changed)
        return text

    key_file.edit(path, without_secrets)
    return done[-1]


# Pieces -------------------------------------------------------------------------------------------


def _new_key(
    name: str,
    *,
    rate_limit: int | None,
    expires_at: float | None,
    hashed: bool,
    attributes: Attributes,
) -> NewKey:
    secret = "sk-" + secrets.token_urlsafe(32)
    try:
        line = keys.format_line(
            name,
            keys.hashed(secret) if hashed else secret,
            rate_limit=rate_limit,
            expires_at=expires_at,
            attributes=attributes,
        )
    except ValueError as reason:
        raise UserError(f"cannot create the key {name!a}: {reason}", exit_status=2) from None
    (key,) = KeyRing.parse(line).keys
    if key.is_retired:
        raise UserError(
            f"cannot create the key {name!a}: an id that ends in -old- and six hexadecimal digits "
            f"is reserved for old secrets of {key.key_id}",
            exit_status=2,
        )
    return NewKey(key, secret, line)


def _secrets_of(text: str, name: str, path: str) -> list[Key]:
    ring = KeyRing.parse(text)
    found = ring.secrets_of(name)
    if not found:
        near = difflib.get_close_matches(name, [key.key_id for key in ring.keys], n=1, cutoff=0.7)
        meant = f"; did you mean {near[0]}? Else " if near else "; "
        raise UserError(
            f"there is no key {name!a} in {path}{meant}"
            f"list its keys with: llama-gguf keys list --file {path}"
        )
    return found


def _check_can_be_rotated(key: Key, name: str, now: float, path: str) -> None:
    if name != key.key_id:
        raise UserError(
            f"{name} is an old secret of {key.key_id}: "
            f"rotate {key.key_id}, or remove {name} to end it"
        )
    if key.is_expired(now):
        raise UserError(
            f"{key.key_id} has expired, and a new secret would expire with it; "
            f"extend it first, with: llama-gguf keys set {key.key_id} --expires 30d --file {path}"
        )


def _retired_line(old: Key, grace_ends: float) -> str:
    """The line that keeps an old secret valid during its grace period, by its digest."""
    if old.is_retired:
        line_id, ends = old.retired_as, old.expires_at
    else:
        line_id = keys.retired_id(old.key_id, secrets.token_hex(3))
        # A grace period ends with the key's own expiration at the latest.
        ends = grace_ends if old.expires_at is None else min(grace_ends, old.expires_at)
    digest = keys.stored_digest(old.digest)
    return keys.format_line(
        line_id, digest, rate_limit=old.rate_limit, expires_at=ends, attributes=old.attributes
    )


def _count_valid(secrets_of_key: list[Key], now: float) -> int:
    return sum(not key.is_expired(now) for key in secrets_of_key)
