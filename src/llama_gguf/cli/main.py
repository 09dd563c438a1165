"""The entry point: parses the command line, reads the environment, runs one command.

The only reader of ``os.environ``. A command's module is imported
only when that command runs, so that ``gateway`` starts without what ``pull`` needs.

Exit status: 0 success, 1 failure (the message states the reason), 2 an invalid setting or
flag, 130 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from llama_gguf import __version__
from llama_gguf.cli import SERVERS, output
from llama_gguf.cli.arguments import HelpFormatter, command_parser, joined, settings_in
from llama_gguf.cli.context import Context, read
from llama_gguf.cli.terminal import flush
from llama_gguf.config import settings as settings_module
from llama_gguf.errors import UserError
from llama_gguf.form import FORM

COMMANDS: Final[dict[str, str]] = {
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
    "completion": "print the completion of commands and flags for a shell",
}
OTHERS: Final[dict[str, str]] = {
    "help": "show the arguments of a command",
    "version": "show the version",
}
_VERSION: Final = f"llama-gguf {__version__} ({FORM})"
EPILOG: Final = """\
first steps:
  llama-gguf pull smollm2          fetch a small demo model
  llama-gguf keys generate         create an API key
  llama-gguf serve smollm2         serve it

`llama-gguf help COMMAND` shows the arguments of a command. Every setting is an environment
variable, a key of a TOML file (--config) and a flag: `llama-gguf help serve`.
"""


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
    if argv and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if not argv or argv[0] in {"-h", "--help"}:
        top_parser().print_help()
        return 0
    if argv[0] in {"version", "-V", "--version"}:
        sys.stdout.write(f"{_VERSION}\n")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        from llama_gguf.cli import mistakes

        top_parser().error(mistakes.about_command(name, COMMANDS))
    command = importlib.import_module(f"llama_gguf.cli.{name}")
    arguments = _arguments(argv)
    if name in SERVERS:
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


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line whose first word is a command."""
    name, *words = argv
    namespace = argparse.Namespace(argv=tuple(argv))  # for a report that names its command
    words = list(joined(words))
    parser = command_parser(name)
    unusual = [w for w in words if w.startswith(("--api-key", "-hf", "--hf-repo"))]
    arguments, surplus = (
        (argparse.Namespace(parser=parser), unusual)  # argparse would take -hf for -h
        if unusual
        else parser.parse_known_args(words, namespace)
    )
    if surplus:
        from llama_gguf.cli import mistakes

        used = arguments.parser  # of the action, whose usage and flags the message is about
        used.error(mistakes.about_flag(surplus[0], used, command=name, commands=COMMANDS))
    return arguments


def _context(arguments: argparse.Namespace, environ: Mapping[str, str]) -> Context:
    flags, env_file = settings_in(arguments), getattr(arguments, "env_file", None)

    def read_again() -> Context:
        context = read(flags, environ, env_file=env_file)
        return dataclasses.replace(context, read_again=read_again)

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


def top_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llama-gguf",
        usage="%(prog)s COMMAND [arguments]",
        description="Serve one GGUF model behind an OpenAI-compatible endpoint.",
        epilog=EPILOG,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("-V", "--version", action="version", version=_VERSION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, text in (COMMANDS | OTHERS).items():
        commands.add_parser(name, help=text)
    return parser
