from __future__ import annotations

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.urls import check_url, shown


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h.example/a/m.gguf", "https://h.example/a/m.gguf"),
        ("https://me:s3cret@h.example:8443/m.gguf?sig=s3cret#x", "https://h.example:8443/m.gguf"),
        ("https://h.example?sig=s3cret", "https://h.example"),
        ("https://a@b:s3cret@h.example/@m.gguf", "https://h.example/@m.gguf"),
        ("smollm2", "smollm2"),
    ],
)
def test_the_shown_url_contains_no_secrets(url: str, text: str) -> None:
    assert shown(url) == text


@pytest.mark.parametrize(
    "url", ["https://", "http:///m.gguf", "https://h:99999/m.gguf", "https://[::1/m.gguf", "x"]
)
def test_a_url_that_cannot_be_requested_is_rejected(url: str) -> None:
    with pytest.raises(UserError) as caught:
        check_url(url)

    assert caught.value.exit_status == 2
