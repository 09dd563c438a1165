from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llama_gguf import __version__
from llama_gguf.cli import pull
from llama_gguf.cli.context import Context
from llama_gguf.cli.main import COMMANDS, main
from llama_gguf.config import settings as settings_module
from llama_gguf.form import FORM

SECRETS = [name for name, about in settings_module.SETTINGS.items() if about.secret]


def left_with(*argv: str, environ: Mapping[str, str] | None = None) -> object:
    """The status with which argparse exits."""
    with pytest.raises(SystemExit) as left:
        main(argv, environ or {})
    return left.value.code


# Help ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_with_a_flag_for_each_setting_it_uses(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert left_with(name, "--help") == 0

    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: llama-gguf {name}")
    assert max(map(len, shown.splitlines())) <= 100
    for setting in settings_module.USED_BY[name]:
        names = ", ".join(settings_module.flags(setting))
        assert (f"  {names} {settings_module.variable(setting)}" in shown) == (
            setting not in SECRETS
        )


def test_without_arguments_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], {}) == 0

    shown = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert name in shown
        assert text in shown
    assert "llama-gguf pull smollm2" in shown


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv, {}) == 0

    assert capsys.readouterr().out.startswith("usage: llama-gguf COMMAND")


@pytest.mark.parametrize("words", [["serve"], ["keys"], ["keys", "generate"], ["keys", "add"]])
def test_help_shows_a_command_as_its_flag_does(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert left_with("help", *words) == 0
    shown = capsys.readouterr().out
    assert left_with(*words, "--help") == 0

    assert shown == capsys.readouterr().out
    assert shown.startswith(f"usage: llama-gguf {words[0]}")


@pytest.mark.parametrize("words", [["keys"], ["keys", "set"]])
def test_help_may_follow_a_command_that_has_actions(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert left_with("keys", "help", *words[1:]) == 0
    shown = capsys.readouterr().out
    assert left_with(*words, "--help") == 0

    assert shown == capsys.readouterr().out


def test_the_help_of_serve_begins_with_the_settings_that_matter_most(
    capsys: pytest.CaptureFixture[str],
) -> None:
    left_with("serve", "--help")

    shown = capsys.readouterr().out
    first = shown.partition("the most common settings:\n")[2].partition("\n\n")[0]
    found = [line for line in first.splitlines() if line.startswith("  -")]
    names = [", ".join(settings_module.flags(name)) for name in settings_module.FIRST]
    assert [line.strip().partition("  ")[0].rpartition(" ")[0] for line in found][:-1] == names
    assert found[-1].startswith("  --env-file FILE")
    assert shown.index("the most common settings") < shown.index("settings: model")


@pytest.mark.parametrize("word", ["--version", "-V", "version"])
def test_the_version_is_shown(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word], {}) == 0

    assert capsys.readouterr().out == f"llama-gguf {__version__} ({FORM})\n"


# llama-server's names ---------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        (["-m", "x.gguf"], "MODEL_NAME", "x.gguf"),
        (["--model", "/x.gguf"], "MODEL_NAME", "/x.gguf"),
        (["-c", "4096"], "CTX", "4096"),
        (["--ctx-size=4096"], "CTX", "4096"),
        (["-c", "auto"], "CTX", "auto"),
        (["-ngl", "7"], "NGL", "7"),
        (["--n-gpu-layers", "auto"], "NGL", "auto"),
        (["--gpu-layers", "all"], "NGL", "9999"),
        (["-np", "2"], "PARALLEL", "2"),
        (["-t", "3"], "THREADS", "3"),
        (["-p", "9000"], "PORT", "9000"),
        (["m.gguf"], "MODEL_NAME", "m.gguf"),
    ],
)
def test_llama_servers_flags_are_settings(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    name: str,
    value: str,
) -> None:
    environ = {"DATA_DIR": str(tmp_path), "MODEL_PATH": "/other.gguf"}

    main(["check", "--json", *flags], environ)

    output = json.loads(capsys.readouterr().out)["settings"]
    assert output[name] == {"value": value, "source": "flag"}
    if name == "MODEL_NAME":
        assert output["MODEL_PATH"] == {"value": "", "source": "default"}


def test_no_flag_has_two_meanings() -> None:
    names = [flag for name in settings_module.SETTINGS for flag in settings_module.flags(name)]

    assert len(names) == len(set(names))


# Files --------------------------------------------------------------------------------------------


@pytest.mark.processes
def test_files_of_settings_are_read_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text(f"data_dir = '{tmp_path}'\nctx = 1024\nport = 9000\n")
    (tmp_path / "e").write_text("PORT=9001\nNGL=3\n")
    files = ["--config", str(tmp_path / "c.toml"), "--env-file", str(tmp_path / "e")]

    main(["check", "--json", *files], {"NGL": "4"})
    output = json.loads(capsys.readouterr().out)
    assert output["settings"]["CTX"] == {"value": "1024", "source": "config-file"}
    assert output["settings"]["PORT"] == {"value": "9001", "source": "env-file"}
    assert output["settings"]["NGL"] == {"value": "4", "source": "environment"}
    assert output["files"] == {"config-file": files[1], "env-file": files[3]}

    assert main(["keys", "generate", "bob", *files], {}) == 0
    assert main(["keys", *files, "list"], {}) == 0
    assert "bob" in capsys.readouterr().out
    assert "bob" in (tmp_path / "api_keys.txt").read_text()


def test_an_unknown_key_in_the_file_is_an_error_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.toml").write_text("ctx_size = 1\n")

    assert main(["pull", "--list"], {"CONFIG_FILE": str(tmp_path / "c.toml")}) == 2

    assert "line 1: ctx_size is not a setting; did you mean ctx?" in capsys.readouterr().err


# Mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["serv"], [""], ["--flag"], ["SERVE"], ["../serve"], ["main"]])
def test_an_unknown_command_exits_with_2(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert left_with(*argv) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("usage: llama-gguf")


def test_an_unknown_command_lists_the_commands(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert left_with("serv") == 2

    output = capsys.readouterr().err
    assert "unknown command serv; did you mean serve?" in output.splitlines()[-1]
    assert all(name in output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_unknown_flag_exits_with_2(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"keys": ["list"], "completion": ["bash"], "ray": ["status"]}.get(name, [])

    assert left_with(name, *words, "--no-such-flag") == 2

    assert "--no-such-flag" in capsys.readouterr().err


@pytest.mark.processes
@pytest.mark.parametrize("flags", ["--no-mmap", "--no-mmap --mlock", "-fa on"])
def test_the_value_of_extra_args_can_be_a_separate_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str
) -> None:
    for words in (["--extra-args", flags], [f"--extra-args={flags}"]):
        main(["check", *words, "--json"], {"DATA_DIR": str(tmp_path)})

        output = json.loads(capsys.readouterr().out)
        assert output["settings"]["EXTRA_ARGS"]["value"] == flags


def test_extra_args_needs_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert left_with("check", "--extra-args") == 2

    assert "--extra-args: expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize("name", [n for n in COMMANDS if n not in {"keys", "completion"}])
def test_no_secret_can_be_given_as_a_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for secret in SECRETS:
        for words in (
            [settings_module.flag(secret), "hidden"],
            [f"{settings_module.flag(secret)}=hidden"],
        ):
            action = ["up"] if name == "ray" else []
            assert left_with(name, *action, *words) == 2
            output = capsys.readouterr().err
            assert (
                f"{settings_module.variable(secret)} can only be set in the environment or a file"
                in output
            )
            assert "hidden" not in output


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["serve", "--prot", "8000"], "unknown flag --prot; did you mean --port?"),
        (["serve", "--prot=8000"], "unknown flag --prot; did you mean --port?"),
        (["check", "--jsn"], "unknown flag --jsn; did you mean --json?"),
        (["serve", "--zebra"], "unknown flag --zebra; see --help"),
        (["serve", "one.gguf", "two.gguf"], "too many arguments"),
        (["keys", "set", "a", "--wieght", "2"], "unknown flag --wieght; did you mean --weight?"),
        (["keys", "set", "bob", "eve"], "too many arguments"),
    ],
)
def test_an_unknown_flag_is_reported_with_the_closest_one(
    words: list[str], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert left_with(*words) == 2

    assert output in capsys.readouterr().err


def test_an_invalid_setting_exits_with_2_in_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"DATA_DIR": str(tmp_path), "PORT": "http"}

    assert main(["pull", "--list"], environ) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("llama-gguf: These settings are invalid:\n  PORT='http'")


def test_an_interrupt_exits_with_130_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "run", interrupted)

    assert main(["pull", "smollm2"], {}) == 130
    assert capsys.readouterr() == ("", "")


# Mistyped variables -------------------------------------------------------------------------------


def test_a_mistyped_variable_causes_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", "--list"], {"MAX_QUEU_SIZE": "5", "DATADIR": "/x"}) == 0

    assert capsys.readouterr().err == (
        "llama-gguf: warning: DATADIR is not a setting; did you mean DATA_DIR?\n"
        "llama-gguf: warning: MAX_QUEU_SIZE is not a setting; did you mean MAX_QUEUE_SIZE?\n"
    )


def test_the_variables_of_a_login_shell_cause_no_warning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # POSIX, XBD chapter 8, and the variables that sudo, ssh, Docker and RunPod set.
    posix = ("HOME", "LOGNAME", "MAIL", "PATH", "PWD", "OLDPWD", "SHELL", "TERM", "USER", "LANG")
    others = ("HOSTNAME", "HOSTTYPE", "SUDO_USER", "SSH_TTY", "DISPLAY", "EDITOR", "PORTS")
    runpod = ("RUNPOD_POD_ID", "RUNPOD_API_KEY", "RUNPOD_TCP_PORT_22", "PUBLIC_KEY")

    assert main(["pull", "--list"], dict.fromkeys((*posix, *others, *runpod), "x")) == 0

    assert capsys.readouterr().err == ""


# Precedence ---------------------------------------------------------------------------------------


@pytest.mark.processes
def test_a_flag_precedes_the_environment_which_precedes_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"DATA_DIR": str(tmp_path), "CTX": "2048", "NGL": "7", "THREADS": ""}

    main(["check", "--json", "--ctx", "512"], environ)

    output = json.loads(capsys.readouterr().out)["settings"]
    assert output["CTX"] == {"value": "512", "source": "flag"}
    assert output["NGL"] == {"value": "7", "source": "environment"}
    assert output["THREADS"] == {"value": "0", "source": "default"}


# As a process -------------------------------------------------------------------------------------


def run(*argv: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "llama_gguf", *argv],
        env={"PATH": os.defpath},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.processes
@pytest.mark.parametrize(
    "argv",
    [
        ["pull", "--list"],
        ["pull", "--list", "--json"],
        [],
        ["--help"],
        ["serve", "--help"],
    ],
)
def test_a_closed_pipe_is_no_error(argv: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = run(*argv, stdout=writing)
    finally:
        os.close(writing)

    assert result.stderr == ""


@pytest.mark.processes
def test_the_module_is_the_command() -> None:
    result = run("--version")

    assert (result.returncode, result.stdout) == (0, f"llama-gguf {__version__} ({FORM})\n")


def test_an_error_about_settings_shows_where_they_came_from(
    capsys: pytest.CaptureFixture[str],
) -> None:
    environ = {"AUTH_ENABLED": "false", "HOST": "203.0.113.1"}

    assert main(["gateway"], environ) == 1
    assert "\nHOST is set in the environment.\n" in capsys.readouterr().err

    assert main(["gateway", "--host", "203.0.113.1"], environ) == 1
    assert "\nHOST is set by a flag.\n" in capsys.readouterr().err


def test_the_settings_can_be_read_again_from_the_same_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read: list[Context] = []

    def run(arguments: object, context: Context) -> int:
        read.append(context)
        return 0

    monkeypatch.setattr(pull, "run", run)
    environ = {"MODELS_DIR": "/first", "DATA_DIR": str(tmp_path)}

    main(["pull", "smollm2", "--data-dir", "/flag"], environ)
    environ["MODELS_DIR"] = "/second"
    (context,) = read
    assert context.read_again is not None
    again = context.read_again()

    assert (context.settings.model.models_dir, again.settings.model.models_dir) == (
        "/first",
        "/second",
    )
    assert again.settings.model.data_dir == "/flag"
    environ["CTX"] = "many"
    assert "CTX='many' is invalid" in context.read_again().complaint
