from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.digests import compare_digest, sha256


@given(st.binary(max_size=300))
def test_digests_are_those_of_hashlib(data: bytes) -> None:
    assert sha256(data).digest() == hashlib.sha256(data).digest()
    assert sha256(data).hexdigest() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("other", [b"secre", b"Secret", b"secret!", b""])
def test_only_equal_secrets_are_equal(other: bytes) -> None:
    assert compare_digest(b"secret", b"secret")
    assert not compare_digest(b"secret", other)
