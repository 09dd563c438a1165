from __future__ import annotations

import shlex

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from llama_gguf.config.schema import EngineSettings
from llama_gguf.config.settings import Settings
from llama_gguf.engines.address import EngineAddress
from llama_gguf.engines.command import (
    engine_argv,
    engine_environment,
    extra_args,
    listen_flags,
)
from llama_gguf.errors import UserError

SECRET = "gateway-Zq8vN2xLw5TfR7mB"


def argv(**values: object) -> list[str]:
    settings = Settings.of(**values)
    return engine_argv(
        "/app/llama-server",
        settings.engine,
        model_path="/m/a b.gguf",
        alias="a b",
    )


def value_of(flag: str, words: list[str]) -> str:
    return words[words.index(flag) + 1]


# argv ---------------------------------------------------------------------------------------------


def test_the_defaults_make_a_complete_command_line() -> None:
    assert argv() == [
        *("/app/llama-server", "--model", "/m/a b.gguf", "--alias", "a b"),
        *("--ctx-size", "16384", "--n-gpu-layers", "99", "--metrics"),
    ]


def test_what_is_left_to_llama_server_has_no_flag() -> None:
    words = argv(ctx=None, ngl=None)

    assert "--ctx-size" not in words
    assert "--n-gpu-layers" not in words
    assert "None" not in words


@pytest.mark.parametrize(
    ("values", "flag", "value"),
    [
        ({"ctx": 0}, "--ctx-size", "0"),
        ({"ngl": 0}, "--n-gpu-layers", "0"),
        ({"threads": 6}, "--threads", "6"),
        ({"parallel": 8}, "--parallel", "8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_setting_becomes_its_flag(values: dict[str, object], flag: str, value: str) -> None:
    assert value_of(flag, argv(**values)) == value


@pytest.mark.parametrize("flag", ["--threads", "--parallel"])
def test_a_default_of_llama_server_has_no_flag(flag: str) -> None:
    assert flag not in argv(threads=0, parallel=0)


@pytest.mark.parametrize(
    ("values", "number", "flags"),
    [
        ({}, 0, ["--host", "127.0.0.1", "--port", "8080"]),
        ({}, 2, ["--host", "127.0.0.1", "--port", "8082"]),
        ({"backend_host": "::1", "port_backend": 9931}, 0, ["--host", "::1", "--port", "9931"]),
        ({"backend_socket": "/run/llama.sock"}, 0, ["--host", "/run/llama.sock"]),
        ({"backend_socket": "/run/llama.sock"}, 2, ["--host", "/run/llama.2.sock"]),
    ],
)
def test_each_engine_listens_on_an_address_of_its_own(
    values: dict[str, object], number: int, flags: list[str]
) -> None:
    upstream = Settings.of(**values).upstream

    assert listen_flags(EngineAddress.of(upstream, number)) == flags


def test_extra_args_come_last_so_that_they_override() -> None:
    words = argv(ctx=1024, extra_args="--ctx-size 2048 --flash-attn on")

    assert words[-4:] == ["--ctx-size", "2048", "--flash-attn", "on"]


def test_the_key_of_the_engine_is_never_in_argv() -> None:
    assert not any(SECRET in word for word in argv(backend_api_key=SECRET))


# EXTRA_ARGS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("   ", []),
        ("--jinja", ["--jinja"]),
        ("-b 512  -ub\t256", ["-b", "512", "-ub", "256"]),
        ("--chat-template-file '/a b/c.jinja'", ["--chat-template-file", "/a b/c.jinja"]),
        ('--override-kv "a=str:b c"', ["--override-kv", "a=str:b c"]),
        (r"--alias a\ b", ["--alias", "a b"]),
        ("--alias ''", ["--alias", ""]),
        ("$(reboot) ; `x` | y", ["$(reboot)", ";", "`x`", "|", "y"]),
        ("--api-key-file /run/keys", ["--api-key-file", "/run/keys"]),
    ],
)
def test_extra_args_are_split_as_in_a_shell_and_nothing_is_executed(
    text: str, words: list[str]
) -> None:
    assert extra_args(EngineSettings(extra_args=text)) == words


@given(words=st.lists(st.text(st.characters(exclude_characters="\x00"), max_size=10)))
def test_quoted_words_are_split_into_the_original_words(words: list[str]) -> None:
    assume(not any("-" in word for word in words))  # some flags are rejected
    quoted = EngineSettings(extra_args=shlex.join(["x", *words]))

    assert extra_args(quoted) == ["x", *words]


@pytest.mark.parametrize("text", ["--alias 'a", '--alias "a', "--alias a\\"])
def test_an_unclosed_quote_is_a_bad_setting(text: str) -> None:
    with pytest.raises(UserError, match="EXTRA_ARGS") as caught:
        extra_args(EngineSettings(extra_args=text))

    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    "text",
    [
        f"--api-key {SECRET}",
        f"--api-key={SECRET}",
        f"-b 512 '--api-key' {SECRET}",
        f"--api_key {SECRET}",  # llama-server accepts "_" for "-"
        f"--hf-token {SECRET}",
        f"--hf_token {SECRET}",
        f"-hft {SECRET}",
    ],
)
def test_a_secret_in_extra_args_is_rejected_and_not_repeated(text: str) -> None:
    with pytest.raises(UserError) as caught:
        argv(extra_args=text)

    assert caught.value.exit_status == 2
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("--host 0.0.0.0", "BACKEND_HOST"),
        ("-b 512 --port 9090", "PORT_BACKEND"),
        ("-m /other.gguf", "MODEL_PATH"),
        ("--model /other.gguf", "MODEL_PATH"),
        ("--api_prefix /x", "Remove it"),
        ("--ssl-key-file /k.pem --ssl-cert-file /c.pem", "TLS_KEY_FILE"),
    ],
)
def test_a_flag_that_would_separate_engine_and_gateway_is_rejected(text: str, instead: str) -> None:
    with pytest.raises(UserError, match=instead) as caught:
        extra_args(EngineSettings(extra_args=text))

    assert caught.value.exit_status == 2


# The environment ----------------------------------------------------------------------------------

# Variables that would expose llama-server, change its address or make it serve another model.
DANGEROUS = (
    *("LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_ARG_REUSE_PORT", "LLAMA_ARG_API_PREFIX"),
    *("LLAMA_ARG_SSL_KEY_FILE", "LLAMA_ARG_SSL_CERT_FILE", "LLAMA_ARG_API_KEY_FILE"),
    *("LLAMA_ARG_TOOLS", "LLAMA_ARG_AGENT", "LLAMA_ARG_MCP_SERVERS", "LLAMA_ARG_UI_MCP_PROXY"),
    *("LLAMA_ARG_ENDPOINT_PROPS", "LLAMA_ARG_CORS_ORIGINS", "LLAMA_ARG_CORS_CREDENTIALS"),
    *("LLAMA_ARG_MODEL", "LLAMA_ARG_MODEL_URL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_HF_FILE"),
    *("LLAMA_ARG_DOCKER_REPO", "LLAMA_ARG_ALIAS", "LLAMA_ARG_LOG_FILE"),
    *("LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET", "LLAMA_ARG_MODELS_MAX"),
    *("AIP_MODE", "AIP_HTTP_PORT", "AIP_PREDICT_ROUTE", "AIP_HEALTH_ROUTE"),
)
HARMLESS = (
    *("LLAMA_ARG_FLASH_ATTN", "LLAMA_ARG_CACHE_TYPE_K", "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_MMPROJ"),
    *("LLAMA_ARG_THREADS_HTTP", "LLAMA_ARG_TIMEOUT", "LLAMA_CACHE", "CUDA_VISIBLE_DEVICES"),
    *("GGML_VK_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "PATH", "HOME", "HOST", "PORT"),
    *("MY_LLAMA_ARG_HOST", "LLAMA_ARG_NO_HOST", "LLAMA_ARG_MODEL_DRAFT"),
)


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_variable_that_would_expose_the_engine_is_not_passed_and_is_named(name: str) -> None:
    passed, kept_back = engine_environment({name: "1", "HOME": "/"}, api_key=SECRET, changes={})

    assert name not in passed
    assert kept_back == (name,)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_variable_that_only_tunes_the_engine_passes(name: str) -> None:
    passed, kept_back = engine_environment({name: "1"}, api_key=SECRET, changes={})

    assert passed[name] == "1"
    assert kept_back == ()


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_variable_of_the_engine_counts_as_not_set(text: str) -> None:
    passed, kept_back = engine_environment(
        {"LLAMA_ARG_N_PARALLEL": text, "CUDA_VISIBLE_DEVICES": ""}, api_key=SECRET, changes={}
    )

    assert passed == {"CUDA_VISIBLE_DEVICES": "", "LLAMA_API_KEY": SECRET}
    assert kept_back == ()


def test_the_key_in_the_environment_replaces_an_earlier_one() -> None:
    passed, kept_back = engine_environment(
        {"LLAMA_API_KEY": "other"}, api_key=SECRET, changes={"LLAMA_API_KEY": "third"}
    )

    assert passed == {"LLAMA_API_KEY": SECRET}
    assert kept_back == ("LLAMA_API_KEY",)


@pytest.mark.parametrize(
    "name",
    [
        "BACKEND_API_KEY",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    ],
)
def test_our_secrets_are_not_passed_to_the_engine(name: str) -> None:
    passed, _ = engine_environment({name: "secret"}, api_key=SECRET, changes={})

    assert "secret" not in passed.values()


def test_the_engines_variables_for_its_libraries_override() -> None:
    passed, _ = engine_environment(
        {"LD_LIBRARY_PATH": "/usr/lib"}, api_key=SECRET, changes={"LD_LIBRARY_PATH": "/wheel"}
    )

    assert passed["LD_LIBRARY_PATH"] == "/wheel"


def test_our_own_environment_is_unchanged() -> None:
    environ = {"LLAMA_ARG_PORT": "1", "HF_TOKEN": "x"}

    engine_environment(environ, api_key=SECRET, changes={"A": "b"})

    assert environ == {"LLAMA_ARG_PORT": "1", "HF_TOKEN": "x"}
