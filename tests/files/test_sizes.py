from __future__ import annotations

from llama_gguf.files.sizes import size_text


def test_a_size_is_in_megabytes_and_from_one_gigabyte_on_in_gigabytes() -> None:
    assert size_text(98_400_000) == "98.4 MB"
    assert size_text(999_900_000) == "999.9 MB"
    assert size_text(1_000_000_000) == "1.0 GB"
