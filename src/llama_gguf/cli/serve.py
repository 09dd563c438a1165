"""Serve a model: llama-server, the gateway and the health server, supervised.

MODEL is a path, the name of a file in MODELS_DIR, or a name that `pull` accepts,
which is fetched if it is not present. Clients connect to HOST:PORT with an API key
from AUTH_KEYS_FILE; platforms poll HOST:PORT_HEALTH. SIGTERM (or Ctrl-C) drains:
running requests may finish within DRAIN_TIMEOUT. SIGHUP reloads the keys and the
TLS certificate.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final

from llama_gguf.access import key_admin, key_file, keys
from llama_gguf.cli import logs
from llama_gguf.cli.arguments import add_model
from llama_gguf.cli.context import Context
from llama_gguf.cli.terminal import LoadMeter, Meter, download_meter, echo
from llama_gguf.config.masking import MASK, mask_urls
from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.supervisor import app

USAGE = "%(prog)s [MODEL] [options] [--SETTING VALUE ...]"

DEBUG_SHELL_SECONDS: Final = 300
_SECRET_NAME: Final = re.compile("KEY|TOKEN|SECRET|PASS|CREDENTIAL|_PWD", re.IGNORECASE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--create-key",
        action="store_true",
        help="create an API key if AUTH_KEYS_FILE has none, and show it once",
    )


def run(arguments: argparse.Namespace, context: Context) -> int:
    settings = context.settings
    logs.configure(settings.logs.log_format)
    if settings.process.debug_shell:
        return _hold(context.environ)
    return app.serve(
        settings,
        environ=context.environ,
        sources=context.sources,
        display=ServeDisplay(settings, creates_key=arguments.create_key),
    )


class ServeDisplay:
    """What a person sees of `serve`: a new key, the progress, and the first commands to try.

    Args:
        settings: the address on which it listens, and the keys file.
        creates_key: whether a key is created if there is none.
    """

    def __init__(self, settings: Settings, *, creates_key: bool) -> None:
        self._settings = settings
        self._creates_key = creates_key
        self._new_key = ""
        self._load_meter = LoadMeter()

    def on_checked(self) -> None:
        auth = self._settings.auth
        path = auth.auth_keys_file
        if not self._creates_key or not auth.auth_enabled or len(key_admin.keys_in(path)):
            return
        self._new_key = key_admin.create(path, name="default").secret
        echo(f"A new API key, stored in {path}:\n\n    {self._new_key}\n")

    def download_meter(self, label: str) -> AbstractContextManager[Meter]:
        return download_meter(label)

    def show_load(self, model: str, share: float | None) -> None:
        self._load_meter.show(f"loading {model}", share)

    def hide_load(self) -> None:
        self._load_meter.hide()

    def show_ready(self, model: str) -> None:
        # The reader of our output may have exited (`serve | head`); the model is still served.
        with contextlib.suppress(BrokenPipeError, UserError):
            echo(ready_text(self._settings, model=model, new_key=self._new_key))


_TLS_ADVICE: Final = """
# The certificate must match the host in the URL. If its issuer is not trusted yet:
# curl --cacert FILE, and export SSL_CERT_FILE=FILE for Python.
"""


def ready_text(settings: Settings, *, model: str, new_key: str) -> str:
    """The first commands to try, ready to paste.

    Args:
        settings: the address on which it listens.
        model: the name that clients use.
        new_key: a key that was just created; without one, the commands read one from the file.
    """
    host, port = settings.listen.host, settings.listen.port
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104
    url = f"{settings.tls.scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    key = new_key or (
        _key_command(settings.auth.auth_keys_file) if settings.auth.auth_enabled else "none"
    )
    export = f'export API_KEY="{key}"\n' if key.startswith("$") else ""
    imports = "import os\n" if export else ""
    python_key = 'os.environ["API_KEY"]' if export else json.dumps(key)
    question = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    # Not indented, since the end of a pasted here-document must begin its line.
    return f"""
Ready: {url}/v1 serves {model}
{_TLS_ADVICE if settings.tls.tls_cert_file else ""}
# Try it with curl:

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(json.dumps(question))}

# Or with OpenAI's Python SDK (pip install openai):

{export}python3 - <<'END'
{imports}from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={python_key})
question = {json.dumps(question)}
for chunk in client.chat.completions.create(**question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
END

# Stop the server with Ctrl-C.
"""


def _key_command(path: str) -> str:
    """A shell expression that reads a key from the file, so that no key is shown again.

    It is likely to be pasted into a terminal in another directory.
    """
    try:
        found = keys.chat_keys(key_file.read(path), datetime.now(UTC).timestamp())
    except UserError:  # the gateway has reported the error
        found = []
    if not found:
        return "YOUR_API_KEY"
    is_installed = shutil.which("llama-gguf") is not None
    program = "llama-gguf" if is_installed else f"{shlex.quote(sys.executable)} -m llama_gguf"
    name, file = found[0][0].line_id, shlex.quote(os.path.abspath(path))
    return f"$({program} keys show {name} --file {file})"


def _hold(environ: Mapping[str, str]) -> int:
    """DEBUG_SHELL: show the environment without secrets, keep the container running, exit."""
    for name in sorted(environ):
        hidden = _SECRET_NAME.search(name)
        echo(f"{name}={MASK if hidden else mask_urls(environ[name])}")
    echo(f"DEBUG_SHELL: waiting for {DEBUG_SHELL_SECONDS} s.")
    time.sleep(DEBUG_SHELL_SECONDS)
    return 0
