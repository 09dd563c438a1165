from __future__ import annotations

import pytest

from llama_gguf.files.instance_file import path_of


@pytest.mark.parametrize(
    ("instance", "name"),
    [
        ("host-1.example", "host-1.example.json"),
        ("../../etc/passwd", "_.._etc_passwd.json"),
        ("...", "gateway.json"),
        ("", "gateway.json"),
        ("a b/ü", "a_b__.json"),
    ],
)
def test_instances_that_share_a_folder_have_separate_files(instance: str, name: str) -> None:
    assert path_of("/data", "usage", instance) == f"/data/usage/{name}"
