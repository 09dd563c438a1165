"""Serve a model: llama-server, the gateway and the health server, supervised.

MODEL is a path, the name of a file in MODELS_DIR, or a name that `pull` accepts,
which is fetched if it is not present. Clients connect to HOST:PORT with an API key
from AUTH_KEYS_FILE; platforms poll HOST:PORT_HEALTH. SIGTERM (or Ctrl-C) drains:
running requests may finish within DRAIN_TIMEOUT. SIGHUP reloads the keys and the
TLS certificate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

from llama_gguf.cli.context import SETTING, Context
from llama_gguf.cli.terminal import echo
from llama_gguf.config.masking import MASK, Masker
from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError

if TYPE_CHECKING:
    import argparse

    from llama_gguf.supervisor.prompts import Owners

USAGE = "%(prog)s [MODEL] [options] [--SETTING VALUE ...]"

DEBUG_SHELL_SECONDS: Final = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llama_gguf.cli.arguments import add_log_flags, add_model

    add_model(parser)
    parser.add_argument(
        "--create-key",
        action="store_true",
        help="create an API key if AUTH_KEYS_FILE has none, and show it",
    )
    add_log_flags(parser)


def without_parser(words: Sequence[str]) -> SimpleNamespace | None:
    if len(words) > 1 or (words and words[0].startswith("-")):
        return None
    return SimpleNamespace(create_key=False, **{f"{SETTING}model_name": word for word in words})


def run(arguments: argparse.Namespace, context: Context) -> int:
    # Imported here, since `serve --help` needs none of it.
    from llama_gguf.net.asyncio_import import import_asyncio

    # The gateway has the TLS connections, and `pull` fetches models.
    import_asyncio(has_tls=False, has_processes=True)
    from llama_gguf.cli import log_output
    from llama_gguf.cli.serve_display import ServeDisplay
    from llama_gguf.supervisor import start

    settings = context.settings
    log_output.configure(settings.logs, context.environ)
    if settings.process.debug_shell:
        return _hold(context.environ)
    try:
        return start.serve(
            settings,
            environ=context.environ,
            sources=context.sources,
            display=ServeDisplay(settings, context.environ, creates_key=arguments.create_key),
            load_again=lambda: _loaded_again(context),
            owners=_owners(settings),
        )
    except UserError as error:
        from llama_gguf.cli import neighbours

        raise neighbours.explained(error, settings) from None


def _owners(settings: Settings) -> Owners | None:
    """Whose prompts may be kept; None if none are, as by default."""
    if not settings.prompts.prompt_cache:
        return None
    from llama_gguf.access.owners import KeysFile

    auth = settings.auth
    return KeysFile(auth.auth_keys_file if auth.auth_enabled else "")


def _loaded_again(context: Context) -> tuple[Settings, Mapping[str, str]]:
    """The settings as they are now, and their sources.

    Raises:
        UserError: some are invalid.
    """
    again = context.read_again() if context.read_again else context
    if again.complaint:
        raise UserError(again.complaint, exit_status=2)
    return again.settings, again.sources


def _hold(environ: Mapping[str, str]) -> int:
    """DEBUG_SHELL: show the environment without secrets, keep the container running, exit."""
    from llama_gguf.cli.known_secrets import is_secret

    masker = Masker(())
    for name, value in sorted(environ.items()):
        echo(f"{name}={MASK if is_secret(name, value) else masker.mask(value)}")
    echo(f"DEBUG_SHELL: waiting for {DEBUG_SHELL_SECONDS} s.")
    time.sleep(DEBUG_SHELL_SECONDS)
    return 0
