"""What a person sees of `serve`: a new key, the progress, and the first commands to try."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Final

from llama_gguf.cli.terminal import LoadMeter, Meter, download_meter, echo
from llama_gguf.config.settings import Settings
from llama_gguf.errors import UserError
from llama_gguf.files.programs import find_program
from llama_gguf.wall_clock import wall_now


class ServeDisplay:
    """Shows it on standard output, and the progress on standard error.

    Args:
        settings: the address on which it listens, and the keys file.
        environ: for the kind of terminal.
        creates_key: whether a key is created if there is none.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], *, creates_key: bool
    ) -> None:
        self._settings = settings
        self._creates_key = creates_key
        self._new_key = ""
        self._load_meter = LoadMeter(environ)

    def on_checked(self) -> None:
        auth = self._settings.auth
        path = auth.auth_keys_file
        if not self._creates_key or not auth.auth_enabled:
            return
        # Here and below imported when it is needed: the start must not wait for it.
        from llama_gguf.access import key_admin

        if len(key_admin.keys_in(path)):
            return
        self._new_key = key_admin.create(path, name="default").secret
        echo(f"A new API key, stored in {path}:\n\n    {self._new_key}\n")

    def download_meter(self, label: str) -> AbstractContextManager[Meter]:
        return download_meter(label)

    def show_load(self, model: str, share: float | None) -> None:
        self._load_meter.show(f"loading {model}", share)

    def hide_load(self) -> None:
        self._load_meter.hide()

    def show_ready(self, model: str, context: int | None, chat_key: str | None) -> None:
        text = ready_text(
            self._settings,
            model=model,
            context=context,
            new_key=self._new_key,
            chat_key=chat_key,
        )
        if self._settings.logs.log_level in ("warning", "error"):
            text = first_line(text)
        # The reader of our output may have exited (`serve | head`); the model is still served.
        with contextlib.suppress(BrokenPipeError, UserError):
            echo(text)


_NO_KEY: Final = "YOUR_API_KEY"
_TLS_ADVICE: Final = """
# The certificate must match the host in the URL. If its issuer is not trusted yet:
# curl --cacert FILE, and export SSL_CERT_FILE=FILE for Python.
"""


def ready_text(
    settings: Settings,
    *,
    model: str,
    new_key: str,
    context: int | None = None,
    chat_key: str | None = None,
) -> str:
    """The first commands to try, ready to paste.

    Args:
        settings: the address on which it listens.
        model: the name that clients use.
        new_key: a key that was just created; without one, the commands read one from the file.
        context: tokens that one request may use; None if unknown.
        chat_key: as of ``Display.show_ready``.
    """
    url = settings.url
    auth = settings.auth
    path = auth.auth_keys_file
    key = new_key or (_key_command(path, chat_key) if auth.auth_enabled else "none")
    is_command = key.startswith("$")
    export = f'export API_KEY="{key}"\n' if is_command else ""
    imports = "import os\n" if export else ""
    python_key = 'os.environ["API_KEY"]' if export else json.dumps(key)
    question = {"model": model, "messages": [{"role": "user", "content": "Hello!"}]}
    limit = f", {context} tokens per request" if context else ""
    dashboard = f"Dashboard: {url}/dashboard\n" if settings.routes.dashboard else ""
    # Not indented, since the end of a pasted here-document must begin its line.
    return f"""
Ready: {url}/v1 serves {model}{limit}
{_key_text(settings, key)}{dashboard}{_TLS_ADVICE if settings.tls.tls_cert_file else ""}
# Try it with curl:

curl -N {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" \\
  -H "Content-Type: application/json" \\
  -d {shlex.quote(json.dumps({**question, "stream": True}))}

# Or with OpenAI's Python SDK (pip install openai):

{export}python3 - <<'END'
{imports}from openai import OpenAI
client = OpenAI(base_url="{url}/v1", api_key={python_key})
question = {json.dumps(question)}
for chunk in client.chat.completions.create(**question, stream=True):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
END

# In another terminal (also: top, logs -f, restart, stop):

{_data_dir(settings)} {_program()} status

# Stop the server with Ctrl-C.
"""


def first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def _data_dir(settings: Settings) -> str:
    return f"DATA_DIR={shlex.quote(os.path.abspath(settings.model.data_dir))}"


def _key_text(settings: Settings, key: str) -> str:
    """How to see the API key that the commands use, or to create one."""
    auth = settings.auth
    if not auth.auth_enabled:
        return "API key: none needed, since AUTH_ENABLED is false\n"
    if key == _NO_KEY:
        file = shlex.quote(os.path.abspath(auth.auth_keys_file))
        create = f"{_program()} keys generate me --file {file}"
        return f"API key: there is none yet, so every request is refused. Create one:\n  {create}\n"
    if key.startswith("$"):
        return f"API key: {key[2:-1]}\n"
    return f"API key: {key}\n"


def _key_command(path: str, name: str | None) -> str:
    """A shell expression that reads a key from the file, so that no key is shown again.

    It is likely to be pasted into a terminal in another directory.
    """
    if name is None:  # the gateway does not respond
        name = _chat_key(path)
    if not name:
        return _NO_KEY
    return f"$({_program()} keys show {name} --file {shlex.quote(os.path.abspath(path))})"


def _chat_key(path: str) -> str:
    """The id of a key in the file to chat with; empty if there is none."""
    from llama_gguf.access import key_file, keys

    try:
        found = keys.chat_keys(key_file.read(path), wall_now())
    except UserError:  # the gateway has reported the error
        return ""
    return found[0][0].line_id if found else ""


def _program() -> str:
    """It is likely to be pasted into a terminal in which our virtual environment is not active."""
    path = os.path.join(sys.prefix, "bin", "llama-gguf")
    if sys.prefix != sys.base_prefix and os.access(path, os.X_OK):
        return shlex.quote(path)
    is_installed = find_program("llama-gguf") is not None
    return "llama-gguf" if is_installed else f"{shlex.quote(sys.executable)} -m llama_gguf"
