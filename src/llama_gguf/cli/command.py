"""Runs one command: its arguments, its settings, its module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from llama_gguf.cli import SERVERS
from llama_gguf.cli.context import Context, read, settings_in
from llama_gguf.config import settings as settings_module
from llama_gguf.errors import UserError
from llama_gguf.values import replace

if TYPE_CHECKING:
    import argparse


def run(argv: Sequence[str], environ: Mapping[str, str], commands: Mapping[str, str]) -> int:
    """Run the command in *argv* and return its exit status.

    Args:
        argv: the name of a command, and its arguments.
        environ: of this process.
        commands: the names of all commands, for a message.

    Raises:
        UserError: it failed.
    """
    name, *words = argv
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    arguments = command.without_parser(words) if name in SERVERS else None
    if arguments is None:
        arguments = _arguments(argv, commands)
    if name in SERVERS:
        from llama_gguf.cli import output

        output.take_over()  # before the first warning: a server never waits for its terminal
    context = _context(arguments, environ)
    for warning in context.warnings:
        sys.stderr.write(f"llama-gguf: warning: {warning}\n")
    if context.complaint and not hasattr(command, "RUNS_WITH_INVALID_SETTINGS"):
        raise UserError(context.complaint, exit_status=2)
    try:
        return int(command.run(arguments, context))
    except UserError as error:
        raise UserError(f"{error}{_origins(error, context)}", error.exit_status) from None


def _arguments(argv: Sequence[str], commands: Mapping[str, str]) -> argparse.Namespace:
    """Parse a command line whose first word is a command."""
    import argparse

    from llama_gguf.cli.arguments import command_parser, is_secret, joined

    name, *words = argv
    namespace = argparse.Namespace(argv=tuple(argv))  # for a report that names its command
    words = list(joined(words))
    parser = command_parser(name, words if name in SERVERS else None)  # they should start quickly
    unusual = [w for w in words if w.startswith(("--api-key", "-hf", "--hf-repo")) or is_secret(w)]
    arguments, surplus = (
        # argparse would take -hf for -h, and --shared-limits for the beginning of another flag
        (argparse.Namespace(parser=parser), unusual)
        if unusual
        else parser.parse_known_args(words, namespace)
    )
    if surplus:
        from llama_gguf.cli import mistakes

        used = arguments.parser  # of the action, whose usage and flags the message is about
        used.error(mistakes.about_flag(surplus[0], used, command=name, commands=commands))
    return arguments


def _context(arguments: object, environ: Mapping[str, str]) -> Context:
    flags, env_file = settings_in(arguments), getattr(arguments, "env_file", None)

    def read_again() -> Context:
        context = read(flags, environ, env_file=env_file)
        return replace(context, read_again=read_again)

    return read_again()


def _origins(error: UserError, context: Context) -> str:
    """Where the settings came from that *error* is about, unless they have their defaults."""
    places = {"flag": "by a flag", "environment": "in the environment"}
    origins = [
        f"{settings_module.variable(name)} is set "
        f"{places.get(context.sources[name]) or f'in {context.origin(name)}'}."
        for name in error.settings
        if context.sources[name] != "default"
    ]
    return "".join(f"\n{origin}" for origin in origins)
