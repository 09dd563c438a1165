from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.config.masking import MASK, Masker, mask_urls, masked_words, secrets_in, secrets_of

KEY = "Zq8vN2xLw5TfR7mB"


def shown(text: str, *known: str) -> str:
    return Masker(known).mask(text)


def found_in(environ: Mapping[str, str]) -> set[str]:
    return set(secrets_of(environ, lambda name, value: name == "AUTH_KEYS_FILE"))


# What is known ----------------------------------------------------------------------------------


@given(secret=st.text(min_size=8, max_size=40).filter(lambda s: s.strip() == s and "*" not in s))
def test_a_known_secret_is_masked_in_every_encoding(secret: str) -> None:
    masker = Masker([secret])
    spellings = [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret, safe=""),
        b64encode(secret.encode()).decode().rstrip("="),
    ]

    for spelling in spellings:
        assert secret not in masker.mask(f"before {spelling} after")
        assert spelling.strip('"') not in masker.mask(f"before {spelling} after")


def test_a_secret_goes_from_the_middle_of_a_word_too() -> None:
    assert shown(f"x{KEY}y", KEY) == f"x{MASK}y"


def test_of_secrets_within_secrets_nothing_stays() -> None:
    assert shown("abcdefgh abcd", "abcd", "abcdefgh") == f"{MASK} {MASK}"


def test_a_secret_of_a_few_letters_does_not_blot_out_everything() -> None:
    assert shown("a cat sat", "a", "", "  ") == "a cat sat"


# What is not known ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {KEY}",
        f"authorization: basic {KEY}",
        f"x-api-key: {KEY}",
        f"https://me:{KEY}@host/path",
        f"https://{KEY}@host/path",
        f"https://host/m.gguf?sig={KEY}&x=1 next",
        f"http://me:a@{KEY}@host/",
        f"HF_TOKEN={KEY}",
        f"--api-key {KEY}",
        f"started --hf-token {KEY} --port 1",
        f"--password={KEY}",
        f'{{"api_key": "{KEY}", "a": 1}}',
        f"{{'secret': '{KEY}'}}",
        f"password = {KEY}",
        f"//server/share cifs rw,username=me,password={KEY},uid=0",
        f"-----BEGIN PRIVATE KEY-----\n{KEY}\n-----END PRIVATE KEY-----",
        f"-----BEGIN RSA PRIVATE KEY-----\n{KEY}\n",
        f"sk-{KEY}",
        f"hf_{KEY}",
        f"gateway-{KEY}",
        f"ghp_{KEY}",
    ],
)
def test_text_that_looks_like_a_secret_is_masked(text: str) -> None:
    masked = shown(text)

    assert KEY not in masked
    assert "***" in masked


@pytest.mark.parametrize(
    "text",
    [
        "print_info: EOS token        = 2 '<|im_end|>'",
        '{"tokens_total": 12, "auth": {"keys_loaded": 3}}',
        'llama_gguf_tokens_total{key_id="alice"} 17',
        "AUTH_KEYS_FILE=/data/api_keys.txt",
        "keys  ok  1 in /data/api_keys.txt",
        "--auth-keys-file /data/api_keys.txt --ctx-size 4096",
        "loaded token: true",
        "BACKEND_API_KEY=  (default)",
        "GET /v1/models HTTP/1.1 401",
        "https://host.example/path/m.gguf",
    ],
)
def test_harmless_text_is_not_masked(text: str) -> None:
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("at https://me:p@ss@h.example/simple, then", "at https://***@h.example/simple, then"),
        ("GET https://h.example/x?token=1&b=2 failed", "GET https://h.example/x?*** failed"),
        ("mail me@h.example", "mail me@h.example"),
    ],
)
def test_logins_and_queries_are_masked_within_a_text(text: str, clean: str) -> None:
    assert mask_urls(text) == clean


# Where secrets are found ------------------------------------------------------------------------


def test_variables_are_secret_by_their_name() -> None:
    environ = {
        "HF_TOKEN": "one-secret",
        "MY_DB_PASSWORD": "two-secret",
        "openai_api_key": "three-secret",
        "OTEL_EXPORTER_OTLP_HEADERS": "x-team=four-secret",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-team=five-secret",
        "AUTH_KEYS_FILE": "/data/api_keys.txt",
        "TOKENIZERS_PARALLELISM": "false",
        "MAX_TOKENS": "512",
        "EDITOR": "vi",
    }

    assert found_in(environ) == {
        *("one-secret", "two-secret", "three-secret", "x-team=four-secret", "x-team=five-secret")
    }


def test_urls_in_variables_give_up_their_logins_and_queries() -> None:
    found = found_in(
        {
            "HTTPS_PROXY": "http://me:p%40ssword@proxy:3128",
            "MODEL_NAME": "https://host/m.gguf?sig=signed-secret&download=true",
        }
    )

    assert {"p%40ssword", "p@ssword", "me:p@ssword", "signed-secret"} <= found
    assert "true" not in found


def test_flags_in_variables_give_up_their_values() -> None:
    environ = {"EXTRA_ARGS": "--api-key abcdef --override-kv x_token=bool:false --port 1"}

    assert found_in(environ) == {"abcdef"}


@pytest.mark.parametrize("url", ["http://[::1", "http://", "://", "http://a b"])
def test_a_url_that_is_none_is_no_trouble(url: str) -> None:
    assert KEY not in found_in({"X": url})


def test_values_after_secret_flags_are_found_in_a_command_line() -> None:
    words = ["llama-server", "--api-key", "abcdef", "-hft", "ghijkl", "--hf-token=mnopqr"]
    words += ["TOKEN=stuvwx", "--auth-keys-file", "/data/api_keys.txt", "--api-key", "--port", "1"]

    assert list(secrets_in(words)) == ["abcdef", "ghijkl", "mnopqr", "stuvwx"]
    assert masked_words(words) == [
        *("llama-server", "--api-key", MASK, "-hft", MASK, f"--hf-token={MASK}"),
        *(f"TOKEN={MASK}", "--auth-keys-file", "/data/api_keys.txt", "--api-key", "--port", "1"),
    ]
    assert masked_words(["--token", "x", "y"]) == ["--token", MASK, "y"]
