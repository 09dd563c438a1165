"""The output of ``llama-gguf keys``. The only secret in it is the one of the command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from llama_gguf.access.attributes import NAMES, as_text, field_of
from llama_gguf.access.keys import Key, KeyRing, Merged
from llama_gguf.access.moments import format_moment
from llama_gguf.cli.terminal import echo, print_table
from llama_gguf.http1.routes import SCOPES

Remaining = Mapping[str, Mapping[str, float]]
"""What remains of the budgets of keys, by key id and name of the window."""

_SPANS: Final = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))


def print_new_key(key: Key, secret: str, *, path: str, now: datetime) -> None:
    echo(f"{_sentence(key, now)}:\n\n{secret}\n\n{_whereabouts(key, path)}")


def print_new_key_as_json(
    key: Key, secret: str, *, path: str, now: datetime, ended: int | None
) -> None:
    """*ended* is the number of old secrets that were invalidated; None for a new key."""
    more = {} if ended is None else {"ended": ended}
    echo(json.dumps({**_facts(key, now), "key": secret, "file": path, **more}))


def print_changed(key: Key, path: str, now: datetime, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps({**_facts(key, now), "file": path}))
    else:
        echo(f"{_sentence(key, now)}.\nChanged in {path}.")


def fate_of_old(kept: Sequence[Key], ended: int) -> str:
    """The fate of a key's old secrets: those *kept*, and the number that *ended*."""
    if not kept:
        return f"{_count(ended, 'old secret')} ended.\n"
    return "".join(f"{key.line_id}, an old secret, stays valid {_until(key)}.\n" for key in kept)


def _until(key: Key) -> str:
    return "forever" if key.expires_at is None else f"until {format_moment(key.expires_at)}"


def print_removed(name: str, ended: int, path: str, *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps({"file": path, "removed": name, "ended": ended}))
    else:
        echo(f"Removed {name} from {path}: {_count(ended, 'secret')} ended.")


def _sentence(key: Key, now: datetime) -> str:
    limit = "" if key.rate_limit is None else f", {key.rate_limit} requests per minute"
    expiry = "" if key.expires_at is None else f", expires {_expiry(key, now)}"
    own = "".join(f", {word}" for word in _words(key))
    return f"Key {key.key_id}{limit}{expiry}{own}"


def _words(key: Key) -> list[str]:
    return [f"{name}={text}" for name, text in as_text(key.attributes).items()]


def _whereabouts(key: Key, path: str) -> str:
    if key.hashed:
        return f"Copy it now; it cannot be shown again: {path} contains only its digest."
    return f"It is stored in {path}."


def print_keys_as_json(ring: KeyRing, remaining: Remaining, path: str, now: datetime) -> None:
    listed = [
        {**_facts(key, now), "remaining": remaining.get(key.line_id, {})} for key in ring.keys
    ]
    problems = [{"line": p.line, "reason": p.reason} for p in ring.problems]
    echo(json.dumps({"file": path, "keys": listed, "problems": problems}, indent=2))


def print_import(merged: Merged, path: str, *, as_json: bool) -> None:
    ids = [key.line_id for key in merged.added]
    if as_json:
        echo(json.dumps({"file": path, "imported": ids, "known": merged.known}))
        return
    known = f" ({merged.known} already present)" if merged.known else ""
    imported = _count(len(ids), "key")
    echo(f"Imported {imported} into {path}{known}{': ' if ids else '.'}{', '.join(ids)}")


def print_hashed(changed: int, ring: KeyRing, path: str, as_json: bool) -> None:
    if as_json:
        problems = [{"line": p.line, "reason": p.reason} for p in ring.problems]
        echo(json.dumps({"file": path, "hashed": changed, "problems": problems}))
        return
    keys = _count(changed, "key")
    echo(f"Replaced the secrets of {keys} in {path} with digests. The keys still work.")
    _print_problems(ring, path)


def _count(number: int, noun: str) -> str:
    return f"1 {noun}" if number == 1 else f"{number} {noun}s"


def _print_problems(ring: KeyRing, path: str) -> None:
    if ring.problems:
        echo(f"\nThese lines of {path} are skipped:")
        echo("\n".join(f"  line {problem.line}: {problem.reason}" for problem in ring.problems))


def _facts(key: Key, now: datetime) -> dict[str, object]:
    expires = None if key.expires_at is None else format_moment(key.expires_at)
    return {
        "id": key.line_id,
        "old_secret_of": key.key_id if key.is_retired else None,
        "rate_limit": key.rate_limit,
        "expires_at": expires,
        "expired": key.is_expired(now.timestamp()),
        "hashed": key.hashed,
        **{name: _value(getattr(key.attributes, field_of(name))) for name in NAMES},
    }


def _value(value: object) -> object:
    if isinstance(value, frozenset):
        return [scope for scope in SCOPES if scope in value]
    return [str(network) for network in value] if isinstance(value, tuple) else value


def print_keys(ring: KeyRing, remaining: Remaining, path: str, now: datetime) -> None:
    if ring.keys:
        columns = ("ID", "PER MINUTE", "EXPIRES", "STORED", "FURTHER LIMITS", "REMAINING")
        has_more = any(_words(key) for key in ring.keys)
        shown = 6 if remaining else 5 if has_more else 4
        print_table(columns[:shown], [_row(key, remaining, now)[:shown] for key in ring.keys])
    else:
        echo(
            f"There are no keys in {path}. Create one with: llama-gguf keys generate --file {path}"
        )
    _print_problems(ring, path)


def _row(key: Key, remaining: Remaining, now: datetime) -> tuple[str, ...]:
    limit = "default" if key.rate_limit is None else str(key.rate_limit)
    stored = "digest" if key.hashed else "plain"
    if key.is_retired:
        stored += f", old secret of {key.key_id}"
    left = " ".join(f"{name}={n:.15g}" for name, n in remaining.get(key.line_id, {}).items())
    return key.line_id, limit, _expiry(key, now), stored, " ".join(_words(key)), left


def _expiry(key: Key, now: datetime) -> str:
    if key.expires_at is None:
        return "never"
    # Whole seconds, as in the file: 30d is not 29 days.
    remaining = key.expires_at - int(now.timestamp())
    distance = f"in {_span(remaining)}" if remaining > 0 else f"expired {_span(-remaining)} ago"
    return f"{format_moment(key.expires_at)} ({distance})"


def _span(seconds: float) -> str:
    """A duration in its largest whole unit, such as ``29 days``."""
    unit, size = next((s for s in _SPANS if seconds >= s[1]), _SPANS[-1])
    count = max(1, int(seconds // size))
    return f"{count} {unit}{'s' if count > 1 else ''}"
