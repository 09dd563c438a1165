from __future__ import annotations

import pytest

from llama_gguf.config.settings import (
    FIELDS,
    MASK,
    Settings,
    load,
    one_edit_apart,
    resolve,
    variable,
)
from llama_gguf.errors import UserError

SECRET = "gateway-Zq8vN2xLw5TfR7mB"


def mistake(name: str, text: str) -> str:
    """The error message about the variable *name* with the value *text*."""
    with pytest.raises(UserError) as caught:
        load({name: text})
    assert caught.value.exit_status == 2
    return str(caught.value)


# Where a value comes from -------------------------------------------------------------------------


def test_a_flag_beats_the_environment_which_beats_the_default() -> None:
    loaded = load({"PORT": "9000", "CTX": "4096"}, {"port": "9001"})

    assert (loaded.settings.port, loaded.settings.ctx, loaded.settings.ngl) == (9001, 4096, 99)
    assert [loaded.sources[name] for name in ("port", "ctx", "ngl")] == [
        *("flag", "environment", "default")
    ]


def test_an_empty_environment_is_all_defaults() -> None:
    loaded = load({})

    assert loaded.settings == Settings()
    assert set(loaded.sources) == set(FIELDS)
    assert set(loaded.sources.values()) == {"default"}


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", FIELDS)
def test_a_variable_that_is_empty_counts_as_not_set(name: str, text: str) -> None:
    loaded = load({variable(name): text})

    assert loaded.settings == Settings()
    assert loaded.sources[name] == "default"


def test_white_space_around_a_value_is_no_part_of_it() -> None:
    settings = load({"PORT": " 9000\n", "MODEL_NAME": " a b.gguf "}).settings

    assert (settings.port, settings.model_name) == (9000, "a b.gguf")


def test_a_flag_may_clear_a_variable() -> None:
    settings = load(
        {"CORS_ORIGINS": "*", "EXTRA_ARGS": "-x"}, {"cors_origins": "", "extra_args": ""}
    )

    assert (settings.settings.cors_origins, settings.settings.extra_args) == ((), "")


def test_a_bad_variable_behind_a_good_flag_does_no_harm() -> None:
    assert load({"PORT": "many"}, {"port": "9000"}).settings.port == 9000


# What cannot be used ------------------------------------------------------------------------------


def test_one_message_names_every_invalid_value_and_what_is_valid() -> None:
    with pytest.raises(UserError) as caught:
        load(
            {"PORT": "99999", "AUTH_ENABLED": "maybe", "LOG_FORMAT": "xml", "CTX": "4096"},
            {"max_queue_wait": "soon"},
        )

    message = str(caught.value)
    assert "  PORT='99999' is invalid; must be a whole number from 1 to 65535" in message
    assert "  AUTH_ENABLED='maybe' is invalid; must be true or false" in message
    assert "  LOG_FORMAT='xml' is invalid; must be one of: text, json" in message
    assert "  --max-queue-wait='soon' is invalid; must be seconds" in message
    assert "CTX" not in message


def test_a_bad_secret_is_named_and_not_shown() -> None:
    message = mistake("BACKEND_API_KEY", f"{SECRET} and more")

    assert f"BACKEND_API_KEY={MASK} is invalid" in message
    assert SECRET not in message


def test_a_bad_value_cannot_forge_lines_of_the_message() -> None:
    message = mistake("MODEL_NAME", "a\n  PORT='80' cannot be used\x1b[2J")

    assert len(message.splitlines()) == 3
    assert "\x1b" not in message


@pytest.mark.parametrize("name", ["TLS_CERT_FILE", "TLS_KEY_FILE"])
def test_certificate_and_key_are_both_set_or_neither(name: str) -> None:
    assert "TLS_CERT_FILE and TLS_KEY_FILE must be set together" in mistake(name, "/a.pem")
    assert load({}).settings.scheme == "http"
    assert load({"TLS_CERT_FILE": "/a", "TLS_KEY_FILE": "/b"}).settings.scheme == "https"


WHOLE = "CTX"
PORT = "PORT"
SECONDS = "MAX_QUEUE_WAIT"
FLAG = "AUTH_ENABLED"
KEY = "BACKEND_API_KEY"
ORIGINS = "CORS_ORIGINS"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((WHOLE, text) for text in ("+5", "-1", "1_000", "1,000", "1.0", "1e3", "0x10", "five")),
        *((WHOLE, text) for text in ("\u0665", "\uff15", "\u00b2", "5 5", "5k", "NaN", "inf")),
        *((WHOLE, text) for text in ("9" * 18, "9" * 5000, "--", "")[:3]),
        *((PORT, text) for text in ("0", "65536", "-1", "80.0")),
        *((SECONDS, text) for text in ("+5", "-1", "1_000", "nan", "NaN", "inf", "Infinity")),
        *((SECONDS, text) for text in ("1e3", ".5", "5.", "5s", "\u0665", "1,5", "0x1", "9" * 10)),
        ("REQUEST_TIMEOUT", "0"),
        ("MAX_REQUESTS_PER_MINUTE", "0"),
        *((FLAG, text) for text in ("2", "t", "enabled", "truee", "tru\u0435")),
        ("EXPOSED_ROUTES", "everything"),
        ("HEALTH_MODE", "live,ready"),
        *((KEY, text) for text in ("a b", "a\tb", "a\r\nX: y", "k\u00e9y", "a\x00", "a" * 513)),
        *((ORIGINS, text) for text in ("app.example", "https://", "https://a/b", "https://a b")),
        *((ORIGINS, text) for text in ("HTTPS://a", "*, a", "https://a\r\nX: y", "null")),
        ("MODEL_PATH", "/a\x00b"),
        ("EXTRA_ARGS", "a\nb"),
        ("HOST", "a\r\nb"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_value_that_is_not_exactly_valid_is_rejected(name: str, text: str) -> None:
    assert f"  {name}=" in mistake(name, text)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("CTX", "0", 0),
        ("CTX", "007", 7),
        ("PORT", "65535", 65535),
        ("MAX_REQUEST_BODY_SIZE", "10485760", 10485760),
        ("MAX_QUEUE_WAIT", "0", 0.0),
        ("MAX_QUEUE_WAIT", "2.5", 2.5),
        ("REQUEST_TIMEOUT", "0.1", 0.1),
        ("AUTH_ENABLED", "False", False),
        ("AUTH_ENABLED", "0", False),
        ("AUTH_ENABLED", "off", False),
        ("METRICS_AUTH_ENABLED", "YES", True),
        ("METRICS_AUTH_ENABLED", "1", True),
        ("LOG_FORMAT", "JSON", "json"),
        ("EXPOSED_ROUTES", "All", "all"),
        ("BACKEND_API_KEY", "~k:%=/+", "~k:%=/+"),
        ("CORS_ORIGINS", "*", ("*",)),
        (
            "CORS_ORIGINS",
            "https://a.example, http://localhost:3000,",
            (*("https://a.example", "http://localhost:3000"),),
        ),
        ("CORS_ORIGINS", "chrome-extension://abc", ("chrome-extension://abc",)),
        ("MODEL_PATH", "/m/\u00e4 b.gguf", "/m/\u00e4 b.gguf"),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_a_good_value_is_understood(name: str, text: str, value: object) -> None:
    assert getattr(load({name: text}).settings, name.lower()) == value


# Slips of the pen ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("MAX_QUEUE_SIZES", "MAX_QUEUE_SIZE"),
        ("AUTH_ENABLE", "AUTH_ENABLED"),
        ("MODEL_NMAE", "MODEL_NAME"),
        ("MODLE_PATH", "MODEL_PATH"),
        ("LOGDIR", "LOG_DIR"),
        ("PORT-HEALTH", "PORT_HEALTH"),
    ],
)
def test_a_name_one_edit_away_from_ours_is_warned_about(name: str, ours: str) -> None:
    (warning,) = load({name: SECRET}).warnings

    assert name in warning
    assert f"did you mean {ours}?" in warning
    assert SECRET not in warning


@pytest.mark.parametrize(
    "name",
    [
        *("LOGNAME", "HOSTNAME", "PATH", "HOME", "USER", "SHELL", "TERM", "LANG", "LC_ALL", "TZ"),
        *("PWD", "OLDPWD", "SHLVL", "MAIL", "EDITOR", "HOSTS", "PORTS", "SPORT", "DEBUG", "NGINX"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "RUNPOD_POD_ID", "HF_TOKEN"),
        *("BACKEND_PORT", "MODEL", "MODELS", "OMP_NUM_THREADS", "LOG_LEVEL", "HTTP_PROXY"),
    ],
)
def test_the_variables_of_an_ordinary_machine_bring_no_warning(name: str) -> None:
    assert load({name: "x"}).warnings == ()


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_is_no_slip_for_another(name: str) -> None:
    others = {variable(other): "" for other in FIELDS}

    assert load({**others, variable(name): ""}).warnings == ()


@pytest.mark.parametrize(
    ("a", "b", "is_one"),
    [
        ("abcd", "abcd", False),
        ("abcd", "abc", True),
        ("abcd", "bcd", True),
        ("abcd", "abxcd", True),
        ("abcd", "abxd", True),
        ("abcd", "abdc", True),
        ("abcd", "bacd", True),
        ("abcd", "badc", False),
        ("abcd", "ab", False),
        ("abcd", "dbca", False),
        ("abcd", "xbcx", False),
        ("", "a", True),
    ],
)
def test_one_edit_is_one_letter_more_less_changed_or_swapped(a: str, b: str, is_one: bool) -> None:
    assert one_edit_apart(a, b) == is_one
    assert one_edit_apart(b, a) == is_one


# Per platform -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folders", "data_dir"),
    [
        ({"/runpod-volume", "/workspace", "/data"}, "/runpod-volume"),
        ({"/workspace", "/data"}, "/workspace"),
        ({"/data"}, "/data"),
        (set(), "/data"),
    ],
)
def test_the_data_folder_is_the_platforms_and_the_rest_is_in_it(
    folders: set[str], data_dir: str
) -> None:
    settings = resolve(Settings(), folders.__contains__, "box")

    assert settings == Settings(
        data_dir=data_dir,
        models_dir=f"{data_dir}/models",
        auth_keys_file=f"{data_dir}/api_keys.txt",
        log_dir=f"{data_dir}/logs",
        instance_id="box",
    )


def test_a_data_folder_that_is_set_wins_over_the_platforms() -> None:
    settings = resolve(Settings(data_dir="/srv"), {"/runpod-volume"}.__contains__, "box")

    assert (settings.data_dir, settings.models_dir) == ("/srv", "/srv/models")


def test_explicit_settings_are_not_replaced() -> None:
    given = Settings(
        data_dir="/d", models_dir="/m", auth_keys_file="/k", log_dir="/l", instance_id="i"
    )

    assert resolve(given, lambda _: True, "box") == given
