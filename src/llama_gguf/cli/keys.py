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
from datetime import UTC, datetime
from typing import Final, TypeVar

from llama_gguf.access import key_admin, key_file, keys
from llama_gguf.access.key_admin import NewKey
from llama_gguf.access.keys import KeyRing
from llama_gguf.access.moments import parse_duration
from llama_gguf.cli.context import Context
from llama_gguf.errors import UserError

_APPLIED_SOON: Final = "A running gateway applies this within three seconds.\n"
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


def _generate(arguments: argparse.Namespace, path: str) -> None:
    now = datetime.now(UTC)
    new = key_admin.create(
        path,
        name=arguments.name if arguments.name is not None else f"key-{secrets.token_hex(3)}",
        rate_limit=_read("--rate-limit", arguments.rate_limit, keys.parse_rate_limit),
        expires_at=_read_when("--expires", arguments.expires, now),
        hashed=arguments.hashed,
    )
    _show(new, arguments, path=path, now=now)


def _show(
    new: NewKey,
    arguments: argparse.Namespace,
    *,
    path: str,
    now: datetime,
    then: str = _APPLIED_SOON,
    ended: int | None = None,
) -> None:
    from llama_gguf.cli import key_views
    from llama_gguf.cli.terminal import echo

    if arguments.quiet:
        echo(new.secret)
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

    ended = key_admin.remove(path, arguments.name)
    key_views.print_removed(arguments.name, ended, path, as_json=arguments.json)
    sys.stderr.write(_APPLIED_SOON)


def _rotate(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    now = datetime.now(UTC)
    grace_ends = _read_when("--grace", arguments.grace, now)
    done = key_admin.rotate(path, arguments.name, grace_ends=grace_ends)
    then = key_views.fate_of_old(done.kept, done.ended) + _APPLIED_SOON
    _show(done.new, arguments, path=path, now=now, then=then, ended=done.ended)


def _import(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    source: str = arguments.source
    if source == "-":
        other = key_file.decoded(sys.stdin.buffer.read(), "on standard input")
    else:
        other = key_file.read_other(source)
    merged = key_admin.import_keys(
        path, other, source=source, prefix=arguments.prefix, hashes=arguments.hashed
    )
    key_views.print_import(merged, path, as_json=arguments.json)
    sys.stderr.write(_APPLIED_SOON)


def _hash(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    changed = key_admin.hash_secrets(path)
    key_views.print_hashed(changed, KeyRing.parse(key_file.read(path)), path, arguments.json)


def _read(flag: str, text: str | None, parse: Callable[[str], _Value]) -> _Value | None:
    if text is None:
        return None
    try:
        return parse(text)
    except ValueError as expected:
        raise UserError(f"{flag} {text!a} is invalid: {expected}", 2) from None


def _read_when(flag: str, text: str | None, now: datetime) -> float | None:
    return _read(flag, text, lambda given: parse_duration(given, now).timestamp())
