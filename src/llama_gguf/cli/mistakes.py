"""Messages about commands and flags that do not exist, with what is meant instead.

Imported only for errors. A value is never shown: it may be a secret.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from llama_gguf.cli.arguments import actions_of, command_parser
from llama_gguf.config import settings as settings_module
from llama_gguf.engines.flags import question
from llama_gguf.models.wanted import is_fetchable

# Names of other programs for the same.
_COMMANDS: Final[Mapping[str, str]] = {
    "run": "serve",
    "start": "serve",
    "server": "serve",
    "up": "serve",
    "download": "pull",
    "fetch": "pull",
    "get": "pull",
    "models": "pull --list",
    "list": "pull --list",
    "ls": "pull --list",
    "key": "keys",
    "users": "keys",
    "generate": "keys generate",
    "create-key": "keys generate",
    "proxy": "gateway",
    "doctor": "check",
    "validate": "check",
    "config": "check",
    "bundle": "diagnose",
    "benchmark": "bench",
}
_KEYS: Final = (
    "API keys are not flags, which other users can read. `llama-gguf keys generate NAME` creates "
    "one, `serve --create-key` the first one, and `llama-gguf keys import FILE` takes existing ones"
)
_HUB: Final = "use `llama-gguf serve hf:OWNER/NAME:TAG`, which fetches the model if necessary"
INSTEAD: Final[Mapping[str, str]] = {
    "--api-key": _KEYS,
    "--api-key-file": _KEYS,
    "-hf": _HUB,
    "-hfr": _HUB,
    "--hf-repo": _HUB,
}
"""What to do instead of a flag of llama-server."""


def about_command(word: str, commands: Iterable[str], others: Iterable[str]) -> str:
    """The message about the unknown command *word*.

    Args:
        word: what is in the place of a command.
        commands: those that run something.
        others: such as ``help``.
    """
    if word.startswith("-"):
        return f"unknown flag {word.partition('=')[0]}: flags follow the command; see --help"
    if word.endswith(".gguf") or is_fetchable(word):
        return f"unknown command; did you mean `llama-gguf serve {word}`?"
    commands = list(commands)
    meant = _COMMANDS.get(word.lower(), "")
    if meant.partition(" ")[0] in commands:
        return f"unknown command {word}; did you mean {meant}?"
    near = question(word.lower(), [*commands, *others])
    return f"unknown command {word}{near} (commands: {', '.join(commands)})"


def about_flag(
    word: str, used: argparse.ArgumentParser, *, command: str, commands: Iterable[str]
) -> str:
    """The message about the unexpected *word*.

    Args:
        word: a flag, perhaps with its value, or an argument.
        used: the parser of the command or of its action.
        command: the name of the command.
        commands: the names of all commands.
    """
    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return "too many arguments; see --help"
    for name, about in settings_module.SETTINGS.items():
        if about.secret and flag == settings_module.flag(name):
            variable = settings_module.variable(name)
            return (
                f"{variable} can only be set in the environment or a file: "
                "other users can read flags"
            )
    if flag in INSTEAD:
        return f"{flag}: {INSTEAD[flag]}"
    own = _flags_of(used)
    if flag in own:
        return f"{flag} must follow the action, as in `{used.prog} {flag} ...`"
    if owners := [f"`{p.prog}`" for p in _all_parsers(command, commands) if flag in _flags_of(p)]:
        others = " and ".join(owners[:2]) + (" and others" if len(owners) > 2 else "")
        return f"{flag} is a flag of {others}, not of `{used.prog}`; see --help"
    advice = question(flag, own) or "; see --help"
    if "--extra-args" in own:
        advice += " (flags of llama-server: --extra-args '--flag value')"
    return f"unknown flag {flag}{advice}"


def _flags_of(parser: argparse.ArgumentParser) -> list[str]:
    return [
        name
        for action in parser._actions
        if action.help is not argparse.SUPPRESS
        for name in action.option_strings
    ]


def _all_parsers(first: str, commands: Iterable[str]) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all commands and actions, those of the command *first* at the beginning."""
    for name in dict.fromkeys((first, *commands)):
        parser = command_parser(name)
        yield parser
        yield from (action for _, action in actions_of(parser))
