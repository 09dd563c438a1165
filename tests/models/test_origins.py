from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.hub_address import Address
from llama_gguf.models.origins import FOLDER, find, origin_of, remember
from tests.support.gguf_files import gguf, part

Q4 = Address("o/n", file="q/m-Q4_0.gguf")


def arrive(folder: Path, address: Address, content: bytes | None = None) -> None:
    name = address.file.rpartition("/")[2]
    (folder / name).write_bytes(gguf() if content is None else content)
    remember(str(folder), address)


def test_a_pulled_model_is_found_by_its_tag(tmp_path: Path) -> None:
    arrive(tmp_path, Q4)
    arrive(tmp_path, Address("o/n", file="m-Q8_0.gguf"))
    arrive(tmp_path, Address("o/other", file="x-Q4_0.gguf"))

    assert find(str(tmp_path), Address("o/n", tag="Q4_0")) == Q4
    assert find(str(tmp_path), Q4) == Q4
    assert find(str(tmp_path), Address("o/n", tag="Q5_0")) is None
    assert find(str(tmp_path), Address("o/n")) is None  # ambiguous


def test_a_repository_is_the_same_in_any_case_of_its_letters(tmp_path: Path) -> None:
    # As on a hub, which ignores their case.
    arrive(tmp_path, Q4)

    assert find(str(tmp_path), Address("O/N", tag="q4_0")) == Address("O/N", file=Q4.file)
    assert find(str(tmp_path), Address("O/N", file=Q4.file)) is not None


def test_an_incomplete_file_is_not_found(tmp_path: Path) -> None:
    arrive(tmp_path, Q4, gguf()[:-1])

    assert find(str(tmp_path), Q4) is None


def test_a_split_model_is_found_once_all_its_parts_are_there(tmp_path: Path) -> None:
    first = Address("o/n", file="m-00001-of-00002.gguf")
    arrive(tmp_path, first, part(1, 2))

    assert find(str(tmp_path), first) is None
    (tmp_path / "m-00002-of-00002.gguf").write_bytes(part(2, 2))
    assert find(str(tmp_path), first) == first


def test_a_file_of_unknown_origin_is_found_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "m-Q4_0.gguf").write_bytes(gguf())

    assert find(str(tmp_path), Q4) == Q4


def test_a_model_of_another_origin_is_not_found_by_its_name(tmp_path: Path) -> None:
    arrive(tmp_path, Address("someone/else", file="m-Q4_0.gguf"))

    with pytest.raises(UserError, match=r"already exists, and is hf:someone/else") as caught:
        find(str(tmp_path), Q4)

    assert "`llama-gguf pull hf:o/n/q/m-Q4_0.gguf --force`" in str(caught.value)


@pytest.mark.parametrize("text", ["", "nonsense", "hf:o/n/\udcff.gguf", "x" * 10_000])
def test_an_invalid_record_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "m.gguf").write_bytes(text.encode(errors="surrogateescape"))

    assert origin_of(str(tmp_path), "m.gguf") in {None, Address("o/n", file="\ufffd.gguf")}


def test_a_record_that_cannot_be_written_is_skipped(tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_bytes(b"")

    arrive(tmp_path, Q4)

    assert origin_of(str(tmp_path), "m-Q4_0.gguf") is None
    assert find(str(tmp_path), Q4) == Q4
