from __future__ import annotations

from collections.abc import Iterator

import pytest

from llama_gguf.config.load import Files, FileValue, load, one_edit_apart
from llama_gguf.config.masking import MASK
from llama_gguf.config.settings import SETTINGS, Settings, variable
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

    names = ("port", "ctx", "ngl")
    assert [loaded.settings.value(name) for name in names] == [9001, 4096, 99]
    assert [loaded.sources[name] for name in names] == [*("flag", "environment", "default")]


def files(env_file: dict[str, str], **values: str) -> Files:
    return Files(env_file, {name: FileValue(v, f"f: {name}") for name, v in values.items()})


def test_an_env_file_precedes_the_configuration_file_which_precedes_the_default() -> None:
    loaded = load(
        {"PORT": "1", "CTX": "2"},
        {"port": "9"},
        files({"PORT": "3", "CTX": "4", "NGL": "5"}, port="6", ctx="7", ngl="8", threads="10"),
    )

    found = {n: (loaded.settings.value(n), loaded.sources[n]) for n in SETTINGS}
    assert found["port"] == (9, "flag")
    assert found["ctx"] == (2, "environment")
    assert found["ngl"] == (5, "env-file")
    assert found["threads"] == (10, "config-file")
    assert found["parallel"] == (0, "default")


def test_an_empty_value_of_a_file_counts_as_not_set() -> None:
    loaded = load({}, files=files({"LOG_NAME": ""}, log_name="", cors_origins=""))

    assert loaded.settings == Settings.of()
    assert loaded.sources["log_name"] == "default"


@pytest.mark.parametrize(
    ("environ", "flags", "in_file", "model"),
    [
        ({"MODEL_PATH": "/p"}, {"model_name": "n"}, {}, ("n", "")),
        ({"MODEL_NAME": "n"}, {}, {"model_path": "/p"}, ("n", "")),
        ({"MODEL_PATH": "/p", "MODEL_NAME": "n"}, {}, {}, ("n", "/p")),
        ({"MODEL_PATH": "/p"}, {}, {"model_name": "n"}, ("n", "/p")),
        ({"MODEL_PATH": "/p"}, {"model_name": ""}, {}, ("", "/p")),
    ],
)
def test_the_model_is_the_one_of_the_higher_source(
    environ: dict[str, str],
    flags: dict[str, str],
    in_file: dict[str, str],
    model: tuple[str, str],
) -> None:
    found = load(environ, flags, files({}, **in_file)).settings.model

    assert (found.model_name, found.model_path) == model


def test_mistakes_of_a_file_are_reported_with_all_others() -> None:
    with pytest.raises(UserError) as caught:
        load({"PORT": "x"}, files=Files({}, {"ctx": FileValue("y", "f, line 1: ctx")}, ("f: z",)))

    message = str(caught.value)
    assert "\n  f: z\n" in message
    assert "\n  PORT='x' is invalid" in message
    assert "\n  f, line 1: ctx='y' is invalid; must be a whole number" in message


def test_quotes_in_an_env_file_are_removed_with_a_warning() -> None:
    loaded = load({}, files=files({"DATA_DIR": '"/x"'}))

    assert loaded.settings.model.data_dir == "/x"
    assert loaded.warnings == ("DATA_DIR is used without the quotes around its value",)


def test_auto_leaves_context_and_layers_to_llama_server() -> None:
    engine = load({"CTX": "auto", "NGL": "AUTO"}).settings.engine

    assert (engine.ctx, engine.ngl) == (None, None)
    assert load({"NGL": "all"}).settings.engine.ngl == 9999
    assert "from 0 to 9999 or auto or all" in mistake("NGL", "many")


def test_an_empty_environment_is_all_defaults() -> None:
    loaded = load({})

    assert loaded.settings == Settings.of()
    assert set(loaded.sources) == set(SETTINGS)
    assert set(loaded.sources.values()) == {"default"}


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_variable_that_is_empty_counts_as_not_set(name: str, text: str) -> None:
    loaded = load({variable(name): text})

    assert loaded.settings == Settings.of()
    assert loaded.sources[name] == "default"


def test_white_space_around_a_value_is_no_part_of_it() -> None:
    settings = load({"PORT": " 9000\n", "MODEL_NAME": " a b.gguf "}).settings

    assert (settings.listen.port, settings.model.model_name) == (9000, "a b.gguf")


def test_a_flag_may_clear_a_variable() -> None:
    settings = load(
        {"CORS_ORIGINS": "*", "EXTRA_ARGS": "-x"}, {"cors_origins": "", "extra_args": ""}
    ).settings

    assert (settings.routes.cors_origins, settings.engine.extra_args) == ((), "")


def test_a_bad_variable_behind_a_good_flag_does_no_harm() -> None:
    assert load({"PORT": "many"}, {"port": "9000"}).settings.listen.port == 9000


# What cannot be used ------------------------------------------------------------------------------


def test_more_slots_than_llama_server_can_have_are_rejected() -> None:
    assert load({"PARALLEL": "256"}).settings.engine.parallel == 256
    assert "PARALLEL" in mistake("PARALLEL", "257")


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
    assert load({"TLS_CERT_FILE": "/a", "TLS_KEY_FILE": "/b"}).settings.tls.tls_key_file == "/b"


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        (
            {"MAX_REQUEST_BODY_SIZE": "1001", "MAX_BODY_MEMORY": "1000"},
            "MAX_BODY_MEMORY=1000 must be at least MAX_REQUEST_BODY_SIZE=1001: ",
        ),
        ({"MAX_REQUEST_BODY_SIZE": "1000", "MAX_BODY_MEMORY": "999"}, "MAX_BODY_MEMORY=999 must"),
        ({"AUTH_ENABLED": "false", "ADMIN_KEY_IDS": "a"}, "ADMIN_KEY_IDS needs AUTH_ENABLED=true"),
        ({"AUTH_ENABLED": "false", "METRICS_AUTH_ENABLED": "1"}, "METRICS_AUTH_ENABLED=true needs"),
        (
            {"MAX_CONCURRENT_REQUESTS": "101", "MAX_CONNECTIONS": "100"},
            "MAX_CONCURRENT_REQUESTS=101 must not exceed MAX_CONNECTIONS=100",
        ),
        (
            {"SSE_KEEPALIVE": "61", "MAX_QUEUE_WAIT": "0", "REQUEST_TIMEOUT": "60"},
            "SSE_KEEPALIVE=61 must not exceed MAX_QUEUE_WAIT + REQUEST_TIMEOUT = 60",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(
    environ: dict[str, str], text: str
) -> None:
    with pytest.raises(UserError) as caught:
        load(environ)

    assert f"\n  {text}" in str(caught.value)


def test_settings_at_the_limit_of_each_other_are_accepted() -> None:
    load({"MAX_REQUEST_BODY_SIZE": "1000", "MAX_BODY_MEMORY": "1000"})
    load({"MAX_CONCURRENT_REQUESTS": "100", "MAX_CONNECTIONS": "100"})
    load({"SSE_KEEPALIVE": "600"})


@pytest.mark.parametrize(
    ("environ", "largest"),
    [
        ({}, 100 << 20),
        ({"MAX_BODY_MEMORY": "1000"}, 1000),
        ({"MAX_BODY_MEMORY": str(1 << 30)}, 100 << 20),
        ({"MAX_BODY_MEMORY": "1000", "MAX_REQUEST_BODY_SIZE": "10"}, 10),
    ],
)
def test_a_body_is_as_large_as_the_engine_takes_and_the_memory_for_bodies_has_room_for(
    environ: dict[str, str], largest: int
) -> None:
    assert load(environ).settings.limits.max_request_body_size == largest


# The environment of others ------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['"/x y"', "'/x y'", ' "/x y" ', """'"/x y"'"""])
def test_quotes_that_an_env_file_has_left_are_removed_with_a_warning(text: str) -> None:
    loaded = load({"DATA_DIR": text})

    assert loaded.settings.model.data_dir == "/x y"
    assert loaded.sources["data_dir"] == "environment"
    assert loaded.warnings == ("DATA_DIR is used without the quotes around its value",)


def test_quotes_alone_are_an_empty_value() -> None:
    assert load({"DATA_DIR": '""'}).sources["data_dir"] == "default"


@pytest.mark.parametrize("text", ['"', "'a' 'b'", "a'", '"a\' "b"', "--x 'y'"])
def test_quotes_within_a_value_stay(text: str) -> None:
    loaded = load({"EXTRA_ARGS": text})

    assert loaded.settings.engine.extra_args == text
    assert not loaded.warnings


def test_a_comment_behind_a_value_is_warned_about() -> None:
    loaded = load({"DATA_DIR": "/x   # the data", "MODEL_NAME": "a#b"})

    assert loaded.settings.model.data_dir == "/x   # the data"
    (warning,) = loaded.warnings
    assert warning.startswith("DATA_DIR contains ' #': ")


def test_the_quotes_of_a_flag_stay() -> None:
    assert load({}, {"data_dir": '"/x"'}).settings.model.data_dir == '"/x"'


def test_a_secret_in_quotes_is_not_shown() -> None:
    loaded = load({"BACKEND_API_KEY": f'"{SECRET}"'})

    assert loaded.settings.upstream.backend_api_key == SECRET
    assert SECRET not in loaded.warnings[0]


@pytest.mark.parametrize("host", ["x86_64-conda-linux-gnu", "aarch64-conda_cos7-linux-gnu"])
def test_the_compiler_target_of_conda_is_no_address(host: str) -> None:
    loaded = load({"HOST": host})

    assert loaded.settings == Settings.of()
    assert loaded.sources["host"] == "default"
    (warning,) = loaded.warnings
    assert f"HOST={host} is not used" in warning


@pytest.mark.parametrize("host", ["my-host", "conda", "x86-64-conda.example.org", "::", "10.0.0.1"])
def test_other_hosts_are_used(host: str) -> None:
    assert load({"HOST": host}).settings.listen.host == host


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


def slips(name: str) -> Iterator[str]:
    """*name* with one letter removed, changed, added, or swapped with the next."""
    for i, letter in enumerate(name):
        start, end = name[:i], name[i + 1 :]
        yield from (f"{start}{other}{end}" for other in ("", "Q", f"{letter}Q", f"Q{letter}"))
        yield start + end[:1] + letter + end[1:]


def test_a_slip_anywhere_in_a_name_is_warned_about() -> None:
    names = [variable(name) for name in SETTINGS if len(name) >= 5]
    wrong = {
        (slip, name)
        for name in names
        for slip in slips(name)
        if len(slip) >= 5 and slip not in {*names, "LOGNAME"}
    }
    found = load({slip: "" for slip, _ in wrong}).warnings

    assert {f"{slip} is not a setting; did you mean {name}?" for slip, name in wrong} <= {*found}


@pytest.mark.parametrize(
    "name",
    [
        *("LOGNAME", "HOSTNAME", "PATH", "HOME", "USER", "SHELL", "TERM", "LANG", "LC_ALL", "TZ"),
        *("PWD", "OLDPWD", "SHLVL", "MAIL", "EDITOR", "HOSTS", "PORTS", "SPORT", "DEBUG", "NGINX"),
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "RUNPOD_POD_ID", "HF_TOKEN"),
        *("BACKEND_PORT", "MODEL", "MODELS", "OMP_NUM_THREADS", "HTTP_PROXY"),
    ],
)
def test_the_variables_of_an_ordinary_machine_bring_no_warning(name: str) -> None:
    assert load({name: "x"}).warnings == ()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_no_slip_for_another(name: str) -> None:
    others = {variable(other): "" for other in SETTINGS}

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
