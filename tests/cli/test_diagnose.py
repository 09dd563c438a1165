from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llama_gguf.cli import bundle
from llama_gguf.cli.main import main
from tests.support.gguf_files import METADATA, gguf
from tests.support.processes import free_ports

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]

# All secrets of this machine, by location. None resembles another or has a known format.
SECRETS = {
    "a key of the keys file": "Zq8vN2xLw5TfR7mB",
    "a key of the keys file that has expired": "Yp7uM1wKv4SeQ6lA",
    "a key in a line that is none": "Xo6tL0vJu3",
    "a key that is commented out": "Wn5sK9uIt2RdP5kZ",
    "the engine's key": "Vm4rJ8tHs1",
    "the engine's key, as only the engine has it": "Ul3qI7sGr0Qc",
    "the token of the hub": "Tk2pH6rFq9",
    "a password of something else": 'Sj1o G5q/Ep8+"x',
    "the password of the proxy": "Ri0nF4pDo7",
    "the password in the model's URL": "Qh9mE3oCn6",
    "the signature in the model's URL": "Pg8lD2nBm5",
    "a key in EXTRA_ARGS": "Of7kC1mAl4",
    "a key in the arguments of a process": "Ne6jB0lZk3",
    "a password in the URL of an argument": "Md5iA9kYj2",
    "a login that was kept": "Lc4hZ8jXi1",
    "a bearer token in a log": "Kb3gY7iWh0Jz",
    "a private key in a log": "Ja2fX6hVg9",
}
S = SECRETS


class Talker(BaseHTTPRequestHandler):
    """A server whose responses contain all secrets."""

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        body = f"path={self.path}\n{everything()}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def everything() -> str:
    """A log that contains all secrets, the known ones without any hint that they are secret."""
    known = [s for what, s in SECRETS.items() if not what.endswith("in a log")]
    lines = [f"{number} said {secret} and went on" for number, secret in enumerate(known)]
    lines += [json.dumps({"message": f"said {secret}"}) for secret in known]
    lines.append(f"Authorization: Bearer {S['a bearer token in a log']}")
    lines.append(
        f"-----BEGIN PRIVATE KEY-----\n{S['a private key in a log']}\n-----END PRIVATE KEY-----"
    )
    return "\n".join(lines) + "\n"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    port, port_health, port_backend = free_ports(3)
    home = tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".cache" / "huggingface" / "token").write_text(S["a login that was kept"])
    (tmp_path / "api_keys.txt").write_text(
        f"alice:{S['a key of the keys file']}\n"
        f"bob:{S['a key of the keys file that has expired']}:10:2020-01-01\n"
        f"carol:{S['a key in a line that is none']}\n"
        f"# dave:{S['a key that is commented out']}\n"
    )
    login, signature = S["the password in the model's URL"], S["the signature in the model's URL"]
    return {
        "PATH": os.defpath,
        "HOME": str(home),
        "DATA_DIR": str(tmp_path),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_HEALTH": str(port_health),
        "PORT_BACKEND": str(port_backend),
        "BACKEND_API_KEY": S["the engine's key"],
        "HF_TOKEN": S["the token of the hub"],
        "MY_DB_PASSWORD": S["a password of something else"],
        "https_proxy": f"http://me:{S['the password of the proxy']}@proxy.example:3128",
        "MODEL_NAME": f"https://me:{login}@models.example/m.gguf?sig={signature}",
        "EXTRA_ARGS": f"--api-key {S['a key in EXTRA_ARGS']}",
    }


def read(raw: bytes) -> dict[str, str]:
    """The files of a bundle, by name."""
    texts = {}
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member)
            assert file is not None
            assert member.mode == 0o600
            texts[member.name.removeprefix("llama-gguf/")] = file.read().decode()
    return texts


def diagnose(folder: Path, environ: dict[str, str], *argv: str) -> dict[str, str]:
    path = folder / "out.tar.gz"
    assert main(["diagnose", "--output", str(path), *argv], environ) == 0
    return read(path.read_bytes())


@pytest.fixture
def talkers(environ: dict[str, str]) -> Iterator[None]:
    """Servers on all three ports."""
    servers = [
        ThreadingHTTPServer(("127.0.0.1", int(environ[name])), Talker)
        for name in ("PORT", "PORT_HEALTH", "PORT_BACKEND")
    ]
    threads = [threading.Thread(target=s.serve_forever, args=(0.01,)) for s in servers]
    for thread in threads:
        thread.start()
    yield
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def engine() -> Iterator[int]:
    """A process that looks like an engine, with secrets in its arguments and environment."""
    argv = [sys.executable, "-c", "print(flush=True); input()", "llama-server"]
    argv += ["--api-key", S["a key in the arguments of a process"]]
    argv += [f"http://me:{S['a password in the URL of an argument']}@models.example/"]
    environ = {"LLAMA_API_KEY": S["the engine's key, as only the engine has it"]}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environ, stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it is running
        yield child.pid
        child.communicate(b"\n")


# Secrets ----------------------------------------------------------------------------------------


def test_no_secret_is_in_any_byte_of_the_bundle(
    tmp_path: Path,
    environ: dict[str, str],
    talkers: None,
    engine: int,
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs = tmp_path / "logs"
    (logs / "llama").mkdir(parents=True)
    (logs / "api_access.log").write_text("alice asked\n" + everything())
    # A tail that would begin in the middle of a secret, and a file name that is a secret.
    head = f"said {S['a key that is commented out']} first\n"
    rest = everything()
    rest += "x" * (bundle.TAIL_BYTES + len("said Wn5s") - len(head) - len(rest) - 1) + "\n"
    (logs / "llama" / "1_server.log").write_text(head + rest)
    (logs / "llama" / f"{S['a key of the keys file']}.log").write_text(everything())

    texts = diagnose(tmp_path, environ, "--json")

    printed = "".join(capfd.readouterr())
    assert len([name for name in texts if name.startswith("logs/")]) == 3
    for name, text in [*texts.items(), ("output", printed), ("names", "\n".join(texts))]:
        for what, secret in SECRETS.items():
            for form in (secret, json.dumps(secret)[1:-1]):
                assert form not in text, f"{what} is in {name}"
                # Nor half of it.
                assert form[: len(form) // 2 + 2] not in text, f"half of {what} is in {name}"
    for word in ("alice asked", "said ********", "models.example/m.gguf", str(engine)):
        assert any(word in text for text in texts.values()), word


# Content ------------------------------------------------------------------------------------------


def test_the_bundle_describes_a_machine_that_serves(
    tmp_path: Path, environ: dict[str, str], talkers: None, engine: int
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gguf").write_bytes(gguf(METADATA))
    (tmp_path / "logs" / "llama").mkdir(parents=True)
    (tmp_path / "logs" / "llama" / "1_server.log").write_text("loading\n")
    environ |= {"MODEL_NAME": "m.gguf", "EXTRA_ARGS": ""}

    texts = diagnose(tmp_path, environ)

    assert texts.keys() == {
        "summary.txt",
        *(f"{name}.txt" for name in (*bundle.SECTIONS, "logs")),
        "logs/01-1_server.log.txt",
    }
    assert f"PORT={environ['PORT']}  (environment)" in texts["settings.txt"]
    assert "Python 3." in texts["versions.txt"]
    assert "context_length: 128" in texts["model.txt"]
    assert "MemTotal" in texts["memory.txt"]
    assert "m.gguf" in texts["disk.txt"]
    assert " / " in texts["mounts.txt"]
    assert f"127.0.0.1 {environ['PORT']}: " in texts["ports.txt"]
    assert f"({os.getpid()}) PORT\n" in texts["ports.txt"]
    assert f"{engine} " in texts["processes.txt"]
    assert "llama-server --api-key ********" in texts["processes.txt"]
    assert texts["logs/01-1_server.log.txt"].endswith("8 bytes\n\nloading\n\n")
    for path in ("/ping", "/health", "/metrics", "/metrics?format=prometheus"):
        assert f"GET {path} on 127.0.0.1:{environ['PORT']}: 200" in texts["server.txt"]
    assert f"GET /health on 127.0.0.1:{environ['PORT_BACKEND']}: 200" in texts["server.txt"]
    assert "slots" not in texts["server.txt"]
    assert "memory needed" in texts["checks.txt"]


def test_the_bundle_can_be_printed_as_json(
    tmp_path: Path, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    diagnose(tmp_path, environ, "--json")

    printed = json.loads(capsys.readouterr().out)
    assert printed["path"] == str(tmp_path / "out.tar.gz")
    assert printed["bytes"] == (tmp_path / "out.tar.gz").stat().st_size
    assert {s["name"]: s["ok"] for s in printed["sections"]}["mounts"] is True


# Failures -----------------------------------------------------------------------------------------


def test_with_everything_broken_the_bundle_lists_the_failures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").mkdir()
    broken = {
        "PORT": "nonsense",
        "DATA_DIR": "/nowhere/at/all",
        "MODEL_PATH": "/nowhere/m.gguf",
        "AUTH_KEYS_FILE": str(tmp_path / "keys"),
        "LLAMA_SERVER": str(tmp_path),
        "EXTRA_ARGS": "'",
        "TLS_CERT_FILE": "/nowhere/cert.pem",
        "PATH": "",
    }

    texts = diagnose(tmp_path, broken)

    assert "PORT='nonsense' is invalid" in texts["settings.txt"]
    assert "could not be searched for secrets: the keys file: " in texts["summary.txt"]
    assert "\nmodel: There is no model /nowhere/m.gguf." in texts["summary.txt"]
    assert "is a directory; specify the file in it" in texts["engine.txt"]
    assert "nvidia-smi: not in PATH" in texts["gpu.txt"]
    assert "/nowhere/at/all: No such file or directory" in texts["disk.txt"]
    assert "Connection refused" in texts["server.txt"] or "200" in texts["server.txt"]
    assert "- model is incomplete: There is no model /nowhere/m.gguf." in capsys.readouterr().out


def test_the_model_can_be_named_as_for_serve(tmp_path: Path, environ: dict[str, str]) -> None:
    (tmp_path / "mine.gguf").write_bytes(gguf())

    texts = diagnose(tmp_path, environ, str(tmp_path / "mine.gguf"))

    assert texts["model.txt"].startswith(str(tmp_path / "mine.gguf"))


def test_a_section_that_hangs_does_not_delay_the_others_forever(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for_ever = threading.Event()
    hangs = {"mounts": lambda context: str(for_ever.wait())}
    monkeypatch.setattr(bundle, "SECTIONS", hangs | {"versions": bundle.versions})
    monkeypatch.setattr("llama_gguf.cli.diagnose.SECTION_SECONDS", 0.5)

    texts = diagnose(tmp_path, environ)
    for_ever.set()

    assert "mounts: it did not finish within 0.5 s" in texts["summary.txt"]
    assert "versions: collected" in texts["summary.txt"]


def test_an_incomplete_installation_still_yields_a_bundle(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    path = tmp_path / "out.tar.gz"
    code = (
        "import sys; sys.modules['llama_gguf.net.binding'] = None; "
        "from llama_gguf.cli.main import main; main()"
    )

    # In a separate process, since this one has already imported the modules.
    subprocess.run(
        [sys.executable, "-c", code, "diagnose", "--output", str(path)],
        env=environ,
        stdout=subprocess.DEVNULL,
        timeout=60,
        check=True,
    )

    texts = read(path.read_bytes())
    assert "checks: ModuleNotFoundError" in texts["summary.txt"]
    assert "settings: collected" in texts["summary.txt"]


# Output -------------------------------------------------------------------------------------------


def test_the_bundle_is_private_and_in_the_working_directory(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(["diagnose"], environ) == 0

    (path,) = tmp_path.glob("llama-gguf-*Z.tar.gz")
    assert path.stat().st_mode & 0o777 == 0o600
    assert "summary.txt" in read(path.read_bytes())


def test_the_bundle_can_be_written_to_a_pipe(
    environ: dict[str, str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["diagnose", "--output", "-"], environ) == 0

    assert "summary.txt" in read(capfdbinary.readouterr().out)


def test_an_unwritable_output_is_rejected_with_alternatives(
    environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", "--output", "/nowhere/x.tar.gz"], environ) == 1

    assert "--output -" in capsys.readouterr().err


def test_the_script_runs_the_same_command(tmp_path: Path) -> None:
    script = tmp_path / "scripts" / "diagnostics" / "collect.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "diagnostics" / "collect.sh", script)
    command = tmp_path / ".venv" / "bin" / "llama-gguf"
    command.parent.mkdir(parents=True)
    command.write_text('#!/bin/sh\necho "$@"\n')
    command.chmod(0o755)

    printed = subprocess.run(
        [script, "--output", "a b"], capture_output=True, text=True, timeout=30, check=True
    )

    assert printed.stdout == "diagnose --output a b\n"
