from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.config.env_file import parse_env_file
from llama_gguf.errors import UserError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("# A=1\n\n   # B=2\n", {}),
        ("  \tA=1", {"A": "1"}),
        ("A= 1 ", {"A": " 1 "}),
        ('A="1"', {"A": '"1"'}),
        ("A=1 # one", {"A": "1 # one"}),
        ("A=b=c", {"A": "b=c"}),
        ("A=$B\\n", {"A": "$B\\n"}),
        ("A=", {"A": ""}),
        ("A", {}),
        ("A=1\nA=2", {"A": "2"}),
        ("\ufeffA=1", {"A": "1"}),
    ],
)
def test_lines_are_read_as_docker_does(text: str, found: dict[str, str]) -> None:
    assert parse_env_file(text.encode(), "f") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\n=2", "f, line 2: there is no name before the ="),
        (b"A =1", "f, line 1: the name has white space in it: write NAME=VALUE"),
        (b"export A=1", "f, line 1: the name has white space in it"),
        (b"hello world", "f, line 1: the name has white space in it"),
        (b"A=1\n\n\xff=2", "f, line 3: this is not UTF-8 text"),
        (b"A=\0", "f, line 1: a variable cannot contain NUL"),
    ],
)
def test_an_invalid_line_is_reported_with_its_number(content: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_env_file(content, "f")

    assert str(caught.value).startswith(message)
    assert caught.value.exit_status == 2


@given(st.dictionaries(st.from_regex(r"[A-Z_]{1,9}", fullmatch=True), st.text()))
def test_any_value_of_one_line_is_read_unchanged(variables: dict[str, str]) -> None:
    # Surrogates cannot be encoded, and a carriage return may be the end of a line.
    variables = {n: "".join(c for c in v if c not in "\0\n\r") for n, v in variables.items()}
    content = "\n".join(f"{n}={v}" for n, v in variables.items()).encode("utf-8")

    assert parse_env_file(content, "f") == variables
