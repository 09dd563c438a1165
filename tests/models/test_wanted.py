from __future__ import annotations

from pathlib import Path

import pytest

from llama_gguf.models.wanted import find, is_fetchable
from tests.support.gguf_files import gguf


@pytest.mark.parametrize("wanted", ["smollm2", "hf:o/n:Q4_0", "https://h.invalid/m.gguf"])
def test_a_name_that_pull_accepts_is_not_found_before_the_download(
    tmp_path: Path, wanted: str
) -> None:
    assert is_fetchable(wanted)
    assert find(wanted, str(tmp_path)) is None


@pytest.mark.parametrize("name", ["", "m.gguf", "./hf:x.gguf", "hfx", "https.gguf"])
def test_a_file_name_is_not_accepted_by_pull(name: str) -> None:
    assert not is_fetchable(name)


def test_the_file_of_a_url_is_found(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf())

    assert find("https://h.invalid/x/m.gguf?sig=1", str(tmp_path)) == str(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("wanted", "is_name"),
    [
        ("smollm2", True),
        ("hf:o/n", True),
        ("hf.co/o/n", True),
        ("https://huggingface.co/o/n", True),
        ("o/n:Q4_K_M", True),
        ("o/n", False),
        ("models/m.gguf", False),
        ("/data/models/m.gguf", False),
        ("m.gguf", False),
    ],
)
def test_serve_fetches_what_cannot_be_a_path(wanted: str, is_name: bool) -> None:
    assert is_fetchable(wanted) == is_name
