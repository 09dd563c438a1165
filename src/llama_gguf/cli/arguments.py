"""The parsers of command lines: the arguments of each command, and a flag for each setting."""

from __future__ import annotations

import argparse
import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from llama_gguf.cli.context import SETTING
from llama_gguf.cli.help_format import HelpFormatter
from llama_gguf.config import settings as settings_module

_COMMON: Final = "the most common settings"
_FILES: Final = "files with settings"


class Parser(argparse.ArgumentParser):
    """A parser whose message about an unknown action has a suggestion."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            from llama_gguf.engines.flags import question  # only for errors

            names = ", ".join(each.dest for each in action._choices_actions)
            near = question(value, action.choices)
            message = f"unknown action {value}{near}" if near else f"unknown action {value}"
            raise argparse.ArgumentError(None, f"{message} (actions: {names})")
        super()._check_value(action, value)


def command_parser(name: str, words: Iterable[str] | None = None) -> argparse.ArgumentParser:
    """The parser of the command *name*: its arguments, and a flag for each setting it uses.

    Args:
        name: of a command.
        words: if given, the parser is for these arguments only, and lacks the flags of settings,
            which take a millisecond or two, if none of them is one.
    """
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    parser = Parser(
        prog=f"llama-gguf {name}",
        usage=getattr(command, "USAGE", None),
        description=command.__doc__,
        formatter_class=HelpFormatter,
    )
    # Each action of a command has its own parser; settings may precede or follow the action.
    actions = command.add_arguments(parser) or []
    own = parser._option_string_actions.keys() - {"-h", "--help"}
    has_settings = words is None or any(w.startswith("-") and w not in own for w in words)
    for each in (parser, *dict.fromkeys(actions)):
        if has_settings:
            _add_settings(each, settings_module.USED_BY[name])
        each.set_defaults(parser=each)
    return parser


def add_model(parser: argparse.ArgumentParser, text: str = "model to serve") -> None:
    """Add the argument MODEL, which is the setting MODEL_NAME."""
    parser.add_argument(
        f"{SETTING}model_name", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help=text
    )


def add_log_flags(parser: argparse.ArgumentParser) -> None:
    """Add the short forms of LOG_LEVEL and LOG_REQUESTS."""
    for short, long, name, value, about in (
        ("-q", "--quiet", "log_level", "warning", "LOG_LEVEL=warning: only warnings and errors"),
        ("-v", "--verbose", "log_requests", "true", "LOG_REQUESTS=true: a line per request, too"),
    ):
        parser.add_argument(
            *(short, long),
            action="store_const",
            dest=f"{SETTING}{name}",
            const=value,
            default=argparse.SUPPRESS,
            help=about,
        )


def actions_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The actions of a command and their parsers, without aliases."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield choice.dest, action.choices[choice.dest]


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each setting to *parser*. ``config.load`` parses the values."""
    if not names:
        return
    has_many = set(settings_module.FIRST) <= set(names)
    common = settings_module.FIRST if has_many else ()
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in (*common, *(name for name in names if name not in common)):
        about = settings_module.SETTINGS[name]
        if about.secret:
            continue  # flags are visible in the process list
        title = f"settings: {about.section}"
        if name in common:
            title = _COMMON
        elif name == "config_file":
            title = _FILES
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = settings_module.default_text(name)
        text = about.text + (f" [{default}]" if default else "")
        groups[title].add_argument(
            *settings_module.flags(name),
            dest=f"{SETTING}{name}",
            metavar=settings_module.variable(name),
            default=argparse.SUPPRESS,  # an action's default would overwrite a flag before it
            help=text.replace("%", "%%"),
        )
    files = groups[_COMMON if common else _FILES]
    files.add_argument(
        "--env-file",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="file of variables, as for `docker run`; the environment takes precedence",
    )


def is_secret(word: str) -> bool:
    """Whether *word* is, or begins with, the flag that a secret setting would have."""
    name = word.partition("=")[0].removeprefix("--").replace("-", "_")
    return (
        word.startswith("--")
        and name in settings_module.SETTINGS
        and (settings_module.SETTINGS[name].secret)
    )


def joined(words: Iterable[str]) -> Iterator[str]:
    """*words*, with the flag of EXTRA_ARGS and its value joined by `=`.

    argparse would interpret a separate value such as `--no-mmap` as a flag.
    """
    rest = iter(words)
    for word in rest:
        if word == settings_module.flag("extra_args"):
            word = "=".join([word, *itertools.islice(rest, 1)])  # noqa: PLW2901
        yield word
