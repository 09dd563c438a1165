from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llama_gguf.cli.check_result import Level
from llama_gguf.cli.extra_files import companions, results
from llama_gguf.cli.fit import Companion
from llama_gguf.models.engine_options import Options
from tests.models.test_memory import SMOLLM2
from tests.support.gguf_files import METADATA, gguf


def mistakes(words: str) -> list[str]:
    found = list(results(words.split()))
    assert all((r.subject, r.level) == ("EXTRA_ARGS", Level.WRONG) for r in found)
    return [r.text for r in found]


def test_a_file_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "there.jinja").touch()

    assert mistakes(f"--chat-template-file {tmp_path}/there.jinja") == []
    assert mistakes(f"--lora {tmp_path}/a,{tmp_path}/b -c 512") == [
        f"--lora {tmp_path}/a: there is no such file",
        f"--lora {tmp_path}/b: there is no such file",
    ]


@pytest.mark.parametrize(
    ("flag", "metadata", "mistake"),
    [
        ("--lora", {"general.type": "adapter"} | METADATA, None),
        ("--lora", METADATA, "the file is a model, but must be a LoRA adapter"),
        ("--mmproj", {"general.architecture": "clip"}, None),
        ("--mmproj", METADATA, "the file is a model, but must be a multimodal projector"),
        ("--control-vector", {"general.architecture": "controlvector"}, None),
        ("--model-draft", METADATA, None),
        ("-md", {"general.architecture": "eagle3"}, None),
        (
            "-md",
            {"general.architecture": "clip"},
            "the file is a multimodal projector, a part of a model, but must be a draft model",
        ),
        (
            "--lora",
            {"general.architecture": "clip"},
            "the file is a multimodal projector, a part of a model, but must be a LoRA adapter",
        ),
    ],
)
def test_a_file_must_be_what_its_flag_needs(
    tmp_path: Path, flag: str, metadata: dict[str, object], mistake: str | None
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(metadata))

    found = mistakes(f"{flag} {path}")

    assert len(found) == (mistake is not None)
    assert all(mistake in text for text in found if mistake)


def test_a_damaged_file_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"<html>")

    assert mistakes(f"--lora {tmp_path}/x") == [
        f"--lora {tmp_path}/x: is not a GGUF file; it looks like an HTML page, such as a web site "
        "returns instead of the file."
    ]


def chosen(**more: Any) -> Options:
    return Options(**{"ctx": 16384, "parallel": 1, "ngl": 99} | more)


def test_the_sizes_of_companions_are_those_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(bytes(100))
    (tmp_path / "l").write_bytes(bytes(30))

    assert list(
        companions(
            chosen(
                projector=f"{tmp_path}/p", adapters=(f"{tmp_path}/l", f"{tmp_path}/l", "/missing")
            )
        )
    ) == [Companion("projector", 100, on_gpu=True), Companion("adapters", 60, on_gpu=True)]


def test_a_draft_model_has_its_own_cache(tmp_path: Path) -> None:
    raw = gguf(SMOLLM2)
    (tmp_path / "d").write_bytes(raw)

    (draft,) = companions(chosen(draft=f"{tmp_path}/d", draft_ngl=0))

    assert not draft.on_gpu
    assert len(raw) + (360 << 20) < draft.bytes < len(raw) + (400 << 20)
    assert not list(companions(chosen(draft="/missing")))
