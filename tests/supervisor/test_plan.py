from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama_gguf.cli.terminal import download_meter
from llama_gguf.config.load import load
from llama_gguf.config.platform import resolve
from llama_gguf.config.schema import ModelSettings
from llama_gguf.errors import UserError
from llama_gguf.models.model_file import read_model
from llama_gguf.models.wanted import KNOWN_FILES
from llama_gguf.supervisor import plan
from tests.support.gguf_files import gguf, part


def settings(data: Path, **variables: str) -> ModelSettings:
    loaded = load({"DATA_DIR": str(data), **variables})
    return resolve(
        loaded.settings,
        environ={},
        is_dir=lambda path: False,
        is_writable=lambda path: True,
        host_name="host",
    ).model


def model_at(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# Whether a model must be fetched ------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hf:owner/name/file.gguf", "https://host.example/m.gguf", "HTTP://HOST/m.gguf"]
)
def test_a_hub_address_must_be_fetched(tmp_path: Path, name: str) -> None:
    assert plan.must_be_fetched(settings(tmp_path, MODEL_NAME=name))


def test_a_fetched_address_is_found_by_its_files_name(tmp_path: Path) -> None:
    wanted = settings(tmp_path, MODEL_NAME="hf:owner/name/q/m.gguf")
    path = model_at(tmp_path / "models" / "m.gguf", gguf())

    assert not plan.must_be_fetched(wanted)
    assert plan.find_model(wanted).path == str(path)


@pytest.mark.parametrize("name", ["hf:owner", "https://host.example/x"])
def test_an_invalid_address_is_reported_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError) as error:
        plan.must_be_fetched(settings(tmp_path, MODEL_NAME=name))

    assert error.value.exit_status == 2


@pytest.mark.parametrize("name", ["", "m.gguf", "m", "./hf:x.gguf", "hfx", "https.gguf"])
def test_a_file_is_not_fetched(tmp_path: Path, name: str) -> None:
    assert not plan.must_be_fetched(settings(tmp_path, MODEL_NAME=name))


def test_a_known_name_is_fetched_once(tmp_path: Path) -> None:
    wanted = settings(tmp_path, MODEL_NAME="smollm2")

    assert plan.must_be_fetched(wanted)
    model_at(tmp_path / "models" / KNOWN_FILES["smollm2"], b"")
    assert not plan.must_be_fetched(wanted)


def test_a_path_takes_precedence_over_a_name_and_is_never_fetched(tmp_path: Path) -> None:
    assert not plan.must_be_fetched(
        settings(tmp_path, MODEL_NAME="smollm2", MODEL_PATH="/somewhere/m.gguf")
    )


def test_a_fetched_file_is_checked_before_it_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = model_at(tmp_path / "models" / "m.gguf", gguf())
    pulled = []

    def pull(name: str, folder: str, **_: object) -> SimpleNamespace:
        pulled.append((name, folder))
        return SimpleNamespace(path=str(path))

    monkeypatch.setattr("llama_gguf.models.pull.pull", pull)

    wanted = settings(tmp_path, MODEL_NAME="smollm2")
    model = plan.fetch_model(wanted, {}, download_meter)

    assert model.path == str(path)
    assert pulled == [("smollm2", f"{tmp_path}/models")]


# Models that are present --------------------------------------------------------------------------


def test_a_model_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    path = str(model_at(tmp_path / "models" / "m.gguf", gguf()))

    assert plan.find_model(settings(tmp_path, MODEL_NAME="m")).path == path
    assert plan.find_model(settings(tmp_path, MODEL_PATH=path)).path == path


def test_without_a_name_there_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No model is set") as error:
        plan.find_model(settings(tmp_path))

    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    ("name", "alias"),
    [("Qwen3-8B-Q4_K_M.gguf", "Qwen3-8B-Q4_K_M"), ("v1.5.gguf", "v1.5"), ("noending", "noending")],
)
def test_clients_see_the_files_name_without_its_extension(
    tmp_path: Path, name: str, alias: str
) -> None:
    model = read_model(str(model_at(tmp_path / name, gguf())))

    assert plan.alias_of(model) == alias


def test_a_name_that_is_no_text_becomes_one(tmp_path: Path) -> None:
    path = model_at(tmp_path / os.fsdecode(b"caf\xe9.gguf"), gguf())

    assert plan.alias_of(read_model(str(path))) == "caf\ufffd"


def test_clients_do_not_see_a_part_number(tmp_path: Path) -> None:
    for number in (1, 2):
        path = model_at(tmp_path / f"Big-{number:05}-of-00002.gguf", part(number, 2))

    assert plan.alias_of(read_model(str(path))) == "Big"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("o/n", "There is no model o/n. Did you mean hf:o/n?\n"),
        ("o/n/m.gguf", "Did you mean hf:o/n/m.gguf?"),
        ("models/m.gguf", "There is no model models/m.gguf. Check the spelling"),
        ("m", "There is no model m. Check the spelling"),
    ],
)
def test_a_path_that_may_be_a_repository_brings_a_question(
    tmp_path: Path, name: str, hint: str
) -> None:
    settings = ModelSettings(model_name=name, models_dir=str(tmp_path))

    with pytest.raises(UserError) as caught:
        plan.find_model(settings)

    assert hint in str(caught.value)


def test_a_model_is_described_in_one_line(tmp_path: Path) -> None:
    path = model_at(tmp_path / "m.gguf", gguf())

    text = plan.model_text(read_model(str(path)))

    assert text == f"{path} (llama, 0M parameters, F32, trained context 128, 0.0 MB)"


# Facts --------------------------------------------------------------------------------------------


def test_facts_come_from_the_file_and_contain_no_path(tmp_path: Path) -> None:
    model = read_model(str(model_at(tmp_path / "m.gguf", gguf())))
    facts = plan.facts_of(model, context=2048, engine_version="b1")

    assert facts["size_bytes"] == model.bytes
    assert facts["architecture"] == model.facts.architecture
    assert (facts["context"], facts["engine_version"]) == (2048, "b1")
    assert None not in facts.values()
    assert str(tmp_path) not in str(facts)
