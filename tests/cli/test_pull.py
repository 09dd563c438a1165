from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_gguf.cli.main import main
from llama_gguf.models.catalogue import CATALOGUE
from tests.support.file_server import FileServer
from tests.support.gguf_files import gguf
from tests.support.hub_server import REPO, HubServer

CONTENT = gguf()
SMALL = CATALOGUE["smollm2"]


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(CONTENT) as running:
        yield running


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def pull(tmp_path: Path, *arguments: str) -> int:
    return main(["pull", *arguments], {"DATA_DIR": str(tmp_path)})


def test_a_fetched_model_is_shown_with_the_command_that_serves_it(
    tmp_path: Path, models: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(tmp_path, server.url()) == 0

    output = capsys.readouterr()
    assert output.out == (
        f"{models / 'm.gguf'} (0.0 MB): fetched and checked.\nServe it: llama-gguf serve m.gguf\n"
    )
    assert "m.gguf  100 % of 0.0 MB" in output.err


def test_a_folder_given_as_a_flag_is_part_of_the_suggested_command(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "else where")

    assert pull(tmp_path, server.url(), "--models-dir", folder) == 0

    assert f"serve m.gguf --models-dir '{folder}'\n" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["--config", "--env-file"])
def test_a_file_that_names_the_folder_is_part_of_the_suggested_command(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "file"
    value = f"'{tmp_path}'" if kind == "--config" else str(tmp_path)
    path.write_text(f"DATA_DIR={value}\n")

    assert main(["pull", server.url(), kind, str(path)], {}) == 0

    flag = {"--config": "--config-file"}.get(kind, kind)
    assert f"serve m.gguf {flag} {path}\n" in capsys.readouterr().out


def test_a_projector_is_offered_with_the_commands_that_use_it(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with HubServer({"m.gguf": CONTENT, "mmproj-F16.gguf": CONTENT}) as hub:
        environ = {"DATA_DIR": str(tmp_path), "HF_ENDPOINT": hub.endpoint}

        assert main(["pull", REPO], environ) == 0
        output = capsys.readouterr().out
        assert f"\n  llama-gguf pull hf:{REPO}/mmproj-F16.gguf\n" in output
        assert f"--extra-args '--mmproj {models / 'mmproj-F16.gguf'}'\n" in output

        assert main(["pull", REPO, "--json", "--quiet", "--force"], environ) == 0
        fields = json.loads(capsys.readouterr().out)
        assert fields["projector"] == f"hf:{REPO}/mmproj-F16.gguf"


def test_quiet_prints_only_the_path(
    tmp_path: Path, models: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(tmp_path, server.url(), "--quiet") == 0

    assert capsys.readouterr() == (f"{models / 'm.gguf'}\n", "")


def test_json_has_path_bytes_and_verification(
    tmp_path: Path, models: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()

    arguments = ("--name", "other.gguf", "--sha256", digest, "--json", "--quiet")
    assert pull(tmp_path, server.url("/x"), *arguments) == 0

    assert json.loads(capsys.readouterr().out) == {
        "path": str(models / "other.gguf"),
        "bytes": len(CONTENT),
        "fetched": True,
        "sha256": digest,
    }


def test_a_file_that_is_no_model_is_fetched_and_named(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    projector = gguf({"general.type": "mmproj", "general.architecture": "clip"})
    with FileServer(projector) as server:
        assert pull(tmp_path, server.url()) == 0

    path = models / "m.gguf"
    assert capsys.readouterr().out == (
        f"{path} (0.0 MB): fetched and checked.\n{path} is a multimodal projector, a part of a "
        "model.\nServe the model that it belongs to, with "
        f"EXTRA_ARGS='--mmproj {path}'.\n"
    )


def test_a_model_that_is_present_is_reported_as_such(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (models / SMALL.file).touch()
    os.truncate(models / SMALL.file, SMALL.file_bytes)

    assert pull(tmp_path, "smollm2") == 0

    output = capsys.readouterr()
    assert "already present" in output.out
    assert "Serve it: llama-gguf serve smollm2\n" in output.out
    assert output.err == ""


def test_the_list_shows_known_and_present_models(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(tmp_path, "--list") == 0
    before = capsys.readouterr().out
    (models / SMALL.file).touch()
    os.truncate(models / SMALL.file, SMALL.file_bytes)
    assert pull(tmp_path, "--list") == 0
    after = capsys.readouterr().out

    assert before.splitlines()[1].split()[0] == "smollm2"
    assert "98.4 MB" in before
    assert "Apache-2.0" in before
    assert before.split()[-1] == "no"
    assert after.split()[-1] == "yes"


def test_the_list_can_be_printed_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pull(tmp_path, "--list", "--json") == 0

    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "smollm2",
        "file": SMALL.file,
        "bytes": SMALL.file_bytes,
        "licence": "Apache-2.0",
    }


def test_the_default_model_is_the_one_that_would_be_served(
    tmp_path: Path, models: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "--quiet"], {"DATA_DIR": str(tmp_path), "MODEL_NAME": server.url()}) == 0

    assert capsys.readouterr().out == f"{models / 'm.gguf'}\n"


def test_progress_can_be_read_by_a_program(tmp_path: Path, server: FileServer) -> None:
    ours, theirs = os.pipe()

    assert pull(tmp_path, server.url(), "--quiet", "--progress-fd", str(theirs)) == 0

    os.close(theirs)
    with open(ours, encoding="ascii") as lines:
        assert lines.read().splitlines() == [f"0 {len(CONTENT)}", f"{len(CONTENT)} {len(CONTENT)}"]


def test_no_model_to_fetch_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull(tmp_path) == 2

    assert "llama-gguf pull smollm2" in capsys.readouterr().err


def test_an_unknown_name_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pull(tmp_path, "smolm2") == 2

    assert "smolm2 is not one of the known names (smollm2)" in capsys.readouterr().err


def test_a_failed_download_exits_with_1(
    tmp_path: Path, server: FileServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.behaviour.status = 404

    assert pull(tmp_path, server.url()) == 1

    assert "does not exist (status 404)" in capsys.readouterr().err
