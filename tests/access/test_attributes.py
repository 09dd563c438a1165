from __future__ import annotations

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access import attributes
from llama_gguf.access.attributes import (
    MAX_ENGINE_SECONDS,
    MAX_NETWORKS,
    MAX_TOKENS,
    MAX_WEIGHT,
    NAMES,
    NO_ATTRIBUTES,
    PRIORITIES,
    Attributes,
    field_of,
    format_words,
    parse_words,
)
from llama_gguf.access.networks import parse_network
from llama_gguf.http1.routes import SCOPES

tokens = st.none() | st.integers(1, MAX_TOKENS)


networks = st.one_of(
    st.ip_addresses(v=4).map(lambda address: parse_network(str(address))),
    st.builds(
        lambda number, prefix: parse_network(f"{number & 255}.0.0.0/{prefix}"),
        st.integers(0, 255),
        st.integers(8, 32),
    ),
    st.integers(16, 128).map(lambda prefix: parse_network(f"2001::/{prefix}")),
)
any_attributes = st.builds(
    Attributes,
    tokens_per_minute=tokens,
    tokens_per_day=tokens,
    tokens_per_month=tokens,
    engine_seconds_per_day=st.none() | st.integers(1, MAX_ENGINE_SECONDS),
    routes=st.frozensets(st.sampled_from(SCOPES)),
    networks=st.lists(networks, max_size=5).map(tuple),
    weight=st.integers(1, MAX_WEIGHT),
    priority=st.sampled_from(PRIORITIES),
)
FULL: Final = (
    "tokens_per_minute=10000 tokens_per_day=2000000 tokens_per_month=50000000 "
    "engine_seconds_per_day=3600 routes=chat,embeddings from=10.0.0.0/8,2001:db8::/32 weight=4 "
    "priority=low"
)


@given(any_attributes)
def test_any_attributes_survive_writing_and_reading(given_attributes: Attributes) -> None:
    words = format_words(given_attributes)

    assert parse_words(words.split()) == given_attributes
    assert "\n" not in words


def test_attributes_are_written_as_they_were_read() -> None:
    assert format_words(parse_words(FULL.split())) == f" {FULL}"


def test_every_attribute_has_a_name() -> None:
    assert {field_of(name) for name in NAMES} == set(Attributes._fields)


def test_attributes_with_their_default_values_are_not_written() -> None:
    assert format_words(NO_ATTRIBUTES) == ""
    assert format_words(parse_words(["weight=1", "priority=normal"])) == ""


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("tokens_per_day=0", "tokens_per_day must be a whole number from 1 to"),
        ("tokens_per_day=", "tokens_per_day must be a whole number"),
        ("tokens_per_day=2M", "tokens_per_day must be a whole number"),
        ("tokens_per_day=+5", "tokens_per_day must be a whole number"),
        ("tokens_per_day=1_000", "tokens_per_day must be a whole number"),
        ("tokens_per_day=\u0661", "tokens_per_day must be a whole number"),
        (f"tokens_per_minute={MAX_TOKENS + 1}", "tokens_per_minute must be a whole number"),
        (f"tokens_per_month={'9' * 5000}", "tokens_per_month must be a whole number"),
        (f"engine_seconds_per_day={MAX_ENGINE_SECONDS + 1}", "engine_seconds_per_day must be"),
        ("weight=0", "weight must be a whole number from 1 to 100"),
        ("weight=101", "weight must be"),
        ("weight=1.5", "weight must be"),
        ("priority=high", "priority must be one of normal, low"),
        ("priority=", "priority must be"),
        ("routes=", "routes must be names separated by commas, of chat, completions"),
        ("routes=chat,", "routes must be"),
        ("routes=Chat", "routes must be"),
        ("routes=/v1/chat/completions", "routes must be"),
        ("from=", "from must be at most 64 networks"),
        ("from=10.0.0.1/8", "from must be"),
        ("from=10.0.0.0/33", "from must be"),
        ("from=10.0.0.0/8,", "from must be"),
        ("from=10.0.0.0/255.0.0.0", "from must be"),
        ("from=localhost", "from must be"),
        ("from=fe80::1%eth0", "from must be"),
        ("from=::ffff:10.0.0.1", "from must be"),
        ("from=::ffff:10.0.0.0/104", "from must be"),
        ("from=1", "from must be"),
        ("from=" + ",".join(["10.0.0.0/8"] * (MAX_NETWORKS + 1)), "from must be"),
        ("networks=10.0.0.0/8", "an attribute must be name=value with a name of tokens_per_minute"),
        ("Weight=2", "an attribute must be"),
        ("weight", "weight must be"),
        ("=4", "an attribute must be"),
        ("#", "an attribute must be"),
    ],
)
def test_an_invalid_attribute_is_rejected_with_the_expected_form(word: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_words([word])


@pytest.mark.parametrize("name", [*NAMES, "secret", ""])
def test_no_message_contains_a_value(name: str) -> None:
    with pytest.raises(ValueError, match="must be") as caught:
        parse_words([f"{name}=sk-Zq8vN2xLw5TfR7mB"])

    assert "Zq8v" not in str(caught.value)


def test_an_attribute_must_not_be_repeated() -> None:
    with pytest.raises(ValueError, match="weight must not be repeated"):
        parse_words(["weight=2", "weight=3"])


@pytest.mark.parametrize(
    "wrong",
    [
        Attributes(weight=0),
        Attributes(tokens_per_day=-1),
        Attributes(priority="high"),
        Attributes(routes=frozenset({"everything"})),
    ],
)
def test_what_could_not_be_read_again_is_not_written(wrong: Attributes) -> None:
    with pytest.raises(ValueError, match="must be"):
        format_words(wrong)


def test_one_address_is_a_network() -> None:
    value = attributes.parse_value("from", "192.0.2.7,2001:db8::7")

    assert value == (parse_network("192.0.2.7/32"), parse_network("2001:db8::7/128"))
