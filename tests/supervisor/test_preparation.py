from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from llama_gguf.config.settings import Settings
from llama_gguf.engines import machine
from llama_gguf.errors import UserError
from llama_gguf.supervisor.launch import Launch
from llama_gguf.supervisor.preparation import Preparation
from tests.support.displays import no_meter
from tests.support.gguf_files import gguf
from tests.support.rpc import free_servers

Found = TypeVar("Found")

KEY = "sk-0123456789abcdef"


@pytest.fixture
def chosen(tmp_path: Path) -> dict[str, object]:
    model = tmp_path / "tiny.gguf"
    model.write_bytes(gguf())
    engine = tmp_path / "llama-server"
    engine.write_text("#!/bin/sh\necho 'version: 7 (abc)' >&2\n")
    engine.chmod(0o755)
    return {
        "data_dir": str(tmp_path),
        "models_dir": str(tmp_path),
        "model_path": str(model),
        "llama_server": str(engine),
        "backend_api_key": KEY,
        "ctx": 512,
        "parallel": 2,
        "ngl": 3,
    }


def preparation(chosen: dict[str, object], **environ: str) -> Preparation:
    return Preparation(
        Settings.of(**chosen),
        environ={"PATH": os.defpath, **environ},
        sources={"ctx": "flag", "backend_api_key": "environment", "ngl": "default"},
        download_meter=no_meter,
    )


@pytest.mark.processes
def test_a_launch_has_all_that_one_engine_needs(chosen: dict[str, object]) -> None:
    prepared = preparation(chosen, HF_TOKEN="hf_x", LLAMA_ARG_HOST="0.0.0.0")  # noqa: S104
    prepared.check()
    (launch,) = asyncio.run(prepared.prepare(lambda text, share: None))

    assert launch.argv[:3] == [chosen["llama_server"], "--model", chosen["model_path"]]
    assert launch.environ["LLAMA_API_KEY"] == KEY
    assert not {"HF_TOKEN", "LLAMA_ARG_HOST"} & launch.environ.keys()
    assert launch.model_bytes == os.path.getsize(str(chosen["model_path"]))
    assert launch.sizes == "CTX=512, PARALLEL=2, NGL=3"
    assert launch.facts["context"] == 128  # the model can use no more
    assert prepared.model_name == "tiny"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("replicas", "heads"),
    [
        (1, ["Starting llama-server: "]),
        (2, ["Replica 0: Starting llama-server: ", "Replica 1: Starting llama-server: "]),
    ],
)
def test_a_command_line_is_logged_with_its_replica_if_there_are_several(
    chosen: dict[str, object],
    caplog: pytest.LogCaptureFixture,
    replicas: int,
    heads: list[str],
) -> None:
    prepared = preparation(chosen | {"replicas": replicas})
    prepared.check()
    with caplog.at_level(logging.INFO):
        asyncio.run(prepared.prepare(lambda text, share: None))

    logged = [r.getMessage() for r in caplog.records if "Starting llama-server" in r.getMessage()]
    assert [text[: text.index(str(chosen["llama_server"]))] for text in logged] == heads


@pytest.mark.processes
@pytest.mark.parametrize(
    ("environ", "flags"), [({}, ["--threads", "2"]), ({"LLAMA_ARG_THREADS": "4"}, [])]
)
def test_a_limit_of_the_cpus_limits_the_threads(
    chosen: dict[str, object],
    environ: dict[str, str],
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = machine.Machine("Linux", 64, 32, 2.5, None, None, ())
    monkeypatch.setattr(machine, "look", lambda path: here)
    prepared = preparation(chosen, **environ)
    prepared.check()
    (launch,) = asyncio.run(prepared.prepare(lambda text, share: None))

    at = launch.argv.index("--threads") if "--threads" in launch.argv else len(launch.argv)
    assert launch.argv[at : at + 2] == flags


def list_arguments(chosen: dict[str, object]) -> None:
    """Let llama-server list one device, with its last three arguments in the name."""
    script = 'echo "version: 7"; echo "Available devices:"; shift $(($# > 3 ? $# - 3 : 0))'
    Path(str(chosen["llama_server"])).write_text(
        f'#!/bin/sh\n{script}; echo "  RPC0: $* (2 MiB, 1 MiB free)"\n'
    )


def launched(chosen: dict[str, object], extra_args: str) -> Launch:
    prepared = preparation(chosen | {"extra_args": extra_args})
    prepared.check()
    (launch,) = asyncio.run(prepared.prepare(lambda text, share: None))
    return launch


@pytest.mark.processes
def test_the_devices_of_a_start_include_its_rpc_servers_that_respond(
    chosen: dict[str, object],
) -> None:
    list_arguments(chosen)
    with free_servers(2) as (one, two):
        launch = launched(chosen, f"--rpc {one},127.0.0.1:1 --rpc {two}")
        found = asyncio.run(wait_for(launch.list_devices()))

    assert found is not None
    assert found[0].name == f"RPC0 (--rpc {one},{two} --list-devices)"


@pytest.mark.processes
def test_nothing_is_listed_if_devices_are_selected(chosen: dict[str, object]) -> None:
    list_arguments(chosen)
    launch = launched(chosen, "--device CUDA0")

    assert asyncio.run(wait_for(launch.list_devices())) is None


@pytest.mark.processes
def test_an_engine_with_rpc_servers_has_no_room_for_a_second_one_since_each_serves_one(
    chosen: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine.Machine("Linux", 4, 4, 4.0, None, 8 << 30, ())
    monkeypatch.setattr(machine, "look", lambda path: here)
    listed = "  CUDA0: card (24000 MiB, 24000 MiB free)"
    Path(str(chosen["llama_server"])).write_text(
        f'#!/bin/sh\necho "version: 7"; echo "Available devices:"; echo "{listed}"\n'
    )

    assert asyncio.run(wait_for(launched(chosen, "").has_room(True)))
    assert not asyncio.run(wait_for(launched(chosen, "--rpc 127.0.0.1:1").has_room(True)))


async def wait_for(result: Awaitable[Found]) -> Found:
    return await result


@pytest.mark.processes
def test_the_log_has_the_settings_that_were_chosen_and_no_secret(
    chosen: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    prepared = preparation(chosen)
    prepared.check()
    with caplog.at_level(logging.INFO):
        asyncio.run(prepared.prepare(lambda text, share: None))

    lines = [record.getMessage() for record in caplog.records]
    assert "settings  CTX=512 BACKEND_API_KEY=********" in lines
    assert KEY not in caplog.text


def test_a_missing_model_is_an_error_before_a_start(chosen: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"nowhere\.gguf"):
        preparation(chosen | {"model_path": "/nowhere.gguf"}).check()


def test_a_missing_engine_is_an_error_before_a_start(chosen: dict[str, object]) -> None:
    with pytest.raises(UserError, match="/nowhere"):
        preparation(chosen | {"llama_server": "/nowhere"}).check()


def test_a_model_that_has_to_be_fetched_has_no_name_yet(chosen: dict[str, object]) -> None:
    prepared = preparation(chosen | {"model_path": "", "model_name": "hf:owner/name/m.gguf"})
    prepared.check()

    assert prepared.model_name == ""


@pytest.mark.processes
def test_prompts_are_kept_only_if_that_is_chosen(chosen: dict[str, object], tmp_path: Path) -> None:
    def launch(**changes: object) -> Launch:
        prepared = preparation({**chosen, **changes})
        prepared.check()
        return asyncio.run(prepared.prepare(lambda text, share: None))[0]

    cache = {"prompt_cache_dir": str(tmp_path / "cache")}
    off = launch(**cache)
    assert off.prompts is None
    assert not (tmp_path / "cache").exists()
    on = launch(**cache, prompt_cache=True)
    assert on.prompts is not None
    assert on.prompts.files == (chosen["model_path"],)
    assert on.argv[: len(off.argv) + 2] == [*off.argv, "--slot-save-path", f"{tmp_path}/cache/"]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"extra_args": "--lora x.gguf"}, "adapters"),
        ({"prompt_cache_dir": "/dev/null/cache"}, "Not a directory"),
    ],
)
def test_why_prompts_cannot_be_kept_is_logged(
    chosen: dict[str, object],
    changes: dict[str, object],
    reason: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual = {"prompt_cache": True, "prompt_cache_dir": str(tmp_path / "cache")}
    prepared = preparation({**chosen, **usual, **changes})
    prepared.check()
    (launch,) = asyncio.run(prepared.prepare(lambda text, share: None))

    assert launch.prompts is None
    assert "--slot-save-path" not in launch.argv
    assert caplog.text.count("no prompts are saved") == 1
    assert reason in caplog.text
