"""The entry point: parses the command line, reads the environment, runs one command.

The only reader of ``os.environ``. A command's module is imported
only when that command runs, so that ``gateway`` starts without what ``pull`` needs.

Exit status: 0 success, 1 failure (the message states the reason), 2 an invalid setting or
flag, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from llama_gguf import __version__
from llama_gguf.cli import SERVERS, output
from llama_gguf.cli.context import Context
from llama_gguf.cli.terminal import flush
from llama_gguf.config import settings as settings_module
from llama_gguf.config.load import load_usable
from llama_gguf.config.platform import resolve
from llama_gguf.errors import UserError
from llama_gguf.form import FORM

COMMANDS: Final[Mapping[str, str]] = {
    "serve": "serve a model: llama-server, gateway and health server, supervised",
    "gateway": "run the gateway alone, in front of a llama-server that runs elsewhere",
    "health": "run the health server alone",
    "status": "show the state of the running server",
    "top": "the same, live: slots, queue, rates, keys, llama-server's log",
    "logs": "show the logs of the server, or of llama-server",
    "restart": "restart llama-server without refusing a request",
    "stop": "stop the running server",
    "keys": "create, list, replace and revoke API keys",
    "pull": "fetch a model, with a progress bar",
    "check": "show what `serve` would use, and what prevents a start",
    "diagnose": "write a support bundle: logs, versions, settings, without secrets",
    "bench": "measure an endpoint under load; compare two runs",
}
HELP_COLUMNS: Final = 100
EPILOG: Final = """\
first steps:
  llama-gguf pull smollm2          fetch a small demo model
  llama-gguf keys generate         create an API key
  llama-gguf serve smollm2         serve it

Every setting is an environment variable and a flag: `llama-gguf serve --help`.
"""
_FLAG: Final = re.compile(r"--[a-z][a-z0-9-]*")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Run the command in *argv* and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    environ = os.environ if environ is None else environ  # noqa: TID251  # the only place
    output.accept_all_text()
    try:
        try:
            return _run(argv, environ)
        finally:
            flush()  # here, where BrokenPipeError is handled
    except UserError as error:
        sys.stderr.write(f"llama-gguf: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1  # the reader (`| head`) has exited, so a message could not be shown either


def _run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    parser = top_parser()
    if not argv:
        parser.print_help()
        return 0
    name = argv[0]
    if name not in COMMANDS:
        parser.parse_args(argv)  # --help, --version, or the error that lists the commands
        return 2
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    namespace = argparse.Namespace(argv=tuple(argv))  # for a report that names its command
    parser = command_parser(name)
    arguments, surplus = parser.parse_known_args(list(_joined(argv[1:])), namespace)
    if surplus:
        used = arguments.parser  # of the action, whose usage and flags the message is about
        used.error(_complaint(surplus[0], used.format_help()))
    if name in SERVERS:
        output.take_over()  # before the first warning: a server never waits for its terminal
    context = _context(arguments, environ)
    if context.complaint and not hasattr(command, "RUNS_WITH_INVALID_SETTINGS"):
        raise UserError(context.complaint, exit_status=2)
    try:
        return int(command.run(arguments, context))
    except UserError as error:
        raise UserError(f"{error}{_origins(error, context)}", error.exit_status) from None


def _origins(error: UserError, context: Context) -> str:
    """Where the settings came from that *error* is about, unless they have their defaults."""
    origins = [
        f"{settings_module.variable(name)} is set by a flag."
        if context.sources[name] == "flag"
        else f"{settings_module.variable(name)} is set in the environment."
        for name in error.settings
        if context.sources[name] != "default"
    ]
    return "".join(f"\n{origin}" for origin in origins)


def _joined(words: Sequence[str]) -> Iterator[str]:
    """*words*, with the flag of EXTRA_ARGS and its value joined by `=`.

    argparse would interpret a separate value such as `--no-mmap` as a flag.
    """
    rest = iter(words)
    for word in rest:
        if word == settings_module.flag("extra_args"):
            word = "=".join([word, *itertools.islice(rest, 1)])  # noqa: PLW2901
        yield word


def _complaint(word: str, help_text: str) -> str:
    """The error message for the unexpected *word*, without its value, which may be a secret."""
    from llama_gguf.engines.flags import question  # only for errors

    flag = word.partition("=")[0]
    if not flag.startswith("-"):
        return "too many arguments; see --help"
    for name, about in settings_module.SETTINGS.items():
        if about.secret and flag == settings_module.flag(name):
            variable = settings_module.variable(name)
            return f"{variable} can only be set in the environment: other users can read flags"
    return f"unknown flag {flag}{question(flag, _FLAG.findall(help_text)) or '; see --help'}"


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of the command *name*: its arguments, and a flag for each setting it uses."""
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    parser = argparse.ArgumentParser(
        prog=f"llama-gguf {name}",
        usage=getattr(command, "USAGE", None),
        description=command.__doc__,
        formatter_class=_help_formatter,
    )
    # Each action of a command has its own parser; settings may precede or follow the action.
    actions = command.add_arguments(parser) or []
    for each in (parser, *actions):
        _add_settings(each, settings_module.USED_BY[name])
        each.set_defaults(parser=each)
    return parser


def _help_formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, width=HELP_COLUMNS, max_help_position=34)


def top_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-gguf",
        description="Serve one GGUF model behind an OpenAI-compatible endpoint.",
        epilog=EPILOG,
        formatter_class=_help_formatter,
    )
    parser.add_argument("--version", action="version", version=f"llama-gguf {__version__} ({FORM})")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text)
    return parser


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each setting to *parser*. ``config.load`` parses the values."""
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in names:
        about = settings_module.SETTINGS[name]
        if about.secret:
            continue  # environment only: flags are visible in the process list
        if about.section not in groups:
            groups[about.section] = parser.add_argument_group(f"settings: {about.section}")
        default = settings_module.default_text(name)
        text = about.text + (f" [{default}]" if default else "")
        groups[about.section].add_argument(
            settings_module.flag(name),
            dest=f"setting_{name}",
            metavar=settings_module.variable(name),
            default=argparse.SUPPRESS,  # an action's default would overwrite a flag before it
            help=text.replace("%", "%%"),
        )


def _context(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Context:
    flags = {
        dest.removeprefix("setting_"): value
        for dest, value in vars(arguments).items()
        if dest.startswith("setting_") and value is not None
    }
    loaded, complaint = load_usable(environ, flags)
    for warning in loaded.warnings:
        sys.stderr.write(f"llama-gguf: warning: {warning}\n")
    resolved = resolve(loaded.settings, os.path.isdir, socket.gethostname())

    def load_again() -> Context:
        again = _context(arguments, environ)
        if again.complaint:
            raise UserError(again.complaint, exit_status=2)
        return again

    return Context(
        settings=resolved,
        sources=loaded.sources,
        environ=environ,
        complaint=complaint,
        load_again=load_again,
    )
