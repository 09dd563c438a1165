from __future__ import annotations

import pytest

from llama_gguf.config.schema import TlsSettings, UpstreamSettings
from llama_gguf.config.settings import SETTINGS, flag, variable

SECRET = "gateway-Zq8vN2xLw5TfR7mB"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_described_in_a_sentence_and_found_by_its_flag(name: str) -> None:
    about = SETTINGS[name]

    assert len(about.text) > 10
    assert not about.text.endswith(".")
    assert about.section
    assert flag(name).removeprefix("--").replace("-", "_").upper() == variable(name)


def test_settings_named_key_or_token_are_secret() -> None:
    named = {n for n in SETTINGS if n.endswith(("api_key", "_token", "_secret", "password"))}

    # A URL, which may have a password in it, is secret as a whole.
    assert named | {"shared_limits"} == {name for name, about in SETTINGS.items() if about.secret}


def test_a_secret_is_not_in_what_can_be_printed() -> None:
    group = UpstreamSettings(backend_host="engine", backend_api_key=SECRET)

    assert "engine" in repr(group)
    assert SECRET not in repr(group)


def test_a_certificate_makes_the_scheme_https() -> None:
    assert TlsSettings().scheme == "http"
    assert TlsSettings(tls_cert_file="/a", tls_key_file="/b").scheme == "https"
