from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.part_file import PartFile, part_bytes


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "m.gguf"


def test_only_one_pull_at_a_time_writes_a_part(final: Path) -> None:
    with (
        PartFile(str(final)),
        pytest.raises(UserError, match=r"Another pull of m\.gguf is running"),
        PartFile(str(final)),
    ):
        pass


def test_a_part_with_a_tag_is_kept_and_found_again(final: Path) -> None:
    with PartFile(str(final)) as part:
        part.start_over('"tag"')
        part.write(b"abc")

    with PartFile(str(final)) as part:
        assert (part.size, part.etag) == (3, '"tag"')


def test_a_part_without_a_tag_is_deleted(final: Path) -> None:
    with PartFile(str(final)) as part:
        part.start_over("")
        part.write(b"abc")

    assert list(final.parent.iterdir()) == []


def test_starting_over_discards_the_bytes_and_the_tag(final: Path) -> None:
    with PartFile(str(final)) as part:
        part.start_over('"tag"')
        part.write(b"abcdef")
        part.start_over('"other"')
        part.write(b"xy")

        assert (part.size, part.etag) == (2, '"other"')

    assert final.with_name("m.gguf.part").read_bytes() == b"xy"


def test_a_finished_part_becomes_the_model_and_nothing_else_is_left(final: Path) -> None:
    with PartFile(str(final)) as part:
        part.start_over('"tag"')
        part.write(b"abc")
        part.finish()

    assert final.read_bytes() == b"abc"
    assert list(final.parent.iterdir()) == [final]


def test_a_full_disk_is_reported_as_such(final: Path) -> None:
    part = PartFile(str(final))
    final.with_name("m.gguf.part").symlink_to("/dev/full")

    with part, pytest.raises(UserError, match="No space left on device"):
        part.write(b"abc")


def test_the_size_of_an_existing_part_is_available(tmp_path: Path) -> None:
    final = str(tmp_path / "m.gguf")
    assert part_bytes(final) == 0

    with PartFile(final) as part:
        part.start_over('"one"')
        part.write(b"12345")

    assert part_bytes(final) == 5


def test_an_error_of_the_disk_names_the_file_and_not_the_source(final: Path) -> None:
    final.with_name("m.gguf.part.etag").mkdir()

    with pytest.raises(UserError, match=r"m\.gguf\.part cannot be written: Is a directory"):
        PartFile(str(final)).__enter__().start_over('"tag"')
