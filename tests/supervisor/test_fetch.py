from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from llama_gguf.config.schema import ModelSettings
from llama_gguf.errors import UserError
from llama_gguf.models.progress import Meter
from llama_gguf.supervisor.fetch import fetch, progress_in, reporting
from llama_gguf.values import replace
from tests.support.file_server import FileServer
from tests.support.gguf_files import METADATA, Tensor, gguf
from tests.support.processes import until

CONTENT = gguf(METADATA, [Tensor((300_000,))])


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT) as running:
        yield running


def settings(folder: Path, model: str) -> ModelSettings:
    loaded = load({"DATA_DIR": str(folder), "MODEL_NAME": model})
    return resolve(
        loaded.settings,
        environ={},
        is_dir=lambda path: False,
        is_writable=lambda path: True,
        host_name="host",
    ).model


def get(folder: Path, model: str, **environ: str) -> list[str]:
    output: list[str] = []
    usual = {"PATH": os.defpath}
    asyncio.run(
        fetch(settings(folder, model), usual | environ, lambda text, _: output.append(text))
    )
    return output


@pytest.mark.processes
def test_the_model_is_fetched_and_progress_reported(tmp_path: Path, server: FileServer) -> None:
    output = get(tmp_path, server.url())

    assert (tmp_path / "models" / "m.gguf").read_bytes() == CONTENT
    assert output[-1] == "fetching the model: 100 % of 1.2 MB"


@pytest.mark.processes
def test_a_failure_is_reported_by_the_child_and_raised(
    tmp_path: Path, server: FileServer, capfd: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.status = 404

    with pytest.raises(UserError, match="could not be fetched; see the reason above"):
        get(tmp_path, server.url())

    assert "does not exist (status 404)" in capfd.readouterr().err


@pytest.mark.processes
@pytest.mark.parametrize("chosen", ["DATA_DIR", "MODELS_DIR"])
def test_a_folder_that_cannot_be_created_is_blamed_on_the_setting_that_was_chosen(
    tmp_path: Path, server: FileServer, capfd: pytest.CaptureFixture[str], chosen: str
) -> None:
    (tmp_path / "file").touch()
    bad = str(tmp_path / "file" / "x")
    model = settings(tmp_path, server.url())
    if chosen == "DATA_DIR":
        model = settings(Path(bad), server.url())
    else:
        model = replace(model, models_dir=bad)

    with pytest.raises(UserError):
        asyncio.run(fetch(model, {"PATH": os.defpath}, lambda text, _: None))

    output = capfd.readouterr().err
    other = {"DATA_DIR": "MODELS_DIR", "MODELS_DIR": "DATA_DIR"}[chosen]
    assert f"{chosen} is set in the environment." in output
    assert (f"{other} is set" in output) == (chosen == "MODELS_DIR")  # DATA_DIR is passed too


@pytest.mark.processes
def test_credentials_in_the_url_are_not_in_the_childs_arguments(
    tmp_path: Path, server: FileServer
) -> None:
    seen: list[bytes] = []

    def look(_: str, share: float | None) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                seen.append(path.read_bytes())
            except OSError:  # it has just exited
                continue

    wanted = settings(tmp_path, f"http://me:s3cret@{server.address}/m.gguf")
    asyncio.run(fetch(wanted, {"PATH": os.defpath}, look))

    assert any(b"\0pull\0" in argv for argv in seen)
    assert not any(b"s3cret" in argv for argv in seen)
    assert server.seen[0].authorization is not None


@pytest.mark.processes
def test_overridden_settings_do_not_reach_the_child(tmp_path: Path, server: FileServer) -> None:
    get(tmp_path, server.url(), PORT="nonsense", MODEL_NAME="another", MODELS_DIR="/nowhere")

    assert (tmp_path / "models" / "m.gguf").exists()


@pytest.mark.processes
def test_on_cancellation_the_child_ends_and_the_part_file_remains(
    tmp_path: Path, server: FileServer
) -> None:
    part = tmp_path / "models" / "m.gguf.part"

    async def called_off() -> None:
        wanted = settings(tmp_path, server.url())
        task = asyncio.get_running_loop().create_task(
            fetch(wanted, {"PATH": os.defpath}, lambda text, share: None)
        )
        await asyncio.to_thread(until, lambda: part.exists() and part.stat().st_size)
        task.cancel()
        await asyncio.wait([task])

    server.behaviour.content = gguf(METADATA, [Tensor((3_000_000,))])
    server.behaviour.stops_after = 5_000_000
    asyncio.run(called_off())

    assert sorted(p.name for p in part.parent.iterdir()) == ["m.gguf.part", "m.gguf.part.etag"]
    assert part.stat().st_size > 0


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (b"0 2000000\n", ("fetching the model: 0 % of 2.0 MB", 0.0)),
        (b"1999999 2000000\n", ("fetching the model: 99 % of 2.0 MB", 0.9999995)),
        (b"1500000 0\n", ("fetching the model: 1.5 MB", None)),
    ],
)
def test_bytes_become_text_and_a_fraction(line: bytes, output: tuple[str, float | None]) -> None:
    assert progress_in(line) == output


def test_a_closed_progress_pipe_does_not_stop_the_download() -> None:
    shown = []

    @contextmanager
    def meter(label: str) -> Iterator[Meter]:
        yield lambda done, total: shown.append((label, done, total))

    ours, theirs = os.pipe()
    os.close(ours)
    with reporting(theirs, meter)("m") as report:
        report(1, 2)
        report(2, 2)
    os.close(theirs)

    assert shown == [("m", 1, 2), ("m", 2, 2)]
