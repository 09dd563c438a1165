from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llama_gguf.cli.serve_display import ServeDisplay, ready_text
from llama_gguf.config.settings import Settings

SECRET = "sk-Zq8vN2xLw5TfR7mB"
OTHER = "sk-another-secret-0"


def settings(**values: object) -> Settings:
    chosen = {"host": "127.0.0.1", "auth_keys_file": "/data/api_keys.txt", **values}
    return Settings.of(**chosen)


class Desk:
    """A shell with a curl and an `openai` that only record their arguments."""

    def __init__(self, folder: Path) -> None:
        self._recorded = folder / "recorded"
        (folder / "bin").mkdir()
        (folder / "bin" / "python3").symlink_to(sys.executable)
        (folder / "openai.py").write_text(_OPENAI)
        program = folder / "bin" / "llama-gguf"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m llama_gguf "$@"\n')
        program.chmod(0o755)
        curl = folder / "bin" / "curl"
        curl.write_text('#!/bin/sh\nprintf "%s\\0" "$@" > "$RECORDED"\n')
        curl.chmod(0o755)
        self._environ = {
            "PATH": f"{folder}/bin:{os.defpath}",
            "PYTHONPATH": str(folder),
            "RECORDED": str(self._recorded),
        }

    def paste(self, shell: str, text: str) -> str:
        """Run *text* unchanged; return the client's arguments and the output."""
        subprocess.run([shell], input=text, env=self._environ, text=True, timeout=30, check=True)
        return self._recorded.read_text("utf-8")


_OPENAI = """
import json, os, types
class OpenAI:
    def __init__(self, **client):
        self.client = client
        self.chat = self.completions = self
    def create(self, **request):
        with open(os.environ["RECORDED"], "w") as f:
            json.dump({**self.client, **request}, f)
        return []
"""


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = tmp_path / "desk"
    folder.mkdir()
    return Desk(folder)


def curl_of(text: str) -> str:
    return next(p for p in text.split("\n\n") if p.startswith("curl"))


def python_of(text: str) -> str:
    return next(p for p in text.split("\n\n") if "python3 -" in p)


def pasted(desk: Desk, text: str, *, shell: str = "sh") -> tuple[str, str, dict[str, object]]:
    """URL, key and body of the printed curl."""
    words = desk.paste(shell, curl_of(text)).split("\0")
    fields = dict(
        f.split(": ", 1) for f in (words[i + 1] for i, w in enumerate(words) if w == "-H")
    )
    body = json.loads(words[words.index("-d") + 1])
    assert words[0] == "-N"
    return words[1], fields["Authorization"].removeprefix("Bearer "), body


# The banner ---------------------------------------------------------------------------------------


@pytest.mark.processes
def test_the_commands_contain_a_new_key(desk: Desk) -> None:
    text = ready_text(settings(), model="tiny", new_key=SECRET)

    assert pasted(desk, text) == (
        "http://127.0.0.1:8000/v1/chat/completions",
        SECRET,
        {
            "model": "tiny",
            "messages": [{"role": "user", "content": "Hello!"}],
            "stream": True,
        },
    )
    assert "awk" not in text


@pytest.mark.processes
def test_the_banners_python_runs_when_pasted(desk: Desk) -> None:
    text = ready_text(settings(), model="tiny", new_key=SECRET)

    assert json.loads(desk.paste("sh", python_of(text))) == {
        "base_url": "http://127.0.0.1:8000/v1",
        "api_key": SECRET,
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello!"}],
        "stream": True,
    }


@pytest.mark.processes
@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    "content",
    [
        f"alice:{SECRET}\n",
        f"# a comment: with a colon\n\n   # another\n\nalice:{SECRET}:60:2099-01-01\nbob:{OTHER}\n",
        f"alice:{SECRET}",
        f"\t# after a tab: x\nalice:{SECRET}\n",
        f"alice:{SECRET}\r\n",
        f"alice : {SECRET}\nbob:{SECRET}\n",
        f"too:short\nalice:{SECRET}\n",
        f"alice:{OTHER} from=10.9.9.9\nbob:{OTHER}x routes=embeddings\ncarol:{SECRET} weight=4\n",
        f"alice-old-0a1b2c:{SECRET}:60\n",
    ],
    ids=[
        "one",
        "comments",
        "no-newline",
        "tab",
        "crlf",
        "bad-line",
        "short-key",
        "attributes",
        "old-secret",
    ],
)
def test_a_shell_reads_the_key_from_the_file(
    desk: Desk, tmp_path: Path, content: str, shell: str
) -> None:
    keys = tmp_path / "api_keys.txt"
    keys.write_bytes(content.encode())

    text = ready_text(settings(auth_keys_file=str(keys)), model="tiny", new_key="")

    assert SECRET not in text
    assert pasted(desk, text, shell=shell)[1] == SECRET
    assert json.loads(desk.paste(shell, python_of(text)))["api_key"] == SECRET


@pytest.mark.processes
def test_a_digest_is_not_shown_as_a_key(desk: Desk, tmp_path: Path) -> None:
    keys = tmp_path / "api_keys.txt"
    keys.write_text(f"hashed:sha256${'ab' * 32}\nplain:{SECRET}\n")

    text = ready_text(settings(auth_keys_file=str(keys)), model="tiny", new_key="")

    assert pasted(desk, text)[1] == SECRET


@pytest.mark.processes
@pytest.mark.parametrize("name", ["my keys", "it's mine", "a$b", 'a"b', "a`b"])
def test_any_path_of_the_keys_file_can_be_pasted(desk: Desk, tmp_path: Path, name: str) -> None:
    keys = tmp_path / name
    keys.write_text(f"alice:{SECRET}\n")

    text = ready_text(settings(auth_keys_file=str(keys)), model="tiny", new_key="")

    assert pasted(desk, text)[1] == SECRET


@pytest.mark.processes
def test_pasted_commands_work_in_another_directory(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "api_keys.txt").write_text(f"alice:{SECRET}\n")
    text = ready_text(settings(auth_keys_file="./api_keys.txt"), model="tiny", new_key="")

    monkeypatch.chdir("/")

    assert pasted(desk, text)[1] == SECRET


@pytest.mark.processes
@pytest.mark.parametrize("model", ["Qwen3-8B", "it's", 'a"b', "a$b", "a b"])
def test_any_model_name_can_be_pasted(desk: Desk, model: str) -> None:
    text = ready_text(settings(), model=model, new_key=SECRET)

    assert pasted(desk, text)[2]["model"] == model
    assert json.loads(desk.paste("sh", python_of(text)))["model"] == model


@pytest.mark.processes
def test_without_authentication_no_file_is_read(desk: Desk) -> None:
    text = ready_text(settings(auth_enabled=False), model="tiny", new_key="")

    assert "awk" not in text
    assert pasted(desk, text)[1] == "none"
    assert json.loads(desk.paste("sh", python_of(text)))["api_key"] == "none"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000/v1"),  # noqa: S104
        ("::", "http://127.0.0.1:8000/v1"),
        ("::1", "http://[::1]:8000/v1"),
        ("gpu.example", "http://gpu.example:8000/v1"),
    ],
)
def test_the_url_is_usable_for_clients(host: str, url: str) -> None:
    text = ready_text(settings(host=host), model="tiny", new_key=SECRET)

    assert text.startswith(f"\nReady: {url} serves tiny\n")
    assert shlex.split(curl_of(text))[2] == f"{url}/chat/completions"
    assert f'base_url="{url}"' in text


@pytest.mark.processes
def test_with_a_certificate_the_url_is_https(desk: Desk) -> None:
    values = settings(tls_cert_file="/cert.pem", tls_key_file="/key.pem")
    text = ready_text(values, model="tiny", new_key=SECRET)

    assert text.startswith("\nReady: https://127.0.0.1:8000/v1 serves tiny\n")
    assert pasted(desk, text)[0] == "https://127.0.0.1:8000/v1/chat/completions"
    recorded = json.loads(desk.paste("sh", python_of(text)))
    assert recorded["base_url"] == "https://127.0.0.1:8000/v1"
    assert "http://" not in text
    assert "curl --cacert FILE" in text


def test_the_ready_text_has_context_dashboard_and_the_command_that_shows_the_key(
    tmp_path: Path,
) -> None:
    keys = tmp_path / "api_keys.txt"
    keys.write_text(f"alice:{SECRET}\n")

    text = ready_text(settings(auth_keys_file=str(keys)), model="tiny", context=4096, new_key="")

    lines = text.splitlines()
    assert lines[1] == "Ready: http://127.0.0.1:8000/v1 serves tiny, 4096 tokens per request"
    assert lines[2].startswith("API key: ")
    assert lines[2].endswith(f" keys show alice --file {keys}")
    assert lines[3] == "Dashboard: http://127.0.0.1:8000/dashboard"


def test_without_any_key_the_ready_text_has_the_command_that_creates_one(tmp_path: Path) -> None:
    keys = tmp_path / "api_keys.txt"

    text = ready_text(settings(auth_keys_file=str(keys)), model="tiny", new_key="")

    assert "there is none yet, so every request is refused" in text
    assert f" keys generate me --file {keys}\n" in text


def test_without_a_dashboard_its_address_is_not_shown() -> None:
    text = ready_text(settings(dashboard=False), model="tiny", new_key=SECRET)

    assert "/dashboard" not in text


@pytest.mark.parametrize("level", ["warning", "error"])
def test_quiet_shows_only_that_it_is_ready(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    display = ServeDisplay(settings(log_level=level), {}, creates_key=False)

    display.show_ready("tiny", None, "")

    assert capsys.readouterr().out == "Ready: http://127.0.0.1:8000/v1 serves tiny\n"


def test_the_key_that_the_gateway_has_is_shown_without_reading_the_file() -> None:
    chosen = settings(auth_keys_file="/missing/keys")

    assert " keys show alice --file /missing/keys)" in ready_text(
        chosen, model="tiny", new_key="", chat_key="alice"
    )
    assert "there is none yet" in ready_text(chosen, model="tiny", new_key="", chat_key="")
