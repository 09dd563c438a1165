"""Files that are rejected here, and what the real llama-server does with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.model_file import read_model
from tests.support import tiny_models
from tests.support.gguf_files import Tensor

pytestmark = pytest.mark.e2e

Metadata = dict[str, object]
Tensors = list[Tensor]


def unchanged(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    return metadata, tensors


def without_architecture(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    return {k: v for k, v in metadata.items() if k != "general.architecture"}, tensors


def with_a_number_as_architecture(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    return metadata | {"general.architecture": 7}, tensors


def without_tensors(metadata: Metadata, _: Tensors) -> tuple[Metadata, Tensors]:
    return metadata, []


def with_a_tensor_twice(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    return metadata, [*tensors, tensors[0]]


def with_swapped_offsets(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    first = dataclasses.replace(tensors[0], offset=64)
    return metadata, [first, *tensors[1:]]


def a_projector(metadata: Metadata, tensors: Tensors) -> tuple[Metadata, Tensors]:
    return metadata | {"general.architecture": "clip", "general.type": "mmproj"}, tensors


Change = Callable[[Metadata, Tensors], tuple[Metadata, Tensors]]


def write(path: Path, change: Change) -> None:
    metadata, shapes = tiny_models.content("llama")
    tensors = [Tensor(tuple(dims), name=name) for name, dims in shapes.items()]
    changed: tuple[Mapping[str, object], Tensors] = change(metadata, tensors)
    tiny_models.write_file(path, *changed)


def test_the_model_without_a_change_is_accepted_by_both(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", unchanged)

    assert read_model(str(tmp_path / "m.gguf")).facts.kind is None
    assert "projected to use" in tiny_models.report(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    "change",
    [
        without_architecture,
        with_a_number_as_architecture,
        without_tensors,
        with_a_tensor_twice,
        with_swapped_offsets,
        a_projector,
    ],
)
def test_what_is_rejected_here_is_rejected_by_the_engine(tmp_path: Path, change: Change) -> None:
    write(tmp_path / "m.gguf", change)

    with pytest.raises(UserError):
        read_model(str(tmp_path / "m.gguf"))

    assert "projected to use" not in tiny_models.report(tmp_path / "m.gguf")


def test_an_unknown_version_is_rejected_by_both(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", unchanged)
    with (tmp_path / "m.gguf").open("r+b") as file:
        file.seek(4)
        file.write(bytes(4))

    with pytest.raises(UserError, match="version 0"):
        read_model(str(tmp_path / "m.gguf"))
    assert "projected to use" not in tiny_models.report(tmp_path / "m.gguf")
