"""Descriptions of states, and for which engine a state is valid."""

from __future__ import annotations

import struct

import pytest

from llama_gguf.prompt_cache.entry import Entry, options_of, token_count, tokens_in, validity_of

ENTRY = Entry("ab12", "v", tokens=277, size=4096, used_at=12.5, owners=("me:1",), seconds=1.5)


def test_a_description_is_read_as_it_was_written() -> None:
    assert Entry.from_json(ENTRY.to_json()) == ENTRY


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"name": 1}', b"\xff", ENTRY.to_json()[:-9]])
def test_anything_else_is_no_description(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        Entry.from_json(data)


def test_model_build_and_options_decide_on_validity() -> None:
    base = validity_of("digest", "b1", ["--ctx-size", "8192"])

    assert base == validity_of("digest", "b1", ["--ctx-size", "8192"])
    assert base != validity_of("other", "b1", ["--ctx-size", "8192"])
    assert base != validity_of("digest", "b2", ["--ctx-size", "8192"])
    assert base != validity_of("digest", "b1", ["--ctx-size", "4096"])


def test_only_flags_that_cannot_change_a_state_are_left_out() -> None:
    words = ["--model", "/m.gguf", "--alias", "m", "--ctx-size", "8192", "--threads", "2"]
    words += ["--metrics", "-ctk", "q8_0", "--device", "CUDA1"]
    environ = {"PATH": "/bin", "LLAMA_ARG_CACHE_TYPE_V": "q8_0", "LLAMA_API_KEY": "secret"}

    assert options_of(words, environ) == [
        *("--ctx-size", "8192", "--metrics", "-ctk", "q8_0"),
        "LLAMA_ARG_CACHE_TYPE_V=q8_0",
    ]


def test_a_state_begins_with_its_tokens() -> None:
    header = struct.pack("<III", 0x67677371, 2, 3)

    assert token_count(header) == 3
    assert tokens_in(struct.pack("<3i", 1, 2, 30000)) == (1, 2, 30000)


@pytest.mark.parametrize("header", [b"", b"ggsq", struct.pack("<III", 7, 2, 3)])
def test_other_files_are_no_states(header: bytes) -> None:
    assert token_count(header) is None
