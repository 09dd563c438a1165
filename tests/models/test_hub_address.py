from __future__ import annotations

import pytest

from llama_gguf.errors import UserError
from llama_gguf.models.hub_address import (
    Address,
    canonical,
    matching,
    models_in,
    parse,
    pick,
    projector_in,
    suggestion,
)

FILES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-UD-Q4_K_XL.gguf",
    "m-Q4_K.gguf",
    "m.Q8_0.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "BF16/m-BF16-00001-of-00002.gguf",
    "mmproj-BF16.gguf",
    "imatrix_unsloth.gguf",
]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf:owner/name/m.gguf", Address("owner/name", file="m.gguf")),
        ("hf:o-1/n_2.3/deep/down/m.gguf", Address("o-1/n_2.3", file="deep/down/m.gguf")),
        ("hf:o/n/q/m-00002-of-00003.gguf", Address("o/n", file="q/m-00001-of-00003.gguf")),
        ("hf:owner/name:Q4_K_M", Address("owner/name", tag="Q4_K_M")),
        ("hf:owner/name", Address("owner/name")),
    ],
)
def test_an_address_is_a_repository_and_a_file_or_a_tag(text: str, address: Address) -> None:
    assert parse(text) == address
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:owner", "hf:owner/name/m.bin", "hf:o/n/../m.gguf", "hf:/n/m.gguf"),
        *("hf:o/n:", "hf:o/n:a/b", "hf:o/n:Q4 K", "hf:o/n/:Q4"),
    ],
)
def test_an_invalid_address_is_rejected_with_the_expected_form(text: str) -> None:
    with pytest.raises(UserError, match="hf:OWNER/NAME:TAG") as caught:
        parse(text)

    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://o/n", "hf:o/n"),
        ("HF:O/n:Q4_K_M", "hf:O/n:Q4_K_M"),
        ("huggingface://o/n", "hf:o/n"),
        ("o/n", "hf:o/n"),
        ("o/n:Q4_K_M", "hf:o/n:Q4_K_M"),
        ("o/n/q/m.gguf", "hf:o/n/q/m.gguf"),
        ("hf.co/o/n:Q4_K_M", "hf:o/n:Q4_K_M"),
        ("https://huggingface.co/o/n", "hf:o/n"),
        ("https://huggingface.co/o/n/", "hf:o/n"),
        ("https://huggingface.co/o/n/tree/main", "hf:o/n"),
        ("https://huggingface.co/o/n/blob/main/q/m.gguf?download=true", "hf:o/n/q/m.gguf"),
    ],
)
def test_an_address_in_another_form_is_understood_for_a_question(text: str, address: str) -> None:
    assert suggestion(text) == f". Did you mean {address}?"
    parse(address)


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("hf.co/o/n", "hf:o/n"),
        ("hf.co/o/n:Q4_K_M", "hf:o/n:Q4_K_M"),
        ("huggingface.co/o/n/", "hf:o/n"),
        ("https://huggingface.co/o/n", "hf:o/n"),
        ("https://www.huggingface.co/o/n?library=gguf", "hf:o/n"),
        ("https://huggingface.co/o/n/tree/main", "hf:o/n"),
        ("hf://o/n/m.gguf", "hf:o/n/m.gguf"),
        ("o/n:Q4_K_M", "hf:o/n:Q4_K_M"),
        ("https://huggingface.co/o/n/blob/main/q/m.gguf", "hf:o/n/q/m.gguf"),
        ("hf.co/o/n/raw/main/m.gguf", "hf:o/n/m.gguf"),
        ("hf.co/o/n/resolve/main/m.gguf", "hf:o/n/m.gguf"),
        (
            "https://hf.co/o/n/blob/v2/m.gguf",
            "https://huggingface.co/o/n/resolve/v2/m.gguf",
        ),
    ],
)
def test_another_form_of_an_address_is_understood(text: str, means: str) -> None:
    assert canonical(text) == means
    assert canonical(means) == means


@pytest.mark.parametrize(
    "text",
    [
        *("smollm2", "m.gguf", "models/m.gguf", "./m", "/data/m.gguf", "a/b/c.gguf", "o/n"),
        *("hf:o/n", "hf:o/n:Q4", "hf:nothing", "https://h.example/o/n/blob/main/m.gguf"),
        "https://huggingface.co/o/n/resolve/main/m.gguf?download=true",
        *("https://huggingface.co/o/n/tree/v2", "https://huggingface.co/o/../m.gguf"),
    ],
)
def test_what_is_no_other_form_of_an_address_stays(text: str) -> None:
    assert canonical(text) == text


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("o/n", "hf:o/n"),
        ("o/n/q/m.gguf", "hf:o/n/q/m.gguf"),
        ("models/m.gguf", "models/m.gguf"),
        ("m.gguf", "m.gguf"),
    ],
)
def test_where_paths_mean_nothing_a_repository_needs_no_prefix(text: str, means: str) -> None:
    assert canonical(text, is_bare=True) == means


@pytest.mark.parametrize(
    ("files", "projector"),
    [
        (["m.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        (["m.gguf", "mmproj-m-bf16.gguf", "mmproj-Q8_0.gguf"], "mmproj-m-bf16.gguf"),
        (["m.gguf", "q/m.mmproj-q8_0.gguf"], "q/m.mmproj-q8_0.gguf"),
        (["m.gguf", "mmproj.json"], ""),
        ([], ""),
    ],
)
def test_the_projector_of_16_bits_is_preferred(files: list[str], projector: str) -> None:
    assert projector_in(files) == projector


@pytest.mark.parametrize(
    "text",
    [
        *("models/m.gguf", "m.gguf", "nothing", "o/../m.gguf", "https://h.example/o/n"),
        *("https://huggingface.co", "/data/models", "", "hf:o/n/q/m.bin"),
    ],
)
def test_what_resembles_no_address_brings_no_question(text: str) -> None:
    assert not suggestion(text)


def test_only_files_that_can_be_served_are_models() -> None:
    assert models_in(FILES) == [
        "BF16/m-BF16-00001-of-00002.gguf",
        "m-Q4_K.gguf",
        "m-Q4_K_M.gguf",
        "m-UD-Q4_K_XL.gguf",
        "m.Q8_0.gguf",
    ]


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("Q4_K_M", "m-Q4_K_M.gguf"),
        ("q4_k_m", "m-Q4_K_M.gguf"),
        ("Q4_K", "m-Q4_K.gguf"),
        ("Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("UD-Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        ("Q8_0", "m.Q8_0.gguf"),
        ("BF16", "BF16/m-BF16-00001-of-00002.gguf"),
    ],
)
def test_a_tag_selects_the_file_with_the_tag_in_its_name(tag: str, file: str) -> None:
    assert pick(Address("o/n", tag=tag), FILES) == Address("o/n", file=file)


def test_a_tag_may_be_in_the_name_of_the_directory_only() -> None:
    assert matching(["Q4_K_M/m.gguf", "Q8_0/m.gguf"], "Q8_0") == ["Q8_0/m.gguf"]


def test_a_repository_with_one_model_needs_no_tag() -> None:
    assert pick(Address("o/n"), ["m.gguf", "README.md"]).file == "m.gguf"


def test_an_unknown_tag_is_rejected_with_the_available_models() -> None:
    with pytest.raises(UserError, match="has no model for Q5_0") as caught:
        pick(Address("o/n", tag="Q5_0"), FILES)

    assert "\n  hf:o/n/m-Q4_K_M.gguf\n" in str(caught.value)
    assert "mmproj" not in str(caught.value)


def test_what_belongs_to_a_model_is_no_candidate() -> None:
    files = [
        "m-Q4_0.gguf",
        "m.BF16-mmproj.gguf",
        "MTP/m-Q4_0-MTP.gguf",
        "mtp-m-Q4_0.gguf",
        "sub/imatrix.gguf",
    ]

    assert models_in([*files, "m-MTP-Q8_0.gguf"]) == ["m-MTP-Q8_0.gguf", "m-Q4_0.gguf"]
    assert pick(Address("o/n", tag="Q4_0"), files) == Address("o/n", file="m-Q4_0.gguf")


def test_an_ambiguous_address_is_rejected_with_the_candidates() -> None:
    with pytest.raises(UserError, match="matches several models") as caught:
        pick(Address("o/n"), [f"m{number:02}.gguf" for number in range(22)])

    assert str(caught.value).endswith("\n  hf:o/n/m19.gguf\n  and 2 more")


def test_the_error_for_a_repository_without_models_states_that() -> None:
    with pytest.raises(UserError, match=r"o/n has no \.gguf file"):
        pick(Address("o/n", tag="Q8_0"), ["model.safetensors"])
