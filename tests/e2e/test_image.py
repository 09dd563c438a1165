"""The container image, built and run with the demo model.

It takes minutes, so it is marked ``image`` and runs by `make test-image`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from llama_gguf import __version__
from tests.e2e.conftest import MODEL
from tests.support import clients, containers
from tests.support.containers import Builder
from tests.support.keys import KEY
from tests.support.processes import free_ports, until

pytestmark = [pytest.mark.image, pytest.mark.timeout(1200)]

DEADLINE_SECONDS: Final = 120.0
MAX_ADDED_BYTES: Final = 135_000_000


@pytest.fixture(scope="module")
def image() -> Iterator[Builder]:
    """The built image; the first build takes some minutes."""
    builder = containers.find_builder()
    if isinstance(builder, str):
        pytest.skip(builder)
    builder.build(VERSION=__version__, REVISION="0" * 40, SOURCE="https://example.invalid/source")
    yield builder
    builder.remove_containers()


@dataclass
class Container:
    """The image's entrypoint, running; SIGTERM ends it."""

    builder: Builder
    process: subprocess.Popen[str]
    port: int

    def send_request(self, path: str, question: Any = None) -> tuple[int, Any]:
        """Status and JSON of a GET, or of a POST of *question*."""
        body = None if question is None else json.dumps(question).encode()
        response = clients.send_request(
            self.port, path, body, key=KEY if question else "", seconds=60
        )
        return response.status, response.json

    def is_ready(self) -> bool:
        try:
            return self.send_request("/health")[0] == 200
        except OSError:
            return False

    def until(self, condition: Callable[[], bool]) -> None:
        def end() -> str:
            self.process.kill()
            return f"{self.process.communicate()[0]}"

        def look() -> bool:
            assert self.process.poll() is None, end()
            return condition()

        until(look, end, seconds=DEADLINE_SECONDS)

    def first_process(self) -> dict[str, str]:
        """The status of ``serve``, as proc(5) has it, from outside."""
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                argv = (entry / "cmdline").read_bytes().split(b"\0")
                if b"serve" in argv[2:3] and str(self.port).encode() in argv:
                    lines = (entry / "status").read_text().splitlines()
                    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            except OSError:
                continue
        pytest.fail("there is no such process")


@pytest.fixture
def container(image: Builder, model_file: Path, tmp_path: Path) -> Iterator[Container]:
    """The image, serving the demo model from a volume that every user may write to."""
    (tmp_path / "models").mkdir()
    shutil.copy(model_file, tmp_path / "models")
    (tmp_path / "api_keys.txt").write_text(f"tests:{KEY}\n")
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o777 if folder == tmp_path else 0o755)
    port, port_health, port_backend = free_ports(3)
    environ = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PORT_HEALTH": str(port_health),
        "PORT_BACKEND": str(port_backend),
        "CTX": "2048",
        "THREADS": "1",
    }
    process = image.run(MODEL, "--port", str(port), volume=tmp_path, environ=environ)
    running = Container(image, process, port)
    try:
        yield running
    finally:
        if process.poll() is None:
            image.terminate(process)
            process.communicate(timeout=60)


def test_the_image_serves_a_chat_as_pid_1_with_no_rights_on_a_read_only_root(
    container: Container,
) -> None:
    container.until(container.is_ready)
    question = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}

    status, answer = container.send_request("/v1/chat/completions", question)

    assert status == 200
    assert answer["choices"][0]["message"]["content"]
    serving = container.first_process()
    assert serving["Uid"].split() == ["10001"] * 4
    assert int(serving["CapEff"], 16) == 0
    assert serving["NSpid"].split()[-1] == "1"
    container.builder.terminate(container.process)
    said = container.process.communicate(timeout=60)[0]
    assert container.process.returncode == 0, said


def test_the_image_has_labels_and_overrides_the_open_defaults_of_its_base(image: Builder) -> None:
    config = image.config()

    environ = dict(pair.split("=", 1) for pair in config["Env"])
    assert environ["LLAMA_ARG_HOST"] == "127.0.0.1"
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/usr/local/bin/start.sh"]
    assert config["Healthcheck"]["Test"][-1] == "/usr/local/bin/healthcheck.py"
    assert set(config["ExposedPorts"]) == {"8000/tcp", "8001/tcp"}
    labels = {k.rpartition(".")[2]: v for k, v in config["Labels"].items() if "opencontainers" in k}
    assert labels["version"] == __version__
    assert labels["licenses"] == "MIT"
    assert labels["source"] == "https://example.invalid/source"


def test_the_image_is_compiled_and_contains_no_compiler(image: Builder) -> None:
    look = (
        "import llama_gguf.gateway.client_connection as c, importlib.util as i, shutil; "
        "print(c.__file__, [m for m in ('mypy', 'hatchling', 'setuptools') if i.find_spec(m)], "
        "[p for p in ('gcc', 'cc') if shutil.which(p)])"
    )

    process = image.run_python(look)

    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert said.strip().endswith(".so [] []")


def test_the_image_adds_little_to_its_base(image: Builder) -> None:
    assert 0 < image.added_bytes() < MAX_ADDED_BYTES
