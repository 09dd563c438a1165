"""The table of settings: what is generated from it, and that it can be read again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.config.load import load, load_usable
from llama_gguf.config.masking import MASK
from llama_gguf.config.parsers import as_text
from llama_gguf.config.settings import (
    SETTINGS,
    USED_BY,
    Settings,
    default_text,
    masked,
    variable,
)

SECRET = "gateway-Zq8vN2xLw5TfR7mB"


def read_back(name: str, value: object) -> object:
    return load({variable(name): as_text(value)}).settings.value(name)


def test_settings_are_made_and_read_by_name() -> None:
    settings = Settings.of(port=9000, backend_host="engine")

    assert (settings.listen.port, settings.upstream.backend_host) == (9000, "engine")
    assert [settings.value(name) for name in ("port", "backend_host", "ctx")] == [
        *(9000, "engine", 16384)
    ]


def test_a_name_that_is_no_setting_is_an_error() -> None:
    with pytest.raises(KeyError, match="prot"):
        Settings.of(prot=9000)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_default_is_one_that_could_be_set(name: str) -> None:
    assert read_back(name, SETTINGS[name].default) == SETTINGS[name].default


@pytest.mark.parametrize("name", [n for n, a in SETTINGS.items() if a.shown_default is None])
def test_a_default_that_is_printed_is_the_one_that_is_used(name: str) -> None:
    assert read_back(name, default_text(name)) == Settings.of().value(name)


@pytest.mark.parametrize(
    "name", ["data_dir", "models_dir", "auth_keys_file", "log_dir", "backend_api_key"]
)
def test_a_default_that_depends_on_the_machine_is_described(name: str) -> None:
    assert default_text(name)


# Values that a setting may have, by the type of its default.
small = st.integers(64, 1000)  # within the bounds of every number
TEXTS: dict[type, st.SearchStrategy[str]] = {
    bool: st.sampled_from(["true", "false", "1", "off"]),
    int: small.map(str),
    float: st.builds("{}.{}".format, small, st.integers(0, 99)) | small.map(str),
    tuple: st.sampled_from(["*", "https://a.example,http://b.example:80"]),
    str: st.text(
        st.characters(min_codepoint=0x21, exclude_categories=["Cs", "Cc", "Z"]), min_size=1
    ),
}
CHOICES = {
    "exposed_routes": ["inference", "all"],
    "health_mode": ["live", "ready"],
    "log_format": ["text", "json"],
    "auth_header": ["any", "x-api-key"],
    "backend_api_key": [SECRET, "~!@"],
    "admin_key_ids": ["alice", "alice,Bob_2-c"],
}


@given(data=st.data())
def test_a_serialised_value_is_read_back_the_same(data: st.DataObject) -> None:
    texts = {
        variable(name): data.draw(
            st.sampled_from(CHOICES[name]) if name in CHOICES else TEXTS[type(field.default)]
        )
        for name, field in SETTINGS.items()
    }
    # Some of them contradict each other, which is no matter here.
    settings = load_usable(texts)[0].settings

    written = {variable(name): as_text(settings.value(name)) for name in SETTINGS}

    assert load_usable(written)[0].settings == settings


# Written with an exponent or rounded, a duration would be invalid or another number. `serve` passes
# the settings to its gateway this way, so MAX_QUEUE_WAIT=2592000 would stop every gateway.
@pytest.mark.parametrize("text", ["2592000", "1000000", "86400.25", "1234567.5", "999999999"])
def test_a_long_or_fine_duration_is_read_back_the_same(text: str) -> None:
    assert read_back("max_queue_wait", float(text)) == float(text)


# Masked -------------------------------------------------------------------------------------------


def test_no_part_of_a_secret_is_shown() -> None:
    assert masked("backend_api_key", SECRET) == MASK


def test_that_a_secret_is_not_set_may_be_seen() -> None:
    assert masked("backend_api_key", "") == ""


def test_the_login_of_a_url_is_masked_in_any_setting() -> None:
    assert masked("model_name", "https://me:x@h/m.gguf?sig=y") == "https://***@h/m.gguf?***"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("port", 8000, "8000"),
        ("auth_enabled", False, "false"),
        ("max_queue_wait", 2.5, "2.5"),
        ("max_queue_wait", 300.0, "300"),
        ("cors_origins", ("https://a", "https://b"), "https://a,https://b"),
        ("cors_origins", (), ""),
    ],
)
def test_other_values_are_shown_in_the_syntax_of_their_variable(
    name: str, value: Any, text: str
) -> None:
    assert masked(name, value) == text


# Which command uses what --------------------------------------------------------------------------


@pytest.mark.parametrize("command", USED_BY)
def test_a_command_has_each_of_its_settings_once_and_only_real_ones(command: str) -> None:
    used = USED_BY[command]

    assert set(used) <= set(SETTINGS)
    assert len(set(used)) == len(used)


def test_the_gateway_receives_all_settings_of_its_data_path() -> None:
    guards = {
        n for n, a in SETTINGS.items() if a.section in ("access", "queue", "timeouts", "sizes")
    }

    assert guards | {"host", "port", "backend_api_key", "backend_socket"} <= set(USED_BY["gateway"])


@pytest.mark.parametrize(
    "setting",
    [
        {"tls_cert_file": "/cert.pem"},
        {"peers": ("http://a:1", "https://b:2")},
        {"peers": ("dns+https://a:1",)},
        {"shared_limits": "rediss://a"},
    ],
)
def test_a_gateway_has_tls_with_a_certificate_an_https_peer_or_such_a_store(
    setting: dict[str, Any],
) -> None:
    assert Settings.of(**setting).gateway_has_tls


def test_other_gateways_have_no_tls() -> None:
    peers = ("http://a:1", "dns+http://a:1", "unix:/a.sock", "ray://")

    assert not Settings.of(peers=peers, shared_limits="redis://a").gateway_has_tls
    assert not Settings.of(shared_limits="unix:///a").gateway_has_tls
