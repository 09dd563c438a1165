from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.config.config_file import parse_config_file
from llama_gguf.config.load import Files, load
from llama_gguf.config.parsers import as_text
from llama_gguf.config.settings import SETTINGS, Settings
from llama_gguf.errors import UserError

SECRET = "gateway-Zq8vN2xLw5TfR7mB"


def texts(content: str) -> dict[str, str]:
    found, mistakes = parse_config_file(content.encode(), "f.toml")
    assert mistakes == []
    return {name: value.text for name, value in found.items()}


def mistake(content: str) -> str:
    (text,) = parse_config_file(content.encode(), "f.toml")[1]
    return text


@pytest.mark.parametrize("key", ["port_health", "PORT_HEALTH", "port-health", '"Port-Health"'])
def test_a_key_is_the_name_of_a_setting_in_any_case(key: str) -> None:
    assert texts(f"{key} = 9001") == {"port_health": "9001"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("ctx = 8192", "8192"),
        ("ctx = '8192'", "8192"),
        ("ctx = 8_192", "8192"),
        ("ctx = 'auto'", "auto"),
        ("auth_enabled = false", "false"),
        ("auth_enabled = 'no'", "no"),
        ("max_queue_wait = 2.5", "2.5"),
        ("max_queue_wait = 30", "30"),
        ("cors_origins = ['https://a.example', 'https://b.example']",
         "https://a.example,https://b.example"),
        ("cors_origins = '*'", "*"),
        ("cors_origins = []", ""),
        ("extra_args = '''--mmproj '/a b.gguf' '''", "--mmproj '/a b.gguf' "),
    ],
)  # fmt: skip
def test_a_value_has_its_own_type_or_is_a_string_as_in_the_environment(
    content: str, text: str
) -> None:
    assert list(texts(content).values()) == [text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\nport = true", "f.toml, line 2: port is invalid; must be a number"),
        ("port = 1.5", "f.toml, line 1: port is invalid; must be a whole number"),
        ("port = [1]", "must be a number"),
        ("max_queue_wait = false", "must be a number"),
        ("auth_enabled = 1", "must be true or false"),
        ("model_name = 7", "must be a string, in quotes"),
        ("model_name = 2026-01-01", "must be a string, in quotes"),
        ("cors_origins = [1]", 'must be a list of strings, such as ["a", "b"]'),
        ("[engine]\nctx = 1", "f.toml, line 1: engine is a table; settings are at the top"),
        ("engine.ctx = 1", "engine is a table; settings are at the top"),
        ("ctx = 1\nCTX = 2", "f.toml, line 2: CTX is the same setting as in f.toml, line 1: ctx"),
        ("config_file = 'x'", "config_file cannot be in the file itself; use --config"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_what_is_valid(content: str, message: str) -> None:
    assert message in mistake(content)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("ctx_size", "ctx"),
        ("n-gpu-layers", "ngl"),
        ("MODEL", "model_name"),
        ("prot", "port"),
        ("max_requests_per_minut", "max_requests_per_minute"),
        ("auth_key_file", "auth_keys_file"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(key: str, meant: str) -> None:
    assert mistake(f"{key} = 1").endswith(f"{key} is not a setting; did you mean {meant}?")


def test_a_key_that_resembles_nothing_is_an_error_too() -> None:
    assert mistake("zebra = 1") == "f.toml, line 1: zebra is not a setting"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"port = ", "f.toml is not valid TOML: Invalid value (at end of document)"),
        (b"port 1", "f.toml is not valid TOML: "),
        (b"a = '\xff'", "f.toml is not UTF-8 text"),
        (b"a = " + b"[" * 5000, "f.toml is not valid TOML: "),
    ],
)
def test_a_file_that_is_no_toml_is_rejected(content: bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config_file(content, "f.toml")

    assert str(caught.value).startswith(message)
    assert caught.value.exit_status == 2


def test_a_byte_order_mark_is_ignored() -> None:
    assert texts("\ufeffport = 9000") == {"port": "9000"}


def test_an_invalid_secret_is_not_shown() -> None:
    values, _ = parse_config_file(f"backend_api_key = '{SECRET} x'".encode(), "f.toml")

    with pytest.raises(UserError) as caught:
        load({}, files=Files(values=values))

    assert "f.toml, line 1: backend_api_key=********" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_every_default_can_be_written_with_its_own_type() -> None:
    def toml(value: object) -> str:
        if isinstance(value, str | tuple):
            return f'"{as_text(value)}"'
        return as_text(value)

    lines = [
        f"{name} = {toml(setting.default)}"
        for name, setting in SETTINGS.items()
        if name != "config_file"
    ]

    values, mistakes = parse_config_file("\n".join(lines).encode(), "f.toml")

    assert mistakes == []
    assert load({}, files=Files(values=values)).settings == Settings.of()


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_content_is_read_or_rejected(content: bytes) -> None:
    with contextlib.suppress(UserError):
        parse_config_file(content, "f.toml")
