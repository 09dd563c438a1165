"""Create, list, replace and revoke API keys.

Keys are stored in a text file, one per line: AUTH_KEYS_FILE, unless --file is given.
A running gateway applies changes within three seconds.

Examples:
  llama-gguf keys generate --name alice --rate-limit 60 --expires 30d
  llama-gguf keys list
  llama-gguf keys rotate alice --grace 24h
  llama-gguf keys remove alice
  llama-gguf keys import other_keys.txt --hashed
  llama-gguf keys hash
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, TypeVar

from llama_gguf.access import key_file, keys
from llama_gguf.access.keys import Key, KeyRing, Merged
from llama_gguf.access.moments import parse_duration
from llama_gguf.cli.context import Context
from llama_gguf.errors import UserError

_TAKEN_UP: Final = "A running gateway applies this within three seconds.\n"
_WHEN: Final = "30d, 24h, 60m, or a time such as 2027-01-31T12:00:00Z"

_Value = TypeVar("_Value")
_Action = Callable[[argparse.Namespace, str], None]
_Actions = argparse._SubParsersAction  # argparse has no public name for it


def add_arguments(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    generate = _add_action(actions, "generate", _generate, "create a key and show it")
    generate.add_argument(
        "--name", metavar="ID", help="id of the key [key- and 6 random hex digits]"
    )
    generate.add_argument(
        "--rate-limit", metavar="N", help="requests per minute [MAX_REQUESTS_PER_MINUTE]"
    )
    generate.add_argument("--expires", metavar="WHEN", help=f"when it expires: {_WHEN} [never]")
    generate.add_argument("--hashed", action="store_true", help="store only the key's digest")
    _add_output(generate)

    listed = _add_action(actions, "list", _list, "list the keys, never a secret")
    listed.add_argument("--json", action="store_true", help="print JSON")

    remove = _add_action(
        actions, "remove", _remove, "revoke a key with all of its secrets, or one old secret"
    )
    remove.add_argument("name", metavar="ID")
    remove.add_argument("--json", action="store_true", help="print JSON")

    rotate = _add_action(actions, "rotate", _rotate, "replace a key's secret and keep all else")
    rotate.add_argument("name", metavar="ID")
    rotate.add_argument(
        "--grace",
        metavar="WHEN",
        help=f"how long the old secret stays valid: {_WHEN} [not at all; earlier ones end as well]",
    )
    _add_output(rotate)

    take = _add_action(actions, "import", _import, "import the keys of another file")
    take.add_argument(
        "source",
        metavar="SOURCE",
        help="a keys file, or a list of bare keys, one per line; - for standard input",
    )
    take.add_argument("--hashed", action="store_true", help="store only the keys' digests")
    take.add_argument(
        "--prefix", metavar="ID", default="imported", help="prefix of ids for bare keys [imported]"
    )
    take.add_argument("--json", action="store_true", help="print JSON")

    hashing = _add_action(actions, "hash", _hash, "replace all secrets in the file with digests")
    hashing.add_argument("--json", action="store_true", help="print JSON")
    return list(actions.choices.values())


def _add_action(
    actions: _Actions[argparse.ArgumentParser], name: str, action: _Action, text: str
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=text)
    parser.add_argument("--file", metavar="PATH", help="keys file [AUTH_KEYS_FILE]")
    parser.set_defaults(action=action)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print only the new key")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, context: Context) -> int:
    arguments.action(arguments, arguments.file or context.settings.auth.auth_keys_file)
    return 0


# Actions ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _NewKey:
    key: Key
    secret: str = field(repr=False)
    line: str = field(repr=False)


def create_key(
    path: str,
    *,
    name: str,
    rate_limit: int | None = None,
    expires_at: float | None = None,
    hashed: bool = False,
) -> str:
    """Create a key, add it to the file at *path*, and return its secret.

    Args:
        path: the keys file; created if it is missing.
        name: the key's id.
        rate_limit: requests a minute; None for the gateway's default.
        expires_at: POSIX seconds; None for never.
        hashed: store only the digest, so that the secret exists only in the return value.

    Raises:
        UserError: the name is invalid or in use, or the file cannot be written.
    """
    new = _new_key(name, rate_limit=rate_limit, expires_at=expires_at, hashed=hashed)
    _store(path, new)
    return new.secret


def _new_key(
    name: str, *, rate_limit: int | None, expires_at: float | None, hashed: bool
) -> _NewKey:
    secret = "sk-" + secrets.token_urlsafe(32)
    try:
        line = keys.format_line(
            name,
            keys.hashed(secret) if hashed else secret,
            rate_limit=rate_limit,
            expires_at=expires_at,
        )
    except ValueError as wanted:
        raise UserError(f"cannot create the key {name!a}: {wanted}", exit_status=2) from None
    (key,) = KeyRing.parse(line).keys
    if key.is_retired:
        raise UserError(
            f"cannot create the key {name!a}: an id that ends in -old- and six hexadecimal digits "
            f"is reserved for old secrets of {key.key_id}",
            exit_status=2,
        )
    return _NewKey(key, secret, line)


def _store(path: str, new: _NewKey) -> None:
    name = new.key.key_id

    def add(text: str) -> str:
        text = keys.without_ended(text, datetime.now(UTC).timestamp())
        if KeyRing.parse(text).named(name):
            raise UserError(
                f"{path} already has a key {name}; use another --name, "
                f"or replace its secret with: llama-gguf keys rotate {name}"
            )
        return keys.add_line(text or keys.NEW_FILE, new.line)

    key_file.edit(path, add)


def _generate(arguments: argparse.Namespace, path: str) -> None:
    now = datetime.now(UTC)
    name = arguments.name if arguments.name is not None else f"key-{secrets.token_hex(3)}"
    new = _new_key(
        name,
        rate_limit=_read("--rate-limit", arguments.rate_limit, keys.parse_rate_limit),
        expires_at=_read_when("--expires", arguments.expires, now),
        hashed=arguments.hashed,
    )
    _store(path, new)
    _show(new, arguments, path=path, now=now)


def _show(
    new: _NewKey,
    arguments: argparse.Namespace,
    *,
    path: str,
    now: datetime,
    then: str = _TAKEN_UP,
    ended: int | None = None,
) -> None:
    from llama_gguf.cli import key_views
    from llama_gguf.cli.terminal import say

    if arguments.quiet:
        say(new.secret)
        return
    if arguments.json:
        key_views.print_new_key_as_json(new.key, new.secret, path=path, now=now, ended=ended)
    else:
        key_views.print_new_key(new.key, new.secret, path=path, now=now)
    sys.stderr.write(then)


def _list(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    ring = KeyRing.parse(key_file.read(path))
    warning = key_file.warn_if_exposed(path)
    if warning:
        sys.stderr.write(f"llama-gguf: warning: {warning}\n")
    show = key_views.print_keys_as_json if arguments.json else key_views.print_keys
    show(ring, path, datetime.now(UTC))


def _remove(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    now = datetime.now(UTC).timestamp()
    name: str = arguments.name
    gone: list[Key] = []

    def remove(text: str) -> str:
        text = keys.without_ended(text, now)
        gone[:] = _secrets_of(text, name, path)
        return keys.replace(text, name)

    key_file.edit(path, remove)
    key_views.print_removed(name, _valid(gone, now), path, as_json=arguments.json)
    sys.stderr.write(_TAKEN_UP)


def _rotate(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    now = datetime.now(UTC)
    grace_ends = _read_when("--grace", arguments.grace, now)
    made: list[_NewKey] = []
    old: list[Key] = []
    kept: list[Key] = []

    def rotate(text: str) -> str:
        text = keys.without_ended(text, now.timestamp())
        old[:] = _secrets_of(text, arguments.name, path)
        latest = old[0]
        _check_can_be_rotated(latest, arguments.name, now)
        new = _new_key(
            latest.key_id,
            rate_limit=latest.rate_limit,
            expires_at=latest.expires_at,
            hashed=latest.hashed,
        )
        made.append(new)
        retired = [] if grace_ends is None else [_retired_line(key, grace_ends) for key in old]
        kept[:] = KeyRing.parse("\n".join(retired)).keys
        return keys.replace(text, latest.key_id, new.line, *retired)

    key_file.edit(path, rotate)
    ended = 0 if kept else _valid(old, now.timestamp())
    then = key_views.fate_of_old(kept, ended) + _TAKEN_UP
    _show(made[-1], arguments, path=path, now=now, then=then, ended=ended)


def _check_can_be_rotated(key: Key, name: str, now: datetime) -> None:
    if name != key.key_id:
        raise UserError(
            f"{name} is an old secret of {key.key_id}: "
            f"rotate {key.key_id}, or remove {name} to end it"
        )
    if key.is_expired(now.timestamp()):
        raise UserError(
            f"{key.key_id} has expired, and a new secret would expire with it; "
            f"remove it and generate a new key"
        )


def _valid(secrets_of_key: list[Key], now: float) -> int:
    return sum(not key.is_expired(now) for key in secrets_of_key)


def _retired_line(old: Key, grace_ends: float) -> str:
    """The line that keeps an old secret valid during its grace period, by its digest."""
    if old.is_retired:
        line_id, ends = old.retired_as, old.expires_at
    else:
        line_id = keys.retired_id(old.key_id, secrets.token_hex(3))
        # A grace period ends with the key's own expiration at the latest.
        ends = grace_ends if old.expires_at is None else min(grace_ends, old.expires_at)
    digest = keys.stored_digest(old.digest)
    return keys.format_line(line_id, digest, rate_limit=old.rate_limit, expires_at=ends)


def _import(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    source: str = arguments.source
    if source == "-":
        other = key_file.decoded(sys.stdin.buffer.read(), "on standard input")
    else:
        other = key_file.read_other(source)
    done: list[Merged] = []

    def merge(text: str) -> str:
        text = keys.without_ended(text, datetime.now(UTC).timestamp())
        merged = keys.merge(text, other, prefix=arguments.prefix, hashes=arguments.hashed)
        if merged.problems:
            lines = "".join(f"\n  line {p.line}: {p.reason}" for p in merged.problems)
            raise UserError(f"nothing was imported, because of these lines of {source}:{lines}")
        done.append(merged)
        return merged.text if merged.added else text

    key_file.edit(path, merge)
    key_views.print_import(done[-1], path, as_json=arguments.json)
    sys.stderr.write(_TAKEN_UP)


def _hash(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    key_file.read(path)  # a missing file is an error here: the path may be mistyped
    done: list[int] = []

    def without_secrets(text: str) -> str:
        text, changed = keys.hash_secrets(text)
        done.append(changed)
        return text

    key_file.edit(path, without_secrets)
    key_views.print_hashed(done[-1], KeyRing.parse(key_file.read(path)), path, arguments.json)


def _secrets_of(text: str, name: str, path: str) -> list[Key]:
    found = KeyRing.parse(text).secrets_of(name)
    if not found:
        raise UserError(
            f"there is no key {name!a} in {path}; "
            f"list its keys with: llama-gguf keys list --file {path}"
        )
    return found


def _read(flag: str, text: str | None, parse: Callable[[str], _Value]) -> _Value | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as wanted:
        raise UserError(f"{flag} {text!a} is invalid: {wanted}", 2) from None


def _read_when(flag: str, text: str | None, now: datetime) -> float | None:
    return _read(flag, text, lambda given: parse_duration(given, now).timestamp())
