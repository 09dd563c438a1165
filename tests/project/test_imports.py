"""What each start path leaves out is a table of docs/performance.md, which is tested here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import DEADLINE_SECONDS
from tests.support.serve import Serve

pytestmark = pytest.mark.processes

PAGE: Final = Path(__file__).parents[2] / "docs" / "performance.md"

RECORDER: Final = """
import atexit, os, sys

def record():
    with open(os.path.join(os.environ["RECORDED"], str(os.getpid())), "w") as file:
        print(" ".join(sys.argv), *sys.modules, sep="\\n", file=file)

atexit.register(record)
"""
"""The module ``sitecustomize``: at exit, each process records its command line and its modules."""


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    folder = tmp_path / "recorded"
    folder.mkdir()
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    return folder


def environ(recorded: Path) -> dict[str, str]:
    path = os.pathsep.join([str(recorded.parent), *sys.path])
    return {"PYTHONPATH": path, "RECORDED": str(recorded), "DATA_DIR": str(recorded.parent)}


def modules_of(recorded: Path, words: str) -> set[str]:
    """The modules of the process with *words* in its command line."""
    found = [file.read_text().splitlines() for file in recorded.iterdir()]
    (lines,) = (lines for lines in found if words in lines[0])
    return set(lines[1:])


def command(words: str) -> Callable[[Path], set[str]]:
    """The modules of a command that ends by itself."""

    def modules(recorded: Path) -> set[str]:
        (recorded.parent / "api_keys.txt").touch(0o600)
        subprocess.run(
            [sys.executable, "-m", "llama_gguf", *words.split()],
            env=environ(recorded),
            capture_output=True,
            check=True,
            timeout=DEADLINE_SECONDS,
        )
        return modules_of(recorded, words)

    return modules


def before_the_health_port_responds(recorded: Path) -> set[str]:
    code = (
        "from llama_gguf.cli import main, command, serve, output, serve_display, log_output\n"
        "from llama_gguf.net.asyncio_import import import_asyncio\n"
        "import_asyncio(has_tls=False, has_processes=True)\n"
        "from llama_gguf.supervisor import start\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        env=environ(recorded),
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    return modules_of(recorded, "-c")


def serving(words: str) -> Callable[[Path], set[str]]:
    """The modules of a process of `serve`, after a request."""

    def modules(recorded: Path) -> set[str]:
        serve = Serve(recorded.parent)
        serve.add_key()
        try:
            serve.start_ready(**environ(recorded) | {"DATA_DIR": str(serve.data)})
            assert serve.send_request("/v1/chat/completions", b"{}").status == 200
            assert serve.stop() == 0
        finally:
            serve.end()
        return modules_of(recorded, words)

    return modules


def gateway_alone(recorded: Path) -> set[str]:
    serve = Serve(recorded.parent)
    serve.add_key()
    try:
        serve.start_command("gateway", **environ(recorded) | {"DATA_DIR": str(serve.data)})
        serve.until(lambda: serve.engine_state() is not None)
        assert serve.stop() == 0
    finally:
        serve.end()
    return modules_of(recorded, "__main__.py gateway")


PATHS: Final[Mapping[str, Callable[[Path], set[str]]]] = {
    "`--version`": command("--version"),
    "`--help`": command("--help"),
    "`serve --help`": command("serve --help"),
    "`gateway --help`": command("gateway --help"),
    "`keys list`": command("keys list"),
    "`serve`, until the health port responds": before_the_health_port_responds,
    "`serve`, the supervisor": serving("__main__.py serve"),
    "`serve`, its gateway": serving("--listen-fd"),
    "`gateway`": gateway_alone,
}


def excluded() -> Mapping[str, list[str]]:
    """The table of the page: by start path, the modules that it does not load."""
    table = PAGE.read_text("utf-8").partition("| start | does not load |\n")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[1:]]
    return {path: re.findall(r"`([\w.]+)`", modules) for path, modules in rows}


def test_the_table_has_every_start_path() -> None:
    assert excluded().keys() == PATHS.keys()
    assert all(excluded().values())


@pytest.mark.parametrize("path", PATHS)
def test_a_start_path_loads_none_of_the_modules_that_it_leaves_out(
    path: str, recorded: Path
) -> None:
    modules = PATHS[path](recorded)

    assert "llama_gguf.cli.main" in modules
    for name in excluded()[path]:
        parts = [module for module in modules if f"{module}.".startswith(f"{name}.")]
        assert not parts, name
