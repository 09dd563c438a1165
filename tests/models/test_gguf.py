from __future__ import annotations

import io
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.models import gguf as gguf_module
from llama_gguf.models.cache import Cache, Layer
from llama_gguf.models.gguf import ModelFacts, check_start, looks_like, read_facts, read_kind
from llama_gguf.models.gguf_cursor import MAX_HEADER_BYTES, GgufError
from llama_gguf.models.gguf_tables import FILE_TYPES, TENSOR_TYPES
from llama_gguf.models.kinds import ADAPTER, PROJECTOR, Kind
from tests.support.gguf_files import (
    ARRAY,
    METADATA,
    STRING,
    U8,
    U32,
    Tensor,
    Typed,
    gguf,
    header,
    text,
)


def facts_of(raw: bytes, file_bytes: int | None = None) -> ModelFacts:
    return read_facts(io.BytesIO(raw).read, len(raw) if file_bytes is None else file_bytes)


def mistake_of(raw: bytes, file_bytes: int | None = None) -> str:
    with pytest.raises(GgufError) as caught:
        facts_of(raw, file_bytes)
    return str(caught.value)


def with_value(raw_value: bytes) -> bytes:
    """A file without tensors and with one metadata value, *raw_value*, which includes its type."""
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + text("some.key") + raw_value


# Facts in a header ---------------------------------------------------------------------------


def test_a_header_contains_the_facts_about_the_model() -> None:
    raw = gguf()

    assert facts_of(raw) == ModelFacts(
        name="Test Model",
        architecture="llama",
        size_label="1K",
        parameters=16 * 8 + 16,
        quantization="F32",
        context_length=128,
        layers=2,
        embedding_length=16,
        head_count=4,
        head_count_kv=2,
        key_length=4,
        value_length=4,
        cache=Cache((Layer(key=8, value=8),) * 2, is_exact=True),
        widest=0,
        tensors=(
            gguf_module.Tensor("blk.0.weight", 16 * 8 * 4),
            gguf_module.Tensor("blk.1.weight", 16 * 4),
        ),
        kind=None,
        vocabulary=3,
        has_chat_template=True,
        split_count=1,
        split_no=0,
        file_bytes=len(raw),
        needed_bytes=len(raw),
    )


def test_version_2_is_read_like_version_3() -> None:
    assert facts_of(gguf(version=2)) == facts_of(gguf(version=3))


def test_a_missing_value_is_unknown() -> None:
    facts = facts_of(gguf({}, []))

    assert (facts.name, facts.architecture, facts.quantization) == ("", "", "unknown")
    assert facts.parameters is None
    assert facts.context_length is None
    assert not facts.has_chat_template


def test_a_value_that_differs_per_layer_is_unknown() -> None:
    per_layer = METADATA | {"llama.attention.head_count_kv": Typed(ARRAY, (U32, [2, 4]))}

    assert facts_of(gguf(per_layer)).head_count_kv is None


def test_without_a_file_type_the_quantization_is_that_of_most_parameters() -> None:
    metadata = {k: v for k, v in METADATA.items() if k != "general.file_type"}
    tensors = [Tensor((64,)), Tensor((256, 4), kind=12, size=4 * 144)]

    assert facts_of(gguf(metadata, tensors)).quantization == "Q4_K"


@pytest.mark.parametrize(
    ("number", "name"), [(15, "Q4_K_M"), (15 | 1024, "Q4_K_M"), (999, "F32"), (True, "F32")]
)
def test_file_types_have_the_names_that_llama_cpp_uses(number: int, name: str) -> None:
    assert facts_of(gguf(METADATA | {"general.file_type": number})).quantization == name


def test_a_name_has_no_escape_sequences_and_a_bounded_length() -> None:
    name = "evil\x1b[2J\nname" + "x" * 5000

    shown = facts_of(gguf(METADATA | {"general.name": name})).name

    assert shown.startswith("evil[2Jnamexxx")
    assert len(shown) <= 1024


def test_a_vocabulary_larger_than_a_chunk_is_skipped() -> None:
    tokens = [f"token number {i}" + "y" * (i % 40) for i in range(60_000)]
    raw = gguf(METADATA | {"tokenizer.ggml.tokens": tokens})
    assert len(raw) > 2 << 20

    facts = facts_of(raw)

    assert facts.vocabulary == 60_000
    assert facts.needed_bytes == len(raw)


def test_a_string_larger_than_a_chunk_is_skipped() -> None:
    raw = gguf(METADATA | {"tokenizer.ggml.tokens": ["z" * (3 << 20), "a"]})

    assert facts_of(raw).vocabulary == 2


def test_nothing_is_read_beyond_the_header() -> None:
    raw = gguf(METADATA, [Tensor((1 << 20,))])
    file = io.BytesIO(raw)

    read_facts(file.read, len(raw))

    assert file.tell() < len(raw) / 2


# Completeness --------------------------------------------------------------------------------


def test_a_header_truncated_at_any_byte_is_rejected_as_such() -> None:
    raw = gguf(METADATA | {"general.alignment": 32})
    end = len(header(METADATA | {"general.alignment": 32}))

    for length in range(end):
        message = mistake_of(raw[:length])
        assert "cut off" in message or "empty" in message, (length, message)


def test_data_truncated_at_any_byte_is_detected() -> None:
    raw = gguf()

    for length in range(len(header()), len(raw)):
        message = mistake_of(raw[:length])
        assert message == f"cut off: it has {length} bytes, but needs at least {len(raw)}"


def test_the_needed_size_follows_the_alignment_of_the_file() -> None:
    raw = gguf(METADATA | {"general.alignment": 4096}, alignment=4096)

    assert facts_of(raw).needed_bytes == len(raw)
    assert "needs at least" in mistake_of(raw[:-1])


def test_a_tensor_of_an_unknown_type_has_no_size() -> None:
    raw = gguf(METADATA, [Tensor((16,)), Tensor((1 << 40,), kind=250, size=64)])

    facts = facts_of(raw)

    assert facts.needed_bytes == len(raw) - 64


def test_a_file_that_shrinks_while_it_is_read_is_rejected() -> None:
    raw = gguf()

    assert "shrank" in mistake_of(raw[:100], file_bytes=len(raw))


# Other formats -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs pointer"),
        (b"\n <!DOCTYPE HTML>\n<html>", "HTML page"),
        (b"<html><body>404</body></html>", "HTML page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML"),
        (b"PK\x03\x04\x14\x00\x00\x00", "zip archive"),
        (struct.pack("<Q", 1234) + b'{"__metadata__":{}}', "safetensors"),
        (b'{"error": "not found"}', "JSON"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\x28\xb5\x2f\xfd\x04", "zstd"),
        (b"\xfd7zXZ\x00", "xz"),
        (b"tjgg\x03\x00\x00\x00", "before GGUF"),
        (bytes(4096), "only zeros"),
    ],
)
def test_a_file_in_a_common_other_format_is_named(raw: bytes, word: str) -> None:
    message = mistake_of(raw)

    assert message.startswith("not a GGUF file; it looks like ")
    assert word in message


def test_an_unknown_format_is_not_gguf() -> None:
    assert mistake_of(b"MZ\x90\x00 and so on") == "not a GGUF file"


def test_an_empty_file_is_reported_as_empty() -> None:
    assert mistake_of(b"") == "empty"


def test_the_start_of_a_model_is_accepted() -> None:
    check_start(gguf()[:64])
    assert looks_like(gguf()[:64]) == ""


@pytest.mark.parametrize(
    ("version", "word"),
    [(b"\0\0\0\x03", "big-endian"), (b"\x01\0\0\0", "version 1"), (b"\x04\0\0\0", "version 4")],
)
def test_unsupported_kinds_of_gguf_are_rejected_with_a_specific_message(
    version: bytes, word: str
) -> None:
    assert word in mistake_of(b"GGUF" + version + bytes(64))


# Hostile files -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (struct.pack("<4sIQQ", b"GGUF", 3, 1 << 60, 0), "tensors"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 0, 1 << 60), "metadata keys"),
        (with_value(struct.pack("<I", 99)), "unknown type 99"),
        (with_value(struct.pack("<IIQ", ARRAY, ARRAY, 1)), "unknown type 9"),
        (with_value(struct.pack("<IIQ", ARRAY, STRING, 1 << 60)), "cut off"),
        (with_value(struct.pack("<IIQ", ARRAY, U8, 1 << 60)), "cut off"),
        (with_value(struct.pack("<IQ", STRING, 1 << 63)), "cut off"),
        (gguf(METADATA | {"general.alignment": 0}), "alignment"),
        (gguf(METADATA | {"general.alignment": 48}), "alignment"),
        (gguf(METADATA, [Tensor((1, 1, 1, 1, 1))]), "5 dimensions"),
        (gguf(METADATA, [Tensor((1 << 62, 1 << 62), size=4)]), "needs at least"),
    ],
)
def test_an_absurd_length_is_rejected_before_anything_is_read_for_it(raw: bytes, word: str) -> None:
    assert word in mistake_of(raw)


def test_an_endless_header_is_rejected() -> None:
    raw = with_value(struct.pack("<IIQ", ARRAY, U8, MAX_HEADER_BYTES)) + bytes(64)

    assert "header would be" in mistake_of(raw, file_bytes=1 << 40)


@given(at=st.integers(4, len(header()) - 1), junk=st.binary(min_size=1, max_size=16))
def test_junk_in_a_header_gives_facts_or_a_gguf_error(at: int, junk: bytes) -> None:
    raw = gguf()
    with suppress(GgufError):
        facts_of(raw[:at] + junk + raw[at + len(junk) :])


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_give_facts_or_a_gguf_error(junk: bytes) -> None:
    with suppress(GgufError):
        facts_of(b"GGUF\x03\0\0\0" + junk)


# The tables ----------------------------------------------------------------------------------


def test_every_block_has_elements_and_bytes() -> None:
    for kind in TENSOR_TYPES.values():
        assert kind.elements in (1, 32, 64, 128, 256)
        assert 1 <= 8 * kind.size / kind.elements <= 64


def test_no_name_occurs_twice() -> None:
    assert len({k.name for k in TENSOR_TYPES.values()}) == len(TENSOR_TYPES)
    assert len(set(FILE_TYPES.values())) == len(FILE_TYPES)


def test_a_short_array_of_integers_or_flags_is_kept() -> None:
    heads = Typed(ARRAY, (U32, [2, 0]))

    facts = facts_of(gguf(METADATA | {"llama.attention.head_count_kv": heads}))

    assert facts.head_count_kv is None
    assert facts.cache == Cache((Layer(key=8, value=8), Layer()), is_exact=True)


# What llama.cpp rejects --------------------------------------------------------------------------


def test_a_key_that_occurs_twice_is_rejected() -> None:
    raw = struct.pack("<4sIQQ", b"GGUF", 3, 0, 2) + 2 * (text("a.key") + struct.pack("<II", 4, 1))

    assert mistake_of(raw) == "damaged: its header has the key a.key twice"


def test_a_tensor_that_occurs_twice_is_rejected() -> None:
    raw = gguf(METADATA, [Tensor((8,), name="same"), Tensor((8,), name="same")])

    assert mistake_of(raw) == "damaged: its header has the tensor same twice"


def test_data_in_another_order_than_the_header_is_rejected() -> None:
    raw = gguf(METADATA, [Tensor((8,), name="a", offset=32), Tensor((8,), name="b", offset=0)])

    assert mistake_of(raw) == "damaged: the data of the tensor a is at 32, but should be at 0"


def test_the_name_of_a_tensor_in_a_message_has_no_escape_sequences() -> None:
    raw = gguf(METADATA, 2 * [Tensor((8,), name="evil\x1b[2J" + "x" * 500)])

    assert mistake_of(raw) == f"damaged: its header has the tensor evil[2J{'x' * 56} twice"


def test_behind_a_tensor_of_unknown_size_the_order_is_not_checked() -> None:
    strange = Tensor((16,), kind=99, size=320, name="strange")

    assert facts_of(gguf(METADATA, [strange, Tensor((8,), name="next")])).tensors[1].bytes == 32


# What a file is ----------------------------------------------------------------------------------


def kind_by_first_keys(raw: bytes) -> Kind | None:
    return read_kind(io.BytesIO(raw).read, len(raw))


def test_the_first_keys_show_what_a_file_is() -> None:
    adapter = gguf({"general.type": "adapter", **METADATA})

    assert kind_by_first_keys(adapter) is ADAPTER
    assert facts_of(adapter).kind is ADAPTER
    assert kind_by_first_keys(gguf()) is None


def test_a_model_whose_header_begins_with_other_keys_is_one() -> None:
    assert kind_by_first_keys(gguf({"tokenizer.ggml.model": "llama", **METADATA})) is None


def test_a_kind_is_read_without_the_rest_of_the_header() -> None:
    raw = gguf({"general.type": "mmproj", **METADATA})

    assert kind_by_first_keys(raw[: raw.index(b"llama.context_length") + 30]) is PROJECTOR
