"""Create, change, list, show, replace and revoke API keys.

Keys are stored in a text file, one per line: AUTH_KEYS_FILE, unless --file is given.
A running gateway applies changes within three seconds.

Examples:
  llama-gguf keys generate alice --rate-limit 60 --expires 30d
  llama-gguf keys set alice --tokens-per-day 2M --from 10.0.0.0/8
  llama-gguf keys list
  llama-gguf keys rotate alice --grace 24h
  llama-gguf keys remove alice
  llama-gguf keys import other_keys.txt --hashed
  llama-gguf keys hash
"""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llama_gguf.access import attributes, key_admin, key_file, keys
from llama_gguf.access.attributes import (
    MAX_WEIGHT,
    NO_ATTRIBUTES,
    PRIORITIES,
    Attributes,
    parse_value,
)
from llama_gguf.access.budget_ledger import FOLDER, BudgetLedger
from llama_gguf.access.key_admin import NewKey
from llama_gguf.access.keys import KeyRing
from llama_gguf.access.moments import parse_duration
from llama_gguf.access.token_budget import has_budget
from llama_gguf.cli.context import Context
from llama_gguf.cli.help_format import HelpFormatter
from llama_gguf.errors import UserError
from llama_gguf.files.instance_file import path_of
from llama_gguf.http1.routes import SCOPES
from llama_gguf.scheduling.fair_queue import LOW_EVERY

if TYPE_CHECKING:
    from llama_gguf.cli.key_views import Remaining

_APPLIED_SOON: Final = "A running gateway applies this within three seconds.\n"
_WHEN: Final = "30d, 24h, 60m, or a time such as 2027-01-31T12:00:00Z"

_NONE: Final = "none"
_SUFFIXED: Final = re.compile(r"([0-9]{1,12})([kM])")
_ZEROS: Final = {"k": "000", "M": "000000"}
_ATTRIBUTES: Final = {
    "tokens_per_minute": ("N", "tokens in any 60 seconds [no limit]"),
    "tokens_per_day": ("N", "tokens per day, in UTC [no limit]"),
    "tokens_per_month": ("N", "tokens per calendar month, in UTC [no limit]"),
    "engine_seconds_per_day": ("N", "seconds of work of the engine per day, in UTC [no limit]"),
    "routes": (
        "NAMES",
        f"routes that it may use, separated by commas: {', '.join(SCOPES)} [all]",
    ),
    "from": (
        "NETWORKS",
        "networks from which it may be used, such as 10.0.0.0/8,2001:db8::/32 [all]",
    ),
    "weight": ("N", f"its turns in the queue per round, 1 to {MAX_WEIGHT} [1]"),
    "priority": (
        "|".join(PRIORITIES),
        f"low: others precede it in the queue, except for one of {LOW_EVERY} slots [normal]",
    ),
}

_Value = TypeVar("_Value")
_Action = Callable[[argparse.Namespace, str], None]
_Actions = argparse._SubParsersAction  # argparse has no public name for it


def add_arguments(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    generate = _add_action(
        actions, "generate", _generate, "create a key and show it", aliases=("create", "add")
    )
    generate.add_argument(
        "positional_name",
        nargs="?",
        metavar="ID",
        help="id of the key [key- and 6 random hex digits]",
    )
    generate.add_argument("--name", metavar="ID", help="the same")
    _add_limits(generate)
    generate.add_argument("--hashed", action="store_true", help="store only the key's digest")
    _add_output(generate)

    change = _add_action(
        actions, "set", _set, "change limits of a key; its secret and all else are kept"
    )
    change.add_argument("name", metavar="ID")
    _add_limits(change)
    change.add_argument("--json", action="store_true", help="print JSON")

    listed = _add_action(
        actions, "list", _list, "list the keys and their limits, never a secret", aliases=("ls",)
    )
    listed.add_argument("--json", action="store_true", help="print JSON")

    show = _add_action(
        actions, "show", _show_secret, "print a key's secret, if the file contains it"
    )
    show.add_argument("name", metavar="ID")
    show.add_argument("--json", action="store_true", help="print JSON")

    remove = _add_action(
        actions,
        "remove",
        _remove,
        "revoke a key with all of its secrets, or one old secret",
        aliases=("delete", "revoke", "rm"),
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
    actions: _Actions[argparse.ArgumentParser],
    name: str,
    action: _Action,
    text: str,
    *,
    aliases: Sequence[str] = (),
) -> argparse.ArgumentParser:
    parser = actions.add_parser(
        name, help=text, description=text, aliases=aliases, formatter_class=HelpFormatter
    )
    parser.add_argument("--file", metavar="PATH", help="keys file [AUTH_KEYS_FILE]")
    parser.set_defaults(action=action)
    return parser


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_limits(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "limits", f"Numbers may end in k or M: 10k, 2M. The value {_NONE} stands for the default."
    )
    group.add_argument(
        "--rate-limit", metavar="N", help="requests per minute [MAX_REQUESTS_PER_MINUTE]"
    )
    group.add_argument("--expires", metavar="WHEN", help=f"when it expires: {_WHEN} [never]")
    for name, (metavar, text) in _ATTRIBUTES.items():
        group.add_argument(_flag(name), dest=name, metavar=metavar, help=text)


def _add_output(parser: argparse.ArgumentParser) -> None:
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--quiet", action="store_true", help="print only the new key")
    output.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    data_dir, instance = settings.model.data_dir, settings.logs.instance_id
    arguments.budgets_file = path_of(data_dir, FOLDER, instance)
    arguments.action(arguments, arguments.file or settings.auth.auth_keys_file)
    return 0


# Actions ------------------------------------------------------------------------------------------


def _generate(arguments: argparse.Namespace, path: str) -> None:
    now = datetime.now(UTC)
    names = {n for n in (arguments.name, arguments.positional_name) if n is not None}
    if len(names) > 1:
        raise UserError("specify one id: as an argument, or with --name", 2)
    new = key_admin.create(
        path,
        name=names.pop() if names else f"key-{secrets.token_hex(3)}",
        rate_limit=_read("--rate-limit", arguments.rate_limit, _rate_limit),
        expires_at=_read_when("--expires", arguments.expires, now),
        hashed=arguments.hashed,
        attributes=Attributes(**_read_attributes(arguments)),
    )
    _show(new, arguments, path=path, now=now)


def _set(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views

    now = datetime.now(UTC)
    limits: dict[str, Any] = {}
    if arguments.rate_limit is not None:
        limits["rate_limit"] = _read("--rate-limit", arguments.rate_limit, _rate_limit)
    if arguments.expires is not None:
        limits["expires_at"] = _read_when("--expires", arguments.expires, now)
    own = _read_attributes(arguments)
    if not limits and not own:
        raise UserError("specify what to change, such as --tokens-per-day 2M", 2)
    key = key_admin.change(
        path,
        arguments.name,
        lambda old: old._replace(attributes=old.attributes._replace(**own), **limits),
    )
    key_views.print_changed(key, path, now, as_json=arguments.json)
    sys.stderr.write(_APPLIED_SOON)


def _show_secret(arguments: argparse.Namespace, path: str) -> None:
    from llama_gguf.cli import key_views
    from llama_gguf.cli.terminal import echo

    key, secret = key_admin.secret_of(path, arguments.name)
    if arguments.json:
        now = datetime.now(UTC)
        key_views.print_new_key_as_json(key, secret, path=path, now=now, ended=None)
    else:
        echo(secret)


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
    now = datetime.now(UTC)
    remaining = _remaining(ring, arguments.budgets_file, now.timestamp())
    show = key_views.print_keys_as_json if arguments.json else key_views.print_keys
    show(ring, remaining, path, now)


def _remaining(ring: KeyRing, budgets_file: str, now: float) -> Remaining:
    """What remains of the budgets of keys, as the gateway saved it at most a second ago."""
    try:
        with open(budgets_file, encoding="utf-8") as file:
            ledger = BudgetLedger.load(file.read())
    except FileNotFoundError:
        ledger = BudgetLedger()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"llama-gguf: warning: {budgets_file} cannot be read: {error}\n")
        return {}
    remaining: dict[str, dict[str, float]] = {}
    for key in ring.keys:
        if has_budget(key.attributes) and not key.is_retired:
            budget = ledger.of(key.key_id)
            budget.limit(key.attributes)
            windows = budget.states(now, now)
            remaining[key.key_id] = {window.name: window.remaining for window in windows}
    return remaining


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


def _read(
    flag: str, text: str | None, parse: Callable[[str], _Value], example: str = ""
) -> _Value | None:
    if text is None or text == _NONE:
        return None
    try:
        return parse(text)
    except ValueError as expected:
        raise UserError(f"{flag} {text!a} is invalid: {expected}{example}", 2) from None


def _rate_limit(text: str) -> int:
    return keys.parse_rate_limit(_without_suffix(text))


def _without_suffix(text: str) -> str:
    """*text* with zeros for k or M at the end of a number."""
    match = _SUFFIXED.fullmatch(text)
    return match[1] + _ZEROS[match[2]] if match else text


def _read_attributes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The attributes that flags give, by their fields in ``Attributes``."""
    values: dict[str, Any] = {}
    for name in attributes.NAMES:
        given: str | None = vars(arguments)[name]
        if given is not None:
            field = attributes.field_of(name)
            example = ", such as 20k or 2M" if name.startswith("tokens_") else ""
            parse = partial(parse_value, name)
            parsed = _read(_flag(name), _without_suffix(given), parse, example)
            values[field] = getattr(NO_ATTRIBUTES, field) if parsed is None else parsed
    return values


def _read_when(flag: str, text: str | None, now: datetime) -> float | None:
    return _read(flag, text, lambda given: parse_duration(given, now.timestamp()))
