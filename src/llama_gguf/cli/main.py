"""The entry point: parses the command line, reads the environment, runs one command.

The only reader of ``os.environ``. What a command needs is imported only when it runs, so that
``gateway`` starts without what ``pull`` needs, and ``--help`` without any setting.

Exit status: 0 success, 1 failure (the message states the reason), 2 an invalid setting or
flag, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from llama_gguf import __version__
from llama_gguf.cli.terminal import accept_all_text, flush
from llama_gguf.errors import UserError
from llama_gguf.form import FORM

if TYPE_CHECKING:
    import argparse

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
    "ray": "run engines on the machines of a Ray cluster",
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
    accept_all_text()
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
    if list(argv[:2]) == ["keys", "help"]:  # the only command with actions
        argv = ["keys", *argv[2:], "--help"]
    if not argv or argv[0] in {"-h", "--help"}:
        top_parser().print_help()
        return 0
    if argv[0] in {"version", "-V", "--version"}:
        sys.stdout.write(f"{_VERSION}\n")
        return 0
    if argv[0] not in COMMANDS:
        from llama_gguf.cli import mistakes

        top_parser().error(mistakes.about_command(argv[0], COMMANDS, OTHERS))
    from llama_gguf.cli import command

    return command.run(argv, environ, COMMANDS)


def top_parser() -> argparse.ArgumentParser:
    # Imported here, since a server starts without it.
    import argparse

    from llama_gguf.cli.help_format import HelpFormatter

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
        commands.add_parser(name, help=text, formatter_class=HelpFormatter)
    return parser
